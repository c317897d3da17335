"""SIGTERM at any moment: exit 0 in bounded time, and the next start goes on from there."""

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
from support.webhook import Answer

GRACE = 2.5
CLOSING = 30.0  # seconds at most for a last checkpoint, ownership and connections


class Moment(NamedTuple):
    """When SIGTERM comes: what is prepared before the start, and what is waited for after it."""

    prepare: Callable[[Environment], Awaitable[object] | object]
    come: Callable[[Environment, Forwarder], Awaitable[object]]
    drains: bool = True
    """Whether all that was received can be delivered."""


def nothing(_: Environment) -> None:
    """Leave all as it is."""


async def until_connected(env: Environment, _: Forwarder) -> None:
    while not env.server.connections:  # noqa: ASYNC110 - the server tells nobody
        await asyncio.sleep(0.05)


async def under_load(_: Environment, forwarder: Forwarder) -> None:
    await forwarder.wait_for("hub message")
    await asyncio.sleep(1)


def sink_answers_after(seconds: float) -> Callable[[Environment], None]:
    """Return how to make the sink slow; what it was sent it takes, whoever waits for it."""

    def prepare(env: Environment) -> None:
        env.webhook.rule = lambda _: Answer(delay=seconds)

    return prepare


MOMENTS = {
    "it starts": Moment(nothing, lambda _, forwarder: forwarder.wait_for("start")),
    "it claims": Moment(nothing, lambda _, forwarder: forwarder.wait_for("partition claimed")),
    "it is under load": Moment(sink_answers_after(0.5), under_load),
    "the hub is away": Moment(
        lambda env: env.server.faults.refuse_connections(),
        lambda _, forwarder: forwarder.wait_for("hub does not answer"),
    ),
    "the hub is silent": Moment(lambda env: env.server.faults.silence(), until_connected),
    "the sink is away": Moment(
        lambda env: env.webhook.stop(),
        lambda _, forwarder: forwarder.wait_for("sink down"),
        drains=False,
    ),
    "the sink hangs": Moment(
        sink_answers_after(3600),
        lambda _, forwarder: forwarder.wait_for("hub message"),
        drains=False,
    ),
}


async def heal(env: Environment) -> None:
    """Lift every fault of the table."""
    await env.server.faults.accept_connections()
    env.server.faults.wake()
    env.webhook.rule = None
    await env.webhook.stop()
    await env.webhook.start()


async def stopped(forwarder: Forwarder) -> float:
    """Send SIGTERM, assert that it ends with 0, and return after how many seconds."""
    asked = time.monotonic()
    forwarder.terminate()
    status = await forwarder.wait()
    assert (status, forwarder.stderr) == (0, ""), forwarder.lines
    return time.monotonic() - asked


async def test_stops_at_any_moment(tmp_path: Path) -> None:
    """It drains if it can, within ShutdownGrace if not; the next start doubles nothing."""
    # Only a stop writes checkpoints here.
    settings = {"CheckpointInterval": "60"}
    async with environment(tmp_path) as env:
        ledger = env.ledger
        for name, (prepare, come, drains) in MOMENTS.items():
            if waiting := prepare(env):
                assert isinstance(waiting, Awaitable)
                await waiting
            settings["ShutdownGrace"] = "60" if drains else str(GRACE)
            async with env.traffic(400), env.forwarder(None, **settings) as forwarder:
                await asyncio.wait_for(come(env, forwarder), 90)
                seconds = await stopped(forwarder)
            assert seconds < (0 if drains else GRACE) + CLOSING, name
            assert drains == (not forwarder.entries("stopping with messages undelivered")), name
            await heal(env)
            stored = stores.embedded(tmp_path)
            ledger.judge_checkpoints(stored)
            if drains:
                ledger.judge_stop(stored)
            else:
                ledger.restarted(stored)
        async with env.forwarder() as forwarder:
            await ledger.settled()
            await stopped(forwarder)
        ledger.judge_stop(stores.embedded(tmp_path))
        ledger.classify()


async def test_stops_when_it_has_just_begun(tmp_path: Path) -> None:
    """SIGTERM is caught before the settings are read, and stops it once there is what to stop."""
    pipe = tmp_path / "secret"
    os.mkfifo(pipe)
    async with environment(tmp_path / "state") as env:
        settings = dict(env.settings(EhubNamespaceConnectionString_FILE=str(pipe)))
        secret = settings.pop("EhubNamespaceConnectionString")
        async with Forwarder(settings) as forwarder:
            writer = await opened(pipe)
            forwarder.terminate()
            await asyncio.sleep(0.2)
            assert forwarder.process.returncode is None
            os.write(writer, secret.encode())
            os.close(writer)
            assert await forwarder.wait() == 0
            assert not forwarder.entries("partition claimed")


async def opened(pipe: Path) -> int:
    """Open a pipe for writing as soon as somebody reads from it."""
    while True:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody does yet
            await asyncio.sleep(0.01)


async def test_stops_while_the_checkpoints_are_locked(tmp_path: Path) -> None:
    """By a backup, for example. That the last ones are missing is logged."""
    async with environment(tmp_path) as env, env.forwarder(CheckpointInterval="60") as forwarder:
        env.ledger.publish(400)
        await env.ledger.settled()
        with closing(sqlite3.connect(tmp_path / "checkpoints.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            assert await stopped(forwarder) < CLOSING
        assert forwarder.entries("stopping without a last checkpoint")


async def test_stops_while_the_store_hangs(tmp_path: Path) -> None:
    """Neither a claim nor a last checkpoint that gets no answer holds up the end."""
    async with azurite() as store, environment(tmp_path) as env:
        ledger = env.ledger
        ledger.publish(400)
        store.pause()
        async with env.replica("one", store) as forwarder:
            await until_connected(env, forwarder)
            assert await stopped(forwarder) < CLOSING
        store.resume()
        async with env.replica("one", store) as forwarder:
            await ledger.settled()
            store.pause()
            ledger.publish(400)
            await ledger.settled()
            assert await stopped(forwarder) < CLOSING
        store.resume()
        stored = await stores.shared(store)
        ledger.judge_checkpoints(stored)
        ledger.restarted(stored)
        async with env.replica("two", store) as forwarder:
            ledger.publish(400)
            await ledger.settled()
            await stopped(forwarder)
        ledger.judge_checkpoints(await stores.shared(store))
        ledger.classify()


async def test_ends_a_task_that_forgets_that_it_was_cancelled() -> None:
    """The client's management request does, when its connection breaks in the same moment."""
    forgotten = 0

    async def forget() -> None:
        nonlocal forgotten
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                forgotten += 1
                if forgotten == 2:
                    raise

    tasks = [asyncio.create_task(forget())]
    await asyncio.sleep(0)
    async with asyncio.timeout(90):
        await app.end(tasks)
    assert tasks[0].cancelled()
