"""Hub, sink, store and forwarders as separate processes on loopback."""

import asyncio
import json
import os
import sys
import tempfile
import uuid
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from bench.workloads import Load, Variant
from support.azurite import Azurite, azurite
from support.harness import Samples, free_port
from support.process import APP

_PATIENCE = 60  # seconds, for actions that should be immediate


@asynccontextmanager
async def child(*arguments: str, app: str = "", **environment: str) -> AsyncIterator[Process]:
    """Run `python -m …` with this environment until the block ends; `app` is a version's folder."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *arguments,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{app or APP}:{Path(__file__).parents[1]}",
            **environment,
        },
        stdin=DEVNULL,
        stdout=DEVNULL if environment else PIPE,
        start_new_session=True,  # Ctrl-C must reach only the parent
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


class Forwarders:
    """The running processes of a variant."""

    def __init__(
        self, processes: list[Process], ports: list[int], http: aiohttp.ClientSession
    ) -> None:
        self.processes = processes
        self._ports = ports
        self._http = http
        self._watched = [psutil.Process(one.pid) for one in processes]

    def cpu(self) -> float:
        """Return the seconds of CPU used by all; RuntimeError if one has ended."""
        self.check()
        return float(sum(sum(one.cpu_times()[:2]) for one in self._watched))

    def memory(self) -> float:
        """Return the memory of the largest in MiB; RuntimeError if one has ended."""
        self.check()
        return float(max(one.memory_info().rss for one in self._watched) / 2**20)

    def check(self) -> None:
        """Raise RuntimeError if one has ended."""
        if ended := [one for one in self.processes if one.returncode is not None]:
            raise RuntimeError(f"a process that is measured ended with {ended[0].returncode}")

    async def balanced(self, partitions: int) -> None:
        """Wait until each owns its share of the partitions."""
        share = partitions / len(self._ports)
        async with asyncio.timeout(_PATIENCE):
            while not all([await self._owned(port) == share for port in self._ports]):
                self.check()
                await asyncio.sleep(0.1)

    async def records(self) -> dict[str, float]:
        """Return the number of received records, by partition."""
        counts: Counter[str] = Counter()
        for port in self._ports:
            for (name, labels), value in (await self._metrics(port)).items():
                if name == "aks_audit_records_total":
                    counts[dict(labels)["partition"]] += int(value)
        return dict(counts)

    async def _owned(self, port: int) -> float:
        """Return the number of partitions that a forwarder owns, -1 if it does not respond yet."""
        try:
            return (await self._metrics(port)).total("aks_audit_partitions_owned")
        except aiohttp.ClientConnectionError:
            return -1

    async def _metrics(self, port: int) -> Samples:
        async with self._http.get(f"http://127.0.0.1:{port}/metrics") as response:
            return Samples.parse(await response.text())


@dataclass(frozen=True)
class Setup:
    """A hub with a load, a sink, and an optional store, for several runs of variants."""

    load: Load
    http: aiohttp.ClientSession
    folder: Path
    """Contains the CA for TLS, if the load uses it."""
    hubs: list[str]
    """Connection strings: without and with TLS."""
    url: str
    store: Azurite | None

    async def counts(self, path: str = "stats") -> dict[str, Any]:
        """Get the counts of the sink; see `bench.sink.Counts.report`."""
        async with self.http.get(self.url.replace("k8s_audit", path)) as response:
            found: dict[str, Any] = await response.json()
            return found

    @asynccontextmanager
    async def running(self, variant: Variant) -> AsyncIterator[Forwarders]:
        """Run a variant that reads the load from the beginning."""
        async with AsyncExitStack() as stack:
            shared = self.store.connection_string if variant.shared and self.store else ""
            container = f"bench{uuid.uuid4().hex}"
            ports = [free_port() for _ in range(variant.replicas)]
            processes = [
                await stack.enter_async_context(
                    child(
                        variant.module,
                        app=variant.app,
                        EhubNamespaceConnectionString=self.hubs[variant.tls],
                        WebSinkURL=self.url,
                        BlobStorageConnectionString=shared,
                        BlobContainerName=container,
                        StateDirectory=stack.enter_context(tempfile.TemporaryDirectory()),
                        HttpPort=str(port),
                        SSL_CERT_FILE=str(self.folder / "ca.pem") if variant.tls else "",
                        **variant.settings,
                    )
                )
                for port in ports
            ]
            yield Forwarders(processes, ports, self.http)


@asynccontextmanager
async def setup(load: Load, *, store: bool = False) -> AsyncIterator[Setup]:
    """Start a hub, a sink and an optional store for a load."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        hub = await enter(child("bench.hub", json.dumps(asdict(load)), str(folder)))
        sink = await enter(child("bench.sink", json.dumps(asdict(load))))
        yield Setup(
            load,
            await enter(aiohttp.ClientSession()),
            folder,
            json.loads(await _printed(hub)),
            await _printed(sink),
            await enter(azurite()) if store else None,
        )


async def _printed(process: Process) -> str:
    """Return the line that a child process prints when it is ready."""
    assert process.stdout
    return (await process.stdout.readline()).decode().strip()
