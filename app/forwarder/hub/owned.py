"""The partitions that this process owns: opened behind a checkpoint, closed with a last one."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial

from azure.eventhub.aio import EventHubConsumerClient

from forwarder import log
from forwarder.checkpoints.writer import Checkpoints, Owned
from forwarder.config.settings import Settings
from forwarder.delivery.partition import DeliveryContext, Partition
from forwarder.hub.message import Received
from forwarder.hub.monitor import HubMonitor
from forwarder.hub.reader import Reader


class OwnedPartitions:
    """Each has a reader, and leaves with what it has under way delivered as far as possible."""

    def __init__(
        self,
        delivery: DeliveryContext,
        hub: HubMonitor,
        checkpoints: Checkpoints,
        take: Callable[[Partition, Received], Awaitable[None]],
        on_end: Callable[[str, str], None],
    ) -> None:
        """`take` gets each message; `on_end` the partition that cannot be read on, and why."""
        self._delivery = delivery
        self._hub = hub
        self._checkpoints = checkpoints
        self._take = take
        self._on_end = on_end
        self._readers: dict[str, Reader] = {}
        self._leaving: set[Partition] = set()
        self._stopping = False
        self.partitions: dict[str, Partition] = {}

    def refusal(self, number: str) -> str:
        """Return why a partition cannot be read at the moment; empty if it can."""
        reader = self._readers.get(number)
        return reader.refusal if reader else ""

    def is_blocked(self, number: str) -> bool:
        """Tell whether a partition's next message waits for room in the buffer."""
        reader = self._readers.get(number)
        found = self.partitions[number].blocked_message is not None
        return found or (reader is not None and reader.blocked)

    @property
    def failure(self) -> str:
        """Why no partition can be read; empty if one can, or if this process owns none."""
        found = [reader.refusal for reader in self._readers.values()]
        return found[0] if found and all(found) else ""

    def cancel(self) -> None:
        """Give up what is under way; it is read again from the checkpoint."""
        for partition in {*self.partitions.values(), *self._leaving}:
            partition.cancel()

    def stop(self) -> None:
        """Receive no more messages."""
        self._stopping = True
        for reader in self._readers.values():
            reader.cancel()  # guard: nothing-received-while-stopping

    async def drain(self) -> None:
        """Wait until everything received is acknowledged."""
        await asyncio.gather(*(p.drain() for p in {*self.partitions.values(), *self._leaving}))

    async def claim(self, number: str, place: Mapping[str, str]) -> Owned:
        """Claim a partition's checkpoint; SupersededError if another process has moved it."""
        partition = Partition(number, self._delivery)
        return await self._checkpoints.claim(place, partition, self._hub.starting_place)

    def open(self, owned: Owned, client: EventHubConsumerClient, settings: Settings) -> None:
        """Begin to receive behind the checkpoint."""
        partition, number = owned.partition, owned.partition.number
        partition.start_after = owned.stored
        partition.progress = time.monotonic()
        self.partitions[number] = partition
        reader = self._readers[number] = Reader(
            client,
            settings,
            partition,
            owned.checkpoint,
            hub=self._hub.outage,
            buffer=self._delivery.buffer,
        )
        reader.start(partial(self._take, partition), self._on_end)
        log.info("partition claimed", partition=number, checkpoint=owned.stored)
        self._delivery.metrics.owned.set(len(self.partitions))

    async def restart(self, number: str) -> None:
        """Open the partition's link again behind what was received."""
        if reader := self._readers.get(number):
            await reader.stop()
            if self._readers.get(number) is reader and not self._stopping:
                reader.start(partial(self._take, self.partitions[number]), self._on_end)

    async def close(self, number: str, reason: str, drain: float = 0) -> None:
        """Stop receiving, wait `drain` seconds for what is in flight, write a last checkpoint.

        What is still in flight then is delivered as well, and again by the next owner.
        """
        partition, reader = self.partitions.pop(number, None), self._readers.pop(number, None)
        self._delivery.metrics.owned.set(len(self.partitions))
        if reader:
            await reader.stop()
        if partition and drain:
            with suppress(TimeoutError):
                async with asyncio.timeout(drain):
                    await partition.drain()  # guard: drain-before-release
        if partition:
            self._leaving = {one for one in self._leaving if one.watermark.oldest} | {partition}
        if owned := await self._checkpoints.release(number):
            log.info(
                "partition given up",
                partition=number,
                reason=reason,
                checkpoint=owned.stored,
                ownedSeconds=round(time.monotonic() - owned.since, 1),
            )
