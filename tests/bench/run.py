"""A run: works in turns with what they are compared with, then what grows."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.figures import Grown, Results, Rounds, figures
from bench.processes import setup
from bench.rounds import Round, measure
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
    names: Iterable[str],
    growth: Sequence[Point],
    console: Console,
    *,
    short: bool,
    app: str = "",
) -> Results:
    """Measure works and growths; the works in few short rounds if that is wanted.

    `app` is the folder of an earlier version, which carries the works in turn with this one.
    """
    results = Results.empty()
    works = {name: WORKS[name] for name in names}
    if short:
        works = {
            name: replace(work, rounds=2, seconds=work.seconds / 3) for name, work in works.items()
        }
    total = sum(work.rounds * _guess(work) for work in works.values()) * (2 if app else 1)
    total += sum(map(_guess_point, growth))
    columns = (BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(
        *columns, TextColumn("{task.description}"), console=console, transient=True
    ) as progress:
        bar = Bar(progress, total)
        for name, work in works.items():
            with results.trying(work.title):
                results.figures += figures(name, await _measure(work, bar, app))
        for point in growth:
            with results.trying(f"{point.growth} {point.x:g}"):
                results.growth.append(await _grow(point, bar))
    return results


async def _measure(work: Work, bar: Bar, app: str) -> list[Rounds]:
    """Carry a work several times, in turns with what it is compared with."""
    found = []
    async with setup(work.load, store=work.carrier.shared) as place:

        async def carry(carrier: Carrier | None, app: str = "") -> Round | None:
            if not carrier:
                return None
            of = replace(carrier, app=app) if carrier.module == "forwarder" else carrier
            return await measure(place, of, work.seconds, work.settle)

        for number in range(work.rounds):
            with bar.part(f"{work.title}, round {number + 1}", _guess(work) * (2 if app else 1)):
                before = other_before = None
                if app:
                    before, other_before = (
                        await carry(work.carrier, app),
                        await carry(work.against, app),
                    )
                now = await carry(work.carrier)
                assert now
                found.append(Rounds(now, await carry(work.against), before, other_before))
    return found


async def _grow(point: Point, bar: Bar) -> Grown:
    with bar.part(f"{point.growth} {point.x:,g}", _guess_point(point)):
        async with setup(point.load) as place:
            one = await measure(place, Carrier(settings=point.settings), point.seconds)
        if one.seconds >= DRAIN:
            raise TimeoutError(f"not through in {DRAIN:.0f} s")
        return Grown.of(point.growth, point.series, point.x, one)


def _guess(work: Work) -> float:
    """Guess how many seconds a round takes."""
    each = work.load.outage + work.seconds + work.settle
    each += _BALANCE if work.carrier.shared else _START
    return each * (2 if work.against else 1)


def _guess_point(point: Point) -> float:
    whole = point.load.messages * point.load.per_message / _SPEED
    return (whole if point.seconds == DRAIN else point.seconds) + _START
