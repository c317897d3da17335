"""Figures: results of rounds, saved as JSON and compared with those of an earlier run."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Self

import psutil

from bench.rounds import Round
from bench.sink import SLICE
from bench.workloads import WORKLOADS

_NOISE = 0.05  # a smaller change is not reported


@dataclass(frozen=True)
class Measure:
    """A quantity of a round; if it `compares`, of a round and the one of its baseline."""

    name: str
    of: Callable[[Round, Round], float]
    more: bool = False
    """Whether more is better."""
    compares: bool = False
    unit: str = ""
    digits: int = 0


def _recovery(one: Round) -> float:
    """Return the seconds from the first accepted event to 90 % of the full rate."""
    whole = one.slices[:-1] or one.slices  # the last one is incomplete
    full = statistics.median(sorted(whole)[len(whole) // 2 :])
    return next(i for i, events in enumerate(whole) if events >= 0.9 * full) * SLICE


MEASURES = {
    "rate": Measure("events per second", lambda r, _: r.rate, more=True),
    "cpu": Measure("CPU per event, us", lambda r, _: r.cpu_each * 1e6, digits=1),
    "memory": Measure("memory, MiB", lambda r, _: r.memory),
    "start": Measure("exec to first event, s", lambda r, _: r.start, digits=2),
    "ramp": Measure("exec to full rate, s", lambda r, _: r.start + _recovery(r), digits=2),
    "delay": Measure("enqueued to accepted, ms", lambda r, _: statistics.median(r.ages) * 1e3),
    "share": Measure("CPU, % of a core", lambda r, _: 100 * r.cpu / r.seconds, digits=1),
    "recovery": Measure("first 2xx to full rate, s", lambda r, _: _recovery(r), digits=2),
    "drained": Measure("first 2xx to the last event, s", lambda r, _: r.drained, digits=1),
    "goodput": Measure(
        "goodput, % of the sink's capacity",
        lambda r, _: 100 * r.distinct / (r.drained or 1) / r.capacity,
        more=True,
    ),
    "copies": Measure(
        "duplicates, % of events",
        lambda r, _: 100 * (r.accepted - r.distinct) / max(1, r.distinct),
        digits=1,
    ),
    "slowest": Measure(
        "records per second of the slowest partition",
        lambda r, _: min(r.records.values(), default=0) / r.seconds,
        more=True,
    ),
    "gain": Measure(
        "times the minimal forwarder",
        lambda r, other: r.rate / other.rate,
        more=True,
        compares=True,
        unit=" x",
    ),
    # The rate of two replicas with dedicated cores: here they share two cores with hub and sink.
    "scale": Measure(
        "times one, by CPU per event",
        lambda r, other: 2 * other.cpu_each / r.cpu_each,
        more=True,
        compares=True,
        unit=" x",
        digits=2,
    ),
    "dearer": Measure(
        "CPU per event, times the comparison",
        lambda r, other: r.cpu_each / other.cpu_each,
        compares=True,
        unit=" x",
        digits=2,
    ),
    "added": Measure(
        "CPU per record, us more than the comparison",
        lambda r, other: (r.cpu_each_record - other.cpu_each_record) * 1e6,
        compares=True,
        digits=1,
    ),
}


@dataclass(frozen=True)
class Figure:
    """A measure of a workload: its value in each round, and the values of the comparisons."""

    work: str
    measure: str
    now: list[float]
    baseline: list[float] = field(default_factory=list)
    """Values of the workload's baseline."""
    before: list[float] = field(default_factory=list)
    """Values of an earlier version."""

    @property
    def median(self) -> float:
        """Its median."""
        return statistics.median(self.now)

    @property
    def ratios(self) -> list[float]:
        """How many times better than the baseline, in each round."""
        more = MEASURES[self.measure].more
        pairs = zip(self.now, self.baseline, strict=False)
        return [now / then if more else then / now for now, then in pairs]

    @property
    def share(self) -> float | None:
        """Ratio to the earlier version, the median of all rounds; None without one."""
        pairs = [one for one in zip(self.now, self.before, strict=False) if one[1]]
        return statistics.median(now / then for now, then in pairs) if pairs else None

    @property
    def target(self) -> float | None:
        """An absolute target."""
        return WORKLOADS[self.work].targets[self.measure]

    @property
    def aim(self) -> float | None:
        """A target for the ratio to the earlier version."""
        return WORKLOADS[self.work].ratios.get(self.measure)

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None if there is none or nothing to compare with."""
        if self.target is not None:
            more = MEASURES[self.measure].more
            return self.median >= self.target if more else self.median <= self.target
        if self.aim is not None and self.share is not None:
            return self.share <= self.aim
        return None


class Rounds(NamedTuple):
    """A round, the one of the baseline, and both for the earlier version."""

    now: Round
    other: Round | None = None
    before: Round | None = None
    other_before: Round | None = None


def figures(work: str, rounds: Sequence[Rounds]) -> Iterator[Figure]:
    """Yield the figures of a workload from its rounds."""
    for name in WORKLOADS[work].targets:
        measure = MEASURES[name]
        now = [measure.of(one.now, one.other or one.now) for one in rounds]
        others = [one.other for one in rounds if one.other and not measure.compares]
        before = [
            measure.of(one.before, one.other_before or one.before) for one in rounds if one.before
        ]
        yield Figure(work, name, now, [measure.of(other, other) for other in others], before)


@dataclass(frozen=True)
class Grown:
    """A round of a growth series."""

    growth: str
    series: str
    x: float
    rate: float
    cpu: float
    memory: float
    drained: float

    @classmethod
    def of(cls, growth: str, series: str, x: float, one: Round) -> Self:
        """Return the reported quantities of a round."""
        return cls(growth, series, x, one.rate, one.cpu_each * 1e6, one.memory, one.drained)


@dataclass
class Results:
    """The results of a run."""

    machine: str
    when: str
    figures: list[Figure] = field(default_factory=list)
    growth: list[Grown] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @classmethod
    def empty(cls) -> Self:
        """Return empty results for this machine."""
        return cls(machine(), time.strftime("%Y-%m-%d"))

    @property
    def rounds(self) -> str:
        """The number of rounds of which figures are medians: `3 to 5`."""
        numbers = [len(one.now) for one in self.figures]
        return " to ".join(str(number) for number in sorted({min(numbers), max(numbers)}))

    @contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Record that a part failed and continue: other results are not discarded."""
        try:
            yield
        except (ArithmeticError, RuntimeError, TimeoutError, ValueError) as error:
            self.failed.append(f"{what}: {error or type(error).__name__}")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the saved results of a run."""
        saved = json.loads(path.read_text())
        saved["figures"] = [Figure(**one) for one in saved["figures"]]
        saved["growth"] = [Grown(**one) for one in saved["growth"]]
        return cls(**saved)

    def write(self, path: Path) -> None:
        """Save the results as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    def earlier(self) -> Self | None:
        """Return the figures of the earlier version, if one was measured alternately."""
        found = [replace(one, now=one.before) for one in self.figures if one.before]
        return replace(self, figures=found, growth=[]) if found else None

    def medians(self) -> Mapping[tuple[str, str], float]:
        """Return the medians of the figures, by workload and measure."""
        return {(one.work, one.measure): one.median for one in self.figures}


def machine() -> str:
    """Describe this machine in one line."""
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
    """Yield the figures that changed by more than noise: old, new, and whether it is better.

    The rounds of both runs must not overlap, and the medians must differ by more than 5 %. The
    ratios to the baseline must not overlap either: otherwise the machine changed, not the code.
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
