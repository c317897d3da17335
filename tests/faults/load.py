"""Large messages, and large numbers of dead letters."""

import asyncio
import json

from faults.environment import FaultEnvironment
from support import events

SMALL = events.typical_events()


async def many_records(env: FaultEnvironment, _: float) -> None:
    """Messages of 5,000 records."""
    env.ledger.publish(40_000, per_message=5000, templates=SMALL)
    await env.wait_until_settled()


async def large_record(env: FaultEnvironment, size: float) -> None:
    """Messages with one record of `size` bytes."""
    event = json.loads(SMALL[0])
    event["requestObject"] = {"data": {"large": "x" * int(size)}}
    body = json.dumps(event, separators=(",", ":")).encode()
    for _ in range(12):
        env.ledger.publish(1, per_message=1, templates=[body])
        await asyncio.sleep(0.05)
    await env.wait_until_settled()


async def dead_letters(env: FaultEnvironment, number: float) -> None:
    """Events followed by other text: they become dead letters without a POST."""
    malformed = [event + b" text" for event in SMALL]
    env.ledger.publish(int(number), per_message=100, reject_every=1, templates=malformed)
    await env.wait_until_settled(400)
