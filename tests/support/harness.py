"""What tests read from a forwarder, in this process or a child: log, metrics, stored state."""

import asyncio
import contextlib
import inspect
import itertools
import json
import os
import random
import socket
import sqlite3
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

HUB = "insights-logs-kube-audit"
OUTCOMES = {"delivered", "dead_lettered", "skipped", "filtered", "dropped"}


# A port is chosen some time before its process listens. To avoid collisions, each worker of
# pytest-xdist has its own range, outside the ephemeral ports.
_PORTS = 2_000
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_numbers = itertools.count(random.randrange(_PORTS))


def free_port() -> int:
    """Return a port on 127.0.0.1 that nothing listens on."""
    while True:
        port = 10_000 + _WORKER % 10 * _PORTS + next(_numbers) % _PORTS
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Samples(dict[tuple[str, frozenset[tuple[str, str]]], float]):
    """The samples of /metrics: (name, labels) to value."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the Prometheus text format."""
        return cls(
            ((sample.name, frozenset(sample.labels.items())), sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        )

    def total(self, name: str, **labels: str) -> float:
        """Sum the samples of this name that have these labels."""
        return sum(v for (n, have), v in self.items() if n == name and labels.items() <= have)


class Harness:
    """A forwarder under test."""

    port: int
    """Its HTTP port."""
    state: Path
    """Its state directory."""

    @property
    def output(self) -> str:
        """Its standard output."""
        raise NotImplementedError

    @property
    def log(self) -> list[dict[str, Any]]:
        """Its log entries."""
        return [json.loads(line) for line in self.output.splitlines()]

    def exit_reason(self) -> str:
        """Return why it ended, or "" while it runs."""
        raise NotImplementedError

    def entries(self, message: str = "") -> list[dict[str, Any]]:
        """Return the log entries whose message begins with this text."""
        return [entry for entry in self.log if str(entry.get("message")).startswith(message)]

    def dead_letters(self) -> list[dict[str, Any]]:
        """Return the dead letters in its state directory, the oldest first."""
        files = sorted((self.state / "deadletters").glob("*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]

    def checkpoint(self, partition: str = "0") -> int | None:
        """Return the sequence number that the embedded store has for a partition."""
        path = self.state / "checkpoints.db"
        if not path.exists():
            return None
        with contextlib.closing(sqlite3.connect(path)) as store:
            rows = store.execute("SELECT value FROM checkpoint").fetchall()
        found = [json.loads(value) for (value,) in rows]
        return next((e["sequence_number"] for e in found if e["partition_id"] == partition), None)

    async def get(self, path: str) -> tuple[int, str]:
        """Request a path of its HTTP port; return status and body."""
        url = f"http://127.0.0.1:{self.port}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status, await response.text()

    async def reasons(self, path: str) -> list[str]:
        """Return why a probe fails; empty if it succeeds."""
        status, body = await self.get(path)
        reasons: list[str] = json.loads(body)["reasons"]
        assert (status, bool(reasons)) in {(200, False), (503, True)}
        return reasons

    async def metrics(self) -> Samples:
        """Return all metrics."""
        return Samples.parse((await self.get("/metrics"))[1])

    async def total(self, name: str, **labels: str) -> float:
        """Return the sum of the samples `aks_audit_NAME` with these labels."""
        return (await self.metrics()).total(f"aks_audit_{name}", **labels)

    async def outcomes(self) -> dict[str, int]:
        """Return the number of records by outcome, which must add up to all records."""
        samples = await self.metrics()
        counts = {
            one: int(samples.total("aks_audit_events_total", outcome=one)) for one in OUTCOMES
        }
        assert sum(counts.values()) == samples.total("aks_audit_records_total")
        return {outcome: count for outcome, count in counts.items() if count}

    async def until(
        self,
        condition: Callable[[], object | Awaitable[object]],
        timeout: float = 90,  # noqa: ASYNC109  the error has the log
    ) -> None:
        """Wait until the condition, which may be awaitable, holds."""
        deadline = time.monotonic() + timeout
        while True:
            reason = self.exit_reason()
            held = condition()
            if await held if inspect.isawaitable(held) else held:
                return
            if reason:
                raise RuntimeError(f"{reason}\n{self._tail()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {timeout} s:\n{self._tail()}")
            await self._change()

    async def wait_for(self, message: str, timeout: float = 90) -> dict[str, Any]:  # noqa: ASYNC109  as above
        """Wait for a log entry whose message begins with this text, and return the first one."""
        await self.until(lambda: self.entries(message), timeout)
        return self.entries(message)[0]

    async def wait_until_listening(self, timeout: float = 90) -> None:  # noqa: ASYNC109  as above
        """Wait until its HTTP port responds."""

        async def responds() -> bool:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                return bool(await self.get("/livez"))
            return False

        await self.until(responds, timeout)

    async def _change(self) -> None:
        """Wait before a condition is checked again."""
        await asyncio.sleep(0.02)

    def _tail(self) -> str:
        return self.output[-4000:]
