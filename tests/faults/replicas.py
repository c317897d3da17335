"""Faults of two forwarders that share a store. After each they have two partitions each."""

import asyncio
import signal
import time

from faults.environment import FaultEnvironment
from faults.processes import clock_jumps


async def joins(env: FaultEnvironment, _: float) -> None:
    """A second one comes, and gets its half."""
    async with env.moving():
        await env.start("two")
        await env.owned(one=2, two=2)


async def leaves(env: FaultEnvironment, _: float) -> None:
    """One is stopped: the other has its partitions before they expire, for they were given up."""
    async with env.moving():
        await env.stop("one")
        stopped = time.monotonic()
        await env.owned(two=4)
        assert time.monotonic() - stopped < float(env.defaults["OwnershipExpiry"]) - 5
        await env.start("one")
        await env.owned(one=2, two=2)


async def loses_the_hub(env: FaultEnvironment, seconds: float) -> None:
    """One reaches the store but not the hub: the other one has all partitions until it does."""
    async with env.moving():
        env.server.faults.cut_off = env.running["two"].pid
        env.server.faults.drop()
        await env.owned(one=4, two=0)
        await env.settled()
        samples = await env.running["two"].metrics()
        assert samples.total("aks_audit_hub_up") == 0
        await asyncio.sleep(seconds)
        await env.owned(one=4, two=0)
    async with env.moving():
        env.server.faults.cut_off = None
        await env.owned(one=2, two=2)


async def is_killed(env: FaultEnvironment, _: float) -> None:
    """One is killed, and started again when the other has its partitions."""
    async with env.moving():
        await env.kill("one")
        await env.owned(two=4)
        await env.start("one")
        await env.owned(one=2, two=2)


async def is_frozen(env: FaultEnvironment, _: float) -> None:
    """One is frozen until the other has its partitions: what it knows is old when it wakes."""
    env.again = True  # what was under way when it froze it posts again
    async with env.moving():
        env.signal(signal.SIGSTOP, "one")
        await env.owned(two=4)
        await env.settled()
        env.signal(signal.SIGCONT, "one")
        end = time.monotonic() + 5
        while time.monotonic() < end:  # the other one soon sets right what this one may have spoilt
            await env.look()
            await asyncio.sleep(0.02)
        await env.owned(one=2, two=2)


async def have_clocks_that_jump(env: FaultEnvironment, seconds: float) -> None:
    """The clock of one jumps: nothing changes hands, no time-out fires, and it is given up well.

    To connect it needs the right time: the hub refuses a token that was made an hour ago.
    """

    def told() -> int:
        kinds = ("partition ", "receiving failed", "sink down", "checkpoint")
        return sum(len(one.entries(kind)) for one in env.running.values() for kind in kinds)

    before = told()
    await clock_jumps(env, seconds)
    assert told() == before
    env.signal(signal.SIGUSR1)
    await leaves(env, 0)


async def die_while_a_clock_is_wrong(env: FaultEnvironment, _: float) -> None:
    """One is killed while the other's clock is an hour back: it takes over all the same."""
    async with env.moving():
        env.signal(signal.SIGUSR2, "two")
        await env.kill("one")
        await env.owned(two=4)
        env.signal(signal.SIGUSR1, "two")  # for a new connection the hub wants a token of now
        await env.start("one")
        await env.owned(one=2, two=2)
