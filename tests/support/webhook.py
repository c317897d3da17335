"""A sink as strict as Falco's k8saudit, that remembers what it took and misbehaves to order.

In a test: `async with Webhook() as webhook:`. As a process of its own
`python -m support.webhook --port N` prints its URL; it answers GET /stats with its counts, and
GET /events with auditID, stage, count and SHA-256 of all that it took.
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
    """A request as it arrived, before it is judged."""

    at: float
    """time.monotonic() when its body was complete."""
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What a test orders for a post. Events count as taken if the status is below 300."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0
    """Seconds before the answer; infinite: never. A client that has gone is not noticed."""
    drop: bool = False
    """Close the connection without an answer."""
    lose: bool = False
    """Answer as if the events were taken, and forget them."""
    body: str = ""


Rule = Callable[[Post], Answer | int | None]


class _List(msgspec.Struct, tag_field="kind", tag="EventList"):
    apiVersion: str  # noqa: N815  the field's name in audit.k8s.io/v1
    items: list[msgspec.Raw]


class _Event(msgspec.Struct, tag_field="kind", tag="Event"):
    apiVersion: str  # noqa: N815  as above


class _Stamped(msgspec.Struct):
    stageTimestamp: datetime  # noqa: N815  as above


_decoder = msgspec.json.Decoder(_List | _Event)
_stamp = msgspec.json.Decoder(_Stamped)


def unpack(body: bytes) -> list[bytes]:
    """Return the events of an EventList or a bare Event, byte for byte."""
    parsed = _decoder.decode(body)
    if parsed.apiVersion != "audit.k8s.io/v1":
        raise msgspec.ValidationError(f"apiVersion {parsed.apiVersion}")
    return [bytes(item) for item in parsed.items] if isinstance(parsed, _List) else [body]


_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_FALCO_LEVELS = 300  # of its JSON parser
_FALCO_BYTES = 262_144  # maxEventSize of its plugin


def _depth(body: bytes) -> int:
    """Return how deep the JSON nests."""
    depth = deepest = 0
    for byte in _STRING.sub(b"", body):
        depth += (byte in b"[{") - (byte in b"]}")
        deepest = max(deepest, depth)
    return deepest


class Webhook:
    """A sink. `fast` counts events without reading them, where memory or time is measured.

    With a `rate` it serves one post at a time, so many events a second, and goes on with a post
    whose client has gone. As `falco` it answers 200 before it parses: a body that nests 300 levels
    is lost, and so is an event above 262,144 bytes.

    `stamped` refuses those without a stageTimestamp, which Falco drops.
    """

    def __init__(  # noqa: PLR0913 - a sink has many ways
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        fast: bool = False,
        stamped: bool = False,
        rate: float = math.inf,
        falco: bool = False,
    ) -> None:
        self.host = host
        self.port = port
        self.tls = tls
        self.fast = fast
        self.stamped = stamped
        self.rate = rate
        self.falco = falco
        self._turn = asyncio.Lock()
        self.busy = 0.0
        """Seconds that it has served at its rate."""
        self.taken: Counter[Key] = Counter()
        """How often each event was taken."""
        self.bytes: dict[Key, bytes] = {}
        """Each event as it arrived first."""
        self.posts: list[Post] = []
        """Every request, the refused ones too; in fast mode none."""
        self.sizes: list[int] = []
        """Events of every post that was taken, in order."""
        self.statuses: Counter[int] = Counter()
        """Answers; 0 where none was given."""
        self.answers: deque[Answer | int] = deque()
        """Answers to the next posts, one each, before `rule` is asked."""
        self.rule: Rule | None = None
        """UsedFields for each post; None takes it."""
        self.total = 0
        """Events taken, duplicates too."""
        self.first: float | None = None
        """time.time() when the first event was taken."""
        self._changed = asyncio.Event()
        self._runner: web.ServerRunner | None = None

    @property
    def url(self) -> str:
        """Where to post."""
        return f"http{'s' * bool(self.tls)}://127.0.0.1:{self.port}/k8s_audit"

    @property
    def duplicates(self) -> int:
        """Events taken more than once, counted each time."""
        return self.total - len(self.taken)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; after a stop, on the same port."""
        server = web.Server(self._handle, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.01)  # 0 waits for ever
        await self._runner.setup()
        await web.TCPSite(self._runner, self.host, self.port, ssl_context=self.tls).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Refuse connections and close those that are open."""
        if self._runner:
            await self._runner.cleanup()

    async def until(self, condition: Callable[[], object], timeout: float = 90) -> None:  # noqa: ASYNC109  tells what is missing
        """Wait until the condition holds; it is looked at after each post, and now and then."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"after {timeout} s: {len(self.taken)} events in {self.total} taken, "
                    f"answers {dict(self.statuses)}"
                )
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 0.1)

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        body = await request.content.read()
        post = Post(time.monotonic(), request.method, request.path, request.headers, body)
        if post.path == "/stats":
            stats = {"events": self.total, "posts": sum(self.statuses.values())}
            return web.json_response(stats | {"distinct": len(self.taken), "first": self.first})
        if post.path == "/events":
            return web.json_response(
                [
                    [*name, self.taken[name], hashlib.sha256(event).hexdigest()]
                    for name, event in self.bytes.items()
                ]
            )
        answer = await self._answer(post)
        if not self.fast:
            self.posts.append(post)
        self.statuses[0 if answer.drop else answer.status] += 1
        self._changed.set()
        if answer.drop and request.transport:
            request.transport.abort()
        return web.Response(status=answer.status, headers=answer.headers, text=answer.body)

    async def _answer(self, post: Post) -> Answer:
        ordered = self.answers.popleft() if self.answers else self.rule and self.rule(post)
        answer = Answer(ordered) if isinstance(ordered, int) else ordered or Answer()
        if answer.delay:
            await asyncio.sleep(answer.delay)
        if answer.drop or answer.status >= 300:
            return answer
        if refusal := self._judge(post):
            return refusal
        if self.fast:
            count = post.body.count(b'"auditID":"')
            await self._serve(count)
        else:
            try:
                events = self._parse(post.body)
                keys = [key(event) for event in events]
            except msgspec.MsgspecError as error:
                return Answer(400, body=str(error))
            count = len(events)
            await self._serve(count)
            if not answer.lose:
                self.taken.update(keys)
                for name, event in zip(keys, events, strict=True):
                    self.bytes.setdefault(name, event)
        self.total += 0 if answer.lose else count
        self.first = self.first or time.time()
        self.sizes.append(count)
        return answer

    def _parse(self, body: bytes) -> list[bytes]:
        if self.falco and _depth(body) >= _FALCO_LEVELS:
            return []
        events = [one for one in unpack(body) if not self.falco or len(one) <= _FALCO_BYTES]
        if self.stamped:
            for event in events:
                _stamp.decode(event)
        return events

    async def _serve(self, events: int) -> None:
        if self.rate < math.inf:
            async with self._turn:
                began = time.monotonic()
                await asyncio.sleep(events / self.rate)
                self.busy += time.monotonic() - began

    @staticmethod
    def _judge(post: Post) -> Answer | None:
        if post.method != "POST":
            return Answer(405, body="POST only")
        if post.headers.get("Content-Type") != "application/json":
            return Answer(400, body="Content-Type must be application/json")
        if len(post.body) > MAX_BODY:
            return Answer(400, body="above 12 MiB")
        return None


async def _serve(host: str, port: int) -> None:
    async with Webhook(host=host, port=port, stamped=True) as webhook:
        print(webhook.url, flush=True)  # noqa: T201  whoever started it reads it
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
