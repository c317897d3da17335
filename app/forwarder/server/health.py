"""Whether the process makes progress, whether it can deliver, and how far behind it is."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from forwarder.checkpoints.writer import Checkpoints
from forwarder.deadletters.writer import DeadLetterWriter
from forwarder.hub.consumer import Consumer
from forwarder.hub.monitor import HubMonitor
from forwarder.hub.watchdog import Watchdog
from forwarder.metrics import Metrics
from forwarder.server.history import INTERVAL, History, State
from forwarder.sink.webhook import Sink


@dataclass(eq=False)
class Health:
    """The state of the process for probes, metrics and the status page."""

    _stall_timeout: float  # seconds
    _hub: HubMonitor
    consumer: Consumer
    _watchdog: Watchdog
    sink: Sink
    _dead_letters: DeadLetterWriter
    _checkpoints: Checkpoints
    history: History = field(default_factory=History)

    async def run(self) -> None:
        """Add points to the history until cancelled."""
        while True:
            self.history.note(time.monotonic(), self.states())
            await asyncio.sleep(INTERVAL)

    def not_live(self) -> list[str]:
        """Return why the process should be restarted; an outage of a component is not a reason."""
        if self.sink.outage.reason or self._dead_letters.outage.reason:
            return []
        if evicted := self._dead_letters.evicted:
            return [f"{evicted} dead letters found no room: their messages are to be read again"]
        stalled = []
        for number in filter(self._watchdog.is_behind, self.consumer.partitions):
            progress = max(self._watchdog.since(number), self.sink.outage.recovered_at)
            idle = time.monotonic() - progress
            if idle > self._stall_timeout:
                reason = f"partition {number}: no progress for {idle:.0f} s while messages wait"
                refusal = self.consumer.owned.readers[number].refusal
                stalled.append(f"{reason}: {refusal}" if refusal else reason)
        return stalled

    def not_ready(self) -> list[str]:
        """Return why nothing can be delivered now."""
        failures = {"hub": self._hub_failure, "sink": self.sink.outage.reason}
        return [f"{name}: {why}" for name, why in failures.items() if why]

    def components(self) -> dict[str, str]:
        """Return why each component fails; "" if it is healthy."""
        return {
            "hub": self._hub_failure,
            "sink": self.sink.outage.reason,
            "checkpoints": self._checkpoints.outage.reason,
            "dead letters": self._dead_letters.outage.reason,
        }

    @property
    def _hub_failure(self) -> str:
        """Why the hub does not answer, or no partition can be read."""
        return self._hub.outage.reason or self.consumer.owned.failure

    def states(self) -> Iterator[State]:
        """Yield the state of each partition that this process owns."""
        for number, partition in sorted(self.consumer.partitions.items()):
            lag, oldest = self._watchdog.lag(number), self._watchdog.oldest(number)
            claim = self._checkpoints.claims.get(number)
            checkpoint = claim.stored if claim else None
            yield State(number, lag, oldest, checkpoint, partition.delivered)

    def observe(self, metrics: Metrics) -> None:
        """Set the gauges that show how far behind delivery is."""
        metrics.dead_letters_waiting.set(self._dead_letters.waiting)
        metrics.hub_up.set(not self._hub_failure)
        metrics.skew.set(self._hub.skew)
        metrics.hub_partitions.set(len(self._hub.last))
        metrics.lag.clear()
        metrics.oldest.clear()
        for state in self.states():
            metrics.lag.labels(state.partition).set(state.lag)
            metrics.oldest.labels(state.partition).set(state.oldest)
