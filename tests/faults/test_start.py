"""Where a partition without a checkpoint starts is decided once, when it is first claimed.

Events that come after that are delivered, however the forwarder ends before it has delivered any.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from faults.play import Play, play
from support import events, stores
from support.webhook import Answer

PARTITIONS = 4


async def stopped(play: Play) -> None:
    await play.stop()


async def killed(play: Play) -> None:
    await play.kill()


async def taken_over(play: Play) -> None:
    """A second replica has its share, then the first one dies."""
    await play.start("two")
    await play.owned(one=PARTITIONS // 2, two=PARTITIONS // 2)
    await play.kill()


def publish_old(play: Play) -> None:
    """Publish what is not to be delivered."""
    for message in events.messages(40, per_message=5):
        play.hub.publish(int(play.hub.choose(None).id), message.body)


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
    tmp_path: Path, *, blobs: bool, end: Callable[[Play], Awaitable[None]], start: str
) -> None:
    async with play(tmp_path, blobs=blobs) as stage:
        publish_old(stage)
        await asyncio.sleep(0.01)
        instant = datetime.now(UTC).isoformat()
        stage.defaults = {
            "StartPosition": instant if start == "instant" else start,
            "ShutdownGrace": "0.5",
        }
        if start == "instant":  # one partition has events since then
            await asyncio.sleep(0.01)
            stage.ledger.publish(10, 0)
        stage.sink = lambda _: Answer(503)
        await stage.start()
        await stage.owned(one=PARTITIONS)
        assert len(await stage.stored()) == PARTITIONS
        stage.ledger.publish(20, 1)
        await end(stage)
        stage.ledger.publish(80)
        if not stage.running:
            await stage.start()
        stage.sink = None
        await stage.settled()
        await stage.verdict()


async def test_a_place_before_the_first_message_is_read_by_any_sdk(tmp_path: Path) -> None:
    """All take the offset "-1" for it; the number is the one before the first."""
    async with play(tmp_path, blobs=True) as stage:
        stage.ledger.publish(10, 0)
        first = await stage.start()
        await stage.settled()
        await first.wait_for("partition claimed")
        assert stage.store
        found = await stores.blobs(stage.store.back)
        assert found["0"]["sequencenumber"] == "0"
        places = {(one["offset"], one["sequencenumber"]) for n, one in found.items() if n != "0"}
        assert places == {("-1", "-1")}


@pytest.mark.parametrize("start", ["earliest", "latest"])
async def test_a_partition_is_not_read_while_its_start_cannot_be_written(
    tmp_path: Path, start: str
) -> None:
    """Unless it is the earliest message, before which nothing can be lost."""
    async with play(tmp_path, blobs=True) as stage:
        assert stage.store
        stage.defaults = {"StartPosition": start}
        stage.store.refused_path = "/checkpoint/"
        forwarder = await stage.start()
        await forwarder.wait_for("checkpoints cannot be written")
        stage.ledger.publish(40)
        if start == "earliest":
            await stage.webhook.until(lambda: len(stage.webhook.taken) == 40)
        else:
            await asyncio.sleep(2)
            assert not stage.webhook.taken
        stage.store.refused_path = ""
        await stage.settled()
        await stage.verdict()
