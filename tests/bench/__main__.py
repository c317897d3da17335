"""Measures the forwarder: hub, sink and forwarder are processes of their own on loopback.

Each work is carried for some seconds by the forwarder and by a baseline in turn, several times;
what is told are medians. CPU and memory are the forwarder's alone. No test asserts a figure.
"""

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench import plots, report, sizing
from bench.figures import Grown, Results, figures
from bench.processes import staged
from bench.rounds import Round, play
from bench.works import DRAIN, GROWTH, WORKS, Carrier, Point, Work

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".cache" / "bench"
_BUSY = 0.5  # processes that run already
_START = 2.0  # seconds, about, for starting what is measured
_SPEED = 60_000  # events a second, about


class Bar:
    """The progress of a run whose parts are guessed in seconds."""

    def __init__(self, progress: Progress, seconds: float) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=seconds)

    @contextmanager
    def part(self, title: str, seconds: float) -> Iterator[None]:
        """Show what is done now, and when it is done that it is."""
        self._progress.update(self._task, description=title)
        yield
        self._progress.advance(self._task, seconds)


def _guess(work: Work, seconds: float) -> float:
    return (seconds + work.settle + _START) * (2 if work.against else 1) + work.carrier.shared * 8


def _guess_point(point: Point) -> float:
    whole = point.load.messages * point.load.per_message / _SPEED
    return (whole if point.seconds == DRAIN else point.seconds) + _START


async def _measure(
    name: str, rounds: int, seconds: float, bar: Bar
) -> list[tuple[Round, Round | None]]:
    """Carry a work so many times, by turns with its baseline."""
    work, found = WORKS[name], []
    async with staged(work.load, store=work.carrier.shared) as stage:
        for number in range(rounds):
            with bar.part(f"{work.title}, round {number + 1}", _guess(work, seconds)):
                one = await play(stage, work.carrier, seconds, work.settle)
                other = None
                if work.against:
                    other = await play(stage, work.against, seconds, work.settle)
                found.append((one, other))
    return found


async def _grow(point: Point, bar: Bar) -> Grown:
    with bar.part(f"{point.growth} {point.x:,g}", _guess_point(point)):
        async with staged(point.load) as stage:
            carrier = Carrier(settings=point.settings)
            one = await play(stage, carrier, point.seconds)
        return Grown.of(point.growth, point.series, point.x, one)


async def run(
    names: list[str], growth: tuple[Point, ...], rounds: int, share: float, console: Console
) -> Results:
    """Measure works and growths; `share` shortens the rounds."""
    results = Results.empty(rounds)
    seconds = {name: WORKS[name].seconds * share for name in names}
    total = sum(rounds * _guess(WORKS[name], seconds[name]) for name in names)
    total += sum(map(_guess_point, growth))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = Bar(progress, total)
        for name in names:
            results.figures += figures(name, await _measure(name, rounds, seconds[name], bar))
        for point in growth:
            results.growth.append(await _grow(point, bar))
    return results


async def main(options: argparse.Namespace) -> None:
    """Measure, print, keep, draw."""
    task = asyncio.current_task()
    assert task
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    console = Console()
    old = Results.read(options.base) if options.base else None
    if (load := os.getloadavg()[0]) > _BUSY:
        console.print(f"[yellow]this machine is busy already (load {load:.1f}): expect noise")
    short = options.short or options.works
    names = options.works or [name for name in WORKS if WORKS[name].short or not options.short]
    results = await run(
        names,
        () if short else GROWTH,
        2 if options.short else 5,
        0.5 if options.short else 1,
        console,
    )
    report.show(results, console)
    kept = KEPT / time.strftime("%Y%m%d-%H%M%S.json")
    results.write(kept)
    plots.draw(results, KEPT)
    console.print(f"kept: {kept.relative_to(ROOT)}; plots, if any, are beside it")
    if old:
        report.compare(old, results, console)
    if options.readme and not short:
        report.put(ROOT / "README.md", "bench", report.markdown(results))
        report.put(ROOT / "README.md", "sizing", sizing.markdown(results))
        plots.draw(results, Path(__file__).parent / "plots", plots.IN_README)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "works", nargs="*", choices=[*WORKS, []], metavar="WORK", help=", ".join(WORKS)
    )
    parser.add_argument("--short", action="store_true", help="a minute, without growth")
    parser.add_argument("--base", type=Path, metavar="JSON", help="what an earlier run kept")
    parser.add_argument("--readme", action="store_true", help="write README's figures and plots")
    try:
        asyncio.run(main(parser.parse_args()))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)
