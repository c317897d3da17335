"""What can befall a forwarder. Each is over, and all forwarders run again, when it returns."""

import asyncio
import json
import random
import signal
import time
from collections.abc import Awaitable, Callable

from faults.play import Play
from support.events import real_events

Fault = Callable[[Play, float], Awaitable[None]]


async def killed(play: Play, seconds: float, name: str = "one") -> None:
    """SIGKILL, and another start so many seconds later."""
    await play.kill(name)
    await asyncio.sleep(seconds)
    await play.start(name)
    await play.running[name].wait_for("partition claimed")


async def killed_over_and_over(play: Play, seconds: float) -> None:
    """SIGKILL at any moment of its first second, and started again at once."""
    chance = random.Random(seconds)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if chance.random() < 0.6:  # else it may not have come to a message yet
            await play.running["one"].wait_for("hub message")
        await asyncio.sleep(chance.uniform(0, 0.6))
        await play.kill()
        await play.start()


async def poisoned(play: Play, seconds: float) -> None:
    """It dies of a message, and is started again each time until it does not."""
    event = real_events()[0].replace(b'"verb":"', b'"verb":"deadly-')
    play.ledger.publish(10, 1, refuse=1, templates=[event])
    async with asyncio.timeout(seconds):
        while not play.running["one"].entries("the process died of a message"):
            ended = play.running["one"].process.returncode
            if ended is not None:
                await play.dies(signal.SIGSEGV)
                await play.start()
            await asyncio.sleep(0.05)
        await play.running["one"].wait_for("messages are processed concurrently again")
    letters = [*(play.state / "deadletters").glob("*.jsonl")]
    lines = [json.loads(line) for file in letters for line in file.read_bytes().splitlines()]
    (whole,) = {line["body"] for line in lines if line["reason"] == "the process died of it"}
    assert whole.count("deadly-") == 10


async def stopped(play: Play, seconds: float, name: str = "one") -> None:
    """SIGTERM, and another start so many seconds later."""
    await play.stop(name)
    await asyncio.sleep(seconds)
    await play.start(name)


async def frozen(play: Play, seconds: float, name: str = "one") -> None:
    """SIGSTOP, and SIGCONT so many seconds later."""
    play.again = True  # what was posted when it froze it posts again when it wakes
    async with play.moving():
        play.signal(signal.SIGSTOP, name)
        await asyncio.sleep(seconds)
        play.signal(signal.SIGCONT, name)
        await asyncio.sleep(1)


async def clock_jumps(play: Play, seconds: float, name: str = "one") -> None:
    """The wall clock jumps an hour ahead, two hours back, and ahead again."""
    await play.running[name].wait_for("start")
    for jump in ("SIGUSR1", "SIGUSR2", "SIGUSR2", "SIGUSR1"):
        play.signal(signal.Signals[jump], name)
        await asyncio.sleep(seconds / 3 if jump == "SIGUSR1" else seconds / 6)


def together(*faults: Fault) -> Fault:
    """Return faults that befall at once, each a little after the one before."""

    async def all_of_them(play: Play, seconds: float) -> None:
        async def later(index: int, fault: Fault) -> None:
            await asyncio.sleep(0.2 * index)
            await fault(play, seconds)

        await asyncio.gather(*(later(index, fault) for index, fault in enumerate(faults)))

    return all_of_them
