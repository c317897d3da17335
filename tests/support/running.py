"""The forwarder inside the test's process: all of it, or what follows the hub, and its traces."""

import asyncio
import contextlib
import inspect
import json
import os
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO, Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from forwarder import log
from forwarder.app import run
from forwarder.audit.envelope import unpack
from forwarder.config.settings import Settings
from forwarder.deadletters.files import DeadLetterFiles
from forwarder.deadletters.writer import DeadLetterWriter
from forwarder.delivery.buffer import ReceiveBuffer
from forwarder.delivery.partition import DeliveryContext, Partition
from forwarder.delivery.watermark import Message
from forwarder.metrics import Metrics
from forwarder.sink.webhook import Sink
from support.eventhubs import Server
from support.process import Samples, free_port

HUB = "insights-logs-kube-audit"
OUTCOMES = {"delivered", "dead_lettered", "skipped", "filtered", "dropped"}


class Traces:
    """What a forwarder leaves behind: log, metrics, dead letters, checkpoints."""

    def __init__(self, settings: Settings, stream: IO[str]) -> None:
        self.settings = settings
        self._stream = stream

    @property
    def output(self) -> str:
        """The log as it was written."""
        log.flush()
        descriptor = self._stream.fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode()

    def entries(self, message: str = "") -> list[dict[str, Any]]:
        """Return the log entries whose message begins so."""
        found = [json.loads(line) for line in self.output.splitlines()]
        return [entry for entry in found if str(entry["message"]).startswith(message)]

    def letters(self) -> list[dict[str, Any]]:
        """Return the dead letters, the oldest first."""
        files = sorted((self.settings.state_directory / "deadletters").glob("*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]

    def checkpoint(self, partition: str = "0") -> int | None:
        """Return the sequence number that the embedded store has for a partition."""
        path = self.settings.state_directory / "checkpoints.db"
        if not path.exists():
            return None
        with contextlib.closing(sqlite3.connect(path)) as store:
            rows = store.execute("SELECT value FROM checkpoint").fetchall()
        found = [json.loads(value) for (value,) in rows]
        return next((e["sequence_number"] for e in found if e["partition_id"] == partition), None)

    async def metrics(self) -> Samples:
        """Return all metrics."""
        raise NotImplementedError

    async def total(self, name: str, **labels: str) -> float:
        """Return the sum of the samples `aks_audit_NAME` with these labels."""
        return (await self.metrics()).total(f"aks_audit_{name}", **labels)

    async def outcomes(self) -> dict[str, int]:
        """Return what became of records; the sum must be all of them once none is in flight."""
        samples = await self.metrics()
        counts = {
            one: int(samples.total("aks_audit_events_total", outcome=one)) for one in OUTCOMES
        }
        assert sum(counts.values()) == samples.total("aks_audit_records_total")
        return {outcome: count for outcome, count in counts.items() if count}

    async def until(
        self,
        condition: Callable[[], object | Awaitable[object]],
        timeout: float = 20,  # noqa: ASYNC109  tells what was logged
    ) -> None:
        """Wait until the condition, which may be awaitable, holds."""
        deadline = time.monotonic() + timeout
        while True:
            held = condition()
            if await held if inspect.isawaitable(held) else held:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {timeout} s:\n{self.output[-4000:]}")
            await asyncio.sleep(0.02)


class Delivery(Traces):
    """Everything that follows the hub: partitions, sink, dead letters, metrics."""

    def __init__(self, settings: Settings, stream: IO[str]) -> None:
        super().__init__(settings, stream)
        self._metrics = Metrics("test")
        self.sink = Sink(settings, self._metrics)
        self.buffer = ReceiveBuffer(settings.receive_buffer_bytes)
        directory = settings.state_directory / "deadletters"
        files = DeadLetterFiles(directory, settings.dead_letter_max_bytes)
        records = DeadLetterWriter(files, pause=0)
        self.context = DeliveryContext(settings, self.sink, records, self.buffer, self._metrics)
        self.partitions: dict[str, Partition] = {}

    async def take(self, body: bytes, partition: str = "0") -> None:
        """Take the partition's next message, as the source does."""
        taker = self.partitions.setdefault(partition, Partition(partition, self.context))
        number = taker.last_received.sequence_number + 1 if taker.last_received else 0
        await self.buffer.acquire(len(body))
        taker.submit(
            Message(number, str(number), time.time(), len(body)),
            unpack(body, self.settings.categories),
        )
        taker.dispatch()

    async def drain(self) -> None:
        """Wait until everything taken is settled."""
        async with asyncio.timeout(20):
            for partition in self.partitions.values():
                await partition.drain()

    async def metrics(self) -> Samples:
        return _samples(self._metrics.exposition()[0].decode())


class Running(Traces):
    """All of the forwarder, reading from a hub."""

    def __init__(self, settings: Settings, stream: IO[str]) -> None:
        super().__init__(settings, stream)
        self._stop = asyncio.Event()
        self._task = asyncio.create_task(run(settings, self._stop))

    async def started(self) -> None:
        """Wait until its HTTP port, if it has one, answers."""
        while self.settings.http_port and not self._task.done():
            with contextlib.suppress(aiohttp.ClientConnectorError):
                await self.get("/livez")
                return
            await asyncio.sleep(0.01)

    async def get(self, path: str) -> tuple[int, str]:
        """Ask its HTTP port; status and body."""
        url = f"http://127.0.0.1:{self.settings.http_port}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status, await response.text()

    async def reasons(self, path: str) -> list[str]:
        """Ask a probe; empty if it succeeds."""
        status, body = await self.get(path)
        reasons: list[str] = json.loads(body)["reasons"]
        assert (status, bool(reasons)) in {(200, False), (503, True)}
        return reasons

    async def metrics(self) -> Samples:
        _, text = await self.get("/metrics")
        return _samples(text)

    async def stop(self) -> None:
        """Stop as at SIGTERM."""
        self._stop.set()
        async with asyncio.timeout(60):
            await self._task


@asynccontextmanager
async def delivering(url: str, state: Path, **variables: str) -> AsyncIterator[Delivery]:
    """Deliver to this sink, without a hub, with these environment variables."""
    settings = _settings(
        "Endpoint=sb://127.0.0.1;SharedAccessKeyName=n;SharedAccessKey=bm90aGluZw==",
        url,
        state,
        variables,
    )
    with _log(settings) as stream:
        delivery = Delivery(settings, stream)
        async with delivery.sink:
            try:
                yield delivery
            finally:
                for partition in delivery.partitions.values():
                    partition.cancel()
                await delivery.drain()


@asynccontextmanager
async def forwarding(
    server: Server, url: str, state: Path, **variables: str
) -> AsyncIterator[Running]:
    """Forward from this server's hub to this sink, with these environment variables besides."""
    short = {"HttpPort": str(free_port()), "LoadBalancingInterval": "1", "ShutdownGrace": "0.2"}
    settings = _settings(server.connection_string(), url, state, short | variables)
    with _log(settings) as stream:
        running = Running(settings, stream)
        try:
            await running.started()
            yield running
        finally:
            await running.stop()


def _settings(connection: str, url: str, state: Path, variables: dict[str, str]) -> Settings:
    return Settings.from_env(
        {
            "EhubNamespaceConnectionString": connection,
            "WebSinkURL": url,
            "StateDirectory": str(state),
            **variables,
        }
    )


@contextmanager
def _log(settings: Settings) -> Iterator[IO[str]]:
    """Collect the log in a file, which stays readable after the block."""
    stream = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read after the block
    try:
        with contextlib.redirect_stdout(stream):
            log.configure(settings.verbose_level, settings.log_format, settings.secrets)
        yield stream
    finally:
        log.flush()
        log.silence()


def _samples(text: str) -> Samples:
    return Samples(
        ((sample.name, frozenset(sample.labels.items())), sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    )
