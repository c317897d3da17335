"""Probes and gauges report the state of hub and sink, and the lag of delivery."""

import asyncio
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from forwarder import __version__
from forwarder.hub.monitor import HubMonitor
from support import events
from support.eventhubs import Hub, Server
from support.harness import HUB
from support.inprocess import forwarding
from support.webhook import Response, Webhook


def publish(hub: Hub, number: int = 1, partition: int = 0, *, age: float = 0) -> int:
    """Publish a message with this many events, enqueued `age` seconds ago; return its number."""
    message = next(events.messages(number, per_message=number, events=events.typical_events()))
    enqueued = datetime.now(UTC) - timedelta(seconds=age)
    return hub.publish(partition, message.body, enqueued=enqueued)


async def test_live_and_ready_while_the_hub_is_quiet_or_fully_read(
    server: Server, hub: Hub, webhook: Webhook, tmp_path: Path
) -> None:
    publish(hub, 3)
    async with forwarding(server, webhook.url, tmp_path, StallTimeout="0.2") as running:
        await webhook.until(lambda: webhook.total == 3)
        await running.until(lambda: running.entries("hub answers"))
        await asyncio.sleep(0.6)
        assert await running.reasons("/livez") == []
        assert await running.reasons("/readyz") == []
        assert await running.total("partitions_owned") == 2
        assert await running.total("hub_partitions") == 2
        assert await running.total("hub_up") == 1
        assert await running.total("build_info", version=__version__) == 1
        assert await running.total("sink_up") == 1
        assert await running.total("oldest_undelivered_seconds") == 0
        assert await running.outcomes() == {"delivered": 3}


async def test_a_sink_that_is_down_fails_readiness_but_not_liveness(
    server: Server, hub: Hub, webhook: Webhook, tmp_path: Path
) -> None:
    webhook.rule = lambda _: Response(401)
    publish(hub, 3, age=1000)
    async with forwarding(server, webhook.url, tmp_path, StallTimeout="0.5") as running:
        await running.until(lambda: running.entries("sink down"))
        await running.until(lambda: running.entries("hub answers"))
        for _ in range(6):
            await asyncio.sleep(0.2)
            (reason,) = await running.reasons("/readyz")
            assert reason.startswith("sink: 401: ")
            assert await running.reasons("/livez") == []
        assert not running.entries("stalled")
        assert await running.total("sink_up") == 0
        assert 1000 <= await running.total("oldest_undelivered_seconds", partition="0") < 1100
        assert await running.total("oldest_undelivered_seconds", partition="1") == 0
        webhook.rule = None
        await webhook.until(lambda: webhook.total == 3)
        await running.until(lambda: running.entries("sink up"))
        assert await running.reasons("/readyz") == []
        assert await running.reasons("/livez") == []
        assert await running.total("sink_up") == 1
        assert await running.total("oldest_undelivered_seconds") == 0


async def test_liveness_fails_while_the_hub_withholds_messages(
    server: Server, hub: Hub, webhook: Webhook, tmp_path: Path
) -> None:
    server.faults.silence(1)
    publish(hub, 3, partition=0)
    publish(hub, 2, partition=1)
    async with forwarding(server, webhook.url, tmp_path, StallTimeout="2") as running:
        await webhook.until(lambda: webhook.total == 3)
        assert await running.reasons("/livez") == []

        # Neither is known while the client is being reopened.
        async def not_live() -> bool:
            reasons = await running.reasons("/livez")
            return [one.partition(" for ")[0] for one in reasons] == ["partition 1: no progress"]

        async def lagging() -> bool:
            return await running.total("lag_messages", partition="1") == 1

        await running.until(not_live)
        assert await running.reasons("/readyz") == []
        await running.until(lagging)
        server.faults.resume()
        await webhook.until(lambda: webhook.total == 5)
        await running.until(lambda: running.entries("hub message")[1:])
        assert await running.reasons("/livez") == []


@pytest.mark.parametrize(
    ("client", "stall"),
    [(0, 6), (1, 6), (1, 2)],
    ids=["partition", "client", "client, later than StallTimeout"],
)
async def test_a_silent_receiver_is_reopened_and_then_the_client(
    server: Server, webhook: Webhook, tmp_path: Path, client: int, stall: int
) -> None:
    """One log entry reports the stall and what was reopened, another the recovery."""
    hub = server.hubs[HUB]
    publish(hub, 3, partition=1)
    variables = {"StallTimeout": str(stall), "CheckpointInterval": "0.2"}
    async with forwarding(server, webhook.url, tmp_path, **variables) as running:
        await running.until(lambda: running.checkpoint("1") == 0)
        server.faults.mute(1, more=client)
        publish(hub, 2, partition=1)
        await webhook.until(lambda: webhook.total == 5)
        await running.until(lambda: running.entries("recovered"))
        (stalled,), (recovered,) = running.entries("stalled"), running.entries("recovered")
        assert (stalled["level"], stalled["partition"]) == ("error", "1")
        assert (stalled["reopened"], recovered["partition"]) == ("partition", "1")
        assert stall / 3 <= stalled["seconds"] <= recovered["seconds"]
        assert len(running.entries("still stalled")) == client
        assert await running.total("reopened_total", what="partition") == 1
        assert await running.total("reopened_total", what="client") == client
        # The other partition is reopened only with the client.
        closed = running.entries("partition given up")
        assert sum(one["partition"] == "0" for one in closed) == client
        assert await running.reasons("/livez") == []
        assert await running.outcomes() == {"delivered": 5}
    assert webhook.duplicates == 0


async def test_a_receiver_whose_connection_hangs_is_reopened(
    server: Server, hub: Hub, webhook: Webhook, tmp_path: Path
) -> None:
    """The hub does not confirm that the link is closed."""
    publish(hub, 3, partition=1)
    variables = {"StallTimeout": "6", "CheckpointInterval": "0.2"}
    async with forwarding(server, webhook.url, tmp_path, **variables) as running:
        await running.until(lambda: running.checkpoint("1") == 0)
        server.faults.mute(1)
        for receiver in server.receivers:
            if receiver.partition == "1":
                receiver.session.connection.transport.pause_reading()
        publish(hub, 2, partition=1)
        await webhook.until(lambda: webhook.total == 5)
        await running.until(lambda: running.entries("recovered"))
        assert await running.outcomes() == {"delivered": 5}
    assert webhook.duplicates == 0


async def test_with_start_position_latest_a_silent_receiver_is_detected_from_the_start(
    server: Server, hub: Hub, webhook: Webhook, tmp_path: Path
) -> None:
    """Only messages published after the start are received, even if the receiver is reopened."""
    publish(hub, 3, partition=1)
    server.faults.mute(1, more=1)
    variables = {"StallTimeout": "3", "StartPosition": "latest"}
    async with forwarding(server, webhook.url, tmp_path, **variables) as running:
        await running.until(lambda: running.entries("partition claimed")[1:])
        publish(hub, 2, partition=1)
        await webhook.until(lambda: webhook.total == 2)
        assert running.entries("stalled")
        assert await running.outcomes() == {"delivered": 2}


async def test_a_partition_that_waits_for_the_buffer_is_not_stalled_and_its_age_is_reported(
    server: Server, hub: Hub, webhook: Webhook, tmp_path: Path
) -> None:
    webhook.rule = lambda _: Response(delay=math.inf)
    for partition in (0, 1):
        publish(hub, 3, partition=partition, age=1000)
    variables = {"StallTimeout": "1", "ReceiveBufferBytes": "1024", "WebSinkTimeout": "60"}
    async with forwarding(server, webhook.url, tmp_path, **variables) as running:
        await running.until(lambda: webhook.posts or running.entries("hub message"))

        async def both_report_their_age() -> bool:
            ages = [await running.total("oldest_undelivered_seconds", partition=n) for n in "01"]
            return min(ages) >= 1000

        await running.until(both_report_their_age)
        await asyncio.sleep(1.5)
        assert len(running.entries("hub message")) == 1
        assert not running.entries("stalled")
        assert await running.total("reopened_total") == 0


async def test_an_unavailable_hub_fails_readiness_with_its_reason(
    server: Server, hub: Hub, webhook: Webhook, tmp_path: Path
) -> None:
    publish(hub, 3)
    server.faults.refuse("management", 503)
    async with forwarding(server, webhook.url, tmp_path, StallTimeout="0.2") as running:
        await running.until(lambda: running.entries("hub does not answer"))
        (reason,) = await running.reasons("/readyz")
        assert reason.startswith("hub: ")
        assert "too busy" in reason
        assert await running.total("hub_up") == 0
        assert running.entries("hub does not answer")[0]["level"] == "error"
        assert await running.reasons("/livez") == []
        monitor = HubMonitor(running.settings, None)
        await monitor.poll()
        assert monitor.outage.reason
        server.faults.accept()
        await monitor.poll()
        assert not monitor.outage.reason
        assert monitor.last == {"0": 0, "1": -1}
        assert running.entries("hub answers")[0]["partitions"] == 2
        await monitor.close()


async def test_lag_and_age_grow_while_the_hub_is_unreachable(
    server: Server, hub: Hub, webhook: Webhook, tmp_path: Path
) -> None:
    """The hub may have new messages: the gauges must not assume that it has none."""
    async with forwarding(server, webhook.url, tmp_path, StallTimeout="6") as running:
        publish(hub, 3)
        await webhook.until(lambda: webhook.total == 3)
        assert await running.total("oldest_undelivered_seconds") == 0
        server.faults.refuse_connections()
        server.faults.drop()
        await running.until(lambda: running.entries("hub does not answer"))
        for seconds in (1, 2):

            async def grown(seconds: float = seconds) -> bool:
                ages = [
                    await running.total("oldest_undelivered_seconds", partition=n) for n in "01"
                ]
                lags = [await running.total("lag_messages", partition=n) for n in "01"]
                return min(ages) >= seconds and min(lags) >= 1

            await running.until(grown)
        await server.faults.accept_connections()

        async def known() -> bool:
            age = await running.total("oldest_undelivered_seconds")
            return (age, await running.total("hub_up")) == (0, 1)

        await running.until(known)


async def test_not_ready_until_the_hub_has_responded(
    server: Server, webhook: Webhook, tmp_path: Path
) -> None:
    server.faults.silence()
    async with forwarding(server, webhook.url, tmp_path) as running:
        assert await running.reasons("/readyz") == ["hub: it has not answered yet"]
        assert await running.reasons("/livez") == []
        server.faults.resume()


async def test_lag_and_age_cover_all_undelivered_messages(
    server: Server, hub: Hub, webhook: Webhook, tmp_path: Path
) -> None:
    publish(hub, 1, age=5000)
    publish(hub, 2, age=3000)
    publish(hub, 3, age=1000)
    webhook.responses.append(200)
    webhook.rule = lambda _: Response(delay=math.inf)
    variables = {"WebSinkMaxEvents": "1", "WebSinkConcurrency": "1", "CheckpointInterval": "0.2"}
    async with forwarding(server, webhook.url, tmp_path, **variables) as running:
        await running.until(lambda: running.checkpoint() == 0)
        await running.until(lambda: len(running.entries("hub message")) == 3)
        assert await running.total("lag_messages", partition="0") == 2
        assert await running.total("lag_messages", partition="1") == 0
        assert 3000 <= await running.total("oldest_undelivered_seconds", partition="0") < 3100
        await webhook.stop()
        webhook.rule = None
        await webhook.start()
        await running.until(lambda: running.checkpoint() == 2)
        assert await running.total("lag_messages") == 0
        assert await running.total("oldest_undelivered_seconds") == 0
        assert await running.outcomes() == {"delivered": 6}


@pytest.mark.parametrize("start", ["latest", "2026-11-23T00:00:00Z", "10m"])
async def test_messages_before_the_start_position_do_not_count_as_undelivered(
    server: Server, hub: Hub, webhook: Webhook, tmp_path: Path, start: str
) -> None:
    if start.startswith("2026"):
        start = datetime.now(UTC).isoformat()
    for _ in range(3):
        publish(hub, age=3000)
    variables = {"StartPosition": start, "StallTimeout": "0.5"}
    async with forwarding(server, webhook.url, tmp_path, **variables) as running:
        for _ in range(100):  # probes also come before the first poll of the hub
            await running.reasons("/livez")
            await running.metrics()
            if len(server.receivers) == 2:
                break
            await asyncio.sleep(0.02)
        await running.until(lambda: running.entries("hub answers"))
        await asyncio.sleep(1)
        assert await running.reasons("/livez") == []
        assert await running.total("lag_messages") == 0
        assert await running.total("oldest_undelivered_seconds") == 0
        publish(hub, 2)
        await webhook.until(lambda: webhook.total == 2)
        assert await running.outcomes() == {"delivered": 2}


async def test_probes_return_reasons_as_json_and_other_paths_return_404(
    server: Server, webhook: Webhook, tmp_path: Path
) -> None:
    async with forwarding(server, webhook.url, tmp_path) as running:
        await running.until(lambda: running.entries("hub answers"))
        assert await running.get("/livez") == (200, '{"reasons": []}')
        assert await running.get("/readyz") == (200, '{"reasons": []}')
        assert (await running.get("/"))[0] == 404
