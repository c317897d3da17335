"""Each work-around of the SDK, against the SDK alone: a test fails when it is no longer needed."""

import asyncio
import gc
import random
import statistics
import time
from collections.abc import Sequence

import pytest
from azure.eventhub import EventData
from azure.eventhub._pyamqp.aio._receiver_async import ReceiverLink
from azure.eventhub.aio import EventHubConsumerClient, PartitionContext

from forwarder.hub.transport import Transport
from support.eventhubs import Server
from support.running import HUB

MESSAGES = 20


async def test_a_message_after_a_pause_is_dispatched_at_once() -> None:
    """The SDK looks every 50 ms."""
    alone, _ = await _receive([random.uniform(0.1, 0.2) for _ in range(MESSAGES)], stock=True)
    ours, _ = await _receive([random.uniform(0.1, 0.2) for _ in range(MESSAGES)])
    assert ours < alone * 2 / 3, f"{ours * 1000:.1f} ms, {alone * 1000:.1f} ms"


async def test_a_connection_opens_without_pauses() -> None:
    """The SDK sleeps 50 ms after each frame of an opening."""
    alone, ours = await _ask(stock=True), await _ask()
    assert ours < alone * 2 / 3, f"{ours * 1000:.1f} ms, {alone * 1000:.1f} ms"


async def test_a_link_keeps_no_delivery_tags() -> None:
    """The SDK keeps each for ever."""
    assert await _tags(stock=True) >= MESSAGES
    assert await _tags() == 0


async def test_what_comes_close_together_is_dispatched_together() -> None:
    """Woken by each message, a flood would be one POST per message."""
    _, sizes = await _receive([0.002] * 400)
    assert len(sizes) < 200


@pytest.mark.parametrize(
    ("size", "most", "together"),
    [(1_000, 5, range(20, 101)), (200_000, 5, range(2, 6)), (1_000, 1, range(1, 2))],
    ids=["small", "large", "one by one"],
)
async def test_a_backlog_is_dispatched_by_count_and_bytes(
    size: int, most: int, together: range
) -> None:
    """Small messages fill lists; of large ones, and one by one, there are few in memory."""
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


def _client(server: Server, *, stock: bool = False) -> EventHubConsumerClient:
    client = EventHubConsumerClient.from_connection_string(
        server.connection_string(HUB), "$Default"
    )
    if not stock:
        client._amqp_transport = Transport  # noqa: SLF001 - as `connect` does
    return client


async def _ask(*, stock: bool = False) -> float:
    """Read a hub's properties on new connections; return the median in seconds."""
    seconds = []
    async with Server({HUB: 1}) as server:
        for _ in range(5):
            asked = time.monotonic()
            async with _client(server, stock=stock) as client:
                await client.get_eventhub_properties()
                seconds.append(time.monotonic() - asked)
    return statistics.median(seconds)


async def _tags(*, stock: bool = False) -> int:
    """Receive messages; return how many delivery tags are kept."""
    gc.collect()
    before = set(map(id, _links()))
    await _receive([0.0] * MESSAGES, stock=stock)
    return sum(len(one._received_delivery_tags) for one in _links() if id(one) not in before)  # noqa: SLF001


def _links() -> list[ReceiverLink]:
    links = (one for one in gc.get_objects() if isinstance(one, ReceiverLink))
    return [one for one in links if "ConsumerGroups" in str(one.source)]


async def _receive(pauses: Sequence[float], *, stock: bool = False) -> tuple[float, list[int]]:
    """Publish a message after each pause; return the median latency in seconds, and batch sizes."""
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
        client = _client(server, stock=stock)
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
