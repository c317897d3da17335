"""A local hub, real events, a slow sink, and a forwarder that is killed halfway."""

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import stamina
from azure.eventhub import EventData
from azure.eventhub.aio import EventHubProducerClient
from azure.eventhub.exceptions import EventHubError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from support import chart
from support.eventhubs import Server
from support.events import Key, Message, key, messages, real_events, record, wrap
from support.events.odd import KEPT_BY_AKS
from support.process import Forwarder
from support.webhook import Response, Rule, Webhook

EVENTS = 20_000
HUB = "insights-logs-kube-audit"
SLOW = 0.4  # seconds per POST, so that there is progress to see
# Short intervals, so that progress is visible; other settings are as in production.
QUICK = {"CheckpointInterval": "0.2", "LoadBalancingInterval": "1"}


@dataclass
class Account:
    """Counts of published and delivered events and dead letters."""

    webhook: Webhook
    state: Path
    total: int
    published: set[Key] = field(default_factory=set)
    unusable: set[str] = field(default_factory=set)
    """Logs that were cut off before the stage: they become dead letters."""

    def dead_lettered(self) -> set[str]:
        """Return the bodies of the dead letters."""
        files = sorted((self.state / "deadletters").glob("*.jsonl"))
        return {json.loads(one)["body"] for file in files for one in file.read_text().splitlines()}

    @property
    def delivered(self) -> int:
        """Number of distinct published events that the sink has accepted."""
        return len(self.published & self.webhook.accepted.keys())

    def missing(self) -> int:
        """Return how many of all events are neither delivered nor dead letters."""
        return self.total - self.delivered - len(self.unusable & self.dead_lettered())


@dataclass
class Usage:
    """Resource usage of the forwarder: peak memory in bytes, total CPU in seconds."""

    memory: int = 0
    cpu: float = 0

    async def watch(self, forwarder: Forwarder) -> NoReturn:
        """Poll ten times per second until cancelled."""
        before = self.cpu
        while True:
            self.memory = max(self.memory, forwarder.rss())
            self.cpu = max(self.cpu, before + forwarder.cpu())
            await asyncio.sleep(0.1)


async def show(
    count: int, console: Console, *, rule: Rule | None = None, patience: float = 20
) -> int:
    """Run the demo; return the exit status. It ends after `patience` seconds without progress."""
    async with Server({HUB: 4}) as server, Webhook() as webhook:
        webhook.rule = rule or (lambda _: Response(delay=SLOW))
        with TemporaryDirectory(prefix="aks-audit-") as directory:
            account = Account(webhook, Path(directory), count)
            connection = server.connection_string()
            settings = {
                **_chart(console, connection),
                "EhubNamespaceConnectionString": connection,
                "WebSinkURL": webhook.url,
                "StateDirectory": directory,
                **QUICK,
                **{n: os.environ[n] for n in ("VerboseLevel", "LogFormat") if n in os.environ},
            }
            settings.pop("HttpPort", None)  # use a free port
            async with asyncio.TaskGroup() as group:
                publishing = group.create_task(_publish(connection, account))
                try:
                    return await _run(console, settings, account, patience)
                except RuntimeError as error:
                    console.print(f"{error}", markup=False)
                    return 1
                finally:
                    publishing.cancel()


async def _run(
    console: Console, settings: dict[str, str], account: Account, patience: float
) -> int:
    usage, began, posts = Usage(), time.monotonic(), account.webhook.posts
    with _progress(console, account) as update:

        async def progress_until(done: Callable[[], bool], forwarder: Forwarder) -> None:
            count, since = -1, time.monotonic()
            watching = asyncio.create_task(usage.watch(forwarder))
            while not done() and time.monotonic() - since < patience:
                if forwarder.process.returncode is not None:
                    await forwarder.wait()
                    last = [*forwarder.lines[-5:], forwarder.stderr]
                    raise RuntimeError("\n".join(["The forwarder ended unexpectedly:", *last]))
                if count != (count := len(posts) + len(account.published)):
                    since = time.monotonic()
                update()
                await asyncio.sleep(0.1)
            watching.cancel()

        async with Forwarder(settings) as first:
            await progress_until(lambda: account.delivered >= account.total / 2, first)
            first.kill()
            await first.wait()
        console.print(f"Killed with SIGKILL after {account.delivered:,} events; restarting.")
        async with Forwarder(settings) as second:
            await second.wait_until_listening()
            await progress_until(lambda: not account.missing(), second)
            update()
            _, metrics = await second.get("/metrics")
            second.terminate()
            await second.wait()
    seconds = (posts[-1].at - posts[0].at + SLOW) if posts else time.monotonic() - began
    _summary(console, account, usage, seconds)
    _next(console, second, metrics)
    return 1 if account.missing() else 0


async def _publish(connection: str, account: Account) -> None:
    """Send messages of 22 events; the last two hold one event each, cut off as AKS does."""
    producer = EventHubProducerClient.from_connection_string(connection, eventhub_name=HUB)
    async with producer:
        for turn, message in enumerate(_messages(account)):
            # The client does not retry when the server is busy.
            async for attempt in stamina.retry_context(on=EventHubError, attempts=10):
                with attempt:
                    await producer.send_batch([EventData(message.body)], partition_id=str(turn % 4))
            account.published.update(key(event) for event in message.events)


def _messages(account: Account) -> Iterator[Message]:
    yield from messages(account.total - 2)
    for lost in (False, True):
        (event,) = next(messages(1, events=[max(real_events(), key=len)])).events
        log = event[: event.index(b'"stage"') if lost else KEPT_BY_AKS]
        if lost:
            account.unusable.add(log.decode())
        yield Message(wrap([record(log)]), [] if lost else [event])


def _chart(console: Console, connection: str) -> dict[str, str]:
    """Return the environment of the chart's pod, if Helm is installed."""
    if not chart.find_helm():
        console.print("Helm is not installed: the forwarder runs with its default settings.")
        return {}
    console.print("The forwarder runs with the environment that Helm renders from chart/.")
    return chart.environment(
        chart.render("--set-string", f"eventHub.connectionString={connection}")
    )


@contextmanager
def _progress(console: Console, account: Account) -> Iterator[Callable[[], None]]:
    """Show progress: bars on a terminal, otherwise a line for every tenth."""
    columns = TextColumn("{task.description:10}"), BarColumn(50), MofNCompleteColumn()
    printed = -1
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        published = progress.add_task("published", total=account.total)
        delivered = progress.add_task("delivered", total=account.total)

        def update() -> None:
            nonlocal printed
            progress.update(published, completed=len(account.published) + len(account.unusable))
            settled = account.total - account.missing()
            progress.update(delivered, completed=settled)
            if not console.is_terminal and 10 * settled // account.total > printed:
                console.print(f"delivered {settled:,} of {account.total:,}")
                printed = 10 * settled // account.total

        yield update


def _summary(console: Console, account: Account, usage: Usage, seconds: float) -> None:
    webhook, missing = account.webhook, account.missing()
    completed = sum(b'"audit.aks/truncated":"true"' in event for event in webhook.bytes.values())
    table = Table(show_header=False)
    table.add_column(justify="right")
    table.add_column()
    for row in (
        (f"{account.total:,}", "audit events published"),
        (
            f"{account.delivered:,}",
            f"delivered, {completed} of them completed after AKS cut them off",
        ),
        (
            f"{webhook.duplicates:,}",
            "duplicates: sent before SIGKILL, not yet checkpointed",
        ),
        (f"{len(account.dead_lettered()):,}", "dead letters: cut off before the stage"),
        (f"[bold {'red' if missing else 'green'}]{missing:,}[/]", "missing"),
        (
            f"{webhook.total / seconds:,.0f}",
            f"events/s, including the restart; the sink deliberately takes {SLOW} s per POST",
        ),
        (f"{usage.memory / 2**20:,.0f} MiB", "peak memory of the forwarder"),
        (f"{usage.cpu:,.1f} s", "of CPU for both processes, including their start"),
    ):
        table.add_row(*row)
    console.print(table)


def _next(console: Console, forwarder: Forwarder, metrics: str) -> None:
    """Show a part of the log and of the metrics."""
    kinds = {str(entry["message"]): i for i, entry in reversed(list(enumerate(forwarder.log)))}
    console.print("Its log, one entry of each kind (VerboseLevel=3 or 4 make demo shows more):")
    for line in [forwarder.lines[i] for i in sorted(kinds.values())] or forwarder.lines[:12]:
        console.print(f"  {line}", markup=False)
    console.print(f"Its metrics, while it ran at {forwarder.metrics_url}:")
    for name in ("events_total", "lag_messages", "post_seconds_count"):
        found = [line for line in metrics.splitlines() if line.startswith(f"aks_audit_{name}")]
        for line in found[:1]:
            console.print(f"  {line}", markup=False)
    console.print("With your own hub: EhubNamespaceConnectionString='…' make demo. See README.md.")
