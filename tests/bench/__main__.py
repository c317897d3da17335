"""Measures the forwarder: hub, sink and forwarder are processes of their own on loopback.

Each work is carried for some seconds by the forwarder and, in turns, by what it is compared with,
several times; the report has medians. CPU and memory are the forwarder's alone. No test asserts a
figure.
"""

import argparse
import asyncio
import io
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import psutil
from rich.console import Console

from bench import plots, report, sizing
from bench.figures import Results
from bench.run import run
from bench.works import GROWTH, WORKS

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".cache" / "bench"
_BUSY = 10  # % of CPU that others use


async def main(options: argparse.Namespace) -> int:
    """Measure, print, keep, draw; 1 if a part failed, and sizing.md stays as it is then."""
    task = asyncio.current_task()
    assert task
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    console = Console(width=None if sys.stdout.isatty() else 120)
    old = Results.read(Path(options.base)) if options.base.endswith(".json") else None
    app = "" if old or not options.base else earlier(options.base)
    if (busy := psutil.cpu_percent(interval=1)) > _BUSY:
        console.print(f"[yellow]others use {busy:.0f} % of this machine's CPU: expect noise")
    started = time.monotonic()
    whole = not (options.short or options.works)
    names = options.works or [name for name in WORKS if WORKS[name].short or whole]
    results = await run(names, GROWTH if whole else (), console, short=options.short, app=app)
    report.show(results, console)
    kept = KEPT / time.strftime("%Y%m%d-%H%M%S.json")
    results.write(kept)
    minutes = (time.monotonic() - started) / 60
    console.print(f"{minutes:.1f} minutes; kept in {kept.relative_to(ROOT)}", soft_wrap=True)
    if whole:
        plots.draw(results, KEPT)
        drawn = ", ".join(str(one.relative_to(ROOT)) for one in sorted(KEPT.glob("*.svg")))
        console.print(f"drawn: {drawn}", soft_wrap=True)
    if old := old or results.earlier():
        report.compare(old, results, console)
    if results.failed:
        return 1
    if options.readme:
        write(results)
    return 0


def earlier(base: str) -> str:
    """Return the `app` folder of a checkout, or of a commit, which is unpacked for that."""
    if Path(base).is_dir():
        return str(Path(base).resolve() / "app")
    folder = KEPT / "versions" / base
    folder.mkdir(parents=True, exist_ok=True)
    packed = subprocess.run(
        ["git", "-C", ROOT, "archive", base, "app"],
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return str(folder / "app")


def write(results: Results) -> None:
    """Write the figures and plots of chart/docs/sizing.md."""
    page = ROOT / "chart" / "docs" / "sizing.md"
    report.put(page, "bench", report.markdown(results))
    report.put(page, "sizing", sizing.markdown(results))
    plots.draw(results, page.parent / "plots", plots.DOCUMENTED)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "works", nargs="*", choices=[*WORKS, []], metavar="WORK", help=", ".join(WORKS)
    )
    parser.add_argument("--short", action="store_true", help="a minute, without growth")
    parser.add_argument(
        "--base",
        default="",
        metavar="COMMIT, FOLDER or JSON",
        help="an earlier version to measure in turns with this one, or the results of a run of it",
    )
    parser.add_argument(
        "--readme",
        metavar="1 or JSON",
        help="write sizing.md, after this run or from the results that an earlier one kept",
    )
    given = parser.parse_args()
    if given.readme and (given.short or given.works):
        parser.error("the documented figures come from a whole run")
    if given.readme and given.readme != "1":
        write(Results.read(Path(given.readme)))
        sys.exit()
    try:
        sys.exit(asyncio.run(main(given)))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)
