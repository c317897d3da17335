"""Events reach the sink unchanged, in lists as configured, and each record is counted once."""

import asyncio
import json
import math
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from forwarder.delivery.buffer import ReceiveBuffer
from support import events
from support.eventhubs import Hub, Server
from support.events.odd import ODD
from support.harness import HUB, free_port
from support.inprocess import delivering, forwarding
from support.webhook import Post, Response, Webhook, unpack

PARTITIONS = 1  # of the hub in the fixture `server`

EVENT_LIST = b'{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":[%b]}'


def fresh(number: int) -> events.Message:
    """Return a message with this many small events."""
    return next(events.messages(number, per_message=number, events=events.typical_events()))


def event(audit_id: str, **fields: Any) -> bytes:
    """Return an event with the required fields and these."""
    head = {"kind": "Event", "apiVersion": "audit.k8s.io/v1", "auditID": audit_id}
    rest = {"stage": "ResponseComplete", "verb": "get", "user": {}}
    time = {"stageTimestamp": "2026-01-02T03:04:05.678901Z"}
    return json.dumps(head | rest | time | fields).encode()


def publish(hub: Hub, *messages: events.Message, age: timedelta = timedelta()) -> list[bytes]:
    """Publish to partition 0, enqueued `age` ago; return the events."""
    for message in messages:
        hub.publish(0, message.body, enqueued=datetime.now(UTC) - age)
    return [one for message in messages for one in message.events]


# Lists


async def test_a_list_is_an_event_list_of_the_original_bytes(
    webhook: Webhook, tmp_path: Path
) -> None:
    spaced = event("1", requestObject={"n": 1.0, "s": "\u00e9\\/"}).replace(b'":', b'" :\t')
    message = events.Message(events.envelope([spaced, *events.real_events()[:50]]), [])
    async with delivering(webhook.url, tmp_path) as delivery:
        await delivery.submit(message.body)
        await delivery.drain()
    expected = b",".join([spaced, *events.real_events()[:50]])
    assert webhook.posts[0].body == EVENT_LIST % expected


async def test_with_max_events_1_each_post_is_a_bare_event(
    webhook: Webhook, tmp_path: Path
) -> None:
    message = fresh(5)
    async with delivering(webhook.url, tmp_path, WebSinkMaxEvents="1") as delivery:
        await delivery.submit(message.body)
        await delivery.drain()
    assert sorted(post.body for post in webhook.posts) == sorted(message.events)


async def test_a_list_has_at_most_max_events(webhook: Webhook, tmp_path: Path) -> None:
    async with delivering(webhook.url, tmp_path, WebSinkMaxEvents="10") as delivery:
        await delivery.submit(fresh(35).body)
        await delivery.drain()
        assert await delivery.outcomes() == {"delivered": 35}
    assert sorted(webhook.sizes) == [5, 10, 10, 10]


async def test_a_list_has_at_most_max_bytes_and_a_larger_event_is_posted_alone(
    webhook: Webhook, tmp_path: Path
) -> None:
    limit = 5_000
    found = [event(f"{n}", requestObject="x" * (n * 37 % 700)) for n in range(200)]
    found[::50] = [event(f"giant {n}", requestObject="x" * limit) for n in range(4)]
    async with delivering(webhook.url, tmp_path, WebSinkMaxBytes=str(limit)) as delivery:
        await delivery.submit(events.envelope(found))
        await delivery.drain()
    assert sorted(webhook.bytes.values()) == sorted(found)
    assert webhook.duplicates == 0
    for post in webhook.posts:
        assert len(post.body) <= limit or len(unpack(post.body)) == 1
    assert sum(len(post.body) > limit / 2 for post in webhook.posts) > len(webhook.posts) / 2


async def test_a_post_does_not_wait_for_more_events(webhook: Webhook, tmp_path: Path) -> None:
    took = []
    async with delivering(webhook.url, tmp_path) as delivery:
        for _ in range(100):
            began = time.monotonic()
            await delivery.submit(fresh(1).body)
            await delivery.drain()
            took.append(time.monotonic() - began)
    assert webhook.sizes == [1] * 100
    assert min(took) < 0.1  # a wait for more events would be in each


@pytest.mark.parametrize("limit", [1, 3])
async def test_concurrency_limits_the_posts_in_flight_per_partition(
    webhook: Webhook, tmp_path: Path, limit: int
) -> None:
    in_flight: list[int] = []
    started = 0

    def rule(_: Post) -> Response:
        nonlocal started
        started += 1
        in_flight.append(started - len(webhook.posts))
        return Response(delay=0.03)

    webhook.rule = rule
    variables = {"WebSinkConcurrency": str(limit), "WebSinkMaxEvents": "1"}
    async with delivering(webhook.url, tmp_path, **variables) as delivery:
        for _ in range(4):
            await delivery.submit(fresh(5).body)
        await delivery.drain()
        assert max(in_flight) == limit
        started, webhook.posts = 0, []
        for partition in ("0", "1"):
            await delivery.submit(fresh(20).body, partition)
        await delivery.drain()
        assert max(in_flight) == 2 * limit


async def test_with_concurrency_1_events_keep_the_order_of_the_partition(
    webhook: Webhook, tmp_path: Path
) -> None:
    messages = [fresh(7) for _ in range(10)]
    published = [one for message in messages for one in message.events]
    bad = {published[11], published[40]}
    webhook.rule = lambda post: 422 if any(one in post.body for one in bad) else None
    webhook.responses.extend([503, Response(drop=True), 429])
    variables = {"WebSinkConcurrency": "1", "WebSinkMaxEvents": "10"}
    async with delivering(webhook.url, tmp_path, **variables) as delivery:
        for message in messages:
            await delivery.submit(message.body)
        await delivery.drain()
    assert list(webhook.bytes.values()) == [one for one in published if one not in bad]
    assert webhook.duplicates == 0


# Outcomes


async def test_every_odd_message_is_counted_by_its_outcome(
    webhook: Webhook, tmp_path: Path
) -> None:
    async with delivering(webhook.url, tmp_path) as delivery:
        for odd in ODD:
            await delivery.submit(odd.body)
        await delivery.drain()
        assert await delivery.outcomes() == {
            "delivered": sum(odd.delivered for odd in ODD),
            "dead_lettered": sum(odd.dead_lettered for odd in ODD),
            "skipped": sum(odd.skipped for odd in ODD),
        }
        assert await delivery.total("events_salvaged_total") == sum(odd.salvaged for odd in ODD)
        assert await delivery.total("hub_messages_total") == len(ODD)
        assert await delivery.total("hub_bytes_total") == sum(len(odd.body) for odd in ODD)
        assert len(delivery.dead_letters()) == sum(odd.dead_lettered for odd in ODD)
        watermark = delivery.partitions["0"].watermark
        assert watermark.position is delivery.partitions["0"].last_received
        assert delivery.buffer.used == 0


async def test_dead_letters_stay_within_max_bytes_and_the_oldest_are_dropped(
    webhook: Webhook, tmp_path: Path
) -> None:
    webhook.rule = lambda _: 400
    message = fresh(60)
    variables = {
        "DeadLetterMaxBytes": "20000",
        "WebSinkMaxRejects": "1000",
        "WebSinkConcurrency": "1",
        "VerboseLevel": "1",
    }
    async with delivering(webhook.url, tmp_path, **variables) as delivery:
        await delivery.submit(message.body)
        await delivery.drain()
        outcomes = await delivery.outcomes()
        kept = [record["body"].encode() for record in delivery.dead_letters()]
        dropped = delivery.entries("dead letters dropped")
    assert kept == message.events[-len(kept) :]
    assert sum(entry["records"] for entry in dropped) == 60 - len(kept) > 30
    assert outcomes["dead_lettered"] + outcomes["dropped"] == 60
    assert 30 < outcomes["dropped"] <= 60 - len(kept)
    files = (tmp_path / "deadletters").glob("*.jsonl")
    assert 10_000 < sum(file.stat().st_size for file in files) <= 20_000


async def test_the_delay_from_stage_timestamp_to_acceptance_is_measured(
    webhook: Webhook, tmp_path: Path
) -> None:
    past = f"{datetime.now(UTC) - timedelta(seconds=100):%Y-%m-%dT%H:%M:%S.%fZ}"
    async with delivering(webhook.url, tmp_path) as delivery:
        await delivery.submit(events.envelope([event(f"{n}", stageTimestamp=past) for n in "123"]))
        await delivery.drain()
        samples = await delivery.metrics()
    name = "aks_audit_event_delay_seconds"
    assert samples.total(f"{name}_count") == 3
    assert 300 <= samples.total(f"{name}_sum") < 400
    assert (
        samples.total(f"{name}_bucket", le="60.0"),
        samples.total(f"{name}_bucket", le="300.0"),
    ) == (0, 3)


async def test_events_with_odd_stage_timestamps_are_delivered(
    webhook: Webhook, tmp_path: Path
) -> None:
    odd = ["", "soon", "0001-01-01T00:00:00", "9999-12-31T23:59:59-23:59", "2026-13-45T00:00:00Z"]
    odd += [
        "2026-11-23T09:14:10.123456789Z",
        "\u0662\u0660\u0662\u0666-11-23",
        "3026-11-23T00:00:00Z",
    ]
    async with delivering(webhook.url, tmp_path) as delivery:
        await delivery.submit(
            events.envelope([event(stamp, stageTimestamp=stamp) for stamp in odd])
        )
        await delivery.drain()
        assert await delivery.outcomes() == {"delivered": len(odd)}
        assert not delivery.entries("internal error")
        assert delivery.buffer.used == 0


# The receive buffer


async def test_bytes_received_and_not_delivered_are_bounded(
    server: Server, hub: Hub, webhook: Webhook, tmp_path: Path
) -> None:
    limit = 200_000
    webhook.rule = lambda _: Response(delay=math.inf)
    published = publish(hub, *(fresh(20) for _ in range(40)))
    variables = {"ReceiveBufferBytes": str(limit), "WebSinkTimeout": "60"}
    async with forwarding(server, webhook.url, tmp_path, **variables) as running:

        async def received() -> float:
            return await running.total("hub_bytes_total")

        async def nearly_full() -> bool:
            return await received() > limit - 40_000

        await running.until(nearly_full)
        await asyncio.sleep(0.3)
        assert await received() <= limit
        await webhook.stop()
        webhook.rule = None
        await webhook.start()
        # Larger than the limit: it is accepted when the buffer is empty.
        published += publish(hub, fresh(300), fresh(1))
        assert len(hub.partitions[0].messages[-2].body) > limit
        await webhook.until(lambda: len(webhook.accepted) == len(published))
        assert await running.outcomes() == {"delivered": len(published)}
    assert webhook.accepted == {events.key(one): 1 for one in published}


async def test_a_large_message_does_not_starve_behind_small_ones() -> None:
    buffer = ReceiveBuffer(1_000)
    await buffer.acquire(1_000)
    acquired: list[int] = []

    async def wait_for_room(size: int) -> None:
        await buffer.acquire(size)
        acquired.append(size)

    waiting = [asyncio.create_task(wait_for_room(size)) for size in (600, *[100] * 4)]
    for _ in range(10):
        await asyncio.sleep(0)
        assert not buffer.has_room(100)
        buffer.release(100)
    await asyncio.wait_for(asyncio.gather(*waiting), 60)
    assert acquired[0] == 600


# From the hub's settings to the sink


@pytest.mark.parametrize("setting", ["EventHubName", "EntityPath"])
async def test_reads_the_configured_hub_in_the_configured_consumer_group(
    webhook: Webhook, tmp_path: Path, setting: str
) -> None:
    async with Server({HUB: 1, "other": 1}) as server:
        server.hubs["other"].groups.add("security")
        publish(server.hubs[HUB], fresh(3))
        published = publish(server.hubs["other"], fresh(4))
        variables = {
            "EventHubName": {"EventHubName": "other"},
            "EntityPath": {"EhubNamespaceConnectionString": server.connection_string("other")},
        }[setting]
        variables |= {"ConsumerGroup": "security"}
        async with forwarding(server, webhook.url, tmp_path, **variables):
            await webhook.until(lambda: len(webhook.accepted) == 4)
            assert {(one.hub, one.group) for one in server.receivers} == {("other", "security")}
    assert sorted(webhook.bytes.values()) == sorted(published)


@pytest.mark.parametrize(
    ("start", "read"), [("earliest", 3), ("90m", 2), ("instant", 2), ("latest", 1)]
)
async def test_a_partition_without_a_checkpoint_starts_at_start_position(  # noqa: PLR0913, PLR0917  fixtures and a table
    server: Server, hub: Hub, webhook: Webhook, tmp_path: Path, start: str, read: int
) -> None:
    published = publish(hub, fresh(1), age=timedelta(hours=2))
    published += publish(hub, fresh(1), age=timedelta(hours=1))
    instant = f"{datetime.now(UTC) - timedelta(minutes=90):%Y-%m-%dT%H:%M:%SZ}"
    start = instant if start == "instant" else start
    async with forwarding(server, webhook.url, tmp_path, StartPosition=start) as running:
        await running.until(lambda: any(one.epoch is not None for one in server.receivers))
        published += publish(hub, fresh(1))
        await webhook.until(lambda: events.key(published[-1]) in webhook.accepted)
        assert [*webhook.bytes.values()] == published[-read:]


async def test_an_instant_includes_the_message_enqueued_at_it(
    server: Server, hub: Hub, webhook: Webhook, tmp_path: Path
) -> None:
    publish(hub, fresh(1), age=timedelta(hours=2))
    published = publish(hub, fresh(1), age=timedelta(hours=1)) + publish(hub, fresh(1))
    instant = datetime.fromtimestamp(hub.partitions[0].messages[1].enqueued / 1000, UTC).isoformat()
    async with forwarding(server, webhook.url, tmp_path, StartPosition=instant):
        await webhook.until(lambda: events.key(published[-1]) in webhook.accepted)
        assert [*webhook.bytes.values()] == published


@pytest.mark.parametrize("new", ["hub", "partition"])
async def test_latest_skips_no_message_of_a_new_hub_or_partition(
    server: Server, hub: Hub, webhook: Webhook, tmp_path: Path, new: str
) -> None:
    """All messages of a recreated hub or of an added partition are newer than the start."""
    publish(hub, *(fresh(1) for _ in range(5)))
    variables = {"StartPosition": "latest", "StallTimeout": "3"}
    async with forwarding(server, webhook.url, tmp_path, **variables) as running:
        await running.until(lambda: bool(server.receivers))
        if new == "hub":
            hub = server.recreate(HUB)
        else:
            hub.add_partitions(1)
        message = fresh(2)
        hub.publish(len(hub.partitions) - 1, message.body)
        await webhook.until(lambda: webhook.total == 2)
    assert sorted(webhook.bytes.values()) == sorted(message.events)


async def test_a_partition_whose_messages_have_expired_starts_at_its_end(
    server: Server, hub: Hub, webhook: Webhook, tmp_path: Path
) -> None:
    """The forwarder does not wait, although the last message is newer than StartPosition."""
    publish(hub, fresh(1), age=timedelta(hours=1))
    hub.partitions[0].expire(1)
    async with forwarding(server, webhook.url, tmp_path, StartPosition="6h") as running:
        claimed = await running.wait_for("partition claimed")
        assert claimed["checkpoint"] == 0
        assert running.entries("receiving failed") == []
        (event,) = publish(hub, fresh(1))
        await webhook.until(lambda: webhook.total == 1)
    assert [*webhook.bytes.values()] == [event]


async def test_other_categories_are_skipped_and_counted(
    server: Server, hub: Hub, webhook: Webhook, tmp_path: Path
) -> None:
    wanted, other = fresh(3).events, fresh(2).events
    hub.publish(0, events.envelope(other))
    hub.publish(0, events.envelope(wanted, category="guard"))
    async with forwarding(server, webhook.url, tmp_path, Categories="x, guard") as running:
        await webhook.until(lambda: webhook.total == 3)
        assert await running.outcomes() == {"delivered": 3, "skipped": 2}
    assert [*webhook.bytes.values()] == wanted


async def test_hub_transport_websockets_connects_to_port_443(
    webhook: Webhook, tmp_path: Path
) -> None:
    # The client ignores the endpoint's port. If 443 cannot be bound, its attempt is enough.
    server = Server({HUB: 1}, host="127.4.4.3", port=443)
    try:
        await server.listen()
    except PermissionError:
        server.port = free_port()
    variables = {
        "HubTransport": "websockets",
        "EhubNamespaceConnectionString": server.connection_string().replace(":443;", ":444;"),
    }
    async with server, forwarding(server, webhook.url, tmp_path, **variables) as running:
        if server.port == 443:
            publish(server.hubs[HUB], fresh(2))
            await webhook.until(lambda: webhook.total == 2)
        else:
            await running.until(lambda: running.entries("hub does not answer"))
            reason = running.entries("hub does not answer")[0]["reason"]
            assert reason.startswith("127.4.4.3:443 refuses connections")


async def test_hub_transport_amqp_does_not_use_websockets(webhook: Webhook, tmp_path: Path) -> None:
    first_bytes: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first_bytes.append(await reader.read(4))
        writer.close()

    listener = await asyncio.start_server(listen, "127.0.0.1", 0)
    server = Server({HUB: 1}, port=listener.sockets[0].getsockname()[1])
    async with listener, forwarding(server, webhook.url, tmp_path) as running:
        await running.until(lambda: first_bytes)
    assert set(first_bytes) == {b"AMQP"}


def listening() -> set[int]:
    """Return the ports that this process listens on."""
    sockets = psutil.Process().net_connections("tcp")
    return {one.laddr.port for one in sockets if one.status == psutil.CONN_LISTEN}


async def test_port_0_disables_metrics_and_probes(
    server: Server, hub: Hub, webhook: Webhook, tmp_path: Path
) -> None:
    publish(hub, fresh(1))
    others = {server.port, webhook.port}
    async with forwarding(server, webhook.url, tmp_path) as running:
        assert listening() == {*others, running.settings.http_port}
    async with forwarding(server, webhook.url, tmp_path, HttpPort="0"):
        publish(hub, fresh(1))
        await webhook.until(lambda: webhook.total == 2)
        assert listening() == others


# Checkpoints and shutdown


async def test_checkpoints_are_written_at_intervals_and_reading_resumes_after_them(
    server: Server, hub: Hub, webhook: Webhook, tmp_path: Path
) -> None:
    publish(hub, *(fresh(2) for _ in range(5)))
    variables = {"StateDirectory": str(tmp_path / "state"), "CheckpointInterval": "0.2"}
    async with forwarding(server, webhook.url, tmp_path, **variables) as running:
        await running.until(lambda: running.checkpoint() == 4)
        assert await running.total("checkpoints_total", partition="0", result="ok") >= 1
        assert await running.total("checkpoints_total", result="error") == 0
        assert (tmp_path / "state" / "checkpoints.db").exists()
    variables["CheckpointInterval"] = "60"
    async with forwarding(server, webhook.url, tmp_path, **variables) as running:
        publish(hub, fresh(2))
        await webhook.until(lambda: webhook.total == 12)
        await asyncio.sleep(0.5)
        assert running.checkpoint() == 4
        assert await running.total("checkpoints_total") == 0
        assert await running.total("lag_messages", partition="0") == 1
    assert running.checkpoint() == 5  # written at shutdown
    assert webhook.duplicates == 0


async def test_shutdown_drains_messages_in_flight(
    server: Server, hub: Hub, webhook: Webhook, tmp_path: Path
) -> None:
    webhook.rule = lambda _: Response(delay=0.5)
    publish(hub, *(fresh(3) for _ in range(4)))
    async with forwarding(server, webhook.url, tmp_path, ShutdownGrace="20") as running:
        await running.until(lambda: len(running.entries("hub message")) == 4)
        await running.stop()
        assert webhook.total == 12
        assert running.checkpoint() == 3
        assert running.entries()[-1]["message"] == "stopped"


async def test_shutdown_ends_after_shutdown_grace_and_the_rest_is_received_again(
    server: Server, hub: Hub, webhook: Webhook, tmp_path: Path
) -> None:
    webhook.rule = lambda _: Response(delay=math.inf)
    message, accepted = fresh(3), fresh(2)
    webhook.responses.append(200)
    publish(hub, accepted, message)
    variables = {"ShutdownGrace": "0.3", "WebSinkTimeout": "600", "WebSinkMaxEvents": "2"}
    async with forwarding(server, webhook.url, tmp_path, **variables) as running:
        await running.until(lambda: len(running.entries("hub message")) == 2)
        async with asyncio.timeout(20):
            await running.stop()
        assert "read again" in running.entries("stopping with messages undelivered")[0]["message"]
        assert running.checkpoint() == 0
    webhook.rule = None
    async with forwarding(server, webhook.url, tmp_path):
        await webhook.until(lambda: len(webhook.accepted) == 5)
    assert webhook.duplicates == 0


# Loss


async def test_messages_that_expire_before_they_are_read_are_counted_and_logged(
    server: Server, hub: Hub, webhook: Webhook, tmp_path: Path
) -> None:
    partition = hub.partitions[0]
    publish(hub, *(fresh(1) for _ in range(5)))
    partition.expire(2)  # before the first start: they do not count as lost
    async with forwarding(server, webhook.url, tmp_path, VerboseLevel="1") as running:
        await webhook.until(lambda: webhook.total == 3)
        assert await running.total("lost_messages_total") == 0
        server.faults.silence(0)
        publish(hub, *(fresh(1) for _ in range(5)))  # 5 to 9
        partition.expire(8)
        server.faults.resume()
        await webhook.until(lambda: webhook.total == 5)
        assert await running.total("lost_messages_total", partition="0") == 3
        (logged,) = running.entries("messages lost")
        assert (logged["level"], logged["first"], logged["last"]) == ("error", 5, 7)
    publish(hub, *(fresh(1) for _ in range(3)))  # 10 to 12, while no forwarder runs
    partition.expire(12)
    async with forwarding(server, webhook.url, tmp_path, VerboseLevel="1") as running:
        await webhook.until(lambda: webhook.total == 6)
        assert await running.total("lost_messages_total", partition="0") == 2
        (logged,) = running.entries("messages lost")
        assert (logged["partition"], logged["first"], logged["last"]) == ("0", 10, 11)


async def test_messages_that_the_hub_sends_again_are_delivered_once(
    server: Server, hub: Hub, webhook: Webhook, tmp_path: Path
) -> None:
    server.faults.duplicates = 3
    published = publish(hub, *(fresh(2) for _ in range(5)))
    async with forwarding(server, webhook.url, tmp_path) as running:
        await webhook.until(lambda: len(webhook.accepted) == 10)
        assert await running.outcomes() == {"delivered": 10}
        assert await running.total("hub_messages_total") == 5
    assert webhook.accepted == {events.key(one): 1 for one in published}
