"""Serves a hub that is filled with a load: `python -m bench.hub LOAD FOLDER`; LOAD is JSON.

It prints its connection string, and the one for TLS. In this case FOLDER/ca.pem is the CA.
"""

import asyncio
import gc
import itertools
import json
import ssl
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import trustme
import uvloop

from bench.workloads import Load
from support.eventhubs import Server
from support.events import messages, real_events, typical_events

HUB = "insights-logs-kube-audit"
_TLS_HOST, _TLS_PORT = "127.0.0.9", 5671  # the client supports no other port with TLS
_TEMPLATES = 400  # approximate number of events in the messages that are repeated

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
    """Publish the messages of a load to the partitions in turn."""
    size = load.per_message
    whole = load.messages * size if load.unique else max(5, _TEMPLATES // size) * size
    made = list(messages(whole, per_message=size, events=EVENTS[load.events]()))
    for number, message in zip(range(load.messages), itertools.cycle(made), strict=False):
        server.hubs[HUB].publish(number % load.partitions, message.body)


async def _serve(load: Load, folder: Path) -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(Server({HUB: load.partitions}))
        fill(server, load)
        gc.freeze()  # do not scan a hundred thousand messages again
        strings = [server.connection_string()]
        if load.tls:
            ca, context = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            ca.issue_cert(_TLS_HOST).configure_cert(context)
            ca.cert_pem.write_to_path(folder / "ca.pem")
            secure = Server({}, host=_TLS_HOST, port=_TLS_PORT, tls=context)
            secure.hubs = server.hubs
            strings.append((await stack.enter_async_context(secure)).connection_string())
        print(json.dumps(strings), flush=True)  # noqa: T201  the parent process reads it
        if not load.pace:
            await asyncio.Event().wait()
        made = messages(sys.maxsize, per_message=load.per_message, events=EVENTS[load.events]())
        for number, message in enumerate(made):
            server.hubs[HUB].publish(number % load.partitions, message.body)
            await asyncio.sleep(load.pace)


if __name__ == "__main__":
    uvloop.run(_serve(Load(**json.loads(sys.argv[1])), Path(sys.argv[2])))
