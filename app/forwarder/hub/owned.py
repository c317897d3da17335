"""The partitions that this process owns: opened at a checkpoint, closed with a last one.

Closing waits for messages in flight, but not forever. Those that are left are still delivered, and
a second time by the next owner, which starts at the last checkpoint.
"""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import compress
from typing import Final

from azure.eventhub.aio import EventHubConsumerClient

from forwarder import log
from forwarder.checkpoints.writer import Checkpoints, Claim
from forwarder.delivery.partition import DeliveryContext, Partition
from forwarder.diagnosis import causes
from forwarder.hub.balancer import Shares
from forwarder.hub.client import has_owner
from forwarder.hub.monitor import HubMonitor
from forwarder.hub.order import STALE
from forwarder.hub.reader import Handle, OnEnd, Reader

_PROBE: Final = 5.0  # seconds


@dataclass(slots=True, eq=False)
class OwnedPartitions:
    """Opens and closes partitions; each has a reader while it is open."""

    _delivery: DeliveryContext
    _hub: HubMonitor
    _checkpoints: Checkpoints
    _handle: Handle
    _on_end: OnEnd
    _closed: set[Partition] = field(default_factory=set)  # with messages in flight
    partitions: dict[str, Partition] = field(default_factory=dict)
    readers: dict[str, Reader] = field(default_factory=dict)
    _repeated: log.RateLimited = field(default_factory=log.RateLimited)

    @property
    def failure(self) -> str:
        """Why no partition can be read; empty if one can, or if this process owns none."""
        refusals = [reader.refusal for reader in self.readers.values()]
        return refusals[0] if refusals and all(refusals) else ""

    def unread(self, number: str) -> int:
        """Return how many messages of a partition were not received yet."""
        partition = self.partitions.get(number)
        return self._hub.last.get(number, -1) - ((partition and partition.last) or 0)

    def cancel(self) -> None:
        """Stop delivering; what is not acknowledged is read again from the checkpoint."""
        for partition in {*self.partitions.values(), *self._closed}:
            partition.cancel()

    def stop(self) -> None:
        """Receive no more messages."""
        for reader in self.readers.values():
            reader.cancel()  # guard: nothing-received-while-stopping

    async def drain(self) -> None:
        """Wait until everything received is acknowledged."""
        await asyncio.gather(*(p.drain() for p in {*self.partitions.values(), *self._closed}))

    async def to_open(self, shares: Shares, client: EventHubConsumerClient) -> set[str]:
        """Return the partitions of the share that are to be opened.

        If the store did not take their ownerships, the hub is asked whether another process reads
        them. Otherwise two replicas would take them from each other again and again.
        """
        added = {*shares.owned} - {*self.partitions, *shares.excess}
        if not shares.unwritten:
            return added
        error = next(iter(shares.unwritten.values()))
        reason = str(causes.of_store(error, self._delivery.settings))
        self._repeated.error("partitions cannot be claimed", reason=reason)

        async def is_read(number: str) -> bool:
            try:
                async with asyncio.timeout(_PROBE):
                    return await has_owner(client, number)
            except Exception:  # noqa: BLE001 - whatever the client raises; it is asked again
                return True

        asked = sorted(added & shares.unwritten.keys())
        read = await asyncio.gather(*map(is_read, asked))
        # guard: unwritten-ownership-asks-the-hub
        return added.difference(compress(asked, read))

    def open(self, claim: Claim, client: EventHubConsumerClient) -> None:
        """Begin to receive after the checkpoint."""
        partition, number = claim.partition, claim.partition.number
        partition.start_after = claim.stored
        partition.progress = time.monotonic()
        self.partitions[number] = partition
        self.readers[number] = Reader(
            client, self._delivery, claim, self._hub.outage, self._handle, self._on_end
        )
        log.info("partition claimed", partition=number, checkpoint=claim.stored)

    async def close(self, number: str, reason: str, drain: float = 0) -> None:
        """Stop receiving, wait `drain` seconds for messages in flight, write a last checkpoint."""
        if number not in self.partitions:
            return
        partition, reader = self.partitions.pop(number), self.readers.pop(number)
        if reason == "OWNERSHIP_LOST":
            self._delivery.metrics.losses.labels(number).inc()
        await reader.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(drain):
                await partition.drain()  # guard: drain-before-release
        self._closed = {p for p in self._closed if p.watermark.oldest} | {partition}
        if claim := await self._checkpoints.release(number, keep=reason != STALE):
            log.info(
                "partition given up",
                partition=number,
                reason=reason,
                checkpoint=claim.stored,
                ownedSeconds=round(time.monotonic() - claim.since, 1),
            )
