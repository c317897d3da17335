"""A sink that violates HTTP causes neither loss of events nor growth of memory."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from support import events
from support.environment import environment
from support.inprocess import delivering
from support.webhook import Response, Webhook, unpack

MIB = 2**20
MAX_GROWTH = 48 * MIB
PAGE = "<!DOCTYPE html>\n<title>Sign in</title>"

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Case(NamedTuple):
    behaviour: Behaviour
    reason: str
    """The label of the metric for retries; empty if the status counts as acceptance."""


def writes(head: bytes, repeated: bytes = b"", mib: float = 0) -> Behaviour:
    """Return a behaviour: send the start of a response, then `mib` of something repeated."""

    async def behaviour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(head)
        for _ in range(int(mib * MIB / 65_536)):
            writer.write(repeated * (65_536 // len(repeated)))
            await writer.drain()

    return behaviour


async def closes_unread(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read(1)


async def reads_one_byte_per_second(reader: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
    for _ in range(2):  # longer than the timeout
        await reader.read(1)
        await asyncio.sleep(1)


def stays_open(behaviour: Behaviour) -> Behaviour:
    """Return the behaviour followed by a connection that stays open."""

    async def stays(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await behaviour(reader, writer)
        await reader.read()

    return stays


OK = b"HTTP/1.1 200 OK\r\n"
LARGE = b"Content-Length: 104857600\r\n\r\n"
CASES = {
    "does not respond": Case(stays_open(writes(b"")), "timeout"),
    "reads one byte per second": Case(reads_one_byte_per_second, "timeout"),
    "closes unread": Case(closes_unread, "connection"),
    "closes after the status line": Case(writes(OK), "connection"),
    "stops after the status line": Case(stays_open(writes(OK)), "timeout"),
    "stops after the headers": Case(
        stays_open(writes(OK + b"Content-Length: 9\r\n\r\n")), "timeout"
    ),
    "a header of 1 MB": Case(writes(OK + b"X: ", b"x", 1), "connection"),
    "headers of 1 MB": Case(writes(OK, b"X-Y: z\r\n", 1), "connection"),
    "headers of 1 GB": Case(writes(OK, b"X-Y: z\r\n", 1024), "connection"),
    "a status line of 100 MB": Case(writes(b"HTTP/1.1 200 ", b"K", 100), "connection"),
    "100 MB with 200": Case(writes(OK + LARGE, b"\0", 100), ""),
    "100 MB with 500": Case(writes(b"HTTP/1.1 500 No\r\n" + LARGE, b"\0", 100), "500"),
    "no end with 503": Case(
        writes(b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", 2**20),
        "503",
    ),
}


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """Read a request and return its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"Content-Length: (\d+)", head)
    return await reader.readexactly(int(length[1] if length else 0))


class MisbehavingSink:
    """A sink that shows `behaviour` while it is set, and otherwise accepts everything."""

    def __init__(self) -> None:
        self.url = ""
        self.behaviour: Behaviour | None = None
        self.misbehaved = 0
        self.accepted: set[events.Key] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            if self.behaviour:
                self.misbehaved += 1
                await self.behaviour(reader, writer)
            else:
                self.accepted |= {events.key(event) for event in unpack(await read_request(reader))}
                writer.write(OK + b"Content-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
        writer.close()


@asynccontextmanager
async def misbehaving_sink() -> AsyncIterator[MisbehavingSink]:
    """Listen on 127.0.0.1."""
    sink = MisbehavingSink()
    server = await asyncio.start_server(sink.serve, "127.0.0.1", 0, limit=65_536)
    sink.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/k8s_audit"
    try:
        yield sink
    finally:
        server.close()


async def test_misbehaviour_is_bounded_and_posts_are_retried(tmp_path: Path) -> None:
    """Each behaviour is repeated; then the sink works, and everything is delivered."""
    async with environment(tmp_path) as env, misbehaving_sink() as sink:
        settings = {"WebSinkURL": sink.url, "WebSinkTimeout": "0.7", "WebSinkMaxEvents": "100"}
        async with env.forwarder(None, **settings) as forwarder:
            env.ledger.publish(400)
            await forwarder.until(lambda: len(sink.accepted) == len(env.ledger.published))
            before = peak = forwarder.rss()

            def watched(condition: Callable[[], bool]) -> bool:
                nonlocal peak
                peak = max(peak, forwarder.rss())
                return condition()

            async def delivered() -> bool:
                metrics = await forwarder.metrics()
                number = metrics.total("aks_audit_events_total", outcome="delivered")
                return watched(lambda: number == len(env.ledger.published))

            for name, (behaviour, reason) in CASES.items():
                sink.behaviour, sink.misbehaved = behaviour, 0
                metrics = await forwarder.metrics()
                retries_before = metrics.total("aks_audit_post_retries_total", reason=reason)
                env.ledger.publish(400, per_message=100)
                await forwarder.until(lambda: watched(lambda: sink.misbehaved >= 4))
                sink.behaviour = None
                metrics = await forwarder.metrics()
                if reason:
                    await forwarder.until(
                        lambda: watched(lambda: len(sink.accepted) == len(env.ledger.published))
                    )
                    metrics = await forwarder.metrics()
                    retries = metrics.total("aks_audit_post_retries_total", reason=reason)
                    assert retries >= retries_before + 3, name
                else:
                    await forwarder.until(delivered)
                    sink.accepted |= env.ledger.published.keys()
                assert peak < before + MAX_GROWTH, f"{name}: {(peak - before) / MIB:.0f} MiB more"


@pytest.mark.parametrize(
    "response",
    [Response(headers={"Content-Type": "text/html"}), Response(204), Response(body=f"\n{PAGE}")],
    ids=["by Content-Type", "no page", "by its start"],
)
async def test_a_web_page_response_is_acceptance_and_is_logged_once(
    response: Response, tmp_path: Path
) -> None:
    """kube-apiserver accepts any 2xx, but a web page most likely comes from a proxy."""
    async with Webhook() as webhook:
        webhook.rule = lambda _: response
        async with delivering(webhook.url, tmp_path, VerboseLevel="1") as delivery:
            for _ in range(3):
                await delivery.submit(next(events.messages(2)).body)
                await delivery.drain()
            assert await delivery.outcomes() == {"delivered": 6}
            logged = delivery.entries("sink answers with a web page")
    assert len(logged) == (response.status == 200)
    assert all("WebSinkURL" in entry["reason"] for entry in logged)
