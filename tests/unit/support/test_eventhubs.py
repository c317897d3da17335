"""The local Event Hubs server, through the real clients: it behaves like the service."""

import asyncio
import json
import re
import signal
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
import trustme
from azure.eventhub import EventData, TransportType
from azure.eventhub._pyamqp.aio import AMQPClientAsync
from azure.eventhub._pyamqp.endpoints import Source, Target
from azure.eventhub._pyamqp.message import Message
from azure.eventhub._pyamqp.performatives import AttachFrame, BeginFrame, FlowFrame, OpenFrame
from azure.eventhub._pyamqp.sasl import SASLAnonymousCredential
from azure.eventhub._pyamqp.utils import generate_sas_token
from azure.eventhub.aio import EventHubConsumerClient, EventHubProducerClient
from azure.eventhub.exceptions import AuthenticationError, EventHubError
from azure.eventhub.extensions.checkpointstoreblobaio import BlobCheckpointStore
from azure.storage.blob.aio import BlobServiceClient

from support.azurite import azurite
from support.eventhubs import Server, codec

TESTS = Path(__file__).parents[2]
JS = TESTS.parent / ".bin" / "js"
HUB = "hub"
SELECTOR = b"apache.org:selector-filter:string"
SASL = b"AMQP\x03\x01\x00\x00"
DEADLINE = 90.0  # seconds, generous for busy machines
QUIET = 0.5  # seconds in which an unexpected message would arrive


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - no event to wait for
            await asyncio.sleep(0.01)


def body(event: EventData) -> bytes:
    parts: Any = event.body
    return b"".join(parts)


class Reader:
    """The Python client's receiver of a partition, without its load balancer, which is slow."""

    def __init__(  # noqa: PLR0913 - the client's options
        self,
        server: Server,
        position: Any = "-1",
        *,
        partition: int = 0,
        group: str = "$Default",
        hub: str = HUB,
        retries: int = 0,
        key: str | None = None,
        client: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.events: list[EventData] = []
        self._closing = False
        self._client = EventHubConsumerClient.from_connection_string(
            server.connection_string(hub, key=key),
            group,
            retry_total=retries,
            retry_backoff_factor=0.05,
            **client or {},
        )
        on_events: Any = self._on_events
        self._consumer: Any = self._client._create_consumer(  # noqa: SLF001 - see above
            group, str(partition), position, on_events, **options
        )
        self._consumer._keep_alive = None  # noqa: SLF001 - its task takes a second to end

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except EventHubError:
            await self._client.close()
            raise
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        self._consumer._callback_task_run = False  # noqa: SLF001 - cancelling it takes a second
        with suppress(EventHubError):
            await self._task
        await self._consumer.close()
        await self._client.close()

    async def _open(self) -> None:
        await self._consumer._open_with_retry()  # noqa: SLF001 - receive() alone hides refusals

    async def _read(self) -> None:
        while not self._closing:
            await self._open()
            await self._consumer.receive(batch=True)

    async def _on_events(self, events: Any) -> None:
        self.events += events

    @property
    def bodies(self) -> list[bytes]:
        return [body(event) for event in self.events]

    @property
    def numbers(self) -> list[int | None]:
        return [event.sequence_number for event in self.events]

    async def receive(self, count: int) -> list[EventData]:
        """Wait until this many events have arrived; raise the error of the receiver."""
        await until(lambda: len(self.events) >= count or self._task.done())
        if self._task.done():
            self._task.result()
        return self.events

    async def failure(self) -> str:
        """Wait until the receiver fails, and return its error."""
        await until(self._task.done)
        return str(self._task.exception())


@asynccontextmanager
async def together(*readers: Reader) -> AsyncIterator[None]:
    await asyncio.gather(*(reader.__aenter__() for reader in readers))
    try:
        yield
    finally:
        await asyncio.gather(*(reader.__aexit__() for reader in readers))


async def refusal(reader: Reader) -> str:
    """Return the error with which a receiver is refused."""
    with pytest.raises(EventHubError) as raised:
        await reader.__aenter__()
    return str(raised.value)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with Server({HUB: 2, "other": 1}) as running:
        yield running


def producer(server: Server, **options: Any) -> EventHubProducerClient:
    return EventHubProducerClient.from_connection_string(
        options.pop("connection", None) or server.connection_string(HUB),
        retry_total=0,
        retry_backoff_factor=0.05,
        **options,
    )


async def attached(server: Server) -> None:
    """Wait until the receivers have granted credit."""
    await until(lambda: server.receivers and all(r.credit for r in server.receivers))


def publish(server: Server, count: int, partition: int = 0) -> None:
    for number in range(count):
        server.hubs[HUB].publish(partition, b"%d" % number)


# Reading


async def test_messages_arrive_in_order_with_their_annotations(server: Server) -> None:
    enqueued = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)
    hub = server.hubs[HUB]
    hub.publish(0, b"first", enqueued=enqueued, properties={"kind": "audit", "number": 7})
    hub.publish(0, b"second")
    async with Reader(server) as reader:
        first, second = await reader.receive(2)
        assert reader.bodies == [b"first", b"second"]
    assert first.enqueued_time == enqueued
    assert first.properties == {b"kind": b"audit", b"number": 7}
    assert (first.sequence_number, second.sequence_number) == (0, 1)
    assert int(second.offset or 0) - int(first.offset or 0) > len(b"first")
    assert str(first.sequence_number) != first.offset


@pytest.mark.parametrize("size", [0, 1, 65_000, 65_536, 131_072, 1_000_000])
async def test_a_message_of_any_size_arrives_whole(server: Server, size: int) -> None:
    content = bytes(range(251)) * (size // 251) + bytes(size % 251)
    server.hubs[HUB].publish(0, content)
    server.hubs[HUB].publish(0, b"next")
    async with Reader(server) as reader:
        await reader.receive(2)
        assert reader.bodies == [content, b"next"]


async def test_a_session_window_is_used_up_even_in_mid_message(server: Server) -> None:
    """The client renews its window only at zero, even in mid-message."""
    for _ in range(6):
        server.hubs[HUB].publish(0, bytes(900_000))  # 14 frames each
    reader = Reader(server)
    create = reader._consumer._create_handler  # noqa: SLF001 - the window is not a public option

    def create_with_window(auth: Any) -> None:
        create(auth)
        reader._consumer._handler._incoming_window = 5  # noqa: SLF001 - the same

    reader._consumer._create_handler = create_with_window  # noqa: SLF001 - the same
    async with reader:
        assert len(await reader.receive(6)) == 6


async def test_the_session_window_limits_the_frames_that_are_sent(
    server: Server,
) -> None:
    server.hubs[HUB].publish(0, bytes(900_000))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    await until(lambda: server.connections)
    (connection,) = server.connections
    connection.claims[HUB] = {"Listen"}
    position = {SELECTOR: b"amqp.annotation.x-opt-offset > '-1'"}
    address = f"{HUB}/ConsumerGroups/$Default/Partitions/0"
    source = Source(address, *[None] * 10)._replace(filters=position)
    ends = ("link", 0, True, 1, 0, source, Target("here", *[None] * 6))
    for performative in (
        OpenFrame("test", None, 65536, 1, 0, None, None, None, None, None),
        BeginFrame(None, 1, 3, 3, 1, None, None, None),
        AttachFrame(*ends, None, None, None, None, None, None, None),
        FlowFrame(1, 3, 1, 3, 0, 0, 10, *[None] * 4),
    ):
        writer.write(codec.frame(performative))
    received, transfer = b"", b"\x00\x53\x14\xc0"
    while received.count(transfer) < 3:
        received += await asyncio.wait_for(reader.read(1 << 20), DEADLINE)
    with suppress(TimeoutError):
        received += await asyncio.wait_for(reader.read(1 << 20), QUIET)
    assert received.count(transfer) == 3
    assert position[SELECTOR] in received  # the attach echoes the filter; the Rust client checks it
    writer.close()


async def test_more_messages_than_credit_arrive_once_each(server: Server) -> None:
    publish(server, 100)
    async with Reader(server, prefetch=7) as reader:
        await reader.receive(100)
        await asyncio.sleep(0.1)
        assert reader.numbers == list(range(100))
        assert {receiver.credit for receiver in server.receivers} <= set(range(8))


async def test_a_published_message_wakes_a_waiting_receiver(server: Server) -> None:
    async with Reader(server) as reader:
        await attached(server)
        server.hubs[HUB].publish(0, b"late")
        await reader.receive(1)
        assert reader.bodies == [b"late"]


async def test_a_position_is_earliest_latest_a_number_an_offset_or_a_time(server: Server) -> None:
    hub = server.hubs[HUB]
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(5):
        hub.publish(0, b"", enqueued=start + timedelta(seconds=number))
    offset = str(hub.partitions[0].messages[2].offset)
    hub.groups.add("inclusive")
    firsts = {"-1": 0, "@latest": 5, 2: 3, offset: 3, start + timedelta(seconds=2): 3}
    readers: list[tuple[Reader, int]] = []
    for position, first in firsts.items():
        readers.append((Reader(server, position), first))
        inclusive = Reader(server, position, group="inclusive", event_position_inclusive=True)
        readers.append((inclusive, 2 if first == 3 else first))
    async with together(*(reader for reader, _ in readers)):
        hub.publish(0, b"new")
        for reader, first in readers:
            await reader.receive(6 - first)
        assert [reader.numbers for reader, _ in readers] == [
            list(range(first, 6)) for _, first in readers
        ]


async def test_runtime_metrics_report_the_last_message_of_the_partition(server: Server) -> None:
    publish(server, 3)
    partition = server.hubs[HUB].partitions[0]
    async with Reader(server, track_last_enqueued_event_properties=True) as reader:
        await reader.receive(3)
        metrics: Any = reader._consumer._last_received_event._message.delivery_annotations  # noqa: SLF001 - what the client's context reads
    assert metrics[b"last_enqueued_sequence_number"] == 2
    assert metrics[b"last_enqueued_offset"].decode() == partition.last_offset
    assert metrics[b"last_enqueued_time_utc"] == partition.last_enqueued


async def test_expired_messages_are_skipped_and_sequence_numbers_continue(server: Server) -> None:
    publish(server, 5)
    partition = server.hubs[HUB].partitions[0]
    server.faults.silence(0)
    async with Reader(server) as behind:
        await attached(server)
        partition.expire(3)
        assert (partition.begin, partition.last) == (3, 4)
        server.faults.resume()
        async with Reader(server, 0) as after:
            for reader in (behind, after):
                await reader.receive(2)
                assert reader.numbers == [3, 4]
    partition.expire(9)
    assert (partition.begin, partition.last, server.hubs[HUB].publish(0, b"")) == (5, 4, 5)


async def test_messages_older_than_the_retention_expire() -> None:
    async with Server({HUB: 1}, retention=0.3) as server:
        server.hubs[HUB].publish(0, b"old", enqueued=datetime.now(UTC) - timedelta(hours=1))
        server.hubs[HUB].publish(0, b"new")
        partition = server.hubs[HUB].partitions[0]
        await until(lambda: partition.begin == 1)
        assert [message.body for message in partition.messages] == [b"new"]
        await until(lambda: partition.begin == 2)


# Sending


async def test_a_partition_key_selects_the_partition_and_is_stored_with_the_message(
    server: Server,
) -> None:
    async with producer(server) as client:
        for _ in range(3):
            batch = await client.create_batch(partition_key="device-7")
            batch.add(EventData(b"one"))
            batch.add(EventData(b"two"))
            await client.send_batch(batch)
    stored = [p.messages for p in server.hubs[HUB].partitions if p.messages]
    assert [[m.body for m in messages] for messages in stored] == [[b"one", b"two"] * 3]
    partition_index = [bool(p.messages) for p in server.hubs[HUB].partitions].index(True)
    async with Reader(server, partition=partition_index) as reader:
        assert {event.partition_key for event in await reader.receive(6)} == {b"device-7"}


async def test_batches_without_a_key_rotate_and_a_given_partition_is_used(
    server: Server,
) -> None:
    event = EventData(b"x")
    event.properties = {"name": "value"}
    async with producer(server) as client:
        for _ in range(4):
            await client.send_batch([EventData(b"turn")])
        await client.send_batch([event], partition_id="1")
        await client.send_event(EventData(bytes(500_000)), partition_id="1")
    assert [p.last for p in server.hubs[HUB].partitions] == [1, 3]
    async with Reader(server, 1, partition=1) as reader:
        first, second = await reader.receive(2)
    assert first.properties == {b"name": b"value"}
    assert body(second) == bytes(500_000)


async def test_management_describes_hub_and_partitions(server: Server) -> None:
    publish(server, 3)
    server.hubs[HUB].partitions[0].expire(1)
    server.hubs[HUB].add_partitions(1)
    async with producer(server) as client:
        assert (await client.get_eventhub_properties())["partition_ids"] == ["0", "1", "2"]
        filled = await client.get_partition_properties("0")
        empty = await client.get_partition_properties("2")
    last = server.hubs[HUB].partitions[0].messages[-1]
    assert filled["beginning_sequence_number"] == 1
    assert filled["last_enqueued_sequence_number"] == 2
    assert filled["last_enqueued_offset"] == str(last.offset)
    assert filled["last_enqueued_time_utc"].timestamp() * 1000 == pytest.approx(last.enqueued)
    assert not filled["is_empty"]
    assert (empty["last_enqueued_sequence_number"], empty["last_enqueued_offset"]) == (-1, "-1")
    assert empty["last_enqueued_time_utc"].year == 1
    assert empty["is_empty"]


@pytest.mark.parametrize(("key", "status"), [(None, 401), ("bad", 401), ("good", 200)])
async def test_management_accepts_a_token_in_the_request(
    server: Server, key: str | None, status: int
) -> None:
    """The Java client sends it there, and none to $cbs; the Rust client requires the epoch."""
    request: dict[str | bytes, Any] = {"name": HUB, "partition": "0"}
    if key:
        secret = server.keys["RootManageSharedAccessKey"] if key == "good" else key
        audience, expiry = f"sb://127.0.0.1/{HUB}", int(time.time()) + 60
        request["security_token"] = generate_sas_token(  # type: ignore[no-untyped-call]
            audience, "RootManageSharedAccessKey", secret, expiry
        )
    anonymous: Any = SimpleNamespace(auth_type=None, sasl=SASLAnonymousCredential())
    address = f"127.0.0.1:{server.port}"
    client: Any = AMQPClientAsync(address, auth=anonymous, use_tls=False)  # type: ignore[no-untyped-call]
    async with client:
        received_status, _, response = await client.mgmt_request_async(
            Message(application_properties=request),
            operation=b"READ",
            operation_type=b"com.microsoft:partition",
            status_code_field=b"status-code",
            status_description_field=b"status-description",
        )
    assert received_status == status
    assert status != 200 or response.value[b"last_enqueued_sequence_number_epoch"] == 0


# Names, groups, rights


async def test_names_are_case_insensitive_and_unknown_names_are_refused(server: Server) -> None:
    server.hubs["other"].groups.add("audit")
    server.hubs["other"].publish(0, b"x")
    async with Reader(server, hub="OTHER", group="Audit") as reader:
        await reader.receive(1)
    for reader in (
        Reader(server, hub="none"),
        Reader(server, group="none"),
        Reader(server, partition=7),
    ):
        assert re.search("not-found|Status code: 404", await refusal(reader))
    async with producer(server, eventhub_name="none") as client:
        with pytest.raises(EventHubError, match="not be found"):
            await client.get_eventhub_properties()


async def test_consumer_groups_read_independently(server: Server) -> None:
    server.hubs[HUB].groups.add("second")
    publish(server, 2)
    async with (
        Reader(server, owner_level=1) as one,
        Reader(server, group="second", owner_level=1) as two,
    ):
        await one.receive(2)
        await two.receive(2)
        assert sorted((r.group, r.epoch) for r in server.receivers) == [
            ("$Default", 1),
            ("second", 1),
        ]


async def test_a_wrong_or_changed_key_is_refused(server: Server) -> None:
    before = server.connection_string(HUB)
    async with producer(server, connection=before) as client:
        await client.send_event(EventData(b"fine"))
    server.keys["RootManageSharedAccessKey"] = "another"
    async with producer(server, connection=before) as client:
        with pytest.raises(AuthenticationError, match="401"):
            await client.send_event(EventData(b"refused"))
    async with producer(server) as client:
        await client.send_event(EventData(b"fine"))
    unknown = before.replace("RootManage", "No")
    async with producer(server, connection=unknown) as client:
        with pytest.raises(AuthenticationError, match="401"):
            await client.send_event(EventData(b"refused"))


async def test_an_expired_token_is_refused(server: Server) -> None:
    key = server.keys["RootManageSharedAccessKey"]
    audience = f"sb://127.0.0.1:{server.port}/{HUB}"
    for age, outcome in (
        (60, nullcontext()),
        (-60, pytest.raises(AuthenticationError, match="401")),
    ):
        expiry = int(time.time()) + age
        token = generate_sas_token(  # type: ignore[no-untyped-call]
            audience, "RootManageSharedAccessKey", key, expiry
        )
        connection = f"Endpoint=sb://127.0.0.1:{server.port};SharedAccessSignature={token};"
        connection += f"UseDevelopmentEmulator=true;EntityPath={HUB}"
        async with producer(server, connection=connection) as client:
            with outcome:
                await client.send_event(EventData(b"x"))


async def test_a_key_with_only_the_listen_claim_cannot_send() -> None:
    keys = {"root": "secret", "reader": "other"}
    async with Server({HUB: 1}, keys=keys, claims={"reader": {"Listen"}}) as server:
        server.hubs[HUB].publish(0, b"x")
        async with Reader(server, key="reader") as reader:
            await reader.receive(1)
        reader_string = server.connection_string(HUB, key="reader")
        async with producer(server, connection=reader_string) as client:
            with pytest.raises(EventHubError, match="unauthorized"):
                await client.send_event(EventData(b"refused"))


# Competing receivers


async def test_an_equal_or_higher_epoch_steals_and_a_lower_one_is_refused(server: Server) -> None:
    async with Reader(server) as without, Reader(server, owner_level=5) as low:
        assert "stolen" in await without.failure()
        async with Reader(server, owner_level=5) as equal:
            assert "stolen" in await low.failure()
            assert "stolen" in await refusal(Reader(server, owner_level=4))
            assert "stolen" in await refusal(Reader(server))
            server.hubs[HUB].publish(0, b"x")
            await equal.receive(1)
            assert [receiver.epoch for receiver in server.receivers] == [5]


async def test_a_sixth_receiver_without_an_epoch_is_refused(server: Server) -> None:
    async with together(*(Reader(server) for _ in range(5))):
        assert "resource-limit-exceeded" in await refusal(Reader(server))
        async with Reader(server, partition=1):
            assert len(server.receivers) == 6


# Faults


async def test_a_client_reconnects_after_a_dropped_connection_and_misses_nothing(
    server: Server,
) -> None:
    publish(server, 5)
    async with Reader(server, retries=50) as reader:
        await reader.receive(5)
        (before,) = server.connections
        server.faults.drop()
        await until(lambda: before not in server.connections)
        publish(server, 5)
        await until(lambda: set(reader.numbers) == set(range(10)))


async def test_connections_drop_after_a_number_of_transfers(server: Server) -> None:
    publish(server, 10)
    server.faults.drop_after = 4
    async with Reader(server) as reader:
        await reader.failure()
        await asyncio.sleep(0.1)
        assert len(reader.events) <= 4
        assert server.faults.drop_after is None
    async with Reader(server) as reader:
        await reader.receive(10)


async def test_a_connection_drops_in_mid_message_and_the_message_is_redelivered(
    server: Server,
) -> None:
    content = bytes(300_000)
    server.hubs[HUB].publish(0, b"small")
    server.hubs[HUB].publish(0, content)
    server.faults.drop_mid_message = True
    async with Reader(server) as reader:
        await reader.failure()
        assert reader.numbers in ([], [0])
    async with Reader(server) as reader:
        await reader.receive(2)
        assert reader.bodies == [b"small", content]


async def test_a_silent_server_delivers_nothing_until_it_wakes(server: Server) -> None:
    async with Reader(server) as reader:
        await attached(server)
        server.faults.silence()
        publish(server, 3)
        await asyncio.sleep(QUIET)
        assert not reader.events
        assert server.connections
        server.faults.resume()
        await reader.receive(3)


async def test_a_silent_server_responds_to_neither_old_nor_new_connections(server: Server) -> None:
    old, old_writer = await asyncio.open_connection("127.0.0.1", server.port)
    await until(lambda: server.connections)
    server.faults.silence()
    new, new_writer = await asyncio.open_connection("127.0.0.1", server.port)
    for reader, writer in ((old, old_writer), (new, new_writer)):
        writer.write(SASL)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), QUIET)
    server.faults.resume()
    for reader, writer in ((old, old_writer), (new, new_writer)):
        assert await asyncio.wait_for(reader.readexactly(8), DEADLINE) == SASL
        writer.close()


async def test_one_silent_partition_does_not_affect_the_others(server: Server) -> None:
    server.faults.silence(0)
    publish(server, 2, partition=0)
    publish(server, 2, partition=1)
    async with Reader(server) as silent, Reader(server, partition=1) as other:
        await other.receive(2)
        await asyncio.sleep(QUIET)
        assert not silent.events
        server.faults.resume()
        await silent.receive(2)


async def test_a_receiver_and_a_number_of_its_successors_can_be_muted(
    server: Server,
) -> None:
    async with Reader(server) as mute, Reader(server, partition=1) as other:
        server.faults.mute(0, more=1)
        publish(server, 2, partition=0)
        publish(server, 2, partition=1)
        await other.receive(2)
        async with Reader(server) as second:
            async with Reader(server) as third:
                await third.receive(2)
            assert not mute.events
            assert not second.events


@pytest.mark.parametrize("condition", ["com.microsoft:server-busy", "amqp:not-found"])
async def test_a_number_of_attaches_is_refused_with_a_condition(
    server: Server, condition: str
) -> None:
    publish(server, 1)
    server.faults.refuse("attach", condition, 2)
    for _ in range(2):
        assert condition in await refusal(Reader(server))
    async with Reader(server) as reader:
        await reader.receive(1)


async def test_a_refusal_can_be_limited_to_a_partition_or_hub_and_removed(server: Server) -> None:
    server.faults.refuse("attach", "amqp:internal-error", partition=1)
    server.faults.refuse("attach", "amqp:internal-error", hub="other")
    async with Reader(server):
        pass
    for _ in range(2):
        assert "internal-error" in await refusal(Reader(server, partition=1))
        assert "internal-error" in await refusal(Reader(server, hub="other"))
    server.faults.accept()
    async with Reader(server, partition=1), Reader(server, hub="other"):
        assert len(server.receivers) == 2


async def test_tokens_and_management_are_refused_with_a_status(server: Server) -> None:
    server.faults.refuse("put-token", 401, 1)
    assert "401" in await refusal(Reader(server))
    server.faults.refuse("management", 503, 1)
    async with producer(server) as client:
        with pytest.raises(EventHubError, match="503"):
            await client.get_eventhub_properties()
        await client.get_eventhub_properties()


async def test_one_partition_is_detached_with_a_condition(server: Server) -> None:
    async with Reader(server) as detached, Reader(server, partition=1) as other:
        server.faults.detach("amqp:link:detach-forced", hub=HUB, partition=0)
        assert "detach-forced" in await detached.failure()
        publish(server, 1, partition=1)
        await other.receive(1)


async def test_deliveries_are_delayed(server: Server) -> None:
    server.faults.delay = QUIET
    async with Reader(server) as reader:
        started = time.monotonic()
        publish(server, 2)
        await reader.receive(2)
        assert time.monotonic() - started >= QUIET - 0.1  # enqueued times are whole milliseconds
        assert reader.numbers == [0, 1]


async def test_messages_are_delivered_twice(server: Server) -> None:
    publish(server, 4)
    server.faults.duplicates = 2
    async with Reader(server) as reader:
        await reader.receive(6)
        assert reader.numbers == [0, 0, 1, 1, 2, 3]


async def test_tcp_connections_are_refused_and_accepted_again_on_the_same_port(
    server: Server,
) -> None:
    port = server.port
    async with Reader(server) as reader:
        server.faults.refuse_connections()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        publish(server, 1)
        await reader.receive(1)  # open connections are kept
    await server.faults.accept_connections()
    assert server.port == port
    async with Reader(server) as reader:
        await reader.receive(1)


async def test_a_recreated_hub_is_empty_restarts_its_numbers_and_detaches_receivers(
    server: Server,
) -> None:
    publish(server, 3)
    async with Reader(server) as reader:
        await reader.receive(3)
        hub = server.recreate(HUB)
        assert "not-found" in await reader.failure()
    assert hub is server.hubs[HUB]
    assert hub.publish(0, b"new") == 0
    async with Reader(server) as reader:
        await reader.receive(1)
        assert reader.bodies == [b"new"]


async def test_an_idle_client_receives_keepalives_and_is_then_disconnected() -> None:
    async with Server({HUB: 1}, idle_timeout=0.4) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        opened = OpenFrame("test", None, 65536, 1, 100, None, None, None, None, None)
        writer.write(b"AMQP\x00\x01\x00\x00" + codec.frame(opened))
        received = await asyncio.wait_for(reader.read(), DEADLINE)
        assert codec.EMPTY_FRAME in received
        assert b"amqp:connection:forced" in received
        writer.close()


async def test_memory_stays_bounded_when_a_client_does_not_read(server: Server) -> None:
    """Messages for a paused client wait in the hub, not in the connection's buffer."""
    for _ in range(100):
        server.hubs[HUB].publish(0, bytes(900_000))
    reader = Reader(server)
    await reader._open()  # noqa: SLF001 - attached, but not reading
    client: Any = reader._consumer._handler  # noqa: SLF001 - its credit is not public
    await client._link.flow(link_credit=100)  # noqa: SLF001 - the same
    (connection,) = server.connections
    await until(connection.transport.get_write_buffer_size)
    await asyncio.sleep(0.1)
    assert connection.transport.get_write_buffer_size() < 4_000_000
    async with reader:
        await reader.receive(100)


# Other transports and clients


async def test_websockets_and_tls_share_the_port(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with Server({HUB: 1}, tls=context) as server:
        options = {
            "custom_endpoint_address": f"sb://127.0.0.1:{server.port}",
            "connection_verify": str(tmp_path / "ca.pem"),
        }
        sockets = {**options, "transport_type": TransportType.AmqpOverWebsocket}
        content = bytes(900_000)
        async with producer(server, **sockets) as client:
            assert (await client.get_eventhub_properties())["partition_ids"] == ["0"]
            await client.send_event(EventData(content))
        for transport in (options, sockets):
            async with Reader(server, client=transport) as reader:
                await reader.receive(1)
                assert reader.bodies == [content]
                server.faults.drop()
                await reader.failure()


async def test_the_javascript_client_sends_and_reads() -> None:
    async with Server({HUB: 1}) as server:
        process = await asyncio.create_subprocess_exec(
            "node", TESTS / "tools/js/roundtrip.mjs", server.connection_string(), HUB,
            cwd=JS, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            output, _ = await asyncio.wait_for(process.communicate(), 200)
        finally:
            with suppress(ProcessLookupError):
                process.kill()
    found = json.loads(output)
    sent = [
        [key, body, body, number]
        for number, (key, body) in enumerate(
            [(None, "a"), (None, "b"), ("device", "c"), ("device", "d"), (None, "e"), (None, "f")]
        )
    ]
    assert found["partitions"] == ["0"]
    assert found["properties"]["lastEnqueuedSequenceNumber"] == 4
    assert found["earliest"] == sent[:5]
    assert found["bySequenceNumber"] == sent[3:5]
    assert found["inclusive"] == sent[2:5]
    assert found["latest"] == sent[5:]


async def test_the_command_prints_its_connection_string_and_stops_on_sigterm() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "support.eventhubs", "--port", "0", "--hub", f"{HUB}=3",
        cwd=TESTS, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout
    line = (await asyncio.wait_for(process.stdout.readline(), DEADLINE)).decode().strip()
    async with EventHubProducerClient.from_connection_string(line, eventhub_name=HUB) as client:
        assert await client.get_partition_ids() == ["0", "1", "2"]
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), DEADLINE) == 0


async def test_the_whole_client_checkpoints_into_azurite_and_resumes_from_there(
    server: Server,
) -> None:
    publish(server, 4)
    seen: list[int | None] = []

    async def on_event(context: Any, event: EventData | None) -> None:
        if event:
            await context.update_checkpoint(event)
            seen.append(event.sequence_number)

    async def read(storage: str, count: int) -> None:
        async with BlobCheckpointStore.from_connection_string(storage, "checkpoints") as store:
            client = EventHubConsumerClient.from_connection_string(
                server.connection_string(HUB), "$Default", checkpoint_store=store
            )
            reading = asyncio.create_task(client.receive(on_event, starting_position="-1"))
            await until(lambda: len(seen) >= count)
            await client.close()
            reading.cancel()
            await asyncio.wait([reading])

    async with azurite() as store:
        async with BlobServiceClient.from_connection_string(store.connection_string) as blobs:
            await blobs.create_container("checkpoints")
            store.pause()
            listing = asyncio.ensure_future(blobs.get_account_information())
            await asyncio.sleep(QUIET)
            assert not listing.done()
            store.resume()
            await asyncio.wait_for(listing, DEADLINE)
        await read(store.connection_string, 4)
        publish(server, 2)
        await read(store.connection_string, 6)
    assert seen == [0, 1, 2, 3, 4, 5]
