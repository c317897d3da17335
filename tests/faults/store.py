"""Faults of the blob store. Each has ended when it returns."""

import asyncio
from typing import TYPE_CHECKING

from support.faulty_store import FaultyStore

if TYPE_CHECKING:
    from faults.environment import FaultEnvironment


def _of(env: "FaultEnvironment") -> FaultyStore:
    assert env.store, "it has no storage account"
    return env.store


async def unavailable(env: "FaultEnvironment", seconds: float) -> None:
    """Connections are refused."""
    await _of(env).stop()
    await asyncio.sleep(seconds)
    await _of(env).start()


async def unavailable_at_start(env: "FaultEnvironment", seconds: float) -> None:
    """Connections are refused when a forwarder starts, until it has noticed."""
    await env.kill()
    await _of(env).stop()
    forwarder = await env.start()
    await forwarder.wait_for("checkpoints cannot be read")
    await asyncio.sleep(seconds)
    await _of(env).start()


async def slow(env: "FaultEnvironment", seconds: float) -> None:
    """Every response takes a second."""
    _of(env).delay = 1
    await asyncio.sleep(seconds)
    _of(env).delay = 0


async def hangs(env: "FaultEnvironment", seconds: float) -> None:
    """Requests are accepted, but there is no response during the fault."""
    _of(env).delay = seconds
    await asyncio.sleep(seconds)
    _of(env).delay = 0


async def _responds(env: "FaultEnvironment", seconds: float, status: int) -> None:
    async with env.owners_change():  # a refused claim loses the partition until the next claim
        _of(env).status = status
        await asyncio.sleep(seconds)
        _of(env).status = 0
        await asyncio.sleep(1)


async def conflicts(env: "FaultEnvironment", seconds: float) -> None:
    """Every write gets the status 409."""
    await _responds(env, seconds, 409)


async def refuses_conditions(env: "FaultEnvironment", seconds: float) -> None:
    """Every write gets the status 412, as if another process had been faster."""
    await _responds(env, seconds, 412)


async def busy(env: "FaultEnvironment", seconds: float) -> None:
    """Every write gets the status 503."""
    await _responds(env, seconds, 503)


async def forbids(env: "FaultEnvironment", seconds: float) -> None:
    """Every write gets the status 403, as with an expired key."""
    await _responds(env, seconds, 403)
