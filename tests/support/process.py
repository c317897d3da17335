"""The forwarder as a child process: the real command, a clean environment, its log and metrics."""

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import aiohttp
import psutil
from prometheus_client.parser import text_string_to_metric_families

APP = Path(__file__).parents[2] / "app"


def free_port() -> int:
    """Return a port on 127.0.0.1 that nothing listens on, nor is given to outgoing connections."""
    while True:
        port = random.randrange(10_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Samples(dict[tuple[str, frozenset[tuple[str, str]]], float]):
    """What /metrics said: (name, labels) to value."""

    def total(self, name: str, **labels: str) -> float:
        """Sum the samples of this name that carry these labels."""
        return sum(v for (n, have), v in self.items() if n == name and labels.items() <= have)


class Forwarder:
    """`python -m forwarder` with these settings, killed at the latest when the block ends."""

    started: ClassVar[list["Forwarder"]] = []
    """All of them; after each test their output is searched for keys, and the list emptied."""

    def __init__(
        self,
        settings: Mapping[str, str],
        *arguments: str,
        app: Path = APP,
        within: Sequence[str] = (),
    ) -> None:
        """Set it up; `within` is a command that runs it, and replaces itself by it."""
        self.port = int(settings.get("HttpPort", 0)) or free_port()
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(app),
            "HttpPort": str(self.port),
            **settings,
        }
        self.command = (*within, sys.executable, "-m", "forwarder", *arguments)
        self.lines: list[str] = []
        """Standard output, as it was."""
        self.log: list[dict[str, Any]] = []
        """The lines of standard output that are JSON."""
        self.stderr = ""
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        self.process = await asyncio.create_subprocess_exec(
            *self.command,
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=2**24,
            start_new_session=True,  # Ctrl-C is for whoever started it
        )
        Forwarder.started.append(self)
        self._readers = asyncio.gather(self._read_log(), self._read_errors())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.kill()
        await self.wait()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def metrics_url(self) -> str:
        """Where its metrics are."""
        return f"http://127.0.0.1:{self.port}/metrics"

    async def until(self, condition: Callable[[], object], timeout: float = 30) -> None:  # noqa: ASYNC109  tells what it said
        """Wait until the condition holds; it is looked at after each line, and now and then."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(self._said(f"after {timeout} s"))
            if self.process.returncode is not None and self._readers.done():
                if condition():
                    return
                raise RuntimeError(self._said(f"ended with {self.process.returncode}"))
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 0.1)

    async def wait_for(self, message: str, timeout: float = 30) -> dict[str, Any]:  # noqa: ASYNC109  as above
        """Wait for a log entry whose message begins so, and return the first one."""
        await self.until(lambda: self.entries(message), timeout)
        return self.entries(message)[0]

    def entries(self, message: str) -> list[dict[str, Any]]:
        """Return the log entries whose message begins so."""
        return [entry for entry in self.log if str(entry.get("message")).startswith(message)]

    async def get(self, path: str) -> tuple[int, str]:
        """Ask its HTTP port; status and body."""
        url = f"http://127.0.0.1:{self.port}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status, await response.text()

    async def listening(self, timeout: float = 30) -> None:  # noqa: ASYNC109  as above
        """Wait until its HTTP port answers."""
        async with asyncio.timeout(timeout):
            while self.process.returncode is None:
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    await self.get("/livez")
                    return
                await asyncio.sleep(0.05)
        raise RuntimeError(self._said(f"ended with {self.process.returncode}"))

    async def metrics(self) -> Samples:
        """Scrape it."""
        _, text = await self.get("/metrics")
        return Samples(
            ((sample.name, frozenset(sample.labels.items())), sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        )

    def rss(self) -> int:
        """Bytes of memory it holds now; 0 when it has ended."""
        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.NoSuchProcess:
            return 0

    def cpu(self) -> float:
        """Seconds of CPU that it has used; 0 when it has ended."""
        try:
            times = psutil.Process(self.pid).cpu_times()
        except psutil.NoSuchProcess:
            return 0
        return float(times.user + times.system)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._signal(signal.SIGKILL)

    async def wait(self, timeout: float = 60) -> int:  # noqa: ASYNC109  a child that does not end fails the test
        """Wait for its end and for the last of its output; the exit status, -9 if killed."""
        async with asyncio.timeout(timeout):
            status = await self.process.wait()
            await self._readers
        return status

    def _signal(self, number: signal.Signals) -> None:
        if self.process.returncode is None:
            self.process.send_signal(number)

    async def _read_log(self) -> None:
        assert self.process.stdout
        async for line in self.process.stdout:
            self.lines.append(line.decode().rstrip("\n"))
            with contextlib.suppress(json.JSONDecodeError):
                self.log.append(json.loads(line))
            self._changed.set()

    async def _read_errors(self) -> None:
        assert self.process.stderr
        async for line in self.process.stderr:
            self.stderr += line.decode()

    def _said(self, what: str) -> str:
        return "\n".join([f"forwarder {what}", *self.lines[-20:], self.stderr])
