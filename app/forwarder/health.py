"""The state of things: how far behind delivery is, whether it is stuck, whether it is held off."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from forwarder import log
from forwarder.checkpoints import Checkpoints
from forwarder.delivery import Outlets, Partition
from forwarder.history import History, State
from forwarder.hub import HubMonitor
from forwarder.metrics import Metrics
from forwarder.source import Source
from forwarder.window import Message

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
        outlets: Outlets,
        hub: HubMonitor,
        source: Source,
        checkpoints: Checkpoints,
    ) -> None:
        self._stall_timeout = outlets.settings.stall_timeout
        # No shorter than what it takes to open a partition.
        self._step = max(self._stall_timeout / _STEPS, outlets.settings.load_balancing_interval)
        self._metrics = outlets.metrics
        self._hub = hub
        self._sink = outlets.sink
        self._source = source
        self._partitions = source.partitions
        self._silences: dict[str, _Silence] = {}
        self._checkpoints = checkpoints
        self._dead_letters = outlets.dead_letters
        self.history = History()

    async def run(self) -> None:
        """Look at the hub for ever; a partition with nothing to do is never late."""
        interval = min(_INTERVAL, self._stall_timeout / _STEPS / 2)
        while True:
            await self._hub.look()
            if not self._hub.trouble:
                self._source.check()
                self._forget_silences()
                for number, partition in self._partitions.items():
                    if not self._waits(number, partition):
                        partition.progress = time.monotonic()
                        self._checkpoints.poison.left(number)
                    self._cure(number, partition)
            self.history.note(time.monotonic(), self.states())
            await asyncio.sleep(min(interval, _SOON) if self._hub.trouble else interval)

    def not_live(self) -> list[str]:
        """Return why the process should be restarted; what is down or full is no reason."""
        if self._sink.down_since is not None or self._dead_letters.trouble:
            return []
        if let_go := self._dead_letters.let_go:
            return [f"{let_go} dead letters were let go and can be written now: to be read again"]
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
        reasons = [f"hub: {self._hub.trouble}"] if self._hub.trouble else []
        if self._sink.down_since is not None:
            reasons.append(f"sink: {self._sink.trouble}")
        return reasons

    def parts(self) -> dict[str, str]:
        """Return what ails each part that others run; empty if it is well."""
        return {
            "hub": self._hub.trouble or "",
            "sink": self._sink.trouble,
            "checkpoints": self._checkpoints.trouble,
            "dead letters": self._dead_letters.trouble,
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
        metrics.hub_up.set(not self._hub.trouble)
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
        if oldest := partition.window.oldest or partition.held:
            return time.time() - oldest.enqueued
        if not self._waits(number, partition):
            return 0.0
        if partition.newest:
            return time.time() - partition.newest.enqueued
        return time.monotonic() - self._since(number, partition)

    def _forget_silences(self) -> None:
        """Forget those of partitions that are another's now, and not just being reopened."""
        now = time.monotonic()
        for number, silence in list(self._silences.items()):
            if number in self._partitions:
                silence.owned = now
            elif now - silence.owned > self._stall_timeout:
                del self._silences[number]

    def _cure(self, number: str, partition: Partition) -> None:
        """Reopen a partition that gets nothing while the hub has more, then the whole client.

        What was taken and is not settled, or finds no room, is no silence of the hub.
        """
        silence = self._silences.get(number)
        waits, now = self._waits(number, partition), time.monotonic()
        if silence and (partition.newest not in {None, silence.newest} or not waits):
            del self._silences[number]
            log.info("recovered", partition=number, seconds=round(now - silence.since, 1))
            return
        since = max(partition.progress, self._hub.up_since)
        due = max(since, silence.reopened if silence else 0.0) + self._step
        if not waits or partition.window.oldest or partition.held or now < due:
            return
        if silence:
            said, what = "still stalled", "client"
            for one in self._silences.values():
                one.reopened = now
            self._source.reopen()
        else:
            said, what = "stalled", "partition"
            silence = self._silences[number] = _Silence(since, partition.newest, now, now)
            self._source.reopen(number)
        self._metrics.reopened[what].inc()
        log.error(said, partition=number, seconds=round(now - silence.since, 1), reopened=what)

    def _since(self, number: str, partition: Partition) -> float:
        """Return since when the partition makes no progress; opened anew it has made none."""
        silence = self._silences.get(number)
        return silence.since if silence else partition.progress

    def _waits(self, number: str, partition: Partition) -> bool:
        taken = partition.newest.sequence_number if partition.newest else self._stored(number)
        return partition.window.oldest is not None or self._last(number) > taken

    def _last(self, number: str) -> int:
        """Return the last sequence number in the partition, as far as is known."""
        newest = self._partitions[number].newest
        return max(self._hub.last.get(number, -1), newest.sequence_number if newest else -1)

    def _stored(self, number: str) -> int:
        """Return the sequence number of the checkpoint, or the one before the first to be read."""
        owned = self._checkpoints.owned.get(number)
        if owned and owned.stored is not None:
            return owned.stored
        if (before := self._partitions[number].before) is not None:
            return before
        return self._hub.first.get(number, 0) - 1
