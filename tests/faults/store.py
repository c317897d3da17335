"""Faults of the blob store. Each is over when it returns."""

import asyncio
from typing import TYPE_CHECKING

from support.faulty_store import FaultyStore

if TYPE_CHECKING:
    from faults.environment import FaultEnvironment


def _of(env: "FaultEnvironment") -> FaultyStore:
    assert env.store, "it has no store in an account"
    return env.store


async def away(env: "FaultEnvironment", seconds: float) -> None:
    """Nobody listens."""
    await _of(env).stop()
    await asyncio.sleep(seconds)
    await _of(env).start()


async def away_at_the_start(env: "FaultEnvironment", seconds: float) -> None:
    """Nobody listens when a forwarder starts, until it has noticed."""
    await env.kill()
    await _of(env).stop()
    forwarder = await env.start()
    await forwarder.wait_for("checkpoints cannot be read")
    await asyncio.sleep(seconds)
    await _of(env).start()


async def slow(env: "FaultEnvironment", seconds: float) -> None:
    """Every answer takes a second."""
    _of(env).delay = 1
    await asyncio.sleep(seconds)
    _of(env).delay = 0


async def hangs(env: "FaultEnvironment", seconds: float) -> None:
    """Requests are taken and not answered while it lasts."""
    _of(env).delay = seconds
    await asyncio.sleep(seconds)
    _of(env).delay = 0


async def _answers(env: "FaultEnvironment", seconds: float, status: int) -> None:
    async with env.moving():  # a claim that is refused is lost, and claimed again
        _of(env).status = status
        await asyncio.sleep(seconds)
        _of(env).status = 0
        await asyncio.sleep(1)


async def conflicts(env: "FaultEnvironment", seconds: float) -> None:
    """Whatever is written is answered with 409."""
    await _answers(env, seconds, 409)


async def refuses_conditions(env: "FaultEnvironment", seconds: float) -> None:
    """Whatever is written is answered with 412, as if somebody else had been faster."""
    await _answers(env, seconds, 412)


async def busy(env: "FaultEnvironment", seconds: float) -> None:
    """Whatever is written is answered with 503."""
    await _answers(env, seconds, 503)


async def forbids(env: "FaultEnvironment", seconds: float) -> None:
    """Whatever is written is answered with 403, as with an expired key."""
    await _answers(env, seconds, 403)
