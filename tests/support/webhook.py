"""A sink as strict as Falco's k8saudit plugin. It records what it accepts; tests can inject faults.

In a test: `async with Webhook() as webhook:`. As a process, `python -m support.webhook --port N`
prints its URL. GET /stats returns its counts, and GET /events auditID, stage, count and SHA-256 of
each accepted event.
"""

import argparse
import asyncio
import contextlib
import hashlib
import math
import re
import ssl
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self

import msgspec
from aiohttp import web

from support.events import Key, key

MAX_BODY = 12 * 1024 * 1024


@dataclass(frozen=True)
class Post:
    """A request as it arrived, before validation."""

    at: float
    """time.monotonic() when its body was complete."""
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Response:
    """A response to a POST. Events count as accepted if the status is below 300."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0
    """Seconds before the response; infinite: none. A disconnected client is not noticed."""
    drop: bool = False
    """Close the connection without a response."""
    discard: bool = False
    """Respond as if the events were accepted, but discard them."""
    body: str = ""


Rule = Callable[[Post], Response | int | None]


class _List(msgspec.Struct, tag_field="kind", tag="EventList"):
    apiVersion: str  # noqa: N815  the field's name in audit.k8s.io/v1
    items: list[msgspec.Raw]


class _Event(msgspec.Struct, tag_field="kind", tag="Event"):
    apiVersion: str  # noqa: N815  as above


class _Timestamped(msgspec.Struct):
    stageTimestamp: datetime  # noqa: N815  as above


_decoder = msgspec.json.Decoder(_List | _Event)
_timestamped_decoder = msgspec.json.Decoder(_Timestamped)


def unpack(body: bytes) -> list[bytes]:
    """Return the events of an EventList or a bare Event, byte for byte."""
    parsed = _decoder.decode(body)
    if parsed.apiVersion != "audit.k8s.io/v1":
        raise msgspec.ValidationError(f"apiVersion {parsed.apiVersion}")
    return [bytes(item) for item in parsed.items] if isinstance(parsed, _List) else [body]


_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_FALCO_LEVELS = 300  # limit of its JSON parser
_FALCO_BYTES = 262_144  # maxEventSize of its plugin


def _depth(body: bytes) -> int:
    """Return the nesting depth of JSON."""
    depth = deepest = 0
    for byte in _STRING.sub(b"", body):
        depth += (byte in b"[{") - (byte in b"]}")
        deepest = max(deepest, depth)
    return deepest


class Webhook:
    """A sink. `fast` counts events without parsing them, for measurements of memory or time.

    With a `rate`, in events per second, it processes one POST at a time, even after the client
    disconnected. With `falco`, it responds 200 before it parses the body: it loses bodies with 300
    levels of nesting and events above 262,144 bytes.

    `require_timestamp` rejects events without a stageTimestamp, which Falco drops.
    """

    def __init__(  # noqa: PLR0913 - a sink has many options
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        fast: bool = False,
        require_timestamp: bool = False,
        rate: float = math.inf,
        falco: bool = False,
    ) -> None:
        self.host = host
        self.port = port
        self.tls = tls
        self.fast = fast
        self.require_timestamp = require_timestamp
        self.rate = rate
        self.falco = falco
        self._turn = asyncio.Lock()
        self.busy = 0.0
        """Seconds spent processing at its rate."""
        self.accepted: Counter[Key] = Counter()
        """Number of times each event was accepted."""
        self.bytes: dict[Key, bytes] = {}
        """Each event as first received."""
        self.posts: list[Post] = []
        """All requests, including rejected ones; none in fast mode."""
        self.sizes: list[int] = []
        """Number of events of each accepted POST, in order."""
        self.statuses: Counter[int] = Counter()
        """Responses by status; 0 for none."""
        self.responses: deque[Response | int] = deque()
        """Responses to the next POSTs, one each; they take precedence over `rule`."""
        self.rule: Rule | None = None
        """Called for each POST; None accepts it."""
        self.total = 0
        """Events accepted, including duplicates."""
        self.first: float | None = None
        """time.time() when the first event was accepted."""
        self._changed = asyncio.Event()
        self._runner: web.ServerRunner | None = None

    @property
    def url(self) -> str:
        """The URL for POSTs."""
        return f"http{'s' * bool(self.tls)}://127.0.0.1:{self.port}/k8s_audit"

    @property
    def duplicates(self) -> int:
        """Number of repeated deliveries of events."""
        return self.total - len(self.accepted)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start listening; after a stop, on the same port."""
        server = web.Server(self._handle, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.01)  # 0 waits forever
        await self._runner.setup()
        await web.TCPSite(self._runner, self.host, self.port, ssl_context=self.tls).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Refuse connections and close those that are open."""
        if self._runner:
            await self._runner.cleanup()

    async def until(self, condition: Callable[[], object], timeout: float = 90) -> None:  # noqa: ASYNC109  reports what is missing
        """Wait until the condition holds; it is checked after each POST, and every 0.1 s."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"after {timeout} s: {len(self.accepted)} events in {self.total} deliveries, "
                    f"responses {dict(self.statuses)}"
                )
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 0.1)

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        body = await request.content.read()
        post = Post(time.monotonic(), request.method, request.path, request.headers, body)
        if post.path == "/stats":
            stats = {"events": self.total, "posts": sum(self.statuses.values())}
            return web.json_response(stats | {"distinct": len(self.accepted), "first": self.first})
        if post.path == "/events":
            return web.json_response(
                [
                    [*name, self.accepted[name], hashlib.sha256(event).hexdigest()]
                    for name, event in self.bytes.items()
                ]
            )
        response = await self._respond(post)
        if not self.fast:
            self.posts.append(post)
        self.statuses[0 if response.drop else response.status] += 1
        self._changed.set()
        if response.drop and request.transport:
            request.transport.abort()
        return web.Response(status=response.status, headers=response.headers, text=response.body)

    async def _respond(self, post: Post) -> Response:
        chosen = self.responses.popleft() if self.responses else self.rule and self.rule(post)
        response = Response(chosen) if isinstance(chosen, int) else chosen or Response()
        if response.delay:
            await asyncio.sleep(response.delay)
        if response.drop or response.status >= 300:
            return response
        if rejection := self._validate(post):
            return rejection
        if self.fast:
            count = post.body.count(b'"auditID":"')
            await self._serve(count)
        else:
            try:
                events = self._parse(post.body)
                keys = [key(event) for event in events]
            except msgspec.MsgspecError as error:
                return Response(400, body=str(error))
            count = len(events)
            await self._serve(count)
            if not response.discard:
                self.accepted.update(keys)
                for name, event in zip(keys, events, strict=True):
                    self.bytes.setdefault(name, event)
        self.total += 0 if response.discard else count
        self.first = self.first or time.time()
        self.sizes.append(count)
        return response

    def _parse(self, body: bytes) -> list[bytes]:
        if self.falco and _depth(body) >= _FALCO_LEVELS:
            return []
        events = [one for one in unpack(body) if not self.falco or len(one) <= _FALCO_BYTES]
        if self.require_timestamp:
            for event in events:
                _timestamped_decoder.decode(event)
        return events

    async def _serve(self, events: int) -> None:
        if self.rate < math.inf:
            async with self._turn:
                began = time.monotonic()
                await asyncio.sleep(events / self.rate)
                self.busy += time.monotonic() - began

    @staticmethod
    def _validate(post: Post) -> Response | None:
        if post.method != "POST":
            return Response(405, body="POST only")
        if post.headers.get("Content-Type") != "application/json":
            return Response(400, body="Content-Type must be application/json")
        if len(post.body) > MAX_BODY:
            return Response(400, body="above 12 MiB")
        return None


async def _serve(host: str, port: int) -> None:
    async with Webhook(host=host, port=port, require_timestamp=True) as webhook:
        print(webhook.url, flush=True)  # noqa: T201  the parent process reads it
        await asyncio.Event().wait()


def main() -> None:
    """Run a sink until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m support.webhook", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(options.host, options.port))


if __name__ == "__main__":
    main()
