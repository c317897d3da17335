"""Writes checkpoints of the owned partitions, at intervals and never on the delivery path.

A checkpoint is the watermark of a partition: everything up to it is acknowledged. It never moves
back the checkpoint of another process. A process that was frozen, or cut off from the store, may
have lost its partitions without noticing; the store refuses its checkpoint (SupersededError).

A partition without a checkpoint gets one when it is claimed, before its first message is received:
the position before the first message to read. Otherwise `latest`, or an age, would be resolved
again at each restart, and skip what came in between. If this checkpoint cannot be written, the
claim fails and is repeated, unless reading starts at `earliest`, which skips nothing.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from forwarder import log
from forwarder.checkpoints.generation import GenerationStore
from forwarder.checkpoints.listing import scope_of
from forwarder.checkpoints.quarantine import Quarantine
from forwarder.config.settings import Settings
from forwarder.delivery.partition import Partition
from forwarder.delivery.watermark import Message
from forwarder.diagnosis import causes
from forwarder.errors import ForwarderError, SupersededError
from forwarder.outage import Outage

_STORE_TIMEOUT: Final = 15.0  # seconds for one checkpoint

StartingPosition = Callable[[str], Awaitable[dict[str, Any]]]
"""Returns `sequence_number` and `offset` of the message before the first one to read."""


@dataclass(slots=True, eq=False)
class Claim:
    """A partition that this process reads, and its checkpoint as it is in the store."""

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
        self.claims: dict[str, Claim] = {}
        self._unwritten: dict[tuple[str, float], Message] = {}  # by partition and hub

    async def claim(self, partition: Partition, starting_position: StartingPosition) -> Claim:
        """Start to write checkpoints of this partition, after the one that was listed last.

        SupersededError if another process has written one since the listing.
        """
        number = partition.number
        without_position = {**scope_of(self._settings), "partition_id": number}
        claim = Claim(partition, self._store.listed.get(number, without_position))
        if "sequence_number" not in claim.checkpoint:
            await self._start(claim, await starting_position(number))
        last = self._unwritten.pop((number, self._store.created), None)
        if last and last.sequence_number > (claim.stored or -1):
            partition.last_received = partition.watermark.position = last
        self.claims[number] = claim
        self.quarantine.claimed(number, claim.stored)
        return claim

    async def release(self, number: str, *, keep: bool = True) -> Claim | None:
        """Write a last checkpoint; `keep` one that cannot be written for the next claim."""
        if claim := self.claims.pop(number, None):
            self.quarantine.left(number)
            await self._write_all([claim])
            last = claim.partition.watermark.position
            if keep and last and last.sequence_number != claim.stored:
                self._unwritten[number, self._store.created] = last  # guard: position-is-kept
        return claim

    async def run(self) -> None:
        """Write checkpoints until cancelled."""
        while True:
            await asyncio.sleep(self._settings.checkpoint_interval)
            await self.flush()

    async def flush(self) -> None:
        """Write the checkpoints that have moved; a failure is logged, counted and tried again."""
        await self._write_all(self.claims.values())

    async def _start(self, claim: Claim, position: dict[str, Any]) -> None:
        """Write where reading starts, unless another process has written a checkpoint."""
        checkpoint = {**claim.checkpoint, **position}
        try:
            async with asyncio.timeout(_STORE_TIMEOUT):
                await self._store.update_checkpoint(checkpoint, start=True)
        except SupersededError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a store raises
            self.outage.fail(str(causes.of_store(error, self._settings)))
            if self._settings.start_position != "earliest":  # guard: start-is-written
                raise ForwarderError(self.outage.reason) from None
        else:
            claim.checkpoint = checkpoint
            self.outage.end()

    async def _write_all(self, claims: Iterable[Claim]) -> None:
        results = await asyncio.gather(*map(self._write, claims), return_exceptions=True)
        if errors := [result for result in results if isinstance(result, BaseException)]:
            # guard: failed-checkpoint-is-retried
            self.outage.fail(str(causes.of_store(errors[0], self._settings)))
        elif any(results):
            self.outage.end()

    async def _write(self, claim: Claim) -> bool:
        """Write a partition's checkpoint if it has moved; return whether the store answered."""
        async with claim.lock:  # of two writes at once, one would look like another process's
            last = claim.partition.watermark.position
            if not last or last.sequence_number == claim.stored:
                return False
            number, offset = last.sequence_number, last.offset or None
            position = {"offset": offset, "sequence_number": number, "enqueued": last.enqueued}
            checkpoint = {**claim.checkpoint, **position}
            result = "error"
            try:
                async with asyncio.timeout(_STORE_TIMEOUT):
                    await self._store.update_checkpoint(checkpoint)
                claim.checkpoint = checkpoint
                self.quarantine.passed(claim.partition.number, number)
                result = "ok"
            except SupersededError:
                result = "superseded"
                text = "checkpoint not written, another process is ahead"
                self._superseded.error(text, partition=claim.partition.number)
            finally:
                claim.partition.metrics.checkpoints[result].inc()
            return True
