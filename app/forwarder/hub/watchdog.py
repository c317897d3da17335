"""Reopens partitions that stall, and measures how far behind each partition is.

A link may fall silent while its connection is open, or be refused again and again. So progress is
measured by the hub's own sequence numbers, not by errors. A partition that receives nothing while
the hub has more is stalled: its link is opened again, later everything with a new client, and after
StallTimeout liveness fails. A partition whose messages wait for sink or room is not stalled.
"""

import asyncio
import time
from dataclasses import dataclass, field
from math import ceil
from typing import Final

from forwarder import log
from forwarder.checkpoints.writer import Checkpoints
from forwarder.delivery.partition import DeliveryContext, Partition
from forwarder.delivery.watermark import Message
from forwarder.hub.consumer import Consumer
from forwarder.hub.monitor import HubMonitor

_INTERVAL: Final = 10.0  # seconds between two polls of the hub, at most
_INTERVAL_DOWN: Final = 1.0  # seconds between two polls of a hub that does not answer
_DOWN_AFTER: Final = 3.0  # seconds without an answer that count: some of those polls
_RATE: Final = 1 / 60  # messages per second and partition: AKS writes at least some every minute
_STEPS: Final = 3  # of StallTimeout: reopen the partition, reopen the client, fail


@dataclass(slots=True)
class _Stall:
    """A partition that receives nothing. Times are monotonic."""

    since: float
    after: Message | None  # the last one received
    owned: float  # when this process last owned the partition
    reopened: float


@dataclass(eq=False)
class Watchdog:
    """Measures the progress of the partitions that this process owns."""

    _delivery: DeliveryContext
    _hub: HubMonitor
    _consumer: Consumer
    _checkpoints: Checkpoints
    _stalls: dict[str, _Stall] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._timeout = self._delivery.settings.stall_timeout
        # No shorter than what it takes to open a partition.
        self._step = max(self._timeout / _STEPS, self._delivery.settings.load_balancing_interval)

    async def run(self) -> None:
        """Poll the hub, and compare it with what was received, until cancelled."""
        interval = min(_INTERVAL, self._timeout / _STEPS / 2)
        while True:
            await self._hub.poll()
            if not (down := self._hub.outage.reason):
                self._consumer.check()
                for number, partition in self._consumer.partitions.items():
                    if not self.is_behind(number):
                        partition.progress = time.monotonic()
                        self._checkpoints.quarantine.left(number)
                    self._watch(number, partition)
                # Another process may own a stalled partition now.
                since = time.monotonic() - self._timeout
                # guard: silence-outlives-reopening
                self._stalls = {n: s for n, s in self._stalls.items() if s.owned > since}
            await asyncio.sleep(min(interval, _INTERVAL_DOWN) if down else interval)

    def is_behind(self, number: str) -> bool:
        """Return whether the partition has messages that were not received or not acknowledged."""
        partition = self._consumer.partitions[number]
        newest = partition.last_received
        received = newest.sequence_number if newest else self._stored(number)
        return partition.watermark.oldest is not None or self._hub.last.get(number, -1) > received

    def since(self, number: str) -> float:
        """Return when it last made progress, by the monotonic clock; reopening it is none."""
        stall = self._stalls.get(number)
        return stall.since if stall else self._consumer.partitions[number].progress

    def lag(self, number: str) -> int:
        """Return how many messages in the hub are after the checkpoint, at least.

        While the hub does not answer, more are assumed, at a constant rate.
        """
        newest = self._consumer.partitions[number].last_received
        last = max(self._hub.last.get(number, -1), newest.sequence_number if newest else -1)
        return max(0, last - self._stored(number)) + ceil(self._hub_down() * _RATE)

    def oldest(self, number: str) -> float:
        """Return the age in seconds of the oldest message that is not delivered.

        It is an upper bound for messages that are still in the hub: they are newer than the last
        one received and, while the hub cannot be asked, than the last poll.
        """
        partition, age = self._consumer.partitions[number], 0.0
        waiting = partition.watermark.oldest or partition.blocked_message
        if waiting or self.is_behind(number):
            if message := waiting or partition.last_received:
                age = self._hub.now() - message.enqueued
            else:
                age = time.monotonic() - self.since(number)
        return max(age, self._hub_down())

    def _hub_down(self) -> float:
        """Return for how many seconds the properties could not be read; 0 while they can."""
        seconds = time.monotonic() - self._hub.polled if self._hub.outage.reason else 0.0
        return seconds if seconds > _DOWN_AFTER else 0.0

    def _watch(self, number: str, partition: Partition) -> None:
        """Reopen a partition that receives nothing while the hub has more, then everything."""
        stall = self._stalls.get(number)
        behind, now = self.is_behind(number), time.monotonic()
        reader = self._consumer.owned.readers[number]
        if stall:
            stall.owned = now
            if partition.last_received not in {None, stall.after} or not behind:
                del self._stalls[number]
                log.info("recovered", partition=number, seconds=round(now - stall.since, 1))
                return
        since = max(partition.progress, self._hub.outage.recovered_at)
        due = max(since, stall.reopened if stall else 0.0) + self._step
        # guard: silent-receiver
        if not behind or partition.watermark.oldest or reader.blocked or now < due:
            return
        fields = {"partition": number} | ({"reason": reader.refusal} if reader.refusal else {})
        if stall:
            seconds = round(now - stall.since, 1)
            self._hub.outage.note("still stalled", seconds=seconds, reopened="client", **fields)
            self._delivery.metrics.reopened["client"].inc()
            for other in self._stalls.values():
                other.reopened = now
            self._consumer.reopen()  # guard: reopen-client
        else:
            self._stalls[number] = _Stall(since, partition.last_received, now, now)
            log.error("stalled", seconds=round(now - since, 1), reopened="partition", **fields)
            self._delivery.metrics.reopened["partition"].inc()
            reader.reopen()

    def _stored(self, number: str) -> int:
        """Return the sequence number of the checkpoint, or the one before the first to be read."""
        claim = self._checkpoints.claims.get(number)
        if claim and claim.stored is not None:
            return claim.stored
        after = self._consumer.partitions[number].start_after
        return self._hub.first.get(number, 0) - 1 if after is None else after
