"""A round: a variant forwards a load for some seconds, and is measured."""

import asyncio
import time
from dataclasses import dataclass

from bench.processes import Forwarders, Setup
from bench.workloads import Variant

_INTERVAL = 0.05  # seconds between two polls
_PATIENCE = 90  # seconds for the first event


@dataclass(frozen=True)
class Round:
    """The result: `events` in `seconds`, with `cpu` seconds and a peak of `memory` MiB."""

    rate: float
    """Events per second."""
    events: int
    seconds: float
    cpu: float
    memory: float
    start: float
    """Seconds from exec to the first event."""
    drained: float
    """Seconds from the first event to the last one received."""
    ages: list[float]
    """Seconds from the creation of an event to its arrival, of POSTs of one event."""
    slices: list[int]
    """Events per time slice since the first one; see bench.sink."""
    distinct: int
    """Distinct events that the sink has accepted since its start, if it counts them."""
    accepted: int
    """Events that the sink has accepted since its start, including duplicates."""
    records: dict[str, float]
    """Records that a forwarder has unpacked, by partition."""
    capacity: float
    """Events per second that the sink can take; 0 is no limit."""

    @property
    def cpu_each(self) -> float:
        """Seconds of CPU per event."""
        return self.cpu / max(1, self.events)

    @property
    def cpu_each_record(self) -> float:
        """Seconds of CPU per record, delivered or filtered."""
        return self.cpu / max(1, sum(self.records.values()))


async def measure(setup: Setup, variant: Variant, seconds: float, settle: float = 0) -> Round:
    """Measure a variant for this number of seconds, or until the load is forwarded.

    The measurement starts `settle` seconds after the first event. If the hub is empty or replicas
    share the partitions, it starts `settle` seconds after all partitions have an owner.
    """
    load = setup.load
    await setup.counts("start")
    started = time.monotonic()
    async with setup.running(variant) as forwarders:
        if variant.shared or not (load.messages or load.pace):
            await forwarders.balanced(load.partitions)
        else:
            await _first_event(setup, forwarders, started)
        await asyncio.sleep(settle)
        has_metrics = variant.module == "forwarder"
        records = await forwarders.records() if has_metrics else {}
        total = load.messages * load.per_message
        before = now = await setup.counts()
        begun, used = time.monotonic(), forwarders.cpu()
        peak = forwarders.memory()
        while (passed := time.monotonic() - begun) < seconds:
            await asyncio.sleep(min(_INTERVAL, seconds - passed))
            now = await setup.counts()
            peak = max(peak, forwarders.memory())
            if 0 < total <= (now["distinct"] or now["events"]):
                break
        passed = time.monotonic() - begun
        cpu = forwarders.cpu() - used
        after = await forwarders.records() if has_metrics else {}
        events, drained = now["events"] - before["events"], now["last"] - now["first"]
        return Round(
            rate=now["events"] / drained if 0 < total <= now["events"] else events / passed,
            events=events,
            seconds=passed,
            cpu=cpu,
            memory=peak,
            start=now["first"] - started,
            drained=drained,
            ages=now["ages"][len(before["ages"]) :],
            slices=now["slices"],
            distinct=now["distinct"],
            accepted=now["events"],
            records={number: after[number] - records.get(number, 0) for number in after},
            capacity=load.capacity,
        )


async def _first_event(setup: Setup, forwarders: Forwarders, started: float) -> None:
    while not (await setup.counts())["events"]:
        forwarders.check()
        if time.monotonic() - started > _PATIENCE:
            raise RuntimeError(f"no event within {_PATIENCE} s")
        await asyncio.sleep(_INTERVAL / 5)
