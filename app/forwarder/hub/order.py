"""Accepts each message of the hub once and in order, and only messages of this hub.

The sequence numbers of a partition have no gaps. If a number is not the next one, the message was
read before, or messages before it expired, or the hub was deleted and recreated under its name. A
recreated hub numbers from 0, and checkpoints of the old one do not apply. So the hub is asked for
its creation time before a gap counts as loss. A checkpoint ahead of the hub is of another one too,
or the hub has lost its newest messages in a forced failover: new ones get the same numbers.
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
    """Compares the sequence numbers of messages with the properties of the hub."""

    _hub: HubMonitor
    _store: GenerationStore
    _on_recreated: Callable[[], None]  # opens everything again
    _on_end: Callable[[str, str], None]  # opens a partition again
    _reached: dict[Partition, int] = field(default_factory=dict)  # numbers, at the last check

    def begin(self) -> None:
        """Read the present hub: from now on, another creation time means another hub."""
        self._store.created = self._hub.created

    def check(self, partitions: Mapping[str, Partition]) -> None:
        """Compare the hub, just polled, with what is being read."""
        if self._is_recreated():
            return
        for partition, reached in self._reached.items():
            number, last = partition.number, self._hub.last.get(partition.number, reached)
            # A number that was reached before the poll is in the hub, unless the hub went back.
            if reached > last and partitions.get(number) is partition:
                if partition.last_received is None:  # otherwise the next claim finds out
                    self._mark_stale(partition)  # guard: checkpoint-ahead-of-hub
                self._on_end(number, STALE)
        self._reached = {one: one.last for one in partitions.values() if one.last is not None}

    async def accept(self, partition: Partition, received: Received) -> Message | None:
        """Return the message, or None if it has to be skipped.

        Raises EndError if the partition has to be opened again, at StartPosition.
        """
        number, newest, last = received.sequence_number, partition.last_received, partition.last
        if number is None:  # it can only be the next one
            first = self._hub.first.get(partition.number, 0)
            number = first if last is None else last + 1
        enqueued = self._hub.now() if received.enqueued is None else received.enqueued
        message = Message(number, received.offset, enqueued, len(received.body))
        if last is None or number == last + 1:  # guard: gap-asks-the-hub
            return message
        repeated = number == last  # its checkpoint has no offset
        if newest:  # the link was opened again
            repeated = number <= last and enqueued <= newest.enqueued
        if repeated:
            return None  # guard: already-received
        await self._hub.poll()
        while self._hub.outage.reason:
            await asyncio.sleep(_PAUSE)
            await self._hub.poll()
        if self._is_recreated():
            return None
        if not newest and number <= last:  # guard: checkpoint-passed-by-hub
            self._mark_stale(partition)
            raise EndError(STALE)
        return message if number > last else None

    def _is_recreated(self) -> bool:
        """Return whether this is another hub than the one that is read; then all is reopened."""
        # guard: recreated-hub
        if self._hub.created != self._store.created:
            self._store.log_recreated(self._hub.created)
            self._on_recreated()
            return True
        return False

    def _mark_stale(self, partition: Partition) -> None:
        """Note that the partition's checkpoint is of another hub: StartPosition applies."""
        if self._store.stale.get(partition.number) != partition.start_after:
            self._store.stale[partition.number] = partition.start_after
            text = "checkpoint is of another hub, reading starts at StartPosition"
            log.error(text, partition=partition.number, checkpoint=partition.start_after)
