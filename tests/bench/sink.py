"""A sink that costs as little as can be: `python -m bench.sink DELAY AGES` prints its URL.

It answers after DELAY seconds. GET /stats tells what came since GET /start, which forgets all
before it; if AGES is 1 also how old the first event of each post was.
"""

import asyncio
import json
import sys
import time
from datetime import UTC, datetime
from typing import cast

import uvloop

_END = b"\r\n\r\n"
_ID = b'"auditID":'
_STAMP = b'"stageTimestamp":"'


class Counts:
    """What came since the start; times by the monotonic clock, ages in seconds."""

    def __init__(self) -> None:
        self.events = 0
        self.first = self.last = 0.0
        self.ages: list[float] = []

    def add(self, body: bytes, *, age: bool) -> None:
        """Count the events of a post, and tell the age of the first one."""
        self.last = time.monotonic()
        self.first = self.first or self.last
        self.events += body.count(_ID)
        if age:
            start = body.index(_STAMP) + len(_STAMP)
            made = datetime.fromisoformat(body[start : body.index(b'"', start)].decode())
            self.ages.append((datetime.now(UTC) - made).total_seconds())


class Connection(asyncio.Protocol):
    """A connection: one request after the other."""

    counts = Counts()

    def __init__(self, delay: float, *, ages: bool) -> None:
        self._delay, self._ages = delay, ages
        self._buffer = bytearray()
        self._body = self._length = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class

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
            self._answer(json.dumps(vars(self.counts)).encode())
            return
        self.counts.add(body, age=self._ages)
        if self._delay:
            asyncio.get_running_loop().call_later(self._delay, self._answer, b"")
        else:
            self._answer(b"")

    def _answer(self, body: bytes) -> None:
        if self._transport.is_closing():  # the forwarder has ended meanwhile
            return
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (len(body), body)
        )


async def _serve(delay: float, *, ages: bool) -> None:
    listener = await asyncio.get_running_loop().create_server(
        lambda: Connection(delay, ages=ages), "127.0.0.1", 0
    )
    port = listener.sockets[0].getsockname()[1]
    print(f"http://127.0.0.1:{port}/k8s_audit", flush=True)  # noqa: T201  whoever started it reads it
    await listener.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(float(sys.argv[1]), ages=sys.argv[2] == "1"))
