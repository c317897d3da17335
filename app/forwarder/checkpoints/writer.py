"""Writes checkpoints of the owned partitions, at intervals and never on the delivery path.

A checkpoint is the watermark of a partition: everything up to it is acknowledged. It never moves
another process's checkpoint back. A process that was frozen, or cut off from the store, has lost
its partitions without knowing; the store refuses its checkpoint (SupersededError).

A partition without a checkpoint gets one when it is claimed, before its first message is received:
the place before the first message to read. Otherwise `latest`, or an age, would be resolved again
at each restart, and skip what came since. If the checkpoint cannot be written the claim fails and
is repeated, unless reading starts at `earliest`, which skips nothing.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from forwarder import log
from forwarder.checkpoints.generation import GenerationStore
from forwarder.checkpoints.quarantine import Quarantine
from forwarder.config.settings import Settings
from forwarder.delivery.partition import Partition
from forwarder.diagnosis import causes
from forwarder.errors import SupersededError
from forwarder.outage import Outage

_STORE_TIMEOUT: Final = 15.0  # seconds for one checkpoint

StartingPlace = Callable[[str], Awaitable[dict[str, Any]]]
"""Returns `sequence_number` and `offset` of the message before the first to read."""


@dataclass(slots=True, eq=False)
class Owned:
    """A partition that this process reads, and its checkpoint as the store has it."""

    partition: Partition
    checkpoint: dict[str, Any]
    since: float = field(default_factory=time.monotonic)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def stored(self) -> int | None:
        """The checkpoint's sequence number, if there is one."""
        return self.checkpoint.get("sequence_number")


class Checkpoints:
    """The checkpoints of the partitions that this process owns."""

    def __init__(self, store: GenerationStore, quarantine: Quarantine, settings: Settings) -> None:
        self._store = store
        self.quarantine = quarantine
        self._settings = settings
        self._superseded = log.RateLimited()
        self.outage = Outage("checkpoints cannot be written", "checkpoints are written again")
        self.owned: dict[str, Owned] = {}

    async def claim(
        self, place: Mapping[str, str], partition: Partition, starting_place: StartingPlace
    ) -> Owned:
        """Start writing checkpoints of this partition, from the one that was listed last.

        SupersededError if another process has written one since the listing.
        """
        number = partition.number
        owned = Owned(partition, self._store.listed.get(number, {**place, "partition_id": number}))
        if "sequence_number" not in owned.checkpoint:
            await self._start(owned, await starting_place(number))
        self.owned[number] = owned
        self.quarantine.claimed(number, owned.stored)
        return owned

    async def release(self, partition_id: str) -> Owned | None:
        """Write a last checkpoint and forget the partition."""
        if owned := self.owned.pop(partition_id, None):
            self.quarantine.left(partition_id)
            await self._round([owned])
        return owned

    async def run(self) -> None:
        """Write checkpoints until cancelled."""
        while True:
            await asyncio.sleep(self._settings.checkpoint_interval)
            await self.flush()

    async def flush(self) -> None:
        """Write the checkpoints that have moved; a failure is logged, counted and tried again."""
        await self._round(self.owned.values())

    async def _start(self, owned: Owned, place: dict[str, Any]) -> None:
        """Write where reading starts, unless somebody has written a checkpoint."""
        checkpoint = {**owned.checkpoint, **place}
        try:
            async with asyncio.timeout(_STORE_TIMEOUT):
                await self._store.update_checkpoint(checkpoint, start=True)
        except SupersededError:
            raise
        except Exception as error:
            self.outage.fail(str(causes.of_store(error, self._settings)))
            if self._settings.start_position != "earliest":  # guard: start-is-written
                raise
        else:
            owned.checkpoint = checkpoint
            self.outage.end()

    async def _round(self, owned: Iterable[Owned]) -> None:
        results = await asyncio.gather(*map(self._write, owned), return_exceptions=True)
        if errors := [result for result in results if isinstance(result, BaseException)]:
            # guard: failed-checkpoint-is-retried
            self.outage.fail(str(causes.of_store(errors[0], self._settings)))
        elif any(results):
            self.outage.end()

    async def _write(self, owned: Owned) -> bool:
        """Write a partition's checkpoint if it has moved; return whether the store answered."""
        async with owned.lock:  # of two writes at once, one would look like another process's
            mark = owned.partition.watermark.position
            if not mark or mark.sequence_number == owned.stored:
                return False
            number = mark.sequence_number
            place = {"offset": mark.offset, "sequence_number": number, "enqueued": mark.enqueued}
            checkpoint = {**owned.checkpoint, **place}
            result = "error"
            try:
                async with asyncio.timeout(_STORE_TIMEOUT):
                    await self._store.update_checkpoint(checkpoint)
                owned.checkpoint = checkpoint
                self.quarantine.passed(owned.partition.number, number)
                result = "ok"
            except SupersededError:
                result = "superseded"
                self._superseded.error(
                    "checkpoint not written, another process is ahead",
                    partition=owned.partition.number,
                )
            finally:
                owned.partition.metrics.checkpoints[result].inc()
            return True
