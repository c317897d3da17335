"""A env: hub, sink, store and forwarders, faults upon them, and one verdict at the end."""

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
from support.ledger import judge_sums
from support.process import Forwarder
from support.stores import Stored
from support.webhook import Answer, Post, Rule, Webhook

MIB = 2**20


class FaultEnvironment(Environment):
    """An environment with a store, the forwarders in it by name, and what is asked of the sink."""

    def __init__(
        self, server: Server, webhook: Webhook, folder: Path, blob_store: FaultyStore | None
    ) -> None:
        super().__init__(server, webhook, folder / "state")
        self.folder = folder
        self.store = blob_store
        self.defaults: Mapping[str, str] = {}
        """Settings of every forwarder; `{folder}` stands for the environment's own."""
        self.running: dict[str, Forwarder] = {}
        self.ended: list[Forwarder] = []
        self.sink: Rule | None = None
        """Asked for each POST before the ledger is."""
        self.again = False
        """Whether the sink takes events and cannot say so: they come again."""
        self.peak = 0
        """Most bytes that a forwarder was seen to hold."""
        self.remade = 0.0
        """Just before the hub was recreated, in Unix seconds: older checkpoints do not count."""
        self.stack = AsyncExitStack()
        self._looking = asyncio.Lock()
        webhook.rule = self._answer

    async def start(self, name: str = "one") -> Forwarder:
        """Start a forwarder, or one again that has ended."""
        settings = {"PYTHONPATH": f"{CHILD}:{APP}"}
        settings |= {key: text.format(folder=self.folder) for key, text in self.defaults.items()}
        made = (
            self.replica(name, self.store.front, **settings)
            if self.store
            else self.forwarder(None, **settings)
        )
        self.running[name] = await self.stack.enter_async_context(made)
        return made

    async def kill(self, name: str = "one") -> None:
        """Send SIGKILL; what is in the store by then is where others go on."""
        self.running[name].kill()
        await self.dies(signal.SIGKILL, name)

    async def dies(self, number: signal.Signals, name: str = "one") -> None:
        """Wait until a forwarder has died of a signal."""
        forwarder = self.running.pop(name)
        self.ended.append(forwarder)
        assert await forwarder.wait() == -number, forwarder.lines[-20:]
        self.ledger.restarted(await self.look())

    async def stop(self, name: str = "one") -> None:
        """Send SIGTERM; unless it says otherwise, all that it took is settled and checkpointed."""
        forwarder = self.running.pop(name)
        self.ended.append(forwarder)
        if await _waited_in_vain(forwarder):
            self.again = True
        forwarder.terminate()
        ended = (await forwarder.wait(), forwarder.stderr)
        assert ended == (0, ""), (ended, self.said(forwarder))
        stored = await self.look()
        unfinished = ("stopping with messages undelivered", "checkpoints cannot be written")
        # What was under way when a partition was lost is delivered, and not ours to checkpoint.
        lost = any(
            entry["reason"] == "OWNERSHIP_LOST" for entry in forwarder.entries("partition given up")
        )
        if self.running or self.again or lost or any(map(forwarder.entries, unfinished)):
            self.ledger.restarted(stored)
        else:
            self.ledger.judge_stop(stored)

    @asynccontextmanager
    async def moving(self) -> AsyncIterator[None]:
        """Expect partitions to change hands in the block: what was under way comes again."""
        before = await self.look()
        yield
        self.ledger.restarted(before)

    async def says(self, message: str) -> None:
        """Wait until a forwarder, running or ended, has a log entry whose message begins so."""

        async def said() -> bool:
            return any(one.entries(message) for one in (*self.ended, *self.running.values()))

        await eventually(said, lambda: f"nobody says {message!r}")

    async def once(self) -> None:
        """Assert that no event came twice, unless its answer took too long on a busy machine."""
        late = [await _waited_in_vain(forwarder) for forwarder in self.running.values()]
        assert any(late) or not self.webhook.duplicates

    async def stored(self) -> Stored:
        """Return the checkpoints, read from behind the faulty store."""
        if self.store is None:
            # A forwarder that is frozen while it writes has a lock, and this loop is to wake it.
            return await asyncio.to_thread(stores.embedded, self.state, self.remade)
        return await stores.shared(self.store.back, self.remade)

    async def look(self) -> Stored:
        """Return the checkpoints; none is past an unsettled event, and none has gone back."""
        async with self._looking:  # of two looks at once one would be old
            remade = None
            while remade != self.remade:  # else what was read is an earlier hub's
                remade = self.remade
                stored = await self.stored()
                await self._read_dead_letters()
            try:
                self.ledger.judge_checkpoints(stored)
            except AssertionError:  # a dead letter was perhaps on its way from a file into a blob
                await self._read_dead_letters()
                self.ledger.judge_checkpoints(stored)
            return stored

    async def _read_dead_letters(self) -> None:
        if self.store:
            self.ledger.blobs = await stores.dead_letters(self.store.back, self.ledger.blobs)

    async def owned(self, **expected: int) -> None:
        """Wait until these forwarders own so many partitions each."""
        found: dict[str, int] = {}

        async def divided() -> bool:
            found.update({name: await _owned(self.running[name]) for name in expected})
            return found == expected

        await eventually(divided, lambda: f"owned {found} instead of {expected}")

    async def settled(self, seconds: float = 180) -> None:
        """Wait until what is published by now is accounted for, and checkpoints are behind it."""
        published = set(self.ledger.published)
        ends = {log.id: log.last for log in self.hub.partitions if log.last >= 0}

        async def accounted() -> bool:
            for forwarder in self.running.values():
                assert forwarder.process.returncode is None, "it has ended by itself"
            await self._read_dead_letters()
            return published.isdisjoint(self.ledger.unsettled())

        await eventually(
            accounted,
            lambda: f"events are not settled: {self.ledger.unsettled_positions()}",
            seconds,
        )
        stored: Stored = {}

        async def written() -> bool:
            nonlocal stored
            stored = await self.look()
            return all(stored.get(number, -1) >= end for number, end in ends.items())

        await eventually(written, lambda: f"checkpoints {stored} do not come to {ends}")

    async def verdict(self, rss: float = 160) -> None:
        """Settle, stop everything and judge; `rss` is in MiB."""
        await self.settled()
        for forwarder in self.running.values():
            await eventually(partial(_sums, forwarder), lambda: "records are no sum")
            judge_sums(await forwarder.metrics())
            self._keep_secrets((await forwarder.get("/metrics"))[1].encode())
        for name in list(self.running):
            await self.stop(name)
        self.ledger.classify(again=self.again)
        self._judge_lost()
        wrong = [entry for one in self.ended for entry in one.entries("internal error")]
        assert not wrong, wrong
        for file in filter(Path.is_file, self.state.rglob("*")):
            self._keep_secrets(file.read_bytes())
        assert self.peak < rss * MIB, f"{self.peak / MIB:.0f} MiB"

    async def watch(self) -> None:
        """Look at the memory of what runs and at its checkpoints, for ever."""
        while True:
            for _ in range(5):
                self.peak = max([self.peak, *(one.rss() for one in self.running.values())])
                await asyncio.sleep(0.1)
            asked = time.monotonic()
            await self.look()
            await asyncio.sleep(4 * (time.monotonic() - asked))  # as in `eventually`

    @staticmethod
    def said(forwarder: Forwarder) -> list[str]:
        """Return the end of a forwarder's log, without a line a message."""
        return [line for line in forwarder.lines if '"hub message"' not in line][-30:]

    def signal(self, number: signal.Signals, name: str = "one") -> None:
        """Send a signal that does not end a forwarder."""
        os.kill(self.running[name].pid, number)

    def _answer(self, post: Post) -> Answer | int:
        ordered = self.sink and self.sink(post)
        return ordered or self.ledger.answer(post)

    def _judge_lost(self) -> None:
        """Assert that just what the hub forgot is said to be lost, each message once."""
        said = [
            (entry["partition"], number)
            for forwarder in self.ended
            for entry in forwarder.entries("messages lost")
            for number in range(entry["first"], entry["last"] + 1)
        ]
        assert sorted(said) == sorted(self.ledger.lost)

    def _keep_secrets(self, text: bytes) -> None:
        keys = [*self.server.keys.values(), *([self.store.key] if self.store else [])]
        assert not [key for key in keys if key.encode() in text]


@asynccontextmanager
async def fault_environment(
    folder: Path, *, blobs: bool = False, tls: bool = False, partitions: int = 4
) -> AsyncIterator[FaultEnvironment]:
    """Start it in a folder; `tls` gives the sink a certificate and leaves its CA there."""
    (folder / "token").write_text("first")
    context = _tls(folder) if tls else None
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(Server({HUB: partitions}))
        webhook = await stack.enter_async_context(Webhook(tls=context))
        found = FaultEnvironment(
            server,
            webhook,
            folder,
            await stack.enter_async_context(faulty_store()) if blobs else None,
        )
        await stack.enter_async_context(found.stack)
        watching = asyncio.create_task(found.watch())
        stack.callback(watching.cancel)
        try:
            yield found
            if watching.done():
                watching.result()
        except BaseException as error:
            for forwarder in (*found.ended, *found.running.values()):
                lines = [f"{forwarder.pid}:", *found.said(forwarder), forwarder.stderr]
                error.add_note("\n".join(lines))
            raise


async def eventually(
    condition: Callable[[], Awaitable[bool]], told: Callable[[], str], seconds: float = 120
) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while True:
        asked = time.monotonic()
        if await condition():
            return
        if (now := time.monotonic()) > deadline:
            raise TimeoutError(told())
        await asyncio.sleep(max(0.1, 4 * (now - asked)))  # hub and sink have work to do meanwhile


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
    except OSError:  # it does not listen yet
        assert forwarder.process.returncode is None, forwarder.stderr
        return -1


async def _waited_in_vain(forwarder: Forwarder) -> bool:
    """Tell whether a post was repeated that the sink perhaps took."""
    try:
        samples = await forwarder.metrics()
    except OSError:  # it does not listen yet
        return False
    return samples.total("aks_audit_post_retries_total", reason="timeout") > 0


async def _sums(forwarder: Forwarder) -> bool:
    try:
        judge_sums(await forwarder.metrics())
    except AssertionError:  # a post is still under way, of what another has delivered
        return False
    return True
