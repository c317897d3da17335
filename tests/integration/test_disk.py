"""A full, read-only or slow disk is reported, does not stop delivery, and needs no restart."""

import asyncio
import fcntl
import os
import resource
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from support import stores
from support.environment import APP, CHILD, Environment, environment
from support.harness import Samples
from support.ledger import check_sums
from support.process import Forwarder

DiskFault = Callable[[Forwarder, Path], AbstractContextManager[None]]
MOUNTABLE = (
    os.geteuid() == 0
    and not subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"],
        check=False,
        capture_output=True,
    ).returncode
)


@contextmanager
def no_file_grows(forwarder: Forwarder, _: Path) -> Iterator[None]:
    """Make writes of the process to files fail; those to pipes and sockets succeed."""
    limits = resource.prlimit(forwarder.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(forwarder.pid, resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.prlimit(forwarder.pid, resource.RLIMIT_FSIZE, limits)


@contextmanager
def no_room(forwarder: Forwarder, state: Path) -> Iterator[None]:
    """Fill the small file system of the test; without permission to mount one, as above."""
    with full(state) if os.path.ismount(state) else no_file_grows(forwarder, state):
        yield


@contextmanager
def full(state: Path) -> Iterator[None]:
    """Fill the file system; without permission to mount one, limit files of new processes."""
    if not os.path.ismount(state):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        return
    filler = state / "filler"
    with filler.open("wb", buffering=0) as file, ExitStack() as until_full:
        until_full.enter_context(pytest.raises(OSError, match="No space left"))
        while True:
            file.write(b"\0" * 4096)
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def read_only(forwarder: Forwarder, state: Path) -> Iterator[None]:
    """Make the directory read-only for files opened from now on; without permission, as above."""
    if not os.path.ismount(state):
        with no_file_grows(forwarder, state):
            yield
        return
    subprocess.run(["mount", "--bind", state, state], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", state], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", state], check=True)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    """Return a state directory, on its own file system if the test may mount one."""
    state = tmp_path / "state"
    state.mkdir()
    if MOUNTABLE:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", state], check=True)
    try:
        yield state
    finally:
        if MOUNTABLE:
            subprocess.run(["umount", "--lazy", state], check=True)


async def until_waiting(forwarder: Forwarder, records: int) -> None:
    """Wait until exactly this many dead letters wait to be written."""
    for _ in range(200):
        waiting = (await forwarder.metrics()).total("aks_audit_dead_letters_waiting")
        if waiting == records:
            return
        await asyncio.sleep(0.1)
    raise TimeoutError(f"{waiting} instead of {records} dead letters wait")


def outcomes(samples: Samples) -> dict[str, int]:
    names = ("delivered", "dead_lettered", "dropped")
    return {n: int(samples.total("aks_audit_events_total", outcome=n)) for n in names}


async def publish_and_deliver(env: Environment, count: int) -> None:
    """Publish events, every tenth refused by the sink, and wait until the others are accepted."""
    env.ledger.publish(count, reject_every=10)
    ledger, accepted = env.ledger, env.webhook.accepted
    await env.webhook.until(lambda: ledger.published.keys() - ledger.rejected <= accepted.keys())


@pytest.mark.parametrize("fault", [no_file_grows, no_room, read_only])
async def test_delivery_continues_while_writes_fail_and_dead_letters_are_written_later(
    state: Path, fault: DiskFault
) -> None:
    async with (
        environment(state) as env,
        env.forwarder(ReceiveBufferBytes="8000000") as forwarder,
    ):
        await publish_and_deliver(env, 100)
        await forwarder.until(lambda: len(env.ledger.dead_lettered()) == 10)
        with fault(forwarder, state):
            # Each of these messages has a dead letter; together they exceed the buffer.
            env.ledger.publish(10_000, per_message=22, reject_every=25)
            await publish_and_deliver(env, 100)
            logged = await forwarder.wait_for("dead letters cannot be written")
            assert (logged["level"], len(env.ledger.dead_lettered())) == ("error", 10)
            await until_waiting(forwarder, len(env.ledger.rejected) - 10)
            assert (await forwarder.get("/livez"))[0] == 200
            assert len(forwarder.entries("dead letters cannot be written")) == 1
            assert not forwarder.entries("dead letters evicted")
            env.ledger.check_checkpoints(stores.embedded(state))
        await env.ledger.wait_until_settled()
        await forwarder.wait_for("dead letters are written again")
        await until_waiting(forwarder, 0)
        samples = await forwarder.metrics()
        check_sums(samples)
        assert outcomes(samples)["dead_lettered"] == len(env.ledger.rejected)
        forwarder.terminate()
        assert await forwarder.wait() == 0
        env.ledger.check_stop(stores.embedded(state))
        env.ledger.verify()


async def test_dead_letters_above_the_memory_limit_are_evicted_and_received_again_after_a_restart(
    state: Path,
) -> None:
    """No checkpoint passes an evicted record, and liveness fails, which causes the restart."""
    async with environment(state, partitions=2) as env:
        ledger = env.ledger
        async with env.forwarder(ReceiveBufferBytes="100000") as forwarder:
            await publish_and_deliver(env, 100)
            await forwarder.until(lambda: len(ledger.dead_lettered()) == 10)
            with no_file_grows(forwarder, state):
                await publish_and_deliver(env, 1000)
                logged = await forwarder.wait_for("dead letters evicted")
                assert (logged["level"], len(ledger.dead_lettered())) == ("error", 10)
                await until_waiting(forwarder, len(ledger.rejected) - 10)
                assert (await forwarder.get("/livez"))[0] == 200
            await forwarder.wait_for("dead letters are written again")
            samples = await forwarder.metrics()
            found = outcomes(samples)
            in_flight = samples.total("aks_audit_dead_letters_waiting")
            assert in_flight > 0
            assert samples.total("aks_audit_records_total") == sum(found.values()) + in_flight
            status, reasons = await forwarder.get("/livez")
            assert (status, "to be read again" in reasons) == (503, True)
            await publish_and_deliver(env, 100)
            ledger.check_checkpoints(stores.embedded(state))
            forwarder.terminate()
            assert await forwarder.wait() == 0
        stored = stores.embedded(state)
        ledger.check_checkpoints(stored)
        ledger.reader_restarted(stored)
        async with env.forwarder() as forwarder:
            await ledger.wait_until_settled()
            assert (await forwarder.get("/livez"))[0] == 200
        ledger.verify()


async def test_a_disk_that_hangs_delays_only_checkpoints_and_dead_letters(
    state: Path, tmp_path: Path
) -> None:
    """Files are synced only while the test does not lock the gate."""
    gate = tmp_path / "gate"
    gate.touch()
    hanging = {"FSYNC_LOCK_FILE": str(gate), "PYTHONPATH": f"{CHILD}:{APP}"}
    async with environment(state) as env, env.forwarder(None, **hanging) as forwarder:
        await publish_and_deliver(env, 100)
        await forwarder.until(lambda: len(env.ledger.dead_lettered()) == 10)
        with gate.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            await publish_and_deliver(env, 2000)
            logged = await forwarder.wait_for("dead letters cannot be written")
            assert logged["reason"] == "no answer for 5 s"
            await until_waiting(forwarder, 200)
            env.ledger.check_checkpoints(stores.embedded(state))
        await env.ledger.wait_until_settled()
        await forwarder.wait_for("dead letters are written again")
        env.ledger.verify()


async def test_failed_checkpoint_writes_are_logged_counted_and_retried(
    state: Path,
) -> None:
    async with environment(state) as env, env.forwarder() as forwarder:
        await publish_and_deliver(env, 100)
        with closing(sqlite3.connect(state / "checkpoints.db")) as database:
            await forwarder.until(lambda: stores.embedded(state))
            database.execute("BEGIN IMMEDIATE")
            before = stores.embedded(state)
            await publish_and_deliver(env, 1000)
            logged = await forwarder.wait_for("checkpoints cannot be written")
            assert "locked" in logged["reason"]
            assert (await forwarder.metrics()).total(
                "aks_audit_checkpoints_total", result="error"
            ) > 0
            await publish_and_deliver(env, 100)
            assert stores.embedded(state) == before
        await forwarder.wait_for("checkpoints are written again")
        forwarder.terminate()
        assert await forwarder.wait() == 0
        env.ledger.check_stop(stores.embedded(state))


async def test_starts_and_writes_checkpoints_on_a_full_disk(state: Path) -> None:
    async with environment(state, partitions=1) as env:
        ledger = env.ledger
        async with env.forwarder() as forwarder:
            await publish_and_deliver(env, 100)
            await forwarder.until(lambda: len(ledger.dead_lettered()) == 10)
            forwarder.terminate()
            assert await forwarder.wait() == 0
        ledger.reader_restarted(before := stores.embedded(state))
        with full(state):
            async with env.forwarder() as forwarder:
                ledger.publish(100)
                await env.webhook.until(
                    lambda: ledger.published.keys() - ledger.rejected <= env.webhook.accepted.keys()
                )
                await forwarder.until(lambda: stores.embedded(state)["0"] > before["0"])
                forwarder.terminate()
                assert await forwarder.wait() == 0
            assert not [one for one in forwarder.log if one["level"] == "error"]
            ledger.check_stop(stores.embedded(state))
        ledger.verify()
