"""The sink of other tests is strict, records what it receives, and fails on request."""

import asyncio
import hashlib
import json
import math
import ssl
from collections.abc import AsyncIterator

import aiohttp
import pytest
import trustme

from support import events
from support.webhook import MAX_BODY, Response, Webhook

JSON = {"Content-Type": "application/json"}
FEW = list(events.real_events()[:3])


def event_list(items: list[bytes]) -> bytes:
    head = b'{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":['
    return head + b",".join(items) + b"]}"


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(10)) as client:
        yield client


async def post(client: aiohttp.ClientSession, url: str, body: bytes) -> int:
    async with client.post(url, data=body, headers=JSON) as response:
        return response.status


async def test_it_records_each_event_byte_for_byte_and_how_often_it_arrived(
    webhook: Webhook, client: aiohttp.ClientSession
) -> None:
    assert await post(client, webhook.url, event_list(FEW)) == 200
    assert await post(client, webhook.url, FEW[0]) == 200
    assert [webhook.bytes[events.key(event)] for event in FEW] == FEW
    assert webhook.accepted[events.key(FEW[0])] == 2
    assert (webhook.total, webhook.duplicates, webhook.sizes) == (4, 1, [3, 1])


@pytest.mark.parametrize(
    ("method", "headers", "body", "status"),
    [
        ("GET", JSON, FEW[0], 405),
        ("PUT", JSON, FEW[0], 405),
        ("POST", {"Content-Type": "application/json; charset=utf-8"}, FEW[0], 400),
        ("POST", {"Content-Type": "text/plain"}, FEW[0], 400),
        ("POST", JSON, b"[" + FEW[0] + b"]", 400),
        ("POST", JSON, b"{}", 400),
        ("POST", JSON, event_list([b"{}"]), 400),
        ("POST", JSON, event_list(FEW).replace(b"k8s.io/v1", b"k8s.io/v2", 1), 400),
        ("POST", JSON, event_list(FEW)[:-1], 400),
        ("POST", JSON, FEW[0] + b" " * MAX_BODY, 400),
    ],
)
async def test_it_refuses_what_a_strict_sink_refuses(  # noqa: PLR0913, PLR0917  a table's columns
    webhook: Webhook,
    client: aiohttp.ClientSession,
    method: str,
    headers: dict[str, str],
    body: bytes,
    status: int,
) -> None:
    async with client.request(method, webhook.url, data=body, headers=headers) as response:
        assert response.status == status
    assert webhook.total == 0
    assert webhook.posts[0].body == body
    assert webhook.statuses == {status: 1}


async def test_queued_answers_take_precedence_over_the_rule(
    webhook: Webhook, client: aiohttp.ClientSession
) -> None:
    webhook.responses.extend([Response(429, {"Retry-After": "7"}), 503])
    webhook.rule = lambda post: 400 if FEW[1] in post.body else None
    async with client.post(webhook.url, data=FEW[0], headers=JSON) as response:
        assert (response.status, response.headers["Retry-After"]) == (429, "7")
    assert await post(client, webhook.url, FEW[0]) == 503
    assert await post(client, webhook.url, event_list(FEW)) == 400
    assert webhook.total == 0
    assert await post(client, webhook.url, FEW[0]) == 200
    assert webhook.total == 1


async def test_it_closes_the_connection_hangs_or_loses_events_on_request(
    webhook: Webhook, client: aiohttp.ClientSession
) -> None:
    webhook.responses.extend(
        [Response(drop=True), Response(delay=math.inf), Response(discard=True)]
    )
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await post(client, webhook.url, FEW[0])
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(post(client, webhook.url, FEW[0]), 0.2)
    assert await post(client, webhook.url, FEW[0]) == 200
    assert webhook.total == 0


async def test_it_stops_with_its_connections_and_restarts_on_the_same_port(
    webhook: Webhook, client: aiohttp.ClientSession
) -> None:
    assert await post(client, webhook.url, FEW[0]) == 200
    webhook.responses.append(Response(delay=math.inf))
    hanging = asyncio.create_task(post(client, webhook.url, FEW[1]))
    await webhook.until(lambda: not webhook.responses)
    await webhook.stop()
    with pytest.raises(aiohttp.ClientError):
        await hanging
    with pytest.raises(aiohttp.ClientConnectorError):
        await post(client, webhook.url, FEW[1])
    await webhook.start()
    assert await post(client, webhook.url, FEW[1]) == 200
    assert webhook.total == 2


async def test_until_wakes_up_with_a_post_and_reports_what_was_received(
    webhook: Webhook, client: aiohttp.ClientSession
) -> None:
    waiting = asyncio.create_task(webhook.until(lambda: webhook.total == 3))
    await post(client, webhook.url, event_list(FEW))
    await waiting
    with pytest.raises(TimeoutError, match="3 events in 3 deliveries"):
        await webhook.until(lambda: False, timeout=0.1)


async def test_it_requires_a_client_certificate(client: aiohttp.ClientSession) -> None:
    ca = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(server)
    ca.configure_trust(server)
    server.verify_mode = ssl.CERT_REQUIRED
    without_certificate = ssl.create_default_context()
    ca.configure_trust(without_certificate)
    with_certificate = ssl.create_default_context()
    ca.configure_trust(with_certificate)
    ca.issue_cert("forwarder").configure_cert(with_certificate)
    async with Webhook(tls=server) as webhook:
        with pytest.raises(aiohttp.ClientError):
            await client.post(webhook.url, data=FEW[0], headers=JSON, ssl=without_certificate)
        async with client.post(
            webhook.url, data=FEW[0], headers=JSON, ssl=with_certificate
        ) as response:
            assert response.status == 200
        assert webhook.total == 1


async def test_the_fast_mode_counts_the_same(client: aiohttp.ClientSession) -> None:
    async with Webhook(fast=True) as webhook:
        assert await post(client, webhook.url, event_list(list(events.real_events()))) == 200
        assert await post(client, webhook.url, FEW[0]) == 200
        assert webhook.total == 377
        async with client.get(webhook.url.replace("k8s_audit", "stats")) as response:
            stats = json.loads(await response.text())
            assert (stats["events"], stats["posts"]) == (377, 2)


async def test_it_refuses_an_event_without_a_stage_timestamp_if_configured(
    client: aiohttp.ClientSession,
) -> None:
    async with Webhook(require_timestamp=True) as webhook:
        assert await post(client, webhook.url, FEW[0]) == 200
        unstamped = FEW[1].replace(b'"stageTimestamp":', b'"stagetimestamp":')
        assert await post(client, webhook.url, event_list([FEW[0], unstamped])) == 400
        assert webhook.total == 1


async def test_it_reports_accepted_events_over_http(
    webhook: Webhook, client: aiohttp.ClientSession
) -> None:
    await post(client, webhook.url, event_list(FEW))
    await post(client, webhook.url, FEW[0])
    async with client.get(webhook.url.replace("k8s_audit", "events")) as response:
        reported = await response.json()
    assert reported == [
        [*events.key(event), 2 if event is FEW[0] else 1, hashlib.sha256(event).hexdigest()]
        for event in FEW
    ]
