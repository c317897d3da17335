"""A round: a load carried for some seconds, and what that took."""

import asyncio
import time
from dataclasses import dataclass

from bench.processes import Carriers, Setup
from bench.works import Carrier

_LOOK = 0.05  # seconds between two looks
_PATIENCE = 90  # seconds for the first event


@dataclass(frozen=True)
class Round:
    """What was measured: `events` in `seconds`, for `cpu` seconds, in `memory` MiB at most."""

    rate: float
    """Events per second."""
    events: int
    seconds: float
    cpu: float
    memory: float
    start: float
    """Seconds from exec to the first event."""
    drained: float
    """Seconds from the first event to the last one that came."""
    ages: list[float]
    """Seconds from the creation of an event to its arrival, of POSTs of one event."""
    slices: list[int]
    """Events in each slice of time since the first one; see bench.sink."""
    distinct: int
    """Different events that the sink has accepted since its start, if it counts them."""
    accepted: int
    """Events that it has accepted since then."""
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


async def measure(setup: Setup, carrier: Carrier, seconds: float, settle: float = 0) -> Round:
    """Have the load carried for so many seconds, or to its end.

    The clock starts `settle` seconds after the first event; if the hub is empty or replicas share
    the partitions, after all of these have a reader.
    """
    load = setup.load
    await setup.counts("start")
    started = time.monotonic()
    async with setup.carried(carrier) as carriers:
        if carrier.shared or not (load.messages or load.pace):
            await carriers.balanced(load.partitions)
        else:
            await _first_event(setup, carriers, started)
        await asyncio.sleep(settle)
        ours = carrier.module == "forwarder"
        records = await carriers.records() if ours else {}
        total = load.messages * load.per_message
        before = now = await setup.counts()
        begun, used = time.monotonic(), carriers.cpu()
        peak = carriers.memory()
        while (passed := time.monotonic() - begun) < seconds:
            await asyncio.sleep(min(_LOOK, seconds - passed))
            now = await setup.counts()
            peak = max(peak, carriers.memory())
            if 0 < total <= (now["distinct"] or now["events"]):
                break
        passed = time.monotonic() - begun
        cpu = carriers.cpu() - used
        after = await carriers.records() if ours else {}
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


async def _first_event(setup: Setup, carriers: Carriers, started: float) -> None:
    while not (await setup.counts())["events"]:
        carriers.check()
        if time.monotonic() - started > _PATIENCE:
            raise RuntimeError(f"no event within {_PATIENCE} s")
        await asyncio.sleep(_LOOK / 5)
