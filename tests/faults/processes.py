"""Faults of a forwarder. Each is over, and all forwarders run again, when it returns."""

import asyncio
import json
import random
import signal
import time
from collections.abc import Awaitable, Callable

from faults.environment import FaultEnvironment
from support.events import real_events

Fault = Callable[[FaultEnvironment, float], Awaitable[None]]


async def killed(env: FaultEnvironment, seconds: float, name: str = "one") -> None:
    """SIGKILL, and another start so many seconds later."""
    await env.kill(name)
    await asyncio.sleep(seconds)
    await env.start(name)
    await env.running[name].wait_for("partition claimed")


async def killed_over_and_over(env: FaultEnvironment, seconds: float) -> None:
    """SIGKILL at any moment of its first second, and started again at once."""
    chance = random.Random(seconds)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if chance.random() < 0.6:  # else it may not have come to a message yet
            await env.running["one"].wait_for("hub message")
        await asyncio.sleep(chance.uniform(0, 0.6))
        await env.kill()
        await env.start()


async def poisoned(env: FaultEnvironment, seconds: float) -> None:
    """It dies of a message, and is started again each time until it does not."""
    event = real_events()[0].replace(b'"verb":"', b'"verb":"deadly-')
    env.ledger.publish(10, 1, refuse=1, templates=[event])
    async with asyncio.timeout(seconds):
        while not env.running["one"].entries("the process died of a message"):
            ended = env.running["one"].process.returncode
            if ended is not None:
                await env.dies(signal.SIGSEGV)
                await env.start()
            await asyncio.sleep(0.05)
        await env.running["one"].wait_for("messages are processed concurrently again")
    files = [*(env.state / "deadletters").glob("*.jsonl")]
    lines = [json.loads(line) for file in files for line in file.read_bytes().splitlines()]
    (whole,) = {line["body"] for line in lines if line["reason"] == "the process died of it"}
    assert whole.count("deadly-") == 10


async def stopped(env: FaultEnvironment, seconds: float, name: str = "one") -> None:
    """SIGTERM, and another start so many seconds later."""
    await env.stop(name)
    await asyncio.sleep(seconds)
    await env.start(name)


async def frozen(env: FaultEnvironment, seconds: float, name: str = "one") -> None:
    """SIGSTOP, and SIGCONT so many seconds later."""
    env.again = True  # what was posted when it froze it posts again when it wakes
    async with env.moving():
        env.signal(signal.SIGSTOP, name)
        await asyncio.sleep(seconds)
        env.signal(signal.SIGCONT, name)
        await asyncio.sleep(1)


async def clock_jumps(env: FaultEnvironment, seconds: float, name: str = "one") -> None:
    """The wall clock jumps an hour ahead, two hours back, and ahead again."""
    await env.running[name].wait_for("start")
    for jump in ("SIGUSR1", "SIGUSR2", "SIGUSR2", "SIGUSR1"):
        env.signal(signal.Signals[jump], name)
        await asyncio.sleep(seconds / 3 if jump == "SIGUSR1" else seconds / 6)


def together(*faults: Fault) -> Fault:
    """Return a fault that injects these at once, each a little after the one before."""

    async def all_of_them(env: FaultEnvironment, seconds: float) -> None:
        async def later(index: int, fault: Fault) -> None:
            await asyncio.sleep(0.2 * index)
            await fault(env, seconds)

        await asyncio.gather(*(later(index, fault) for index, fault in enumerate(faults)))

    return all_of_them
