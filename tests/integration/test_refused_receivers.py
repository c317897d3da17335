"""A refused receiver: its reason is reported everywhere, and reading resumes if possible."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from azure.eventhub.aio import EventHubConsumerClient

from support.environment import Environment, environment
from support.harness import HUB
from support.process import Forwarder

GEO = "com.microsoft:georeplication:invalid-offset"
SETTINGS = {"StallTimeout": "6"}


@pytest.mark.parametrize("condition", [GEO, "com.microsoft:argument-error", "amqp:invalid-field"])
async def test_a_refused_offset_is_replaced_by_the_sequence_number(
    tmp_path: Path, condition: str
) -> None:
    async with environment(tmp_path, partitions=1) as env:
        await _deliver_and_stop(env)
        env.hub.partitions[0].position_errors["x-opt-offset"] = condition
        env.ledger.publish(100)
        async with env.forwarder(None, **SETTINGS) as forwarder:
            await env.ledger.wait_until_settled()
            (entry,) = forwarder.entries("position refused")
            assert (entry["level"], entry["partition"]) == ("error", "0")
            assert entry["message"].endswith("by its sequence number")
            assert "x-opt-offset" in entry["reason"]
            assert entry["position"] == str(env.hub.partitions[0].last - 10)
        assert env.webhook.duplicates == 0


async def test_a_refused_sequence_number_is_replaced_by_the_time(tmp_path: Path) -> None:
    """Nothing is lost; possible duplicates are logged."""
    async with environment(tmp_path, partitions=1) as env:
        await _deliver_and_stop(env)
        before = env.webhook.total
        env.hub.partitions[0].position_errors |= {"x-opt-offset": GEO, "x-opt-sequence-number": GEO}
        env.ledger.publish(100)
        messages = env.hub.partitions[0].messages  # the next one has the same time
        messages[10] = messages[10]._replace(enqueued=messages[9].enqueued)
        async with env.forwarder(None, **SETTINGS) as forwarder:
            await env.ledger.wait_until_settled()
            assert [entry["message"] for entry in forwarder.entries("position refused")] == [
                "position refused, reading goes on by its sequence number",
                "position refused, reading goes on by time: messages may be delivered twice",
            ]
        assert env.webhook.total <= 2 * before + 100


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        ("com.microsoft:server-busy", "SystemTracker:offset:eventhub:argument-error~1|sequence"),
        ("amqp:not-found", "The messaging entity 'sb://x/audit-offset' could not be found."),
        ("com.microsoft:argument-out-of-range", "The specified partition is invalid"),
    ],
)
async def test_a_refusal_for_another_reason_replaces_no_position(
    tmp_path: Path, condition: str, text: str
) -> None:
    """Names of hubs and groups in the error text do not count as the reason."""
    async with environment(tmp_path, partitions=1) as env:
        async with env.forwarder(None, **SETTINGS) as forwarder:
            env.ledger.publish(100)
            await env.ledger.wait_until_settled()
            env.server.faults.error_description = text
            env.server.faults.refuse("attach", condition, times=3)
            env.server.faults.detach(condition)
            env.ledger.publish(100)
            await env.ledger.wait_until_settled()
            assert forwarder.entries("receiving failed")
            assert forwarder.entries("position refused") == []
        assert env.webhook.duplicates == 0


async def test_a_deleted_consumer_group_is_reported_everywhere(tmp_path: Path) -> None:
    async with environment(tmp_path, partitions=2) as env:
        env.hub.groups.add("audit")
        env.ledger.publish(100)
        async with env.forwarder(None, ConsumerGroup="audit", **SETTINGS) as forwarder:
            await env.ledger.wait_until_settled()
            assert await _hub_health(forwarder) == (200, 1, "healthy")
            env.hub.groups.discard("audit")
            env.server.faults.detach("amqp:not-found")
            env.ledger.publish(100)
            stalled = await forwarder.wait_for("stalled")
            reason = f"hub '{HUB}' has no consumer group 'audit'"
            assert reason in stalled["reason"]
            status, up, component = await _hub_health(forwarder)
            assert (status, up) == (503, 0)
            assert reason in component
            assert reason in json.dumps(await _status(forwarder))
            await forwarder.wait_for("still stalled")
            assert len(forwarder.entries("receiving failed")) == 1  # once a minute for all
            env.hub.groups.add("audit")
            await env.ledger.wait_until_settled()
            assert await _hub_health(forwarder) == (200, 1, "healthy")
        assert env.webhook.duplicates == 0


async def test_a_reader_with_a_higher_epoch_is_reported(tmp_path: Path) -> None:
    """It owns the only partition, so the forwarder is refused repeatedly."""
    async with environment(tmp_path, partitions=1) as env:
        other, reading = await _read_elsewhere(env)
        env.ledger.publish(100)
        async with env.forwarder(None, **SETTINGS) as forwarder:
            entry = await forwarder.wait_for("receiving failed")
            assert f"another process reads this partition of hub '{HUB}'" in entry["reason"]
            assert "needs a ConsumerGroup" in entry["reason"]
            reading.cancel()
            await other.close()
            await env.ledger.wait_until_settled()


async def test_a_reader_that_owns_all_partitions_makes_the_forwarder_unready(
    tmp_path: Path,
) -> None:
    """The reason remains until a partition is reopened, after 27 s at the earliest."""
    variables = {"LoadBalancingInterval": "30", "OwnershipExpiry": "60"}
    async with environment(tmp_path, partitions=1) as env:
        other, reading = await _read_elsewhere(env)
        async with env.forwarder(None, **variables) as forwarder:
            await forwarder.wait_for("hub answers")
            await forwarder.wait_for("receiving failed")
            await asyncio.sleep(1)
            status, up, component = await _hub_health(forwarder)
            assert (status, up) == (503, 0)
            assert f"another process reads this partition of hub '{HUB}'" in component
        reading.cancel()
        await other.close()


async def _read_elsewhere(env: Environment) -> tuple[EventHubConsumerClient, asyncio.Task[None]]:
    """Read partition 0 with a higher epoch; return the client and its reading task."""
    other = EventHubConsumerClient.from_connection_string(
        env.server.connection_string(), "$Default", eventhub_name=HUB
    )
    reading = asyncio.create_task(other.receive(on_event=_ignore, partition_id="0", owner_level=9))
    while not env.server.receivers:  # noqa: ASYNC110 - no event to wait for
        await asyncio.sleep(0.05)
    return other, reading


async def _ignore(*_: object) -> None:
    """Ignore an event."""


async def test_one_refused_partition_does_not_make_the_forwarder_unready(tmp_path: Path) -> None:
    async with environment(tmp_path, partitions=2) as env:
        env.server.faults.refuse("attach", "amqp:unauthorized-access", partition=1)
        env.hub.publish(1, b"{}")
        async with env.forwarder(None, **SETTINGS) as forwarder:
            stalled = await forwarder.wait_for("stalled")
            assert stalled["partition"] == "1"
            assert "refuses the login" in stalled["reason"]
            assert await _hub_health(forwarder) == (200, 1, "healthy")


async def _deliver_and_stop(env: Environment) -> None:
    """Deliver some messages, so that checkpoints are written, and stop."""
    env.ledger.publish(100)
    async with env.forwarder() as forwarder:
        await env.ledger.wait_until_settled()
        forwarder.terminate()
        assert await forwarder.wait() == 0


async def _hub_health(forwarder: Forwarder) -> tuple[int, float, str]:
    """Return the status of /readyz, the metric, and the hub's component in /status."""
    status, _ = await forwarder.get("/readyz")
    up = (await forwarder.metrics()).total("aks_audit_hub_up")
    return status, up, (await _status(forwarder))["components"]["hub"]


async def _status(forwarder: Forwarder) -> Any:
    return json.loads((await forwarder.get("/status"))[1])
