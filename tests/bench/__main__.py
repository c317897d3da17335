"""Benchmark of the forwarder: hub, sink and forwarder are separate processes on loopback.

Each workload runs for some seconds on the forwarder and then on its baseline, for several rounds.
The report has medians. CPU and memory are those of the forwarder only. No test asserts a figure.
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
from bench.workloads import GROWTH, WORKLOADS

ROOT = Path(__file__).parents[2]
SAVED = ROOT / ".cache" / "bench"
_BUSY = 10  # % of CPU used by other processes


async def main(options: argparse.Namespace) -> int:
    """Measure, print, save and draw; return 1 if a part failed, then sizing.md is not written."""
    task = asyncio.current_task()
    assert task
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    console = Console(width=None if sys.stdout.isatty() else 120)
    old = Results.read(Path(options.base)) if options.base.endswith(".json") else None
    app = "" if old or not options.base else earlier(options.base)
    if (busy := psutil.cpu_percent(interval=1)) > _BUSY:
        console.print(f"[yellow]other processes use {busy:.0f} % of the CPU: expect noise")
    started = time.monotonic()
    whole = not (options.short or options.workloads)
    names = options.workloads or [name for name in WORKLOADS if WORKLOADS[name].short or whole]
    results = await run(names, GROWTH if whole else (), console, short=options.short, app=app)
    report.show(results, console)
    saved = SAVED / time.strftime("%Y%m%d-%H%M%S.json")
    results.write(saved)
    minutes = (time.monotonic() - started) / 60
    console.print(f"{minutes:.1f} minutes; saved as {saved.relative_to(ROOT)}", soft_wrap=True)
    if whole:
        plots.draw(results, SAVED)
        drawn = ", ".join(str(one.relative_to(ROOT)) for one in sorted(SAVED.glob("*.svg")))
        console.print(f"drawn: {drawn}", soft_wrap=True)
    if old := old or results.earlier():
        report.compare(old, results, console)
    if results.failed:
        return 1
    if options.readme:
        write(results)
    return 0


def earlier(base: str) -> str:
    """Return the `app` folder of a checkout, or of a commit, which is unpacked."""
    if Path(base).is_dir():
        return str(Path(base).resolve() / "app")
    folder = SAVED / "versions" / base
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
        "workloads",
        nargs="*",
        choices=[*WORKLOADS, []],
        metavar="WORKLOAD",
        help=", ".join(WORKLOADS),
    )
    parser.add_argument("--short", action="store_true", help="a minute, without growth")
    parser.add_argument(
        "--base",
        default="",
        metavar="COMMIT, FOLDER or JSON",
        help="an earlier version to measure alternately with this one, or its saved results",
    )
    parser.add_argument(
        "--readme",
        metavar="1 or JSON",
        help="write sizing.md, after this run or from saved results",
    )
    options = parser.parse_args()
    if options.readme and (options.short or options.workloads):
        parser.error("the documented figures need a complete run")
    if options.readme and options.readme != "1":
        write(Results.read(Path(options.readme)))
        sys.exit()
    try:
        sys.exit(asyncio.run(main(options)))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)
