"""Replicas with a shared store divide the partitions, and take over from one another."""

import asyncio
import os
import signal
import time
from pathlib import Path

import stores
from azurite import Azurite, azurite
from ledger import judge_sums
from process import Forwarder
from scene import Scene, scene


async def owned(*replicas: Forwarder) -> list[int]:
    """Return how many partitions each owns by its own account, -1 before it answers."""

    async def count(replica: Forwarder) -> int:
        try:
            return int((await replica.metrics())[("aks_audit_partitions_owned", frozenset())])
        except OSError:
            assert replica.process.returncode is None, replica.stderr
            return -1

    return [await count(replica) for replica in replicas]


async def until_owned(expected: list[int], *replicas: Forwarder) -> None:
    """Wait until the partitions are divided so."""
    for _ in range(300):
        if (found := await owned(*replicas)) == expected:
            return
        await asyncio.sleep(0.1)
    raise TimeoutError(f"owned {found} instead of {expected}")


async def until_stored(stage: Scene, store: Azurite) -> None:
    """Wait until every checkpoint has come to what is now the hub's end: each owner writes its."""
    last = {log.id: log.last for log in stage.hub.partitions}
    for _ in range(150):
        stored = await stores.shared(store)
        stage.ledger.judge_checkpoints(stored)
        if all(stored.get(number, -1) >= end for number, end in last.items()):
            return
        await asyncio.sleep(0.1)
    raise TimeoutError(f"checkpoints {stored} do not come to {last}")


async def test_partitions_are_shared_and_taken_over(tmp_path: Path) -> None:
    """Four partitions become two and two; whoever stays has all; checkpoints go on behind all."""
    async with azurite() as store, scene(tmp_path) as stage:
        ledger = stage.ledger
        async with stage.replica("one", store) as one, stage.traffic():
            await until_owned([4], one)
            before = await stores.shared(store)
            async with stage.replica("two", store) as two:
                await until_owned([2, 2], one, two)
                ledger.restarted(before)  # what was under way when two took it comes again
                await until_stored(stage, store)
                one.terminate()
                assert await one.wait() == 0
                stopped = time.monotonic()
                await until_owned([4], two)
                # Given up, not left to expire.
                assert time.monotonic() - stopped < 3
                await until_stored(stage, store)
                two.terminate()
                assert await two.wait() == 0
        async with stage.replica("one", store) as one:
            await ledger.settled()
            await until_stored(stage, store)
            judge_sums(await one.metrics())
        ledger.judge()


async def test_a_killed_replica_is_taken_over_when_its_ownership_expires(tmp_path: Path) -> None:
    """SIGKILL gives nothing up: OwnershipExpiry later the other goes on from the checkpoints."""
    async with azurite() as store, scene(tmp_path) as stage:
        ledger = stage.ledger
        async with stage.replica("one", store) as one, stage.replica("two", store) as two:
            async with stage.traffic():
                before = await stores.shared(store)
                await until_owned([2, 2], one, two)
                ledger.restarted(before)
                await until_stored(stage, store)
                one.kill()
                await one.wait()
                ledger.restarted(await stores.shared(store))
                await until_owned([4], two)
                await until_stored(stage, store)
            await ledger.settled()
            await until_stored(stage, store)
            judge_sums(await two.metrics())
        ledger.judge()


async def test_a_frozen_replica_moves_no_checkpoint_back_when_it_wakes(tmp_path: Path) -> None:
    """SIGSTOP until the other has taken over, then SIGCONT: what it knows is old by then."""
    async with azurite() as store, scene(tmp_path) as stage:
        ledger = stage.ledger
        async with stage.replica("one", store) as one, stage.traffic():
            await until_owned([4], one)
            await until_stored(stage, store)
            os.kill(one.pid, signal.SIGSTOP)
            before = await stores.shared(store)
            async with stage.replica("two", store) as two:
                await until_owned([4], two)
                await until_stored(stage, store)
                ledger.restarted(before)
                between = await stores.shared(store)
                os.kill(one.pid, signal.SIGCONT)
                await until_owned([2, 2], one, two)
                ledger.restarted(between)
                await until_stored(stage, store)
                two.terminate()
                assert await two.wait() == 0
            await ledger.settled()
        ledger.judge()
