"""The forwarder in the test's own process: complete, or only the part after the hub."""

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO

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
from support.harness import Harness, Samples, free_port


class _Logged(Harness):
    """A forwarder, or a part of one, whose log goes to a stream."""

    def __init__(self, settings: Settings, stream: IO[str]) -> None:
        self.settings = settings
        self.port = settings.http_port
        self.state = settings.state_directory
        self._stream = stream

    @property
    def output(self) -> str:
        log.flush()
        descriptor = self._stream.fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode()

    def exit_reason(self) -> str:
        return ""


class DeliveryOnly(_Logged):
    """The part after the hub: partitions, sink, dead letters, metrics."""

    def __init__(self, settings: Settings, stream: IO[str]) -> None:
        super().__init__(settings, stream)
        self._metrics = Metrics()
        self.sink = Sink(settings, self._metrics)
        self.buffer = ReceiveBuffer(settings.receive_buffer_bytes)
        directory = settings.state_directory / "deadletters"
        files = DeadLetterFiles(directory, settings.dead_letter_max_bytes)
        records = DeadLetterWriter(files, pause=0)
        self.context = DeliveryContext(settings, self.sink, records, self.buffer, self._metrics)
        self.partitions: dict[str, Partition] = {}

    async def submit(self, body: bytes, partition: str = "0") -> None:
        """Submit the next message of a partition, as the consumer does."""
        target = self.partitions.setdefault(partition, Partition(partition, self.context))
        number = target.last_received.sequence_number + 1 if target.last_received else 0
        await self.buffer.acquire(len(body))
        target.submit(
            Message(number, str(number), time.time(), len(body)),
            unpack(body, self.settings.categories),
        )
        target.dispatch()

    async def drain(self) -> None:
        """Wait until all submitted messages are settled."""
        async with asyncio.timeout(90):
            for partition in self.partitions.values():
                await partition.drain()

    async def metrics(self) -> Samples:
        return Samples.parse(self._metrics.exposition()[0].decode())


class InProcess(_Logged):
    """A whole forwarder that reads from a hub, in this process."""

    def __init__(self, settings: Settings, stream: IO[str]) -> None:
        super().__init__(settings, stream)
        self._stop = asyncio.Event()
        self._task = asyncio.create_task(run(settings, self._stop))

    def exit_reason(self) -> str:
        return "the forwarder ended" if self._task.done() else ""

    async def stop(self) -> None:
        """Stop as on SIGTERM."""
        self._stop.set()
        async with asyncio.timeout(90):
            await self._task


@asynccontextmanager
async def delivering(url: str, state: Path, **variables: str) -> AsyncIterator[DeliveryOnly]:
    """Deliver to this sink, without a hub, with these environment variables."""
    settings = _settings(
        "Endpoint=sb://127.0.0.1;SharedAccessKeyName=n;SharedAccessKey=bm90aGluZw==",
        url,
        state,
        variables,
    )
    with _log(settings) as stream:
        delivery = DeliveryOnly(settings, stream)
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
) -> AsyncIterator[InProcess]:
    """Forward from this server's hub to this sink; `variables` override the defaults."""
    short = {"HttpPort": str(free_port()), "LoadBalancingInterval": "1", "ShutdownGrace": "0.2"}
    settings = _settings(server.connection_string(), url, state, short | variables)
    with _log(settings) as stream:
        running = InProcess(settings, stream)
        try:
            if settings.http_port:
                await running.wait_until_listening()
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
    """Write the log to a file that stays readable after the block."""
    stream = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read after the block
    try:
        with contextlib.redirect_stdout(stream):
            log.configure(settings.verbose_level, settings.log_format, settings.secrets)
        yield stream
    finally:
        log.flush()
        log.silence()
