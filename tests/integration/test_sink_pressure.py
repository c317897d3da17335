"""Sinks under pressure: slow, down, flapping, timing out, limited in size, and Falco."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from support import events
from support.environment import environment
from support.eventhubs import Server
from support.harness import HUB
from support.inprocess import DeliveryOnly, delivering, forwarding
from support.webhook import Response, Webhook, unpack


@asynccontextmanager
async def backlog(
    webhook: Webhook, state: Path, waiting: int, **variables: str
) -> AsyncIterator[DeliveryOnly]:
    """Submit this many events to four partitions."""
    async with delivering(webhook.url, state, **variables) as delivery:
        for number, message in enumerate(events.messages(waiting, per_message=100)):
            await delivery.submit(message.body, str(number % 4))
        yield delivery


def nested(levels: int) -> bytes:
    """Return an event with this nesting depth."""
    event = json.loads(events.typical_events()[0])
    text = json.dumps(event | {"auditID": "deep", "requestObject": 0}, separators=(",", ":"))
    deep = '{"a":' * levels + "1" + "}" * levels
    return text.replace('"requestObject":0', f'"requestObject":{deep}').encode()


# The longest test is first: `make faults` starts them in this order, two per process.


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seconds", [10, 60, 600])
async def test_a_backlog_is_delivered_within_seconds_of_the_first_success(
    tmp_path: Path, seconds: float
) -> None:
    async with environment(tmp_path) as env:
        webhook = env.webhook
        webhook.rule = lambda _: 503
        for number, message in enumerate(events.messages(8_000)):
            env.hub.publish(number % 4, message.body)
        async with env.forwarder(WebSinkMaxEvents="100", VerboseLevel="1"):
            await asyncio.sleep(seconds)
            webhook.rule = None
            await webhook.until(lambda: webhook.first, 10)
            await webhook.until(lambda: len(webhook.accepted) == 8_000, 5)
            assert webhook.duplicates == 0


# A slow sink


async def test_a_slow_sink_receives_few_duplicates_and_is_never_idle(tmp_path: Path) -> None:
    """16 concurrent lists of 100 would take 4 s, longer than the timeout of 1 s."""
    async with (
        Webhook(rate=400) as webhook,
        backlog(webhook, tmp_path, 3_000, WebSinkTimeout="1") as delivery,
    ):
        started = time.monotonic()
        await delivery.drain()
        seconds = time.monotonic() - started
        assert await delivery.outcomes() == {"delivered": 3_000}
        assert webhook.duplicates < 0.05 * 3_000
        assert webhook.busy > 0.85 * seconds
        assert 1 <= await delivery.total("post_concurrency") <= 2
        (entry,) = delivery.entries("post concurrency")
        assert (entry["message"], entry["demand"]) == ("post concurrency reduced", 16)
        webhook.rate = 100_000
        for number, message in enumerate(events.messages(4_000, per_message=100)):
            await delivery.submit(message.body, str(number % 4))
        await delivery.drain()
        assert await delivery.total("post_concurrency") > 4
        assert delivery.entries("post concurrency restored")


@pytest.mark.parametrize("idle", [True, False])
async def test_a_burst_after_idle_time_or_an_outage_does_not_count_as_a_slow_sink(
    webhook: Webhook, tmp_path: Path, *, idle: bool
) -> None:
    """After a short outage the limit stays 1 until several POSTs wait, perhaps hours later."""
    async with backlog(webhook, tmp_path, 3_000) as delivery:
        await delivery.drain()
        webhook.rule = lambda _: 503
        await delivery.submit(next(events.messages(1)).body)
        await delivery.wait_for("sink down")
        webhook.rule = None
        await delivery.drain()
        assert await delivery.total("post_concurrency") == 1
        if idle:
            await asyncio.sleep(6)
        else:
            webhook.responses.append(Response(429, {"Retry-After": "6"}))
        for number, message in enumerate(events.messages(400, per_message=100)):
            await delivery.submit(message.body, str(number))
        await delivery.drain()
        assert await delivery.total("post_concurrency") > 1
        assert not delivery.entries("post concurrency")


@pytest.mark.full
@pytest.mark.timeout(1700)
@pytest.mark.parametrize("rate", [50, 150, 500])
@pytest.mark.parametrize("sink_timeout", ["3", "10"])
async def test_a_slow_sink_with_a_backlog_of_20000_events(
    tmp_path: Path, rate: float, sink_timeout: str
) -> None:
    async with environment(tmp_path) as env:
        webhook, waiting = env.webhook, 20_000
        webhook.rate = rate
        for number, message in enumerate(events.messages(waiting)):
            env.hub.publish(number % 4, message.body)
        settings = {"WebSinkTimeout": sink_timeout, "WebSinkMaxEvents": "100", "VerboseLevel": "1"}
        async with env.forwarder(None, **settings):
            await webhook.until(lambda: len(webhook.accepted) == waiting, 4 * waiting / rate)
            assert webhook.first
            assert webhook.duplicates < 0.05 * waiting
            assert webhook.busy > 0.85 * (time.time() - webhook.first)


async def test_a_sink_with_a_constant_latency_receives_concurrent_posts(tmp_path: Path) -> None:
    """Its latency does not depend on concurrency: 40 sequential lists would take 60 s."""
    async with Webhook() as webhook:
        webhook.rule = lambda _: Response(delay=1.5)
        async with backlog(webhook, tmp_path, 4_000, WebSinkTimeout="3") as delivery:
            started = time.monotonic()
            await delivery.drain()
            assert time.monotonic() - started < 45
            assert await delivery.outcomes() == {"delivered": 4_000}
        assert webhook.duplicates == 0


async def test_a_sink_that_times_out_on_large_lists_receives_smaller_ones(tmp_path: Path) -> None:
    async with Webhook() as webhook:
        webhook.rule = lambda post: Response(delay=9 if len(unpack(post.body)) > 30 else 0)
        async with backlog(webhook, tmp_path, 400, WebSinkTimeout="0.3") as delivery:
            await delivery.drain()
            assert await delivery.outcomes() == {"delivered": 400}
            assert max(webhook.sizes) <= 30
            webhook.rule = None
            for message in events.messages(2_000, per_message=100):
                await delivery.submit(message.body)
            await delivery.drain()
            assert max(webhook.sizes) == 100


# An outage


@pytest.mark.parametrize("response", [Response(503), Response(429), Response(drop=True)], ids=str)
async def test_one_post_probes_a_sink_that_is_down_and_all_resume_when_it_recovers(
    webhook: Webhook, tmp_path: Path, response: Response
) -> None:
    webhook.rule = lambda _: response
    async with backlog(webhook, tmp_path, 4_000) as delivery:
        await delivery.wait_for("sink down")
        await asyncio.sleep(6)
        assert len(webhook.posts) < 12
        assert await delivery.total("post_concurrency") == 1
        webhook.rule = None
        await delivery.wait_for("sink up")
        up = time.monotonic()
        await delivery.drain()
        assert time.monotonic() - up < 15
        assert await delivery.outcomes() == {"delivered": 4_000}
        pauses = [
            later.at - earlier.at
            for earlier, later in zip(webhook.posts, webhook.posts[1:], strict=False)
        ]
        assert max(pauses) < 12
        assert webhook.duplicates == 0
        assert not delivery.entries("post concurrency"), "the sink was down, not slow"


async def test_a_stop_during_an_outage_drains_when_the_sink_recovers(tmp_path: Path) -> None:
    async with environment(tmp_path) as env:
        env.webhook.rule = lambda _: 503
        env.ledger.publish(2_000)
        async with env.forwarder(ShutdownGrace="20") as forwarder:
            await forwarder.wait_for("sink down")
            await asyncio.sleep(2)
            forwarder.terminate()
            await forwarder.wait_for("stopping")
            env.webhook.rule = None
            assert await forwarder.wait() == 0
        assert env.webhook.total == 2_000
        async with env.forwarder() as forwarder:
            await forwarder.wait_for("partition claimed")
            env.ledger.publish(10)
            await env.webhook.until(lambda: len(env.webhook.accepted) == 2_010)
        assert env.webhook.duplicates == 0


@pytest.mark.parametrize("header", ["0", "Mon, 23 Nov 2020 09:14:10 GMT"])
async def test_retry_after_zero_causes_no_busy_loop(
    webhook: Webhook, tmp_path: Path, header: str
) -> None:
    webhook.rule = lambda _: Response(429, {"Retry-After": header})
    async with backlog(webhook, tmp_path, 100):
        await asyncio.sleep(2)
        assert len(webhook.posts) < 8


async def test_a_long_retry_after_makes_the_forwarder_unready_but_not_dead(
    server: Server, webhook: Webhook, tmp_path: Path
) -> None:
    webhook.rule = lambda _: Response(429, {"Retry-After": "300"})
    server.hubs[HUB].publish(0, next(events.messages(1)).body)
    async with forwarding(server, webhook.url, tmp_path, StallTimeout="1") as running:
        await running.wait_for("sink down")
        await asyncio.sleep(2)
        assert await running.reasons("/livez") == []
        assert await running.reasons("/readyz") == ["sink: 429"]
        assert len(webhook.posts) == 1


@pytest.mark.full
@pytest.mark.timeout(300)
async def test_nothing_is_lost_while_the_sink_flaps_for_two_minutes(tmp_path: Path) -> None:
    async with environment(tmp_path) as env:
        webhook = env.webhook
        async with env.traffic(), env.forwarder(WebSinkMaxEvents="100") as forwarder:
            limits = []
            for _ in range(4):
                for rate, rule in (
                    (1e9, None),
                    (300, None),
                    (1e9, lambda _: 429),
                    (1e9, lambda _: Response(drop=True)),
                ):
                    webhook.rate, webhook.rule = rate, rule
                    await asyncio.sleep(7)
                    metrics = await forwarder.metrics()
                    limits.append(metrics.total("aks_audit_post_concurrency"))
            webhook.rate, webhook.rule = 1e9, None
            await forwarder.wait_for("sink up")
        async with env.forwarder(WebSinkMaxEvents="100"):
            await env.ledger.wait_until_settled(60)
        assert set(limits[2::4] + limits[3::4]) == {1}
        assert webhook.duplicates < 0.1 * webhook.total


# Events that a sink cannot process


@pytest.mark.parametrize("response", [Response(500, body="EOF"), Response(drop=True)], ids=str)
async def test_an_event_that_makes_the_sink_fail_does_not_affect_others(
    webhook: Webhook, tmp_path: Path, response: Response
) -> None:
    """CrowdSec, for example, responds with 500 to a list with one event that it cannot parse."""
    small = [*next(events.messages(100, per_message=100, events=events.typical_events())).events]
    bad = small[0].replace(b'"auditID":"', b'"auditID":"bad')
    webhook.rule = lambda post: response if bad in post.body else None
    later = events.messages(10_000, per_message=1)
    async with delivering(webhook.url, tmp_path, WebSinkTimeout="1") as delivery:
        await delivery.submit(events.envelope([*small[:30], bad, *small[30:]]))
        await webhook.until(lambda: len(webhook.accepted) == 100)
        watermark = delivery.partitions["0"].watermark
        assert watermark.position is None
        async with asyncio.timeout(60):
            while not (records := delivery.dead_letters()):
                await delivery.submit(next(later).body)
                await asyncio.sleep(0.3)
        assert [record["body"].encode() for record in records] == [bad]
        assert ("500 EOF" in records[0]["reason"]) != response.drop
        await delivery.drain()
        assert watermark.oldest is None
        assert (await delivery.outcomes())["dead_lettered"] == 1
    assert all(webhook.accepted[events.key(event)] == 1 for event in small)
    assert webhook.duplicates == 0


async def test_an_event_is_retried_while_the_sink_accepts_none(
    webhook: Webhook, tmp_path: Path
) -> None:
    """A rejection is a response, but no evidence that the sink works."""
    message, *others = events.messages(41, per_message=1)
    webhook.rule = lambda post: 500 if post.body == message.events[0] else 400
    async with delivering(
        webhook.url, tmp_path, WebSinkTimeout="0.2", WebSinkMaxEvents="1"
    ) as delivery:
        await delivery.submit(message.body)
        for other in others:
            await delivery.submit(other.body, "1")
            await asyncio.sleep(0.1)
        await webhook.until(lambda: webhook.statuses[500] > 15)
        webhook.rule = lambda post: None if post.body == message.events[0] else 400
        await delivery.drain()
        assert await delivery.outcomes() == {"delivered": 1, "dead_lettered": 40}
    assert [*webhook.accepted] == [events.key(message.events[0])]


@pytest.mark.parametrize("concurrency", ["1", "4"])
async def test_all_events_are_delivered_after_an_outage_with_status_500(
    webhook: Webhook, tmp_path: Path, concurrency: str
) -> None:
    """No other status of an outage is harder to distinguish from one bad event."""
    webhook.rule = lambda _: 500
    variables = {"WebSinkMaxEvents": "2", "WebSinkConcurrency": concurrency}
    async with backlog(webhook, tmp_path, 400, WebSinkTimeout="1", **variables) as delivery:
        await webhook.until(lambda: webhook.statuses[500] > 5)
        assert await delivery.total("post_concurrency") == 1
        webhook.rule = None
        await delivery.drain()
        assert await delivery.outcomes() == {"delivered": 400}
    assert webhook.duplicates == 0


async def test_an_event_that_falco_cannot_parse_does_not_affect_others(tmp_path: Path) -> None:
    small = [*next(events.messages(40, per_message=40, events=events.typical_events())).events]
    deep, large = nested(400), small[0].replace(b'"verb"', b'"x":"%b","verb"' % (b"x" * 262_144))
    async with (
        Webhook(falco=True) as webhook,
        delivering(webhook.url, tmp_path, WebSinkConcurrency="1") as delivery,
    ):
        await delivery.submit(
            events.envelope([*small[:10], deep, *small[10:30], large, *small[30:]])
        )
        await delivery.drain()
        assert await delivery.outcomes() == {"delivered": 42}
        assert webhook.accepted == {events.key(event): 1 for event in small}
        sizes = [len(unpack(post.body)) for post in webhook.posts]
        assert sizes == [10, 1, 20, 1, 10]
        assert unpack(webhook.posts[1].body) == [deep]


@pytest.mark.parametrize(("levels", "posts"), [(90, 1), (110, 3)])
async def test_an_event_nested_deeper_than_100_levels_is_posted_alone(
    webhook: Webhook, tmp_path: Path, levels: int, posts: int
) -> None:
    small = events.typical_events()[:4]
    async with delivering(webhook.url, tmp_path) as delivery:
        await delivery.submit(events.envelope([*small[:2], nested(levels), *small[2:]]))
        await delivery.drain()
    assert len(webhook.posts) == posts
