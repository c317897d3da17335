"""What can befall two forwarders that share a store. After each they have two partitions each."""

import asyncio
import signal
import time

from faults.play import Play
from faults.processes import clock_jumps


async def joins(play: Play, _: float) -> None:
    """A second one comes, and gets its half."""
    async with play.moving():
        await play.start("two")
        await play.owned(one=2, two=2)


async def leaves(play: Play, seconds: float) -> None:
    """One is stopped: the other has its partitions at once, for they were given up."""
    async with play.moving():
        await play.stop("one")
        stopped = time.monotonic()
        await play.owned(two=4)
        assert time.monotonic() - stopped < seconds
        await play.start("one")
        await play.owned(one=2, two=2)


async def loses_the_hub(play: Play, seconds: float) -> None:
    """One reaches the store but not the hub: the other one has all partitions until it does."""
    async with play.moving():
        play.server.faults.cut_off = play.running["two"].pid
        play.server.faults.drop()
        await play.owned(one=4, two=0)
        await play.settled()
        samples = await play.running["two"].metrics()
        assert samples.total("aks_audit_hub_up") == 0
        await asyncio.sleep(seconds)
        await play.owned(one=4, two=0)
        play.server.faults.cut_off = None
        await play.owned(one=2, two=2)


async def is_killed(play: Play, _: float) -> None:
    """One is killed, and started again when the other has its partitions."""
    async with play.moving():
        await play.kill("one")
        await play.owned(two=4)
        await play.start("one")
        await play.owned(one=2, two=2)


async def is_frozen(play: Play, _: float) -> None:
    """One is frozen until the other has its partitions: what it knows is old when it wakes."""
    play.again = True  # what was under way when it froze it posts again
    async with play.moving():
        play.signal(signal.SIGSTOP, "one")
        await play.owned(two=4)
        await play.settled()
        play.signal(signal.SIGCONT, "one")
        for _ in range(100):  # the other one soon sets right what this one may have spoilt
            await play.look()
            await asyncio.sleep(0.02)
        await play.owned(one=2, two=2)


async def have_clocks_that_jump(play: Play, seconds: float) -> None:
    """The clock of one jumps: nothing changes hands, no time-out fires, and it is given up well.

    To connect it needs the right time: the hub refuses a token that was made an hour ago.
    """

    def told() -> int:
        kinds = ("partition ", "receiving failed", "sink down", "checkpoint")
        return sum(len(one.entries(kind)) for one in play.running.values() for kind in kinds)

    before = told()
    await clock_jumps(play, seconds)
    assert told() == before
    play.signal(signal.SIGUSR1)
    await leaves(play, 4)


async def die_while_a_clock_is_wrong(play: Play, _: float) -> None:
    """One is killed while the other's clock is an hour back: it takes over all the same."""
    play.signal(signal.SIGUSR2, "two")
    await is_killed(play, 0)
    play.signal(signal.SIGUSR1, "two")
