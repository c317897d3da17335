"""Hostile clients of the HTTP port: memory and time are bounded, and probes still work."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from support.environment import Environment, environment
from support.process import Forwarder

MIB = 2**20


@pytest.fixture
async def forwarder(tmp_path: Path) -> AsyncIterator[Forwarder]:
    async with (
        environment(tmp_path / "state", partitions=4) as env,
        env.forwarder() as forwarder,
    ):
        await started(env, forwarder)
        yield forwarder


async def started(env: Environment, forwarder: Forwarder) -> None:
    """Deliver events, and request every page once."""
    env.ledger.publish(200)
    await env.webhook.until(lambda: env.webhook.total == 200)
    for path in ("/metrics", "/status", "/livez", "/readyz"):
        await forwarder.get(path)


async def connections(forwarder: Forwarder, number: int, send: bytes) -> list[socket.socket]:
    """Open connections, send as much of this as each accepts, and read nothing."""
    loop = asyncio.get_running_loop()
    found = []
    for _ in range(number):
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
        one.settimeout(0)
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(5):
                await loop.sock_connect(one, ("127.0.0.1", forwarder.port))
        with contextlib.suppress(OSError):
            one.send(send)
        found.append(one)
    return found


GET = b"GET /status HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /status HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n"
MANY = b"".join(b"X-%d: %b\r\n" % (number, b"x" * 8_000) for number in range(128))
ATTACKS = {
    "headers of 1 MB": (200, GET + MANY),
    "half requests of 480 KB": (300, POST + b"x" * 480_000),
    "half headers": (2_000, GET + b"X-Y: " + b"x" * 3_000),
    "clients that read nothing": (2_000, GET + b"\r\n"),
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_hostile_clients_take_little_memory_and_probes_are_served(
    forwarder: Forwarder, attack: str
) -> None:
    number, send = ATTACKS[attack]
    before = forwarder.rss()
    sockets = await connections(forwarder, number, send)
    peak, slowest = 0, 0.0
    for _ in range(10):
        peak = max(peak, forwarder.rss())
        began = time.monotonic()
        assert (await forwarder.get("/livez"))[0] == 200
        slowest = max(slowest, time.monotonic() - began)
        for one in sockets[::7]:
            with contextlib.suppress(OSError):
                one.send(send)
        await asyncio.sleep(0.1)
    for one in sockets:
        one.close()
    assert peak - before < 20 * MIB
    assert slowest < 1  # the kubelet waits for a second


async def test_metrics_clients_leave_the_cpu_to_delivery(forwarder: Forwarder) -> None:
    """Fifty clients poll without a pause: each gets one response per second, rendered once."""
    responses = 0

    async def poll() -> None:
        nonlocal responses
        while True:
            assert (await forwarder.get("/metrics"))[0] == 200
            responses += 1

    before, began = forwarder.cpu(), time.monotonic()
    tasks = [asyncio.create_task(poll()) for _ in range(50)]
    await asyncio.sleep(4)
    assert (await forwarder.get("/livez"))[0] == 200
    for task in tasks:
        task.cancel()
    seconds = time.monotonic() - began
    assert 50 < responses < 50 * (10 + seconds + 1)  # 10 in a row are not delayed
    assert (forwarder.cpu() - before) / seconds < 0.4


async def exchange(forwarder: Forwarder, request: bytes) -> tuple[bytes, float]:
    """Send a raw request; return the response and the seconds until the connection was closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", forwarder.port)
    began = time.monotonic()
    writer.write(request)
    response = await asyncio.wait_for(reader.read(), 90)
    writer.close()
    return response, time.monotonic() - began


REQUESTS = {
    b"GET /livez HTTP/1.0\r\n\r\n": 200,
    b"HEAD /livez?verbose HTTP/1.1\r\nHost: x\r\n\r\n": 200,
    b"POST /livez HTTP/1.1\r\nHost: x\r\n\r\n": 405,
    b"GET /../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n": 404,
    b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n": 400,
    b"\x16\x03\x01 hello\r\n\r\n": 400,
    b"GET /livez HTTP/1.1\r\nA: " + b"x" * 9_000: 431,
}


async def test_requests_get_their_status_and_incomplete_requests_are_closed(
    forwarder: Forwarder,
) -> None:
    incomplete = asyncio.create_task(exchange(forwarder, b"GET /livez HTTP/1.1\r\n"))
    for request, status in REQUESTS.items():
        response, _ = await exchange(forwarder, request)
        head, _, body = response.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status), request
        assert (body == b"") == request.startswith(b"HEAD")
    response, seconds = await incomplete
    assert response == b""
    assert 9 < seconds < 15


OPENMETRICS = "application/openmetrics-text"
FORMATS = {
    f"{OPENMETRICS};version=1.0.0,text/plain;version=0.0.4;q=0.5": OPENMETRICS,
    f"text/plain;version=0.0.4;q=0.5,{OPENMETRICS};version=1.0.0;q=0.4": "text/plain",
    f"{OPENMETRICS};version=0.0.1,*/*;q=0.1": "text/plain",
    "*/*": "text/plain",
    "": "text/plain",
    # An invalid header must not affect other clients, which share the rendered response.
    f"{OPENMETRICS};version=x": "text/plain",
    "text/plain;version=1.0.0-x;q=1.2.3": "text/plain",
    f"{OPENMETRICS};version=1.0.0,text/plain;q=.": OPENMETRICS,
}


async def test_metrics_are_in_the_format_that_the_client_prefers(forwarder: Forwarder) -> None:
    async with aiohttp.ClientSession() as session:
        for accept, wanted in FORMATS.items():
            headers = {"Accept": accept}
            async with session.get(forwarder.metrics_url, headers=headers) as response:
                text = await response.text()
                assert response.content_type == wanted
            parse = parse_openmetrics if wanted == OPENMETRICS else parse_text
            samples = {sample.name for family in parse(text) for sample in family.samples}
            assert "aks_audit_records_total" in samples
            assert "aks_audit_event_delay_seconds_bucket" in samples
            assert not [name for name in samples if name.endswith("_created")]
