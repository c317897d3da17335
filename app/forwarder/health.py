"""The state of things: how far behind delivery is, whether it is stuck, whether it is held off."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from typing import Final

from forwarder.checkpoints import Checkpoints
from forwarder.delivery import Outlets, Partition
from forwarder.history import History, State
from forwarder.hub import HubMonitor
from forwarder.metrics import Metrics

_INTERVAL: Final = 10.0  # seconds between two looks at the hub


class Health:
    """Judges progress by the hub's sequence numbers, for the client swallows its errors."""

    def __init__(
        self,
        outlets: Outlets,
        hub: HubMonitor,
        partitions: Mapping[str, Partition],
        checkpoints: Checkpoints,
    ) -> None:
        self._settings = outlets.settings
        self._hub = hub
        self._sink = outlets.sink
        self._partitions = partitions
        self._checkpoints = checkpoints
        self._dead_letters = outlets.dead_letters
        self.history = History()

    async def run(self) -> None:
        """Look at the hub for ever; a partition with nothing to do is never late."""
        while True:
            await self._hub.look()
            for number, partition in self._partitions.items():
                if not self._waits(number, partition):
                    partition.progress = time.monotonic()
            self.history.note(time.monotonic(), self.states())
            await asyncio.sleep(_INTERVAL)

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
            and (idle := now - max(partition.progress, self._sink.up_since))
            > self._settings.stall_timeout
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
            "checkpoints": self._checkpoints.failing_since or "",
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
        if partition.window.oldest:
            return time.time() - partition.window.oldest.enqueued
        if not self._waits(number, partition):
            return 0.0
        if partition.newest:
            return time.time() - partition.newest.enqueued
        return time.monotonic() - partition.progress

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
