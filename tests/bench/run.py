"""A run: works by turns with their baselines, then what grows, with its progress shown."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.figures import Grown, Results, figures
from bench.processes import staged
from bench.rounds import Round, play
from bench.works import DRAIN, WORKS, Carrier, Point, Work

_START = 2.0  # seconds, about, for starting what is measured
_BALANCE = 6.0  # seconds, about, until replicas have shared the partitions
_SPEED = 60_000  # events a second, about


class Bar:
    """The progress of a run whose parts are guessed in seconds."""

    def __init__(self, progress: Progress, seconds: float) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=seconds)

    @contextmanager
    def part(self, title: str, seconds: float) -> Iterator[None]:
        """Show what is done now, and when it is over that it is."""
        self._progress.update(self._task, description=title)
        yield
        self._progress.advance(self._task, seconds)


async def run(
    names: Iterable[str], growth: Sequence[Point], console: Console, *, short: bool
) -> Results:
    """Measure works and growths; the works in few short rounds if that is wanted."""
    results = Results.empty()
    works = {name: WORKS[name] for name in names}
    if short:
        works = {
            name: replace(work, rounds=2, seconds=work.seconds / 3) for name, work in works.items()
        }
    total = sum(work.rounds * _guess(work) for work in works.values())
    total += sum(map(_guess_point, growth))
    columns = (BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(
        *columns, TextColumn("{task.description}"), console=console, transient=True
    ) as progress:
        bar = Bar(progress, total)
        for name, work in works.items():
            with results.trying(work.title):
                results.figures += figures(name, await _measure(work, bar))
        for point in growth:
            with results.trying(f"{point.growth} {point.x:g}"):
                results.growth.append(await _grow(point, bar))
    return results


async def _measure(work: Work, bar: Bar) -> list[tuple[Round, Round | None]]:
    """Carry a work so many times, by turns with its baseline."""
    found = []
    async with staged(work.load, store=work.carrier.shared) as stage:
        for number in range(work.rounds):
            with bar.part(f"{work.title}, round {number + 1}", _guess(work)):
                one = await play(stage, work.carrier, work.seconds, work.settle)
                other = None
                if work.against:
                    other = await play(stage, work.against, work.seconds, work.settle)
                found.append((one, other))
    return found


async def _grow(point: Point, bar: Bar) -> Grown:
    with bar.part(f"{point.growth} {point.x:,g}", _guess_point(point)):
        async with staged(point.load) as stage:
            one = await play(stage, Carrier(settings=point.settings), point.seconds)
        if one.seconds >= DRAIN:
            raise TimeoutError(f"not through in {DRAIN:.0f} s")
        return Grown.of(point.growth, point.series, point.x, one)


def _guess(work: Work) -> float:
    """Guess how many seconds a round takes."""
    each = work.seconds + work.settle + (_BALANCE if work.carrier.shared else _START)
    return each * (2 if work.against else 1)


def _guess_point(point: Point) -> float:
    whole = point.load.messages * point.load.per_message / _SPEED
    return (whole if point.seconds == DRAIN else point.seconds) + _START
