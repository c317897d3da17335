"""Accepts each message of the hub once and in order, and only messages of this hub.

Sequence numbers of a partition have no gaps. A number that is not the next one was read before, or
messages expired, or the hub was deleted and created again with the same name: then its numbers
begin at 0, and checkpoints of the old hub mean nothing. The hub is therefore asked for its creation
time before a gap counts as loss. A checkpoint ahead of the hub is of another hub as well.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from forwarder import log
from forwarder.checkpoints.generation import GenerationStore
from forwarder.delivery.partition import Partition
from forwarder.delivery.watermark import Message
from forwarder.hub.message import Received
from forwarder.hub.monitor import HubMonitor

_PAUSE: Final = 0.5  # seconds between two polls of a hub that does not answer
STALE: Final = "STALE_CHECKPOINT"


class EndError(Exception):
    """The partition cannot be read further; the argument is the reason."""


@dataclass(slots=True, eq=False)
class Order:
    """Compares what is received with what the hub reports of itself."""

    _hub: HubMonitor
    _store: GenerationStore
    _on_recreated: Callable[[], None]  # opens everything again
    _on_end: Callable[[str, str], None]  # opens a partition again
    _ahead: set[str] = field(default_factory=set)  # partitions, at the last check
    _recreated: bool = False

    def begin(self) -> None:
        """Take the hub as it is now for the one that is read."""
        self._store.created = self._hub.created
        self._recreated = False

    def check(self, partitions: Mapping[str, Partition]) -> None:
        """Compare the hub as it was just polled with what is read."""
        self._check_generation()
        if self._recreated:
            return
        ahead = {
            number
            for number, partition in partitions.items()
            if partition.last_received is None
            and partition.start_after is not None
            and partition.start_after > self._hub.last.get(number, partition.start_after)
        }
        # Twice, for the checkpoint may be younger than the poll.
        for number in ahead & self._ahead:
            self._mark_stale(partitions[number])  # guard: checkpoint-ahead-of-hub
            self._on_end(number, STALE)
        self._ahead = ahead

    async def accept(self, partition: Partition, received: Received) -> Message | None:
        """Return the message's place, or None if it is not to be taken.

        Raises EndError if the partition is to be opened again, at StartPosition.
        """
        number, newest, last = received.sequence_number, partition.last_received, partition.last
        if number is None:  # it can only be the next one
            first = self._hub.first.get(partition.number, 0)
            number = first if last is None else last + 1
        enqueued = self._hub.now() if received.enqueued is None else received.enqueued
        message = Message(number, received.offset, enqueued, len(received.body))
        if last is None or number == last + 1:  # guard: gap-asks-the-hub
            return message
        # Read again after a reconnect, or because its checkpoint has no offset.
        if number <= last and enqueued <= newest.enqueued if newest else number == last:
            return None  # guard: already-received
        await self._hub.poll()
        while self._hub.outage.reason:
            await asyncio.sleep(_PAUSE)
            await self._hub.poll()
        self._check_generation()
        if self._recreated:
            return None
        if not newest and number <= last:
            self._mark_stale(partition)
            raise EndError(STALE)
        return message if number > last else None

    def _check_generation(self) -> None:
        # guard: recreated-hub
        if self._hub.created != self._store.created and not self._recreated:
            self._recreated = True
            self._store.log_recreated(self._hub.created)
            self._on_recreated()

    def _mark_stale(self, partition: Partition) -> None:
        """Note that the partition's checkpoint is of another hub: StartPosition holds."""
        if self._store.stale.get(partition.number) != partition.start_after:
            self._store.stale[partition.number] = partition.start_after
            log.error(
                "checkpoint is of another hub, reading starts at StartPosition",
                partition=partition.number,
                checkpoint=partition.start_after,
            )
