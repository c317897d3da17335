"""A run: workloads, alternately with their baselines, then the growth series."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.figures import Grown, Results, Rounds, figures
from bench.processes import setup
from bench.rounds import Round, measure
from bench.workloads import DRAIN, WORKLOADS, Point, Variant, Workload

_START = 2.0  # approximate seconds until processes have started
_BALANCE = 6.0  # approximate seconds until replicas have balanced the partitions
_SPEED = 60_000  # approximate events per second


class Bar:
    """The progress of a run, by the estimated seconds of its parts."""

    def __init__(self, progress: Progress, seconds: float) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=seconds)

    @contextmanager
    def part(self, title: str, seconds: float) -> Iterator[None]:
        """Show the title while the block runs, then advance."""
        self._progress.update(self._task, description=title)
        yield
        self._progress.advance(self._task, seconds)


async def run(
    names: Iterable[str],
    growth: Sequence[Point],
    console: Console,
    *,
    short: bool,
    app: str = "",
) -> Results:
    """Measure workloads and growth series; with `short`, workloads have few and short rounds.

    `app` is the folder of an earlier version, to measure alternately with this one.
    """
    results = Results.empty()
    workloads = {name: WORKLOADS[name] for name in names}
    if short:
        workloads = {
            name: replace(workload, rounds=2, seconds=workload.seconds / 3)
            for name, workload in workloads.items()
        }
    total = sum(workload.rounds * _estimate(workload) for workload in workloads.values()) * (
        2 if app else 1
    )
    total += sum(map(_estimate_point, growth))
    columns = (BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(
        *columns, TextColumn("{task.description}"), console=console, transient=True
    ) as progress:
        bar = Bar(progress, total)
        for name, workload in workloads.items():
            with results.trying(workload.title):
                results.figures += figures(name, await _measure(workload, bar, app))
        for point in growth:
            with results.trying(f"{point.growth} {point.x:g}"):
                results.growth.append(await _grow(point, bar))
    return results


async def _measure(workload: Workload, bar: Bar, app: str) -> list[Rounds]:
    """Measure a workload for several rounds, alternately with its baseline."""
    found = []
    async with setup(workload.load, store=workload.variant.shared) as prepared:

        async def run_variant(variant: Variant | None, app: str = "") -> Round | None:
            if not variant:
                return None
            selected = replace(variant, app=app) if variant.module == "forwarder" else variant
            return await measure(prepared, selected, workload.seconds, workload.settle)

        for number in range(workload.rounds):
            with bar.part(
                f"{workload.title}, round {number + 1}", _estimate(workload) * (2 if app else 1)
            ):
                before = other_before = None
                if app:
                    before, other_before = (
                        await run_variant(workload.variant, app),
                        await run_variant(workload.baseline, app),
                    )
                now = await run_variant(workload.variant)
                assert now
                found.append(
                    Rounds(now, await run_variant(workload.baseline), before, other_before)
                )
    return found


async def _grow(point: Point, bar: Bar) -> Grown:
    with bar.part(f"{point.growth} {point.x:,g}", _estimate_point(point)):
        async with setup(point.load) as prepared:
            one = await measure(prepared, Variant(settings=point.settings), point.seconds)
        if one.seconds >= DRAIN:
            raise TimeoutError(f"not finished in {DRAIN:.0f} s")
        return Grown.of(point.growth, point.series, point.x, one)


def _estimate(workload: Workload) -> float:
    """Estimate the seconds of a round."""
    each = workload.load.outage + workload.seconds + workload.settle
    each += _BALANCE if workload.variant.shared else _START
    return each * (2 if workload.baseline else 1)


def _estimate_point(point: Point) -> float:
    whole = point.load.messages * point.load.per_message / _SPEED
    return (whole if point.seconds == DRAIN else point.seconds) + _START
