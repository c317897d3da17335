"""A sink that lies costs neither events nor memory, whatever it makes of HTTP."""

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
from support.webhook import Answer, Webhook, unpack

MIB = 2**20
MOST_GROWTH = 48 * MIB
PAGE = "<!DOCTYPE html>\n<title>Sign in</title>"

Lie = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Case(NamedTuple):
    lie: Lie
    reason: str
    """Why it is posted again, as the metric names it; empty: its status counts as acceptance."""


def writes(head: bytes, repeated: bytes = b"", mib: float = 0) -> Lie:
    """Return a lie that is an answer's beginning and so much of something else."""

    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(head)
        for _ in range(int(mib * MIB / 65_536)):
            writer.write(repeated * (65_536 // len(repeated)))
            await writer.drain()

    return lie


async def closes_unread(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read(1)


async def reads_a_byte_a_second(reader: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
    for _ in range(2):  # longer than anybody waits
        await reader.read(1)
        await asyncio.sleep(1)


def and_stays(lie: Lie) -> Lie:
    """Return the lie with a connection that is left open behind it."""

    async def stays(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await lie(reader, writer)
        await reader.read()

    return stays


OK = b"HTTP/1.1 200 OK\r\n"
LARGE = b"Content-Length: 104857600\r\n\r\n"
CASES = {
    "answers nothing": Case(and_stays(writes(b"")), "timeout"),
    "reads a byte a second": Case(reads_a_byte_a_second, "timeout"),
    "closes unread": Case(closes_unread, "connection"),
    "closes after the status line": Case(writes(OK), "connection"),
    "stops after the status line": Case(and_stays(writes(OK)), "timeout"),
    "stops after the headers": Case(
        and_stays(writes(OK + b"Content-Length: 9\r\n\r\n")), "timeout"
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


async def request(reader: asyncio.StreamReader) -> bytes:
    """Read a request and return its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"Content-Length: (\d+)", head)
    return await reader.readexactly(int(length[1] if length else 0))


class Liar:
    """A sink that lies while it has a lie, and then takes everything."""

    def __init__(self) -> None:
        self.url = ""
        self.lie: Lie | None = None
        self.lies = 0
        self.taken: set[events.Key] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            if self.lie:
                self.lies += 1
                await self.lie(reader, writer)
            else:
                self.taken |= {events.key(event) for event in unpack(await request(reader))}
                writer.write(OK + b"Content-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
        writer.close()


@asynccontextmanager
async def liar() -> AsyncIterator[Liar]:
    """Serve lies on 127.0.0.1."""
    sink = Liar()
    server = await asyncio.start_server(sink.serve, "127.0.0.1", 0, limit=65_536)
    sink.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/k8s_audit"
    try:
        yield sink
    finally:
        server.close()


async def test_lies_are_bounded_and_posted_again(tmp_path: Path) -> None:
    """Each lie is repeated, then the sink is honest: all is delivered, and memory is bounded."""
    async with environment(tmp_path) as env, liar() as sink:
        settings = {"WebSinkURL": sink.url, "WebSinkTimeout": "0.7", "WebSinkMaxEvents": "100"}
        async with env.forwarder(None, **settings) as forwarder:
            env.ledger.publish(400)
            await forwarder.until(lambda: len(sink.taken) == len(env.ledger.published))
            before = most = forwarder.rss()

            def watched(condition: Callable[[], bool]) -> bool:
                nonlocal most
                most = max(most, forwarder.rss())
                return condition()

            async def delivered() -> bool:
                metrics = await forwarder.metrics()
                number = metrics.total("aks_audit_events_total", outcome="delivered")
                return watched(lambda: number == len(env.ledger.published))

            for name, (lie, reason) in CASES.items():
                sink.lie, sink.lies = lie, 0
                metrics = await forwarder.metrics()
                again = metrics.total("aks_audit_post_retries_total", reason=reason)
                env.ledger.publish(400, per_message=100)
                await forwarder.until(lambda: watched(lambda: sink.lies >= 4))
                sink.lie = None
                metrics = await forwarder.metrics()
                if reason:
                    await forwarder.until(
                        lambda: watched(lambda: len(sink.taken) == len(env.ledger.published))
                    )
                    metrics = await forwarder.metrics()
                    retries = metrics.total("aks_audit_post_retries_total", reason=reason)
                    assert retries >= again + 3, name
                else:
                    await forwarder.until(delivered)
                    sink.taken |= env.ledger.published.keys()
                assert most < before + MOST_GROWTH, f"{name}: {(most - before) / MIB:.0f} MiB more"


@pytest.mark.parametrize(
    "answer",
    [Answer(headers={"Content-Type": "text/html"}), Answer(204), Answer(body=f"\n{PAGE}")],
    ids=["by its type", "no page", "by its look"],
)
async def test_a_page_instead_of_an_answer_is_acceptance_and_said_once(
    answer: Answer, tmp_path: Path
) -> None:
    """kube-apiserver takes any 2xx; a proxy's page behind it is most likely a mistake."""
    async with Webhook() as webhook:
        webhook.rule = lambda _: answer
        async with delivering(webhook.url, tmp_path, VerboseLevel="1") as delivery:
            for _ in range(3):
                await delivery.take(next(events.messages(2)).body)
                await delivery.drain()
            assert await delivery.outcomes() == {"delivered": 6}
            said = delivery.entries("sink answers with a web page")
    assert len(said) == (answer.status == 200)
    assert all("WebSinkURL" in entry["reason"] for entry in said)
