"""The state of things: how far behind delivery is, whether it is stuck, whether it is held off."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from forwarder import log
from forwarder.checkpoints.writer import Checkpoints
from forwarder.delivery.partition import DeliveryContext, Partition
from forwarder.delivery.watermark import Message
from forwarder.hub.consumer import Consumer
from forwarder.hub.monitor import HubMonitor
from forwarder.metrics import Metrics
from forwarder.server.history import History, State

_INTERVAL: Final = 10.0  # seconds between two looks at the hub, at most
_SOON: Final = 1.0  # seconds to the next look at a hub that does not answer
_STEPS: Final = 3  # of StallTimeout: reopen the partition, reopen the client, fail


@dataclass(slots=True)
class _Silence:
    """Since when a partition gets nothing, behind which message, and when it was last reopened."""

    since: float
    newest: Message | None
    owned: float  # when it was last seen to be ours
    reopened: float


class Health:
    """Judges progress by the hub's sequence numbers, for the client swallows its errors."""

    def __init__(
        self,
        delivery: DeliveryContext,
        hub: HubMonitor,
        source: Consumer,
        checkpoints: Checkpoints,
    ) -> None:
        self._stall_timeout = delivery.settings.stall_timeout
        # No shorter than what it takes to open a partition.
        self._step = max(self._stall_timeout / _STEPS, delivery.settings.load_balancing_interval)
        self._metrics = delivery.metrics
        self._hub = hub
        self._sink = delivery.sink
        self._source = source
        self._partitions = source.partitions
        self._silences: dict[str, _Silence] = {}
        self._checkpoints = checkpoints
        self._dead_letters = delivery.dead_letters
        self.history = History()

    async def run(self) -> None:
        """Look at the hub for ever; a partition with nothing to do is never late."""
        interval = min(_INTERVAL, self._stall_timeout / _STEPS / 2)
        while True:
            await self._hub.look()
            if not self._hub.failure:
                self._source.check()
                self._forget_silences()
                for number, partition in self._partitions.items():
                    if not self._waits(number, partition):
                        partition.progress = time.monotonic()
                        self._checkpoints.quarantine.left(number)
                    self._cure(number, partition)
            self.history.note(time.monotonic(), self.states())
            await asyncio.sleep(min(interval, _SOON) if self._hub.failure else interval)

    def not_live(self) -> list[str]:
        """Return why the process should be restarted; what is down or full is no reason."""
        if self._sink.down_since is not None or self._dead_letters.failure:
            return []
        if evicted := self._dead_letters.evicted:
            return [f"{evicted} dead letters were let go and can be written now: to be read again"]
        now = time.monotonic()
        return [
            f"partition {number}: no progress for {idle:.0f} s while messages wait"
            for number, partition in self._partitions.items()
            if self._waits(number, partition)
            and (idle := now - max(self._since(number, partition), self._sink.up_since))
            > self._stall_timeout
        ]

    def not_ready(self) -> list[str]:
        """Return why nothing can be delivered at the moment."""
        reasons = [f"hub: {self._hub.failure}"] if self._hub.failure else []
        if self._sink.down_since is not None:
            reasons.append(f"sink: {self._sink.failure}")
        return reasons

    def components(self) -> dict[str, str]:
        """Return what ails each part that others run; empty if it is well."""
        return {
            "hub": self._hub.failure or "",
            "sink": self._sink.failure,
            "checkpoints": self._checkpoints.failure,
            "dead letters": self._dead_letters.failure,
        }

    def states(self) -> Iterator[State]:
        """Yield how each partition that this process owns is doing."""
        for number, partition in sorted(self._partitions.items()):
            yield State(
                partition=number,
                lag=max(0, self._last(number) - self._stored(number)),
                oldest=max(0.0, self._oldest(number, partition)),
                checkpoint=owned.stored if (owned := self._checkpoints.owned.get(number)) else None,
                delivered=partition.delivered,
            )

    def observe(self, metrics: Metrics) -> None:
        """Set the gauges that show how far behind delivery is."""
        metrics.letters_waiting.set(self._dead_letters.waiting)
        metrics.hub_up.set(not self._hub.failure)
        metrics.hub_partitions.set(len(self._hub.last))
        metrics.lag.clear()
        metrics.oldest.clear()
        for state in self.states():
            metrics.lag.labels(state.partition).set(state.lag)
            metrics.oldest.labels(state.partition).set(state.oldest)

    def _oldest(self, number: str, partition: Partition) -> float:
        """Return the age in seconds of the oldest message that is not delivered.

        Of messages that are still in the hub just a bound is known: they are younger than the
        last one taken.
        """
        if oldest := partition.watermark.oldest or partition.blocked_message:
            return time.time() - oldest.enqueued
        if not self._waits(number, partition):
            return 0.0
        if partition.last_received:
            return time.time() - partition.last_received.enqueued
        return time.monotonic() - self._since(number, partition)

    def _forget_silences(self) -> None:
        """Forget those of partitions that are another's now, and not just being reopened."""
        now = time.monotonic()
        for number, silence in list(self._silences.items()):
            if number in self._partitions:
                silence.owned = now
            elif now - silence.owned > self._stall_timeout:  # guard: silence-outlives-reopening
                del self._silences[number]

    def _cure(self, number: str, partition: Partition) -> None:
        """Reopen a partition that gets nothing while the hub has more, then the whole client.

        What was taken and is not settled, or finds no room, is no silence of the hub.
        """
        silence = self._silences.get(number)
        waits, now = self._waits(number, partition), time.monotonic()
        if silence and (partition.last_received not in {None, silence.newest} or not waits):
            del self._silences[number]
            log.info("recovered", partition=number, seconds=round(now - silence.since, 1))
            return
        since = max(partition.progress, self._hub.up_since)
        due = max(since, silence.reopened if silence else 0.0) + self._step
        # guard: silent-receiver
        if not waits or partition.watermark.oldest or partition.blocked_message or now < due:
            return
        if silence:
            said, what = "still stalled", "client"
            for one in self._silences.values():
                one.reopened = now
            self._source.reopen()  # guard: reopen-client
        else:
            said, what = "stalled", "partition"
            silence = self._silences[number] = _Silence(since, partition.last_received, now, now)
            self._source.reopen(number)
        self._metrics.reopened[what].inc()
        log.error(said, partition=number, seconds=round(now - silence.since, 1), reopened=what)

    def _since(self, number: str, partition: Partition) -> float:
        """Return since when the partition makes no progress; opened anew it has made none."""
        silence = self._silences.get(number)
        return silence.since if silence else partition.progress

    def _waits(self, number: str, partition: Partition) -> bool:
        taken = (
            partition.last_received.sequence_number
            if partition.last_received
            else self._stored(number)
        )
        return partition.watermark.oldest is not None or self._last(number) > taken

    def _last(self, number: str) -> int:
        """Return the last sequence number in the partition, as far as is known."""
        newest = self._partitions[number].last_received
        return max(self._hub.last.get(number, -1), newest.sequence_number if newest else -1)

    def _stored(self, number: str) -> int:
        """Return the sequence number of the checkpoint, or the one before the first to be read."""
        owned = self._checkpoints.owned.get(number)
        if owned and owned.stored is not None:
            return owned.stored
        if (before := self._partitions[number].start_after) is not None:
            return before
        return self._hub.first.get(number, 0) - 1
