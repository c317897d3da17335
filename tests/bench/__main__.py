"""Measures the forwarder: hub, sink and forwarder are processes of their own on loopback.

`python -m bench [WORK …]` prints, for each work, events a second, CPU microseconds an event and
memory of the forwarder alone: at its peak, after a tenth, a half and all of the events. Run by
`make bench`, without `soak`; no test asserts what it prints.
"""

import argparse
import asyncio
import itertools
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil
from rich.console import Console
from rich.table import Table

from eventhubs import Server
from events import messages, real_events, typical_events
from process import APP, free_port

PARTITIONS = 4
TEMPLATES = 20  # different messages, published over and over: making them is not what is measured
HUB = "insights-logs-kube-audit"


@dataclass(frozen=True)
class Work:
    """What goes through: so many events, in messages of so many, with these settings."""

    events: int
    per_message: int = 22
    typical: bool = True
    settings: Mapping[str, str] = field(default_factory=dict)


# Lists of 33 KB messages, of 900 KB messages, of events of all sizes; and posts of one event.
WORKS = {
    "lists": Work(1_500_000),
    "large": Work(1_000_000, per_message=570),
    "real": Work(600_000, typical=False),
    "single": Work(100_000, settings={"WebSinkMaxEvents": "1"}),
    "soak": Work(5_000_000, settings={"VerboseLevel": "1"}),
}
SHARES = (0.1, 0.5, 1)


async def serve_hub(work: Work) -> None:
    """Fill a hub, print its connection string and serve it: the child process of a run."""
    events = typical_events() if work.typical else real_events()
    made = list(messages(TEMPLATES * work.per_message, per_message=work.per_message, events=events))
    async with Server({HUB: PARTITIONS}) as server:
        for number, message in zip(
            range(work.events // work.per_message), itertools.cycle(made), strict=False
        ):
            server.hubs[HUB].publish(number % PARTITIONS, message.body)
        print(server.connection_string(), flush=True)  # noqa: T201 - the parent reads it
        await asyncio.Event().wait()


@asynccontextmanager
async def child(*arguments: str, **environment: str) -> AsyncIterator[Process]:
    """Run `python -m …` with this environment until the block ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *arguments,
        env={"PYTHONPATH": f"{APP}:{Path(__file__).parents[1]}", **environment},
        stdout=PIPE if arguments[0] != "forwarder" else DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        await process.wait()


async def first_line(process: Process) -> str:
    """Return what a child prints when it is ready."""
    assert process.stdout
    return (await process.stdout.readline()).decode().strip()


async def measure(name: str, work: Work) -> tuple[float, float, float, list[float], float]:
    """Run a work; events/s, CPU us an event, RSS in MiB, seconds from exec to first event."""
    total = work.events // work.per_message * work.per_message
    async with (
        child("bench", "--serve", name) as hub,
        child("webhook") as sink,
        aiohttp.ClientSession() as http,
    ):
        hub_string, url = await first_line(hub), await first_line(sink)
        with tempfile.TemporaryDirectory() as state:
            started = time.perf_counter()
            async with child(
                "forwarder",
                EhubNamespaceConnectionString=hub_string,
                WebSinkURL=url,
                StateDirectory=state,
                HttpPort=str(free_port()),
                **work.settings,
            ) as forwarder:
                process = psutil.Process(forwarder.pid)
                first, peak, taken = 0.0, 0, 0
                held: list[float] = []
                while taken < total:
                    await asyncio.sleep(0.05)
                    async with http.get(url.replace("/k8s_audit", "/stats")) as response:
                        taken = (await response.json())["events"]
                    rss = process.memory_info().rss
                    peak = max(peak, rss)
                    held += [rss / 2**20] * (taken >= SHARES[len(held)] * total)
                    if taken and not first:
                        first, before = time.perf_counter(), taken
                        used = sum(process.cpu_times()[:2])
                seconds = time.perf_counter() - first
                cpu = sum(process.cpu_times()[:2]) - used
    done = total - before
    return done / seconds, cpu / done * 1e6, peak / 2**20, held, first - started


async def main(names: list[str]) -> None:
    """Measure these works and print a table."""
    shares = [f"MiB at {share:.0%}" for share in SHARES]
    table = Table("work", "events/s", "us CPU an event", "peak MiB", *shares, "s to first event")
    for name in names:
        speed, cpu, peak, held, first = await measure(name, WORKS[name])
        memory = [f"{one:.0f}" for one in (peak, *held)]
        table.add_row(name, f"{speed:,.0f}", f"{cpu:.1f}", *memory, f"{first:.2f}")
    Console().print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "works", nargs="*", help=f"of {', '.join(WORKS)}; if none is named all but soak"
    )
    parser.add_argument("--serve", choices=list(WORKS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    served = options.serve and WORKS[options.serve]
    asyncio.run(serve_hub(served) if served else main(options.works or [*WORKS][:-1]))
