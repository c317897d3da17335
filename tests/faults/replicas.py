"""Faults of two replicas that share a store. After each fault, each owns two partitions."""

import asyncio
import signal
import time

from faults.environment import FaultEnvironment
from faults.processes import clock_jumps


async def joins(env: FaultEnvironment, _: float) -> None:
    """A second replica starts and takes over half of the partitions."""
    async with env.owners_change():
        await env.start("two")
        await env.owned(one=2, two=2)


async def leaves(env: FaultEnvironment, _: float) -> None:
    """A replica stops and releases its partitions: the other owns them before they expire."""
    async with env.owners_change():
        await env.stop("one")
        stopped = time.monotonic()
        await env.owned(two=4)
        assert time.monotonic() - stopped < float(env.defaults["OwnershipExpiry"]) - 5
        await env.start("one")
        await env.owned(one=2, two=2)


async def loses_the_hub(env: FaultEnvironment, seconds: float) -> None:
    """A replica reaches the store but not the hub: meanwhile, the other owns all partitions."""
    async with env.owners_change():
        env.server.faults.cut_off = env.running["two"].pid
        env.server.faults.drop()
        await env.owned(one=4, two=0)
        await env.wait_until_settled()
        samples = await env.running["two"].metrics()
        assert samples.total("aks_audit_hub_up") == 0
        await asyncio.sleep(seconds)
        await env.owned(one=4, two=0)
    async with env.owners_change():
        env.server.faults.cut_off = None
        await env.owned(one=2, two=2)


async def is_killed(env: FaultEnvironment, _: float) -> None:
    """A replica is killed, and restarted when the other owns its partitions."""
    async with env.owners_change():
        await env.kill("one")
        await env.owned(two=4)
        await env.start("one")
        await env.owned(one=2, two=2)


async def is_frozen(env: FaultEnvironment, _: float) -> None:
    """A replica is suspended until the other owns its partitions: its state is then outdated."""
    env.duplicates_allowed = True  # it retries the POSTs that were in flight
    async with env.owners_change():
        env.signal(signal.SIGSTOP, "one")
        await env.owned(two=4)
        await env.wait_until_settled()
        env.signal(signal.SIGCONT, "one")
        end = time.monotonic() + 5
        while time.monotonic() < end:  # the other one would soon overwrite a wrong checkpoint
            await env.check_checkpoints()
            await asyncio.sleep(0.02)
        await env.owned(one=2, two=2)


async def clock_jumps_in_one(env: FaultEnvironment, seconds: float) -> None:
    """The clock of a replica jumps: owners do not change, nothing times out, it can be stopped.

    It can connect only with the right time: the hub rejects a token that was issued an hour ago.
    """

    def count_entries() -> int:
        kinds = ("partition ", "receiving failed", "sink down", "checkpoint")
        return sum(len(one.entries(kind)) for one in env.running.values() for kind in kinds)

    before = count_entries()
    await clock_jumps(env, seconds)
    assert count_entries() == before
    env.signal(signal.SIGUSR1)
    await leaves(env, 0)


async def is_killed_while_a_clock_is_wrong(env: FaultEnvironment, _: float) -> None:
    """A replica is killed while the clock of the other is an hour back: it still takes over."""
    async with env.owners_change():
        env.signal(signal.SIGUSR2, "two")
        await env.kill("one")
        await env.owned(two=4)
        env.signal(signal.SIGUSR1, "two")  # a new connection needs a current token
        await env.start("one")
        await env.owned(one=2, two=2)
