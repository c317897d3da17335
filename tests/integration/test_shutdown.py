"""SIGTERM at any time: exit status 0 in bounded time, and the next start resumes from there."""

import asyncio
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from forwarder import app
from support import stores
from support.azurite import azurite
from support.environment import Environment, environment
from support.process import Forwarder
from support.webhook import Response

GRACE = 2.5
CLOSING = 30.0  # maximum seconds for a last checkpoint, ownership and connections


class Moment(NamedTuple):
    """When SIGTERM is sent: the setup before the start, and the condition to wait for after it."""

    prepare: Callable[[Environment], Awaitable[object] | object]
    reached: Callable[[Environment, Forwarder], Awaitable[object]]
    drains: bool = True
    """Whether all received messages can be delivered."""


def no_setup(_: Environment) -> None:
    """Change nothing."""


async def until_connected(env: Environment, _: Forwarder) -> None:
    while not env.server.connections:  # noqa: ASYNC110 - no event to wait for
        await asyncio.sleep(0.05)


async def under_load(_: Environment, forwarder: Forwarder) -> None:
    await forwarder.wait_for("hub message")
    await asyncio.sleep(1)


def slow_sink(seconds: float) -> Callable[[Environment], None]:
    """Return a setup for a slow sink, which accepts requests even of clients that disconnect."""

    def prepare(env: Environment) -> None:
        env.webhook.rule = lambda _: Response(delay=seconds)

    return prepare


MOMENTS = {
    "starting": Moment(no_setup, lambda _, forwarder: forwarder.wait_for("start")),
    "claiming": Moment(no_setup, lambda _, forwarder: forwarder.wait_for("partition claimed")),
    "under load": Moment(slow_sink(0.5), under_load),
    "hub unreachable": Moment(
        lambda env: env.server.faults.refuse_connections(),
        lambda _, forwarder: forwarder.wait_for("hub does not answer"),
    ),
    "hub silent": Moment(lambda env: env.server.faults.silence(), until_connected),
    "sink unreachable": Moment(
        lambda env: env.webhook.stop(),
        lambda _, forwarder: forwarder.wait_for("sink down"),
        drains=False,
    ),
    "sink hangs": Moment(
        slow_sink(3600),
        lambda _, forwarder: forwarder.wait_for("hub message"),
        drains=False,
    ),
}


async def heal(env: Environment) -> None:
    """Remove every fault of MOMENTS."""
    await env.server.faults.accept_connections()
    env.server.faults.resume()
    env.webhook.rule = None
    await env.webhook.stop()
    await env.webhook.start()


async def stop(forwarder: Forwarder) -> float:
    """Send SIGTERM, assert exit status 0, and return the seconds until the exit."""
    started = time.monotonic()
    forwarder.terminate()
    status = await forwarder.wait()
    assert (status, forwarder.stderr) == (0, ""), forwarder.lines
    return time.monotonic() - started


async def test_stops_at_any_moment(tmp_path: Path) -> None:
    """It drains if it can, or stops within ShutdownGrace; the next start causes no duplicates."""
    # Only a stop writes checkpoints.
    settings = {"CheckpointInterval": "60"}
    async with environment(tmp_path) as env:
        ledger = env.ledger
        for name, (prepare, reached, drains) in MOMENTS.items():
            if pending := prepare(env):
                assert isinstance(pending, Awaitable)
                await pending
            settings["ShutdownGrace"] = "60" if drains else str(GRACE)
            async with env.traffic(400), env.forwarder(None, **settings) as forwarder:
                await asyncio.wait_for(reached(env, forwarder), 90)
                seconds = await stop(forwarder)
            assert seconds < (0 if drains else GRACE) + CLOSING, name
            assert drains == (not forwarder.entries("stopping with messages undelivered")), name
            await heal(env)
            stored = stores.embedded(tmp_path)
            ledger.check_checkpoints(stored)
            if drains:
                ledger.check_stop(stored)
            else:
                ledger.reader_restarted(stored)
        async with env.forwarder() as forwarder:
            await ledger.wait_until_settled()
            await stop(forwarder)
        ledger.check_stop(stores.embedded(tmp_path))
        ledger.verify()


async def test_sigterm_during_startup_stops_the_process(tmp_path: Path) -> None:
    """SIGTERM is handled before the settings are read, and takes effect once they are."""
    pipe = tmp_path / "secret"
    os.mkfifo(pipe)
    async with environment(tmp_path / "state") as env:
        settings = dict(env.settings(EhubNamespaceConnectionString_FILE=str(pipe)))
        secret = settings.pop("EhubNamespaceConnectionString")
        async with Forwarder(settings) as forwarder:
            writer = await open_for_writing(pipe)
            forwarder.terminate()
            await asyncio.sleep(0.2)
            assert forwarder.process.returncode is None
            os.write(writer, secret.encode())
            os.close(writer)
            assert await forwarder.wait() == 0
            assert not forwarder.entries("partition claimed")


async def open_for_writing(pipe: Path) -> int:
    """Open a pipe for writing as soon as it has a reader."""
    while True:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # no reader yet
            await asyncio.sleep(0.01)


async def test_stops_while_the_checkpoints_are_locked(tmp_path: Path) -> None:
    """A backup may lock them. Missing last checkpoints are logged."""
    async with environment(tmp_path) as env, env.forwarder(CheckpointInterval="60") as forwarder:
        env.ledger.publish(400)
        await env.ledger.wait_until_settled()
        with closing(sqlite3.connect(tmp_path / "checkpoints.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            assert await stop(forwarder) < CLOSING
        assert forwarder.entries("stopping without a last checkpoint")


async def test_stops_while_the_store_hangs(tmp_path: Path) -> None:
    """Neither a claim nor a last checkpoint without a response blocks the shutdown."""
    async with azurite() as store, environment(tmp_path) as env:
        ledger = env.ledger
        ledger.publish(400)
        store.pause()
        async with env.replica("one", store) as forwarder:
            await until_connected(env, forwarder)
            assert await stop(forwarder) < CLOSING
        store.resume()
        async with env.replica("one", store) as forwarder:
            await ledger.wait_until_settled()
            store.pause()
            ledger.publish(400)
            await ledger.wait_until_settled()
            assert await stop(forwarder) < CLOSING
        store.resume()
        stored = await stores.shared(store)
        ledger.check_checkpoints(stored)
        ledger.reader_restarted(stored)
        async with env.replica("two", store) as forwarder:
            ledger.publish(400)
            await ledger.wait_until_settled()
            await stop(forwarder)
        ledger.check_checkpoints(await stores.shared(store))
        ledger.verify()


async def test_ends_a_task_that_swallows_its_cancellation() -> None:
    """The client's management request does so when its connection fails at the same time."""
    swallowed = 0

    async def swallow() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed == 2:
                    raise

    tasks = [asyncio.create_task(swallow())]
    await asyncio.sleep(0)
    async with asyncio.timeout(90):
        await app.end(tasks)
    assert tasks[0].cancelled()
