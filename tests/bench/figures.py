"""Figures: what rounds gave, kept as JSON, and compared with those of an earlier run."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

import psutil

from bench.rounds import Round
from bench.works import WORKS

_NOISE = 0.05  # a smaller change is not told, however clear


@dataclass(frozen=True)
class Measure:
    """A quantity of a round; or, if it `compares`, of a round and its baseline's."""

    name: str
    of: Callable[[Round, Round], float]
    more: bool = False
    """Whether more is better."""
    compares: bool = False
    digits: int = 0


MEASURES = {
    "rate": Measure("events a second", lambda r, _: r.rate, more=True),
    "cpu": Measure("CPU an event, us", lambda r, _: r.cpu_each * 1e6, digits=1),
    "memory": Measure("memory, MiB", lambda r, _: r.memory),
    "start": Measure("exec to first event, s", lambda r, _: r.start, digits=2),
    "delay": Measure("enqueued to accepted, ms", lambda r, _: statistics.median(r.ages) * 1e3),
    "share": Measure("CPU, % of a core", lambda r, _: 100 * r.cpu / r.seconds, digits=1),
    "gain": Measure(
        "times the baseline",
        lambda r, other: r.rate / other.rate,
        more=True,
        compares=True,
    ),
    # What two would do on cores of their own: here they share two cores with hub and sink.
    "scale": Measure(
        "times one, by CPU an event",
        lambda r, other: 2 * other.cpu_each / r.cpu_each,
        more=True,
        compares=True,
        digits=2,
    ),
}


@dataclass(frozen=True)
class Figure:
    """A measure of a work: its value in each round, and the baseline's in the same rounds."""

    work: str
    measure: str
    now: list[float]
    baseline: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Its median."""
        return statistics.median(self.now)

    @property
    def ratios(self) -> list[float]:
        """How many times better than the baseline it was, in each round."""
        more = MEASURES[self.measure].more
        pairs = zip(self.now, self.baseline, strict=False)
        return [now / then if more else then / now for now, then in pairs]

    @property
    def target(self) -> float | None:
        """What is aimed at."""
        return WORKS[self.work].targets[self.measure]

    @property
    def met(self) -> bool | None:
        """Whether it is; None if nothing is aimed at."""
        if self.target is None:
            return None
        more = MEASURES[self.measure].more
        return self.median >= self.target if more else self.median <= self.target


def figures(work: str, rounds: list[tuple[Round, Round | None]]) -> Iterator[Figure]:
    """Yield a work's figures from its rounds, each with its baseline's if there is one."""
    for name in WORKS[work].targets:
        measure = MEASURES[name]
        now = [measure.of(one, other or one) for one, other in rounds]
        others = [other for _, other in rounds if other and not measure.compares]
        yield Figure(work, name, now, [measure.of(other, other) for other in others])


@dataclass(frozen=True)
class Grown:
    """A round of a growth."""

    growth: str
    series: str
    x: float
    rate: float
    cpu: float
    memory: float
    drained: float

    @classmethod
    def of(cls, growth: str, series: str, x: float, one: Round) -> Self:
        """Take what is told of a round."""
        return cls(growth, series, x, one.rate, one.cpu_each * 1e6, one.memory, one.drained)


@dataclass
class Results:
    """All that a run measured."""

    machine: str
    when: str
    figures: list[Figure] = field(default_factory=list)
    growth: list[Grown] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @classmethod
    def empty(cls) -> Self:
        """Start a run on this machine."""
        return cls(machine(), time.strftime("%Y-%m-%d"))

    @property
    def rounds(self) -> str:
        """How many rounds figures are medians of: `3 to 5`."""
        numbers = sorted({len(one.now) for one in self.figures})
        return " to ".join(str(number) for number in numbers)

    @contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Note that a part failed, and go on: what was measured is not thrown away."""
        try:
            yield
        except (ArithmeticError, RuntimeError, TimeoutError, ValueError) as error:
            self.failed.append(f"{what}: {error or type(error).__name__}")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what a run kept."""
        kept = json.loads(path.read_text())
        kept["figures"] = [Figure(**one) for one in kept["figures"]]
        kept["growth"] = [Grown(**one) for one in kept["growth"]]
        return cls(**kept)

    def write(self, path: Path) -> None:
        """Keep them."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    def medians(self) -> Mapping[tuple[str, str], float]:
        """Return the figures' medians, by work and measure."""
        return {(one.work, one.measure): one.median for one in self.figures}


def machine() -> str:
    """Return this machine in a line."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{os.cpu_count()} cores ({names[0] if names else platform.machine()}), {memory:.0f} GiB, "
        f"{platform.system()} {platform.release().partition('-')[0]}, "
        f"Python {platform.python_version()}"
    )


def changes(old: Results, new: Results) -> Iterator[tuple[Figure, Figure, bool]]:
    """Yield the figures that changed beyond the noise: old, new, and whether it is better.

    They did if no round of the one run lies among those of the other, if the same is so of the
    ratios to a baseline, for else it is the machine that changed, and if the medians are further
    apart than 5 %.
    """
    before = {(one.work, one.measure): one for one in old.figures}
    for now in new.figures:
        then = before.get((now.work, now.measure))
        if not then or not _apart(then.now, now.now):
            continue
        if then.baseline and now.baseline and not _apart(then.ratios, now.ratios):
            continue
        if abs(now.median - then.median) > _NOISE * then.median:
            yield then, now, (now.median > then.median) == MEASURES[now.measure].more


def _apart(some: list[float], others: list[float]) -> bool:
    return min(some) > max(others) or max(some) < min(others)
