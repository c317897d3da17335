"""Fills a hub with a load and serves it: `python -m bench.hub LOAD`, which is JSON."""

import asyncio
import gc
import itertools
import json
import sys
from collections.abc import Callable, Sequence

import uvloop

from bench.works import Load
from eventhubs import Server
from events import messages, real_events, typical_events

HUB = "insights-logs-kube-audit"
_TEMPLATES = 400  # events, at least, in the messages that are published over and over

EVENTS: dict[str, Callable[[], Sequence[bytes]]] = {
    "typical": typical_events,
    "all": real_events,
    "responses": lambda: tuple(
        event
        for event in real_events()
        if b'"level":"RequestResponse"' in event and 1800 <= len(event) <= 2900  # 2.3 KB
    ),
}


def fill(server: Server, load: Load) -> None:
    """Publish a load's messages, from partition to partition in turn."""
    size = load.per_message
    made = list(messages(max(_TEMPLATES, 5 * size), per_message=size, events=EVENTS[load.events]()))
    for number, message in zip(range(load.messages), itertools.cycle(made), strict=False):
        server.hubs[HUB].publish(number % load.partitions, message.body)


async def _serve(load: Load) -> None:
    async with Server({HUB: load.partitions}) as server:
        fill(server, load)
        gc.freeze()  # a hundred thousand messages need no looking at
        print(server.connection_string(), flush=True)  # noqa: T201  whoever started it reads it
        if not load.pace:
            await asyncio.Event().wait()
        made = messages(sys.maxsize, per_message=load.per_message, events=EVENTS[load.events]())
        for number, message in enumerate(made):
            server.hubs[HUB].publish(number % load.partitions, message.body)
            await asyncio.sleep(load.pace)


if __name__ == "__main__":
    uvloop.run(_serve(Load(**json.loads(sys.argv[1]))))
