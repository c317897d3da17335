"""The start position of a partition without a checkpoint is decided once, at its first claim.

Later events are delivered, even if the forwarder stops or crashes before it has delivered any.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from faults.environment import FaultEnvironment, fault_environment
from support import events, stores
from support.webhook import Response

PARTITIONS = 4


async def stopped(env: FaultEnvironment) -> None:
    await env.stop()


async def killed(env: FaultEnvironment) -> None:
    await env.kill()


async def taken_over(env: FaultEnvironment) -> None:
    """A second replica gets its share, then the first one is killed.

    The first one stops draining early enough that the second one does not steal the partitions.
    """
    await env.start("two")
    await env.owned(one=PARTITIONS // 2, two=PARTITIONS // 2)
    given_up = [e for one in env.running.values() for e in one.entries("partition given up")]
    assert {entry["reason"] for entry in given_up} == {"BALANCED"}
    await env.kill()


def publish_old(env: FaultEnvironment) -> None:
    """Publish events that must not be delivered."""
    for message in events.messages(40, per_message=5):
        env.hub.publish(int(env.hub.choose(None).id), message.body)


@pytest.mark.parametrize(
    ("blobs", "end"),
    [
        pytest.param(False, stopped, id="embedded, SIGTERM"),
        pytest.param(False, killed, id="embedded, SIGKILL"),
        pytest.param(True, stopped, id="blobs, SIGTERM"),
        pytest.param(True, killed, id="blobs, SIGKILL", marks=pytest.mark.full),
        pytest.param(True, taken_over, id="blobs, another replica"),
    ],
)
@pytest.mark.parametrize("start", ["latest", "instant"])
async def test_nothing_is_lost_between_the_first_claim_and_the_first_delivery(
    tmp_path: Path, *, blobs: bool, end: Callable[[FaultEnvironment], Awaitable[None]], start: str
) -> None:
    async with fault_environment(tmp_path, blobs=blobs) as env:
        publish_old(env)
        await asyncio.sleep(0.01)
        instant = datetime.now(UTC).isoformat()
        env.defaults = {
            "StartPosition": instant if start == "instant" else start,
            "ShutdownGrace": "0.5",
            "OwnershipExpiry": "8",
        }
        if start == "instant":  # one partition has events since then
            await asyncio.sleep(0.01)
            env.ledger.publish(10, 0)
        env.sink = lambda _: Response(503)
        await env.start()
        await env.owned(one=PARTITIONS)
        assert len(await env.stored()) == PARTITIONS
        env.ledger.publish(20, 1)
        await end(env)
        env.ledger.publish(80)
        if not env.running:
            await env.start()
        env.sink = None
        await env.wait_until_settled()
        await env.verify()


async def test_a_position_before_the_first_message_is_valid_for_any_sdk(tmp_path: Path) -> None:
    """All use the offset "-1" for it; the sequence number is the one before the first."""
    async with fault_environment(tmp_path, blobs=True) as env:
        env.ledger.publish(10, 0)
        first = await env.start()
        await env.wait_until_settled()
        await first.wait_for("partition claimed")
        assert env.store
        found = await stores.blobs(env.store.back)
        assert found["0"]["sequencenumber"] == "0"
        positions = {(one["offset"], one["sequencenumber"]) for n, one in found.items() if n != "0"}
        assert positions == {("-1", "-1")}


@pytest.mark.parametrize("start", ["earliest", "latest"])
async def test_a_partition_is_not_read_while_its_start_cannot_be_written(
    tmp_path: Path, start: str
) -> None:
    """Except with `earliest`: there is no earlier message to lose."""
    async with fault_environment(tmp_path, blobs=True) as env:
        assert env.store
        env.defaults = {"StartPosition": start, "StallTimeout": "6"}  # the hub is polled meanwhile
        env.store.refused_path = "/checkpoint/"
        forwarder = await env.start()
        await forwarder.wait_for("checkpoints cannot be written")
        env.ledger.publish(40)
        if start == "earliest":
            await env.webhook.until(lambda: len(env.webhook.accepted) == 40)
        else:
            await asyncio.sleep(2)
            assert not env.webhook.accepted
        env.store.refused_path = ""
        await env.wait_until_settled()
        await env.verify()
