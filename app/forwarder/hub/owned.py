"""The partitions that this process owns: opened behind a checkpoint, closed with a last one."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from azure.eventhub.aio import EventHubConsumerClient

from forwarder import log
from forwarder.checkpoints.writer import Checkpoints, Owned
from forwarder.delivery.partition import DeliveryContext, Partition
from forwarder.hub.monitor import HubMonitor
from forwarder.hub.reader import OnEnd, Reader, Take


@dataclass(slots=True, eq=False)
class OwnedPartitions:
    """Each has a reader. It is left once its messages are delivered, as far as possible."""

    _delivery: DeliveryContext
    _hub: HubMonitor
    _checkpoints: Checkpoints
    _take: Take
    _on_end: OnEnd
    _leaving: set[Partition] = field(default_factory=set)
    partitions: dict[str, Partition] = field(default_factory=dict)
    readers: dict[str, Reader] = field(default_factory=dict)

    @property
    def failure(self) -> str:
        """Why no partition can be read; empty if one can, or if this process owns none."""
        refusals = [reader.refusal for reader in self.readers.values()]
        return refusals[0] if refusals and all(refusals) else ""

    def lag(self, number: str) -> int:
        """Return how many messages of a partition were not received yet."""
        partition = self.partitions.get(number)
        received = (partition.last if partition else None) or 0
        return self._hub.last.get(number, -1) - received

    def cancel(self) -> None:
        """Give up what is under way; it is read again from the checkpoint."""
        for partition in {*self.partitions.values(), *self._leaving}:
            partition.cancel()

    def stop(self) -> None:
        """Receive no more messages."""
        for reader in self.readers.values():
            reader.cancel()  # guard: nothing-received-while-stopping

    async def drain(self) -> None:
        """Wait until everything received is acknowledged."""
        await asyncio.gather(*(p.drain() for p in {*self.partitions.values(), *self._leaving}))

    async def claim(self, number: str, place: Mapping[str, str]) -> Owned:
        """Claim a partition's checkpoint; SupersededError if another process has moved it."""
        partition = Partition(number, self._delivery)
        return await self._checkpoints.claim(place, partition, self._hub.starting_place)

    def open(self, owned: Owned, client: EventHubConsumerClient) -> None:
        """Begin to receive behind the checkpoint."""
        partition, number = owned.partition, owned.partition.number
        partition.start_after = owned.stored
        partition.progress = time.monotonic()
        self.partitions[number] = partition
        self.readers[number] = Reader(
            client, self._delivery, owned, self._hub.outage, self._take, self._on_end
        )
        log.info("partition claimed", partition=number, checkpoint=owned.stored)

    async def close(self, number: str, reason: str, drain: float = 0) -> None:
        """Stop receiving, wait `drain` seconds for what is in flight, write a last checkpoint.

        What is still in flight then is delivered as well, and again by the next owner.
        """
        partition, reader = self.partitions.pop(number, None), self.readers.pop(number, None)
        if reason == "OWNERSHIP_LOST":
            self._delivery.metrics.losses.labels(number).inc()
        if reader:
            await reader.stop()
        if partition:
            with suppress(TimeoutError):
                async with asyncio.timeout(drain):
                    await partition.drain()  # guard: drain-before-release
            self._leaving = {p for p in self._leaving if p.watermark.oldest} | {partition}
        if owned := await self._checkpoints.release(number):
            log.info(
                "partition given up",
                partition=number,
                reason=reason,
                checkpoint=owned.stored,
                ownedSeconds=round(time.monotonic() - owned.since, 1),
            )
