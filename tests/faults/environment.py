"""The environment of a fault test: hub, sink, store and forwarders, and the final checks."""

import asyncio
import os
import signal
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import trustme

from support import stores
from support.environment import APP, CHILD, Environment
from support.eventhubs import Server
from support.faulty_store import FaultyStore, faulty_store
from support.harness import HUB
from support.ledger import check_sums
from support.process import Forwarder
from support.stores import Stored
from support.webhook import Post, Response, Rule, Webhook

MIB = 2**20


class FaultEnvironment(Environment):
    """An environment with a store, forwarders by name, and a rule for the sink."""

    def __init__(
        self, server: Server, webhook: Webhook, folder: Path, blob_store: FaultyStore | None
    ) -> None:
        super().__init__(server, webhook, folder / "state")
        self.folder = folder
        self.store = blob_store
        self.defaults: Mapping[str, str] = {}
        """Settings of every forwarder; `{folder}` is replaced with the environment's folder."""
        self.running: dict[str, Forwarder] = {}
        self.ended: list[Forwarder] = []
        self.sink: Rule | None = None
        """Called for each POST before the ledger."""
        self.duplicates_allowed = False
        """Whether any event may be duplicated: the sink accepted events without a response."""
        self.peak = 0
        """Highest memory of any forwarder so far, in bytes."""
        self.recreated_at = 0.0
        """Unix time just before the hub was recreated; older checkpoints are ignored."""
        self.stack = AsyncExitStack()
        self._checking = asyncio.Lock()
        webhook.rule = self._respond

    async def start(self, name: str = "one") -> Forwarder:
        """Start a forwarder, or restart one that has ended."""
        settings = {"PYTHONPATH": f"{CHILD}:{APP}"}
        settings |= {key: text.format(folder=self.folder) for key, text in self.defaults.items()}
        forwarder = (
            self.replica(name, self.store.front, **settings)
            if self.store
            else self.forwarder(None, **settings)
        )
        self.running[name] = await self.stack.enter_async_context(forwarder)
        return forwarder

    async def kill(self, name: str = "one") -> None:
        """Send SIGKILL; others resume from the checkpoints that are in the store by then."""
        self.running[name].kill()
        await self.wait_ended_by(signal.SIGKILL, name)

    async def wait_ended_by(self, number: signal.Signals, name: str = "one") -> None:
        """Wait until a signal has ended a forwarder."""
        forwarder = self.running.pop(name)
        self.ended.append(forwarder)
        assert await forwarder.wait() == -number, forwarder.lines[-20:]
        self.ledger.reader_restarted(await self.check_checkpoints())

    async def stop(self, name: str = "one") -> None:
        """Send SIGTERM; all it received is settled and checkpointed, unless it logs otherwise."""
        forwarder = self.running.pop(name)
        self.ended.append(forwarder)
        if await _timed_out(forwarder):
            self.duplicates_allowed = True
        forwarder.terminate()
        ended = (await forwarder.wait(), forwarder.stderr)
        assert ended == (0, ""), (ended, self.log_tail(forwarder))
        stored = await self.check_checkpoints()
        unfinished = ("stopping with messages undelivered", "checkpoints cannot be written")
        # Messages in flight when a partition was lost are delivered; its new owner checkpoints.
        lost = any(
            entry["reason"] == "OWNERSHIP_LOST" for entry in forwarder.entries("partition given up")
        )
        if (
            self.running
            or self.duplicates_allowed
            or lost
            or any(map(forwarder.entries, unfinished))
        ):
            self.ledger.reader_restarted(stored)
        else:
            self.ledger.check_stop(stored)

    @asynccontextmanager
    async def owners_change(self) -> AsyncIterator[None]:
        """Expect partitions to change owner in the block: messages in flight may be duplicated."""
        before = await self.check_checkpoints()
        yield
        self.ledger.reader_restarted(before)

    async def wait_for_log(self, message: str) -> None:
        """Wait until a forwarder, running or ended, has a log entry that begins with this text."""

        async def logged() -> bool:
            return any(one.entries(message) for one in (*self.ended, *self.running.values()))

        await eventually(logged, lambda: f"no log entry {message!r}")

    async def assert_no_duplicates(self) -> None:
        """Assert that no event was duplicated, unless a POST timed out on a busy machine."""
        timed_out = [await _timed_out(forwarder) for forwarder in self.running.values()]
        assert any(timed_out) or not self.webhook.duplicates

    async def stored(self) -> Stored:
        """Return the checkpoints, read without the faults of the store."""
        if self.store is None:
            # A frozen forwarder may hold the lock of the database; this loop has to resume it.
            return await asyncio.to_thread(stores.embedded, self.state, self.recreated_at)
        return await stores.shared(self.store.back, self.recreated_at)

    async def check_checkpoints(self) -> Stored:
        """Return the checkpoints; none may be past an unsettled event, and none may move back."""
        async with self._checking:  # concurrent reads could be out of order
            recreated_at = None
            while recreated_at != self.recreated_at:  # else these are of the previous hub
                recreated_at = self.recreated_at
                stored = await self.stored()
                await self._read_dead_letters()
            try:
                self.ledger.check_checkpoints(stored)
            except AssertionError:  # a dead letter may have moved from a file to a blob
                await self._read_dead_letters()
                self.ledger.check_checkpoints(stored)
            return stored

    async def _read_dead_letters(self) -> None:
        if self.store:
            self.ledger.blobs = await stores.dead_letters(self.store.back, self.ledger.blobs)

    async def owned(self, **expected: int) -> None:
        """Wait until these forwarders own this number of partitions each."""
        found: dict[str, int] = {}

        async def matches() -> bool:
            found.update({name: await _owned(self.running[name]) for name in expected})
            return found == expected

        await eventually(matches, lambda: f"owned {found} instead of {expected}")

    async def wait_until_settled(self, seconds: float = 180) -> None:
        """Wait until everything published so far is settled and checkpointed."""
        published = set(self.ledger.published)
        ends = {log.id: log.last for log in self.hub.partitions if log.last >= 0}

        async def all_settled() -> bool:
            for forwarder in self.running.values():
                assert forwarder.process.returncode is None, "it ended unexpectedly"
            await self._read_dead_letters()
            return published.isdisjoint(self.ledger.unsettled())

        await eventually(
            all_settled,
            lambda: f"events are not settled: {self.ledger.unsettled_positions()}",
            seconds,
        )
        stored: Stored = {}

        async def checkpointed() -> bool:
            nonlocal stored
            stored = await self.check_checkpoints()
            return all(stored.get(number, -1) >= end for number, end in ends.items())

        await eventually(checkpointed, lambda: f"checkpoints {stored} do not reach {ends}")

    async def verify(self, rss: float = 160) -> None:
        """Wait until all is settled, stop all forwarders, check the result; `rss` is in MiB."""
        await self.wait_until_settled()
        for forwarder in self.running.values():
            await eventually(
                partial(_sums_match, forwarder), lambda: "records and outcomes do not add up"
            )
            check_sums(await forwarder.metrics())
            self._assert_no_key((await forwarder.get("/metrics"))[1].encode())
        for name in list(self.running):
            await self.stop(name)
        self.ledger.verify(duplicates_allowed=self.duplicates_allowed)
        self._check_lost()
        errors = [entry for one in self.ended for entry in one.entries("internal error")]
        assert not errors, errors
        for file in filter(Path.is_file, self.state.rglob("*")):
            self._assert_no_key(file.read_bytes())
        assert self.peak < rss * MIB, f"{self.peak / MIB:.0f} MiB"

    async def watch(self) -> None:
        """Poll the memory of the forwarders and their checkpoints, until cancelled."""
        while True:
            for _ in range(5):
                self.peak = max([self.peak, *(one.rss() for one in self.running.values())])
                await asyncio.sleep(0.1)
            started = time.monotonic()
            await self.check_checkpoints()
            await asyncio.sleep(4 * (time.monotonic() - started))  # as in `eventually`

    @staticmethod
    def log_tail(forwarder: Forwarder) -> list[str]:
        """Return the end of a forwarder's log, without the entries per message."""
        return [line for line in forwarder.lines if '"hub message"' not in line][-30:]

    def signal(self, number: signal.Signals, name: str = "one") -> None:
        """Send a signal that does not end a forwarder."""
        os.kill(self.running[name].pid, number)

    def _respond(self, post: Post) -> Response | int:
        chosen = self.sink and self.sink(post)
        return chosen or self.ledger.respond(post)

    def _check_lost(self) -> None:
        """Assert that exactly the expired messages are logged as lost, each once."""
        logged = [
            (entry["partition"], number)
            for forwarder in self.ended
            for entry in forwarder.entries("messages lost")
            for number in range(entry["first"], entry["last"] + 1)
        ]
        assert sorted(logged) == sorted(self.ledger.lost)

    def _assert_no_key(self, text: bytes) -> None:
        keys = [*self.server.keys.values(), *([self.store.key] if self.store else [])]
        assert not [key for key in keys if key.encode() in text]


@asynccontextmanager
async def fault_environment(
    folder: Path, *, blobs: bool = False, tls: bool = False, partitions: int = 4
) -> AsyncIterator[FaultEnvironment]:
    """Start an environment; `tls` gives the sink a certificate, with its CA in the folder."""
    (folder / "token").write_text("first")
    context = _tls(folder) if tls else None
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(Server({HUB: partitions}))
        webhook = await stack.enter_async_context(Webhook(tls=context))
        env = FaultEnvironment(
            server,
            webhook,
            folder,
            await stack.enter_async_context(faulty_store()) if blobs else None,
        )
        await stack.enter_async_context(env.stack)
        watching = asyncio.create_task(env.watch())
        stack.callback(watching.cancel)
        try:
            yield env
            if watching.done():
                watching.result()
        except BaseException as error:
            for forwarder in (*env.ended, *env.running.values()):
                lines = [f"{forwarder.pid}:", *env.log_tail(forwarder), forwarder.stderr]
                error.add_note("\n".join(lines))
            raise


async def eventually(
    condition: Callable[[], Awaitable[bool]], describe: Callable[[], str], seconds: float = 120
) -> None:
    """Wait until a condition holds; `describe` returns the text of the error."""
    deadline = time.monotonic() + seconds
    while True:
        started = time.monotonic()
        if await condition():
            return
        if (now := time.monotonic()) > deadline:
            raise TimeoutError(describe())
        await asyncio.sleep(max(0.1, 4 * (now - started)))  # leave CPU to hub and sink


def _tls(folder: Path) -> ssl.SSLContext:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    authority.private_key_pem.write_to_path(folder / "ca.key")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


async def _owned(forwarder: Forwarder) -> int:
    try:
        return int((await forwarder.metrics()).total("aks_audit_partitions_owned"))
    except OSError:  # it is not listening yet
        assert forwarder.process.returncode is None, forwarder.stderr
        return -1


async def _timed_out(forwarder: Forwarder) -> bool:
    """Whether a POST timed out and was retried, although the sink may have accepted it."""
    try:
        samples = await forwarder.metrics()
    except OSError:  # it is not listening yet
        return False
    return samples.total("aks_audit_post_retries_total", reason="timeout") > 0


async def _sums_match(forwarder: Forwarder) -> bool:
    try:
        check_sums(await forwarder.metrics())
    except AssertionError:  # a POST of events that another one delivered is in flight
        return False
    return True
