"""A round: a load carried for some seconds, and what that took."""

import asyncio
import time
from dataclasses import dataclass

from bench.processes import Stage
from bench.works import Carrier

_LOOK = 0.05  # seconds between two looks
_PATIENCE = 90  # seconds for the first event


@dataclass(frozen=True)
class Round:
    """What was measured: `events` in `seconds`, for `cpu` seconds, in `memory` MiB at most."""

    rate: float
    """Events a second."""
    events: int
    seconds: float
    cpu: float
    memory: float
    start: float
    """Seconds from exec to the first event."""
    drained: float
    """Seconds from the first event to the last one that came."""
    ages: list[float]
    """Seconds from an event's making to its arrival, of posts of one event."""

    @property
    def cpu_each(self) -> float:
        """Seconds of CPU an event."""
        return self.cpu / max(1, self.events)


async def play(stage: Stage, carrier: Carrier, seconds: float, settle: float = 0) -> Round:
    """Have a stage's load carried for so many seconds, or to its end.

    The clock starts `settle` seconds after the first event; if the hub is empty or replicas share
    the partitions, after all of these have a reader.
    """
    await stage.counts("start")
    started = time.monotonic()
    async with stage.carried(carrier) as carriers:
        if carrier.shared or not (stage.load.messages or stage.load.pace):
            await carriers.balanced(stage.http, stage.load.partitions)
        else:
            while not (await stage.counts())["events"]:
                carriers.check()
                if time.monotonic() - started > _PATIENCE:
                    raise RuntimeError(f"no event within {_PATIENCE} s")
                await asyncio.sleep(_LOOK / 5)
        await asyncio.sleep(settle)
        total = stage.load.messages * stage.load.per_message
        before = now = await stage.counts()
        begun, used = time.monotonic(), carriers.cpu()
        peak = carriers.memory()
        while (passed := time.monotonic() - begun) < seconds:
            await asyncio.sleep(min(_LOOK, seconds - passed))
            now = await stage.counts()
            peak = max(peak, carriers.memory())
            if 0 < total <= now["events"]:
                break
        passed = time.monotonic() - begun
        events, drained = now["events"] - before["events"], now["last"] - now["first"]
        return Round(
            rate=now["events"] / drained if 0 < total <= now["events"] else events / passed,
            events=events,
            seconds=passed,
            cpu=carriers.cpu() - used,
            memory=peak,
            start=now["first"] - started,
            drained=drained,
            ages=now["ages"][len(before["ages"]) :],
        )
