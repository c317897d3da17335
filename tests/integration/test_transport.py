"""Each workaround, compared with the plain SDK: a test fails when it is no longer needed."""

import asyncio
import gc
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

import psutil
import pytest
from aiohttp import ClientSession
from azure.eventhub import EventData
from azure.eventhub._pyamqp.aio._receiver_async import ReceiverLink
from azure.eventhub._pyamqp.error import AMQPConnectionError
from azure.eventhub._pyamqp.performatives import EndFrame
from azure.eventhub.aio import EventHubConsumerClient, PartitionContext

from forwarder.config.settings import Settings
from forwarder.hub.client import connect, open_link
from forwarder.hub.message import Received
from forwarder.hub.transport import Management, Transport
from support.eventhubs import Hub, Server
from support.harness import HUB

MESSAGES = 20
Receive = Callable[[Server, Sequence[float]], Awaitable[list[float]]]


async def test_a_receiver_is_woken_by_its_socket() -> None:
    """The SDK polls every 50 ms."""
    pauses = [random.uniform(0.1, 0.2) for _ in range(MESSAGES)]
    sdk, ours = await _latency(_by_sdk, pauses), await _latency(_by_link, pauses)
    assert ours < sdk / 2, f"{ours * 1000:.1f} ms, {sdk * 1000:.1f} ms"


async def test_a_connection_opens_without_pauses() -> None:
    """The SDK sleeps 50 ms after each frame while it connects."""
    sdk, ours = await _connect_time(stock=True), await _connect_time()
    assert ours < sdk * 2 / 3, f"{ours * 1000:.1f} ms, {sdk * 1000:.1f} ms"


async def test_a_link_keeps_no_delivery_tags() -> None:
    """The SDK never removes one."""
    assert await _tags(_by_sdk) >= MESSAGES
    assert await _tags(_by_link) == 0


async def test_a_body_that_the_sdk_cannot_decode_is_received() -> None:
    """A decimal32 ends the SDK's session, and the message is redelivered."""
    async with Server({HUB: 1}) as server:
        _publish_value(server.hubs[HUB], b"\x74\x00\x00\x00\x00")
        server.hubs[HUB].publish(0, b"next")
        assert len(await _by_sdk(server, [0], seconds=2)) == 0
        async with _client(server) as client:
            link = await open_link(client, "0", "-1", owner=True)
            received: list[Received] = []
            while len(received) < 2:
                await link.read(10)
                received += link.take()
            await link.aclose()
        first, second = received
        assert (first.sequence_number, first.problem != "") == (0, True)
        assert (second.sequence_number, second.body, second.problem) == (1, b"next", "")


async def test_a_session_that_the_service_ends_is_detected() -> None:
    """The SDK's link stays silent without an error."""
    async with Server({HUB: 1}) as server, _client(server) as client:
        link = await open_link(client, "0", owner=True)
        (receiver,) = server.receivers
        receiver.session.send(EndFrame(None))
        receiver.session.end()
        with pytest.raises(AMQPConnectionError, match="session"):
            await link.read(10)
        link._link.get_state()  # noqa: SLF001 - where the SDK would raise
        await link.aclose()


async def test_management_requests_share_a_connection() -> None:
    """The SDK opens one per request."""
    opened = []
    async with Server({HUB: 4}) as server:
        create = server.connection
        server.connection = lambda: opened.append(1) or create()  # type: ignore[method-assign,func-returns-value]
        server.stop_listening()
        await server.listen()
        async with _client(server, stock=True) as client:
            for _ in range(5):
                await client.get_partition_properties("0")
        assert len(opened) == 5
        opened.clear()
        async with _client(server) as client:
            management = Management(client)
            for _ in range(5):
                found = await management.read("com.microsoft:partition", partition="0")
                assert found[b"last_enqueued_sequence_number"] == -1
            server.faults.drop()
            await management.read("com.microsoft:eventhub")
            await management.close()
        assert len(opened) == 2


@pytest.mark.parametrize("stock", [True, False])
async def test_the_socket_of_a_failed_connection_is_closed(*, stock: bool) -> None:
    """The SDK leaves it to the garbage collector."""
    async with Server({HUB: 1}) as server, _client(server) as client:
        with _sockets(server.port) as remaining:
            link = await open_link(client, "0", owner=True)
            server.faults.drop_mid_message = True
            server.hubs[HUB].publish(0, bytes(200_000))
            with pytest.raises(AMQPConnectionError):
                await link.read(90)
            await (link._amqp.close_async if stock else link.aclose)()  # noqa: SLF001 - as above
            assert await remaining() == stock


@pytest.mark.parametrize("stock", [True, False])
async def test_the_socket_of_a_connection_attempt_that_times_out_is_closed(*, stock: bool) -> None:
    """The SDK leaves it open, too."""
    silent = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    async with connect(_settings(Server({}, port=port)), None) as client:
        with _sockets(port) as remaining:
            receiver: Any = client._create_consumer("g", "0", "-1", cast("Any", None))  # noqa: SLF001
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await (receiver._open() if stock else open_link(client, "0"))  # noqa: SLF001
            await receiver.close()
            assert await remaining() == stock
    silent.close()


@pytest.mark.parametrize("stock", [True, False])
async def test_the_session_of_a_refused_websocket_is_closed(*, stock: bool) -> None:
    """Nothing listens on port 443 of this address."""
    server = Server({}, host=f"127.7.{random.randrange(256)}.{random.randrange(1, 255)}")
    async with connect(_settings(server, HubTransport="websockets"), None) as client:
        before = _open_sessions()
        receiver: Any = client._create_consumer("g", "0", "-1", cast("Any", None))  # noqa: SLF001
        with pytest.raises(AMQPConnectionError):
            await (receiver._open() if stock else open_link(client, "0"))  # noqa: SLF001
        with suppress(AttributeError):
            await receiver.close()
        assert len(_open_sessions() - before) == stock


def _open_sessions() -> set[ClientSession]:
    return {one for one in gc.get_objects() if isinstance(one, ClientSession) and not one.closed}


@contextmanager
def _sockets(port: int) -> Iterator[Callable[[], Awaitable[int]]]:
    """Yield a function that counts connections to a port, except those about to be closed."""

    async def remaining() -> int:
        for _ in range(20):
            found = [
                c for c in psutil.Process().net_connections() if c.raddr and c.raddr[1] == port
            ]
            if not found:
                break
            await asyncio.sleep(0.05)
        return len(found)

    gc.collect()
    gc.disable()
    try:
        yield remaining
    finally:
        gc.enable()


def _publish_value(hub: Hub, value: bytes) -> int:
    """Publish a message whose body is an encoded AMQP value."""
    return hub.partitions[0].append(b"\x00\x53\x77" + value, b"", None)


def _settings(server: Server, **more: str) -> Settings:
    return Settings.from_env({"EhubNamespaceConnectionString": server.connection_string(), **more})


def _client(server: Server, *, stock: bool = False) -> EventHubConsumerClient:
    if stock:
        return EventHubConsumerClient.from_connection_string(
            server.connection_string(HUB), "$Default"
        )
    client = connect(_settings(server), None)
    assert client._amqp_transport is Transport  # noqa: SLF001 - no public attribute
    return client


async def _connect_time(*, stock: bool = False) -> float:
    """Read a hub's properties on new connections; return the median in seconds."""
    seconds = []
    async with Server({HUB: 1}) as server:
        for _ in range(5):
            started = time.monotonic()
            async with _client(server, stock=stock) as client:
                await client.get_eventhub_properties()
                seconds.append(time.monotonic() - started)
    return statistics.median(seconds)


async def _latency(receive: Receive, pauses: Sequence[float]) -> float:
    async with Server({HUB: 1}) as server:
        return statistics.median((await receive(server, pauses))[1:])


async def _tags(receive: Receive) -> int:
    """Receive messages; return how many delivery tags are kept."""
    gc.collect()
    before = set(map(id, _links()))
    async with Server({HUB: 1}) as server:
        await receive(server, [0.0] * MESSAGES)
        found = [one for one in _links() if id(one) not in before]
        assert found
        return sum(len(one._received_delivery_tags) for one in found)  # noqa: SLF001 - the leak


def _links() -> list[ReceiverLink]:
    links = (one for one in gc.get_objects() if isinstance(one, ReceiverLink))
    return [one for one in links if "ConsumerGroups" in str(one.source)]


async def _by_sdk(server: Server, pauses: Sequence[float], seconds: float = 90) -> list[float]:
    """Publish a message after each pause; return the latency of each to the SDK's handler."""
    latencies: list[float] = []
    first_received, done = asyncio.Event(), asyncio.Event()

    async def on_batch(_: PartitionContext, received: list[EventData]) -> None:
        latencies.extend(time.monotonic() - float(one.body_as_str()) for one in received)
        first_received.set()
        if len(latencies) > len(pauses):
            done.set()

    async with _client(server, stock=True) as client:
        work = client.receive_batch(on_batch, starting_position="-1")
        receiving = asyncio.create_task(work)
        try:
            async with asyncio.timeout(seconds):
                await _publish(server.hubs[HUB], pauses, first_received)
                await done.wait()
        except TimeoutError:
            pass
    receiving.cancel()
    return latencies


async def _by_link(server: Server, pauses: Sequence[float]) -> list[float]:
    """Do the same with the forwarder's link."""
    latencies: list[float] = []
    first_received = asyncio.Event()
    async with _client(server) as client, asyncio.timeout(90):
        link = await open_link(client, "0", "-1", owner=True)
        publishing = asyncio.create_task(_publish(server.hubs[HUB], pauses, first_received))
        while len(latencies) <= len(pauses):
            await link.read(10)
            for received in link.take():
                latencies.append(time.monotonic() - float(received.body))
                first_received.set()
        await publishing
        await link.aclose()
    return latencies


async def _publish(hub: Hub, pauses: Sequence[float], first_received: asyncio.Event) -> None:
    hub.publish(0, f"{time.monotonic()}".encode())
    await first_received.wait()
    for pause in pauses:
        await asyncio.sleep(pause)
        hub.publish(0, f"{time.monotonic()}".encode())
