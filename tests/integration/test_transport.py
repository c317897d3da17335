"""Messages are handed on at once after a pause, and many at once in a flood: a mended client."""

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

import pytest
from azure.eventhub import EventData
from azure.eventhub._pyamqp.aio import AMQPClientAsync
from azure.eventhub.aio import EventHubConsumerClient, PartitionContext
from azure.eventhub.aio._transport._pyamqp_transport_async import PyamqpTransportAsync

from forwarder.hub.transport import mend_client
from support.eventhubs import Server
from support.running import HUB

# The client's own: no test has mended it yet.
CALLBACK: Any = vars(PyamqpTransportAsync)["_callback_task"]
READY: Any = vars(AMQPClientAsync)["client_ready_async"]
MESSAGES = 20


async def test_a_message_after_a_pause_is_handed_on_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client alone, and so with a version that is not known, looks every 50 ms; both work."""
    monkeypatch.setattr(PyamqpTransportAsync, "_callback_task", CALLBACK)
    alone, _ = await _receive([random.uniform(0.1, 0.2) for _ in range(MESSAGES)])
    mend_client()
    mended, _ = await _receive([random.uniform(0.1, 0.2) for _ in range(MESSAGES)])
    assert mended < alone * 2 / 3, f"{mended * 1000:.0f} ms, {alone * 1000:.0f} ms"


async def test_a_connection_opens_without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client alone sleeps 50 ms after each frame of an opening; both work."""
    monkeypatch.setattr(AMQPClientAsync, "client_ready_async", READY)
    alone = await _ask()
    mend_client()
    mended = await _ask()
    assert mended < alone * 2 / 3, f"{mended * 1000:.0f} ms, {alone * 1000:.0f} ms"


async def test_what_comes_close_together_is_handed_on_together() -> None:
    """Woken by each message, a flood would be a post a message."""
    mend_client()
    _, sizes = await _receive([0.002] * 400)
    assert len(sizes) < 200


@pytest.mark.parametrize(
    ("size", "most", "together"),
    [(1_000, 5, range(20, 101)), (200_000, 5, range(2, 6)), (1_000, 1, range(1, 2))],
    ids=["small", "large", "one by one"],
)
async def test_of_a_backlog_so_many_are_handed_on_together(
    size: int, most: int, together: range
) -> None:
    """Lists close full on small messages; those of 1 MB, or of which one may kill, come as few."""
    mend_client()
    sizes: list[int] = []
    done = asyncio.Event()

    async def on_batch(_: PartitionContext, received: list[EventData]) -> None:
        sizes.append(len(received))
        if sum(sizes) == 100:
            done.set()

    async with Server({HUB: 1}) as server:
        for _ in range(100):
            server.hubs[HUB].publish(0, bytes(size))
        client = _client(server)
        async with client, asyncio.timeout(60):
            receiving = asyncio.create_task(
                client.receive_batch(
                    on_batch, starting_position="-1", max_batch_size=most, prefetch=100
                )
            )
            await done.wait()
        receiving.cancel()
    assert max(sizes) in together


def _client(server: Server) -> EventHubConsumerClient:
    return EventHubConsumerClient.from_connection_string(server.connection_string(HUB), "$Default")


async def _ask() -> float:
    """Ask a hub for its properties on new connections; the median in seconds."""
    seconds = []
    async with Server({HUB: 1}) as server:
        for _ in range(5):
            asked = time.monotonic()
            client = _client(server)
            async with client:
                await client.get_eventhub_properties()
                seconds.append(time.monotonic() - asked)
    return statistics.median(seconds)


async def _receive(pauses: Sequence[float]) -> tuple[float, list[int]]:
    """Publish a message after each pause; its median way in seconds, and how many came at once."""
    ways: list[float] = []
    sizes: list[int] = []
    begun, done = asyncio.Event(), asyncio.Event()

    async def on_batch(_: PartitionContext, received: list[EventData]) -> None:
        now = time.monotonic()
        if received:
            ways.extend(now - float(one.body_as_str()) for one in received)
            sizes.append(len(received))
            begun.set()
        if len(ways) > len(pauses):
            done.set()

    async with Server({HUB: 1}) as server:
        publish = server.hubs[HUB].publish
        publish(0, f"{time.monotonic()}".encode())
        client = _client(server)
        async with client, asyncio.timeout(60):
            receiving = asyncio.create_task(
                client.receive_batch(on_batch, starting_position="-1", max_wait_time=0.5)
            )
            await begun.wait()
            for pause in pauses:
                await asyncio.sleep(pause)
                publish(0, f"{time.monotonic()}".encode())
            await done.wait()
        receiving.cancel()
    return statistics.median(ways[1:]), sizes
