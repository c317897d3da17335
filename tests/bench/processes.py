"""Hub, sink, store and carriers as processes of their own on loopback."""

import asyncio
import json
import os
import sys
import tempfile
import uuid
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from prometheus_client.parser import text_string_to_metric_families

from bench.works import Carrier, Load
from support.azurite import Azurite, azurite
from support.harness import free_port
from support.process import APP

_PATIENCE = 60  # seconds for what comes at once


@asynccontextmanager
async def child(*arguments: str, **environment: str) -> AsyncIterator[Process]:
    """Run `python -m …` with this environment until the block ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *arguments,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{APP}:{Path(__file__).parents[1]}",
            **environment,
        },
        stdin=DEVNULL,
        stdout=DEVNULL if environment else PIPE,
        start_new_session=True,  # Ctrl-C is for whoever started it
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


class Carriers:
    """The processes that carry a load."""

    def __init__(self, processes: list[Process], ports: list[int]) -> None:
        self.processes = processes
        self._ports = ports
        self._watched = [psutil.Process(one.pid) for one in processes]

    def cpu(self) -> float:
        """Seconds of CPU that all have used; RuntimeError if one has ended."""
        self.check()
        return float(sum(sum(one.cpu_times()[:2]) for one in self._watched))

    def memory(self) -> float:
        """MiB that the largest holds; RuntimeError if one has ended."""
        self.check()
        return float(max(one.memory_info().rss for one in self._watched) / 2**20)

    def check(self) -> None:
        """Raise RuntimeError if one has ended."""
        if ended := [one for one in self.processes if one.returncode is not None]:
            raise RuntimeError(f"a process that is measured ended with {ended[0].returncode}")

    async def balanced(self, http: aiohttp.ClientSession, partitions: int) -> None:
        """Wait until each has its share of the partitions."""
        share = partitions / len(self._ports)
        async with asyncio.timeout(_PATIENCE):
            while not all([await _owned(http, port) == share for port in self._ports]):
                self.check()
                await asyncio.sleep(0.1)


async def _owned(http: aiohttp.ClientSession, port: int) -> float:
    """Return how many partitions a forwarder has, -1 if it does not answer yet."""
    try:
        async with http.get(f"http://127.0.0.1:{port}/metrics") as response:
            text = await response.text()
    except aiohttp.ClientConnectionError:
        return -1
    found = (s for family in text_string_to_metric_families(text) for s in family.samples)
    return next((s.value for s in found if s.name == "aks_audit_partitions_owned"), -1)


@dataclass(frozen=True)
class Stage:
    """A hub with a load, a sink and perhaps a store; who carries the load comes and goes."""

    load: Load
    http: aiohttp.ClientSession
    folder: Path
    """Has the authority for TLS, if the load wants that."""
    hubs: list[str]
    """Connection strings: without TLS, and with it."""
    url: str
    store: Azurite | None

    async def counts(self, path: str = "stats") -> dict[str, Any]:
        """Ask the sink; see bench.sink.Counts."""
        async with self.http.get(self.url.replace("k8s_audit", path)) as response:
            found: dict[str, Any] = await response.json()
            return found

    @asynccontextmanager
    async def carried(self, carrier: Carrier) -> AsyncIterator[Carriers]:
        """Have the load carried from its beginning."""
        async with AsyncExitStack() as stack:
            shared = self.store.connection_string if carrier.shared and self.store else ""
            container = f"bench{uuid.uuid4().hex}"
            ports = [free_port() for _ in range(carrier.replicas)]
            processes = [
                await stack.enter_async_context(
                    child(
                        carrier.module,
                        EhubNamespaceConnectionString=self.hubs[carrier.tls],
                        WebSinkURL=self.url,
                        BlobStorageConnectionString=shared,
                        BlobContainerName=container,
                        StateDirectory=stack.enter_context(tempfile.TemporaryDirectory()),
                        HttpPort=str(port),
                        SSL_CERT_FILE=str(self.folder / "ca.pem") if carrier.tls else "",
                        **carrier.settings,
                    )
                )
                for port in ports
            ]
            yield Carriers(processes, ports)


@asynccontextmanager
async def staged(load: Load, *, store: bool = False) -> AsyncIterator[Stage]:
    """Set the stage for a load."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        hub = await enter(child("bench.hub", json.dumps(asdict(load)), str(folder)))
        sink = await enter(child("bench.sink", str(load.delay), str(int(load.pace > 0))))
        yield Stage(
            load,
            await enter(aiohttp.ClientSession()),
            folder,
            json.loads(await _said(hub)),
            await _said(sink),
            await enter(azurite()) if store else None,
        )


async def _said(process: Process) -> str:
    """Return what a child prints when it is ready."""
    assert process.stdout
    return (await process.stdout.readline()).decode().strip()
