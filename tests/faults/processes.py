"""Faults of a forwarder. Each has ended, and all forwarders are running, when it returns."""

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
    """SIGKILL, and a restart after the given seconds."""
    await env.kill(name)
    await asyncio.sleep(seconds)
    await env.start(name)
    await env.running[name].wait_for("partition claimed")


async def killed_repeatedly(env: FaultEnvironment, seconds: float) -> None:
    """SIGKILL at a random moment of its first second, and an immediate restart."""
    rng = random.Random(seconds)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if rng.random() < 0.6:  # else it may not have received a message yet
            await env.running["one"].wait_for("hub message")
        await asyncio.sleep(rng.uniform(0, 0.6))
        await env.kill()
        await env.start()


async def receives_a_poison_message(env: FaultEnvironment, seconds: float) -> None:
    """It crashes at a message, and is restarted until the message is a dead letter."""
    event = real_events()[0].replace(b'"verb":"', b'"verb":"deadly-')
    env.ledger.publish(10, 1, reject_every=1, templates=[event])
    async with asyncio.timeout(seconds):
        while not env.running["one"].entries("the process died of a message"):
            ended = env.running["one"].process.returncode
            if ended is not None:
                await env.wait_ended_by(signal.SIGSEGV)
                await env.start()
            await asyncio.sleep(0.05)
        await env.running["one"].wait_for("messages are processed concurrently again")
    files = [*(env.state / "deadletters").glob("*.jsonl")]
    lines = [json.loads(line) for file in files for line in file.read_bytes().splitlines()]
    (whole,) = {line["body"] for line in lines if line["reason"] == "the process died of it"}
    assert whole.count("deadly-") == 10


async def stopped(env: FaultEnvironment, seconds: float, name: str = "one") -> None:
    """SIGTERM, and a restart after the given seconds."""
    await env.stop(name)
    await asyncio.sleep(seconds)
    await env.start(name)


async def frozen(env: FaultEnvironment, seconds: float, name: str = "one") -> None:
    """SIGSTOP, and SIGCONT after the given seconds."""
    env.duplicates_allowed = True  # it retries the POSTs that were in flight
    async with env.owners_change():
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
    """Return a fault that injects these concurrently, each a little after the previous one."""

    async def all_faults(env: FaultEnvironment, seconds: float) -> None:
        async def later(index: int, fault: Fault) -> None:
            await asyncio.sleep(0.2 * index)
            await fault(env, seconds)

        await asyncio.gather(*(later(index, fault) for index, fault in enumerate(faults)))

    return all_faults
