"""A local hub, real events, a slow sink, and a forwarder that is killed half way."""

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
from support.webhook import Answer, Rule, Webhook

EVENTS = 20_000
HUB = "insights-logs-kube-audit"
SLOW = 0.4  # seconds that the sink takes for a post, so that there is something to see
# Short, so that a second is worth watching; the rest is as in production.
QUICK = {"CheckpointInterval": "0.2", "LoadBalancingInterval": "1"}


@dataclass
class Account:
    """What went into the hub and what became of it."""

    webhook: Webhook
    state: Path
    total: int
    published: set[Key] = field(default_factory=set)
    hopeless: set[str] = field(default_factory=set)
    """Logs that were cut before the stage: no sink can use them."""

    def dead(self) -> set[str]:
        """Return the bodies of the dead letters."""
        files = sorted((self.state / "deadletters").glob("*.jsonl"))
        return {json.loads(one)["body"] for file in files for one in file.read_text().splitlines()}

    @property
    def delivered(self) -> int:
        """Published events that the sink has taken, each once."""
        return len(self.published & self.webhook.taken.keys())

    def missing(self) -> int:
        """Events, of all that there are to publish, neither delivered nor kept as dead letters."""
        return self.total - self.delivered - len(self.hopeless & self.dead())


@dataclass
class Usage:
    """What the forwarder's processes took: bytes of memory at most, seconds of CPU together."""

    memory: int = 0
    cpu: float = 0

    async def watch(self, forwarder: Forwarder) -> NoReturn:
        """Look ten times a second until cancelled."""
        before = self.cpu
        while True:
            self.memory = max(self.memory, forwarder.rss())
            self.cpu = max(self.cpu, before + forwarder.cpu())
            await asyncio.sleep(0.1)


async def show(
    count: int, console: Console, *, rule: Rule | None = None, patience: float = 20
) -> int:
    """Run the demo; the exit status. It gives up when nothing moves for `patience` seconds."""
    async with Server({HUB: 4}) as server, Webhook() as webhook:
        webhook.rule = rule or (lambda _: Answer(delay=SLOW))
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
            settings.pop("HttpPort", None)  # a free one
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
    with _progress(console, account) as move:

        async def moves_until(done: Callable[[], bool], forwarder: Forwarder) -> None:
            seen, since = -1, time.monotonic()
            watching = asyncio.create_task(usage.watch(forwarder))
            while not done() and time.monotonic() - since < patience:
                if forwarder.process.returncode is not None:
                    await forwarder.wait()
                    last = [*forwarder.lines[-5:], forwarder.stderr]
                    raise RuntimeError("\n".join(["The forwarder ended by itself:", *last]))
                if seen != (seen := len(posts) + len(account.published)):
                    since = time.monotonic()
                move()
                await asyncio.sleep(0.1)
            watching.cancel()

        async with Forwarder(settings) as first:
            await moves_until(lambda: account.delivered >= account.total / 2, first)
            first.kill()
            await first.wait()
        console.print(f"Killed with SIGKILL after {account.delivered:,} events; starting again.")
        async with Forwarder(settings) as second:
            await second.listening()
            await moves_until(lambda: not account.missing(), second)
            move()
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
            # A busy server's answer is not retried by the client.
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
            account.hopeless.add(log.decode())
        yield Message(wrap([record(log)]), [] if lost else [event])


def _chart(console: Console, connection: str) -> dict[str, str]:
    """Return the environment that the chart gives its pod, if helm is there to render it."""
    if not chart.find_helm():
        console.print("helm is not here: the forwarder runs with its own defaults.")
        return {}
    console.print("The forwarder runs with the environment that helm renders from chart/.")
    return chart.environment(
        chart.render("--set-string", f"eventHub.connectionString={connection}")
    )


@contextmanager
def _progress(console: Console, account: Account) -> Iterator[Callable[[], None]]:
    """Show how far it is: as bars on a terminal, as a line now and then elsewhere."""
    columns = TextColumn("{task.description:10}"), BarColumn(50), MofNCompleteColumn()
    said = -1
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        published = progress.add_task("published", total=account.total)
        delivered = progress.add_task("delivered", total=account.total)

        def move() -> None:
            nonlocal said
            progress.update(published, completed=len(account.published) + len(account.hopeless))
            settled = account.total - account.missing()
            progress.update(delivered, completed=settled)
            if not console.is_terminal and 10 * settled // account.total > said:
                console.print(f"delivered {settled:,} of {account.total:,}")
                said = 10 * settled // account.total

        yield move


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
            "duplicates: sent before SIGKILL and not yet checkpointed",
        ),
        (f"{len(account.dead()):,}", "dead letters: cut off before the stage, kept for you"),
        (f"[bold {'red' if missing else 'green'}]{missing:,}[/]", "missing"),
        (
            f"{webhook.total / seconds:,.0f}",
            f"events/s with the restart; the sink takes {SLOW} s per POST on purpose",
        ),
        (f"{usage.memory / 2**20:,.0f} MiB", "memory of the forwarder at most"),
        (f"{usage.cpu:,.1f} s", "of CPU for both processes, each start included"),
    ):
        table.add_row(*row)
    console.print(table)


def _next(console: Console, forwarder: Forwarder, metrics: str) -> None:
    """Show some of what an operator would see."""
    kinds = {str(entry["message"]): i for i, entry in reversed(list(enumerate(forwarder.log)))}
    console.print("Its log, one line of each kind (VerboseLevel=3 or 4 make demo shows more):")
    for line in [forwarder.lines[i] for i in sorted(kinds.values())] or forwarder.lines[:12]:
        console.print(f"  {line}", markup=False)
    console.print(f"Its metrics, while it ran at {forwarder.metrics_url}:")
    for name in ("events_total", "lag_messages", "post_seconds_count"):
        found = [line for line in metrics.splitlines() if line.startswith(f"aks_audit_{name}")]
        for line in found[:1]:
            console.print(f"  {line}", markup=False)
    console.print(
        "With a hub of your own: EhubNamespaceConnectionString='…' make demo. More in README.md."
    )
