"""Whatever the hub does, every message is delivered, once, and the process stays."""

import asyncio
from pathlib import Path

import stores
from ledger import judge_sums
from scene import Scene, scene


async def drop_every_second(stage: Scene) -> None:
    for _ in range(3):
        await asyncio.sleep(1)
        stage.server.faults.drop()


async def drop_mid_message(stage: Scene) -> None:
    faults = stage.server.faults
    for _ in range(3):
        faults.drop_mid_message = True
        stage.ledger.publish(200, per_message=200)  # several frames
        async with asyncio.timeout(30):
            while faults.drop_mid_message:  # noqa: ASYNC110 - the fault is used up, nothing tells
                await asyncio.sleep(0.05)


async def restart(stage: Scene) -> None:
    stage.server.faults.refuse_connections()
    stage.server.faults.drop()
    await asyncio.sleep(2)
    await stage.server.faults.accept_connections()


async def deliver_twice(stage: Scene) -> None:
    stage.server.faults.duplicates = 20
    await asyncio.sleep(1)


async def busy(stage: Scene) -> None:
    faults = stage.server.faults
    faults.refuse("attach", "com.microsoft:server-busy")
    faults.drop()
    await asyncio.sleep(2)
    faults.accept()


async def key_revoked_and_given_back(stage: Scene) -> None:
    faults = stage.server.faults
    faults.refuse("put-token", 401)
    faults.drop()
    await asyncio.sleep(2)
    faults.accept()


async def detached(stage: Scene) -> None:
    for condition in ("amqp:internal-error", "com.microsoft:timeout", "amqp:link:detach-forced"):
        stage.server.faults.detach(condition)
        await asyncio.sleep(0.5)


async def silent(stage: Scene) -> None:
    stage.server.faults.silence()
    await asyncio.sleep(2)
    stage.server.faults.wake()


FAULTS = (
    drop_every_second,
    drop_mid_message,
    restart,
    deliver_twice,
    busy,
    key_revoked_and_given_back,
    detached,
    silent,
)


async def test_one_forwarder_outlives_all_faults_of_the_hub(tmp_path: Path) -> None:
    """Each fault passes while messages come; reading goes on by itself, without a duplicate."""
    async with scene(tmp_path) as stage, stage.forwarder() as forwarder:
        ledger = stage.ledger
        ledger.publish(40)
        await ledger.settled()
        for fault in FAULTS:
            async with stage.traffic(refuse=50):
                await fault(stage)
            ledger.publish(40)
            await ledger.settled()
            assert stage.webhook.duplicates == 0, fault.__name__
            # No receiver was closed for its count of errors, to be opened a balancing later.
            assert not forwarder.entries("partition given up"), fault.__name__
        samples = await forwarder.metrics()
        judge_sums(samples)
        assert samples.total("aks_audit_lost_messages_total") == 0
        forwarder.terminate()
        assert await forwarder.wait() == 0
        ledger.judge()
        ledger.judge_checkpoints(stores.embedded(tmp_path))
        assert stores.embedded(tmp_path) == {log.id: log.last for log in stage.hub.partitions}
