"""A sink that uses as little CPU as possible: `python -m bench.sink LOAD` prints its URL.

LOAD is JSON. The sink responds after its `delay`. With a `capacity`, it processes one POST at a
time, even after the client disconnected. For `outage` seconds it responds with 503. GET /stats
reports the counts since GET /start; with a `pace`, also the age of the first event of each POST.
"""

import asyncio
import json
import re
import sys
import time
from datetime import UTC, datetime
from typing import Any, cast

import uvloop

from bench.workloads import Load

_END = b"\r\n\r\n"
_ID = b'"auditID":'
_STAMP = b'"stageTimestamp":"'
_IDS = re.compile(rb'"auditID":"([^"]+)"')
SLICE = 0.25
"""Seconds per entry of `slices`."""


class Counts:
    """Counts since the start; times by the monotonic clock, ages in seconds."""

    def __init__(self) -> None:
        self.events = 0
        self.first = self.last = 0.0
        self.ages: list[float] = []
        self.slices: list[int] = []
        """Events accepted per time slice since the first one."""
        self.ids: set[bytes] = set()
        self.began = self.free_at = 0.0
        """Time of the first POST, and when all queued POSTs will be processed."""

    def add(self, body: bytes, load: Load) -> None:
        """Count the events of an accepted POST."""
        self.last = time.monotonic()
        self.first = self.first or self.last
        number = body.count(_ID)
        self.events += number
        index = int((self.last - self.first) / SLICE)
        self.slices += [0] * (index + 1 - len(self.slices))
        self.slices[index] += number
        if load.unique:
            self.ids.update(_IDS.findall(body))
        if load.pace:
            start = body.index(_STAMP) + len(_STAMP)
            made = datetime.fromisoformat(body[start : body.index(b'"', start)].decode())
            self.ages.append((datetime.now(UTC) - made).total_seconds())

    def report(self) -> dict[str, Any]:
        """Return the content of /stats."""
        names = ("events", "first", "last", "ages", "slices")
        return {name: getattr(self, name) for name in names} | {"distinct": len(self.ids)}


class Connection(asyncio.Protocol):
    """A connection, without pipelining."""

    counts = Counts()

    def __init__(self, load: Load) -> None:
        self._load = load
        self._buffer = bytearray()
        self._body = self._length = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(
            "asyncio.Transport", transport
        )  # uvloop's class does not derive from it

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._body:
            if (end := self._buffer.find(_END)) < 0:
                return
            self._body = end + len(_END)
            fields = bytes(self._buffer[:end]).lower().split(b"\r\n")
            lengths = [int(f.partition(b":")[2]) for f in fields if f.startswith(b"content-length")]
            self._length = sum(lengths)
        if len(self._buffer) < self._body + self._length:
            return
        path = bytes(self._buffer[: self._body]).split(b" ", 2)[1]
        body = bytes(memoryview(self._buffer)[self._body : self._body + self._length])
        self._buffer.clear()
        self._body = 0
        if path != b"/k8s_audit":
            if path == b"/start":
                Connection.counts = Counts()
            self._respond(json.dumps(self.counts.report()).encode())
            return
        self._accept(body)

    def _accept(self, body: bytes) -> None:
        """Process a POST: immediately, after the delay, or when its turn comes."""
        counts, load, now = self.counts, self._load, time.monotonic()
        counts.began = counts.began or now
        if now - counts.began < load.outage:
            self._respond(b"", b"503 Service Unavailable")
            return
        if not load.capacity:
            counts.add(body, load)
            if load.delay:
                asyncio.get_running_loop().call_later(load.delay, self._respond, b"")
            else:
                self._respond(b"")
            return
        counts.free_at = max(now, counts.free_at) + body.count(_ID) / load.capacity

        def serve() -> None:
            if counts is Connection.counts:
                counts.add(body, load)
                self._respond(b"")

        asyncio.get_running_loop().call_later(counts.free_at - now, serve)

    def _respond(self, body: bytes, status: bytes = b"200 OK") -> None:
        if self._transport.is_closing():  # the client disconnected
            return
        self._transport.write(
            b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (status, len(body), body)
        )


async def _serve(load: Load) -> None:
    listener = await asyncio.get_running_loop().create_server(
        lambda: Connection(load), "127.0.0.1", 0
    )
    port = listener.sockets[0].getsockname()[1]
    print(f"http://127.0.0.1:{port}/k8s_audit", flush=True)  # noqa: T201  the parent process reads it
    await listener.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(Load(**json.loads(sys.argv[1]))))
