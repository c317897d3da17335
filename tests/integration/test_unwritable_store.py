"""A storage account that can be read but not written: a read-only key, or a full account.

It causes no repeated deliveries, and no partition blocks another one.
"""

import asyncio
from pathlib import Path

from support import stores
from support.environment import environment
from support.faulty_store import faulty_store
from support.harness import HUB
from support.process import Forwarder

CHECKPOINTS = "/checkpoint/"


async def test_replicas_do_not_take_partitions_from_each_other(tmp_path: Path) -> None:
    """No replica can store its ownerships, so the hub is asked which partitions have a reader."""
    async with environment(tmp_path) as env, faulty_store() as store:
        env.ledger.publish(400)
        async with (
            env.replica("one", store.front) as one,
            env.replica("two", store.front) as two,
        ):
            await env.ledger.wait_until_settled()
            await _owned(one, two, [2, 2])
            async with stores.container(store.back) as container:  # of a replica that was killed
                hub = f"127.0.0.1:{env.server.port}/{HUB}/$default"
                await container.upload_blob(f"{hub}/replica/another", b"")
            store.status = 403
            for forwarder in (one, two):
                entry = await forwarder.wait_for("partitions cannot be claimed")
                assert "refuses the login" in entry["reason"]
            before = env.webhook.duplicates
            await asyncio.sleep(6)  # a dozen rounds of load balancing
            assert env.webhook.duplicates - before <= 400, "more than once for each event"
            two.kill()  # the hub has no reader for its partitions
            env.ledger.publish(400)
            await env.ledger.wait_until_settled()


async def test_a_reclaimed_partition_resumes_from_its_position(tmp_path: Path) -> None:
    """The partition was lost briefly or reopened while no checkpoint could be written."""
    async with (
        environment(tmp_path, partitions=2) as env,
        faulty_store() as store,
        env.replica("one", store.front) as forwarder,
    ):
        await forwarder.until(lambda: _claims(forwarder, 2))
        store.status = 503
        env.ledger.publish(400)
        await env.ledger.wait_until_settled()
        for times in range(1, 4):
            env.server.faults.detach("amqp:link:stolen")
            await forwarder.until(lambda: _claims(forwarder, 2 + 2 * times))  # noqa: B023 - now
            env.ledger.publish(20)
            await env.ledger.wait_until_settled()
        assert env.webhook.duplicates == 0
        store.status = 0

        async def stored() -> bool:
            return await forwarder.total("lag_messages") == 0

        await forwarder.until(stored)


async def test_a_start_position_that_cannot_be_stored_blocks_only_its_own_partition(
    tmp_path: Path,
) -> None:
    async with environment(tmp_path, partitions=3) as env, faulty_store() as store:
        store.refused_path = f"{CHECKPOINTS}0"
        async with env.replica("one", store.front, StartPosition="latest") as forwarder:
            await forwarder.until(lambda: _claims(forwarder, 2))
            assert forwarder.entries("checkpoints cannot be written")
            for number in (1, 2):
                env.ledger.publish(20, number)
            await env.ledger.wait_until_settled()
            env.ledger.publish(20, 0)  # published after the first poll, so it must not be skipped
            store.refused_path = ""
            await env.ledger.wait_until_settled()


def _claims(forwarder: Forwarder, count: int) -> bool:
    return len(forwarder.entries("partition claimed")) >= count


async def _owned(one: Forwarder, two: Forwarder, expected: list[int]) -> None:
    async def shared() -> bool:
        return [await each.total("partitions_owned") for each in (one, two)] == expected

    await one.until(shared)
