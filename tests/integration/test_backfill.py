"""`replay --hub` posts events of the hub again and does not affect a running forwarder."""

import json
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from support import events, stores
from support.environment import Environment, environment
from support.eventhubs import Server
from support.harness import HUB
from support.process import Forwarder
from support.webhook import Webhook


@pytest.fixture
async def env(tmp_path: Path) -> AsyncIterator[Environment]:
    async with environment(tmp_path / "state", partitions=3) as env:
        env.hub.groups |= {"own", "backfill"}
        yield env


@pytest.fixture
async def sensor() -> AsyncIterator[Webhook]:
    """Return a second sink, the target of the replay."""
    async with Webhook() as sensor:
        yield sensor


async def replay(variables: Mapping[str, str], *arguments: str) -> tuple[int, str]:
    async with Forwarder(variables, "replay", "--hub", *arguments) as command:
        status = await command.wait()
        return status, "\n".join([*command.lines, command.stderr])


@pytest.mark.parametrize(
    ("group", "arguments"),
    [("$Default", ["--consumer-group", "backfill"]), ("own", [])],
    ids=["separate group", "fallback to $Default"],
)
async def test_a_running_forwarder_is_not_affected(
    env: Environment, sensor: Webhook, group: str, arguments: list[str]
) -> None:
    async with env.forwarder(None, ConsumerGroup=group) as forwarder:
        env.ledger.publish(300)
        await env.ledger.wait_until_settled()
        await forwarder.until(lambda: sum(stores.embedded(env.state).values()) == 27)
        before = stores.embedded(env.state)
        variables = env.settings(WebSinkURL=sensor.url, ConsumerGroup=group)
        status, output = await replay(variables, "--since", "10m", *arguments)
        assert status == 0, output
        assert sensor.accepted.keys() == env.ledger.published.keys()
        assert sensor.duplicates == 0
        assert "30 messages, 300 events, 300 accepted, 0 refused" in output
        assert "partition 2: 10 messages, 100 events, 100 accepted, 0 refused, 0 filtered" in output
        assert stores.embedded(env.state) == before
        env.ledger.publish(30)
        await env.ledger.wait_until_settled()
        assert not forwarder.entries("partition given up")
        assert not forwarder.entries("receiving failed")
    env.ledger.verify()
    assert env.webhook.duplicates == 0


async def test_a_consumer_group_that_is_in_use_is_refused_with_a_remedy(
    env: Environment, sensor: Webhook
) -> None:
    async with env.forwarder() as forwarder:
        env.ledger.publish(30)
        await env.ledger.wait_until_settled()
        variables = env.settings(WebSinkURL=sensor.url)
        status, output = await replay(variables, "--since", "10m")
        assert (status, sensor.total) == (1, 0)
        assert "is read in consumer group '$Default'" in output
        assert "partition 0: " not in output
        assert "--consumer-group" in output
        assert not forwarder.entries("partition given up")


async def test_since_and_until_select_by_enqueued_time(env: Environment, sensor: Webhook) -> None:
    now = datetime.now(UTC)
    ages = [60, 50, 40, 30, 20, 10]
    messages = events.messages(60, per_message=10)
    by_age = {}
    for age, message in zip(ages, messages, strict=True):
        env.hub.publish(0, message.body, enqueued=now - timedelta(minutes=age))
        by_age[age] = set(message.events)
    variables = env.settings(WebSinkURL=sensor.url)
    selected = ("--since", "45m", "--until", "15m")
    status, output = await replay(variables, *selected, "--dry-run")
    assert (status, sensor.total) == (0, 0), output
    assert "3 messages, 30 events, 0 accepted" in output
    status, output = await replay(variables, *selected)
    assert status == 0, output
    assert set(sensor.bytes.values()) == by_age[40] | by_age[30] | by_age[20]
    assert not stores.embedded(env.state)
    instant = (now - timedelta(minutes=10)).isoformat()
    status, output = await replay(variables, "--since", instant)
    assert status == 0, output
    assert "1 messages, " in output


async def test_expired_messages_are_not_waited_for(env: Environment, sensor: Webhook) -> None:
    (message,) = events.messages(10, per_message=10)
    env.hub.publish(0, message.body)
    env.hub.partitions[0].expire(1)
    status, output = await replay(env.settings(WebSinkURL=sensor.url), "--since", "1h")
    assert (status, "0 messages, 0 events" in output) == (0, True), output


async def test_the_audit_policy_applies_and_refused_events_are_counted(
    env: Environment, sensor: Webhook, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.json"
    rules = [{"level": "None", "verbs": ["get"]}, {"level": "RequestResponse"}]
    policy.write_text(json.dumps({"rules": rules}))
    (message,) = events.messages(20, per_message=20, events=events.typical_events())
    gets = [one for one in message.events if json.loads(one)["verb"] == "get"]
    others = [one for one in message.events if one not in gets]
    env.hub.publish(0, message.body)
    env.hub.publish(1, b"no envelope")
    variables = env.settings(WebSinkURL=sensor.url, AuditPolicyFile=str(policy))
    sensor.rule = lambda post: 422 if others[0] in post.body else 200
    status, output = await replay(variables, "--since", "1h")
    assert status == 1, output
    assert set(sensor.bytes.values()) == set(others[1:])
    assert f"{len(others)} events, {len(others) - 1} accepted, 1 refused" in output
    assert f"1 refused, {len(gets)} filtered, 0 skipped, 0 unusable" in output
    assert "partition 1: 1 messages, 0 events, 0 accepted, 0 refused, 0 filtered" in output


async def test_replay_resumes_after_a_lost_connection(env: Environment, sensor: Webhook) -> None:
    for message in events.messages(3000, per_message=10):
        env.hub.publish(0, message.body)
    variables = env.settings(WebSinkURL=sensor.url, ReceiveBufferBytes="65536")
    async with Forwarder(variables, "replay", "--hub", "--since", "1h") as command:
        await sensor.until(lambda: sensor.total > 100)
        env.server.faults.refuse("put-token", 500, 1)
        env.server.faults.drop()
        assert await command.wait() == 0, command.stderr
    assert (len(sensor.accepted), sensor.duplicates) == (3000, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--hub needs --since"),
        (["--since", "1h", "--reason", "x"], "for dead letters"),
        (["--since", "1h", "--show"], "for dead letters"),
        (["--since", "1h", "--until", "2h"], "--until is before --since"),
    ],
)
async def test_contradictory_arguments_exit_with_status_2(
    env: Environment, arguments: list[str], message: str
) -> None:
    status, output = await replay(env.settings(), *arguments)
    assert (status, message in output) == (2, True), output


async def test_a_missing_permission_is_reported_with_the_full_remedy(
    sensor: Webhook, tmp_path: Path
) -> None:
    keys, claims = {"writer": "d3JpdGVy"}, {"writer": {"Send"}}
    async with Server({HUB: 1}, keys=keys, claims=claims) as server:
        server.hubs[HUB].publish(0, b"any")
        variables = {
            "EhubNamespaceConnectionString": server.connection_string(),
            "StateDirectory": str(tmp_path),
            "WebSinkURL": sensor.url,
        }
        status, output = await replay(variables, "--since", "1h")
    assert status == 1
    assert f"\npolicy 'writer' may not read hub '{HUB}' of 127.0.0.1; " in output
    assert output.strip().endswith("(eventHub.connectionString) to its connection string")


async def test_an_unreachable_hub_is_reported_with_its_address(
    env: Environment, sensor: Webhook
) -> None:
    variables = env.settings(WebSinkURL=sensor.url)
    port = env.server.port
    env.server.stop_listening()
    status, output = await replay(variables, "--since", "1h")
    assert status == 1
    assert f"127.0.0.1:{port}" in output
    assert "Traceback" not in output
