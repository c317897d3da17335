"""The forwarder as a child process: the real command, a clean environment, its log and metrics."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import psutil

from support.harness import Harness, free_port

APP = Path(__file__).parents[2] / "app"


class Forwarder(Harness):
    """`python -m forwarder` with these settings, killed when the block ends."""

    started: ClassVar[list["Forwarder"]] = []
    """Forwarders whose output is searched for keys after the test."""

    def __init__(
        self,
        settings: Mapping[str, str],
        *arguments: str,
        app: Path = APP,
        wrapper: Sequence[str] = (),
    ) -> None:
        """Prepare the command; `wrapper` is a command prefix that execs it."""
        self.port = int(settings.get("HttpPort", 0)) or free_port()
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(app),
            "HttpPort": str(self.port),
            **settings,
        }
        self.state = Path(settings.get("StateDirectory", "/var/lib/aks-audit"))
        self.command = (*wrapper, sys.executable, "-m", "forwarder", *arguments)
        self.lines: list[str] = []
        """Standard output."""
        self._log: list[dict[str, Any]] = []
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
            start_new_session=True,  # Ctrl-C must reach only the parent
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
        """The URL of its metrics."""
        return f"http://127.0.0.1:{self.port}/metrics"

    @property
    def output(self) -> str:
        """Its standard output."""
        return "\n".join(self.lines)

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines of standard output that are JSON."""
        return self._log

    def exit_reason(self) -> str:
        """Return its exit status once all output is read, or "" before."""
        if self.process.returncode is None or not self._readers.done():
            return ""
        return f"forwarder ended with {self.process.returncode}"

    def rss(self) -> int:
        """Return its resident memory in bytes; 0 if it has ended."""
        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.NoSuchProcess:
            return 0

    def cpu(self) -> float:
        """Return the seconds of CPU that it has used; 0 if it has ended."""
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

    async def wait(self, timeout: float = 120) -> int:  # noqa: ASYNC109  a child that does not end fails the test
        """Wait until it ends and its output is read; return the exit status, -9 if killed."""
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
                self._log.append(json.loads(line))
            self._changed.set()

    async def _read_errors(self) -> None:
        assert self.process.stderr
        async for line in self.process.stderr:
            self.stderr += line.decode()

    async def _change(self) -> None:
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), 0.1)

    def _tail(self) -> str:
        return "\n".join([*self.lines[-20:], self.stderr])
