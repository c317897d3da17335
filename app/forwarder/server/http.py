"""The HTTP port: metrics, probes and the status page, for any client in the cluster.

It is an asyncio protocol, because web frameworks limit neither the memory nor the time of a request
(aiohttp 3.14 keeps 1 MiB of headers per connection, and never times out an incomplete request).
Here a connection has one request, a buffer of 8 KiB and 10 s. If there are too many connections,
the oldest is closed, so that the kubelet's probes are still served. Metrics and status are rendered
at most once a second, after a burst of ten. Requests that wait for the same rendering share it.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final

from forwarder import log
from forwarder.config.settings import Settings
from forwarder.metrics import Metrics
from forwarder.redaction import redact, redact_all
from forwarder.server.health import Health
from forwarder.server.status import report

_REQUEST: Final = 8_192  # bytes of a request with its headers
_SECONDS: Final = 10.0  # for a whole connection
_CONNECTIONS: Final = 256
_INTERVAL: Final = 1.0  # seconds between two renderings
_BURST: Final = 10  # renderings without that delay
_HTML: Final = "text/html"
_REQUEST_LINE: Final = re.compile(rb"([A-Z]+) (/[!-~]*) HTTP/1\.[01]\r\n")  # method, target
_ACCEPT: Final = re.compile(rb"\r\naccept:([^\r\n]*)", re.IGNORECASE)

_Response = tuple[int, str, bytes]  # status, Content-Type, body
_Handler = Callable[[str], Awaitable[_Response]]  # takes the Accept header


@asynccontextmanager
async def serve(settings: Settings, metrics: Metrics, health: Health) -> AsyncIterator[None]:
    """Serve /metrics, /livez, /readyz and /status on all addresses."""

    def exposition(accept: str) -> _Response:
        health.observe(metrics)
        text, content_type = metrics.exposition(accept)
        return 200, content_type, redact(text.decode()).encode()

    def status(accept: str) -> _Response:
        state = redact_all(report(settings, health))
        if _HTML not in accept:
            return _json(200, state)
        from forwarder.server.page import page  # noqa: PLC0415 - seldom requested

        return 200, f"{_HTML}; charset=utf-8", page(state).encode()

    def probe(reasons: Callable[[], list[str]]) -> _Handler:
        async def handle(_: str) -> _Response:
            redacted = redact_all(reasons())
            return _json(503 if redacted else 200, {"reasons": redacted})

        return handle

    handlers: dict[str, _Handler] = {
        "/metrics": _Throttled(exposition, "openmetrics").get,
        "/status": _Throttled(status, _HTML).get,
        "/livez": probe(health.not_live),
        "/readyz": probe(health.not_ready),
    }
    connections: dict[_Connection, None] = {}
    server = await asyncio.get_running_loop().create_server(
        lambda: _Connection(handlers, connections), port=settings.http_port
    )
    try:
        yield
    finally:
        server.close()
        for connection in list(connections):
            connection.abort()


class _Connection(asyncio.Protocol):
    """One request and its response."""

    def __init__(
        self, handlers: dict[str, _Handler], connections: dict["_Connection", None]
    ) -> None:
        self._handlers = handlers
        self._connections = connections
        self._request = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._timer = asyncio.get_running_loop().call_later(_SECONDS, self.abort)
        self._task: asyncio.Task[None] | None = None
        self._connections[self] = None
        if len(self._connections) > _CONNECTIONS:
            next(iter(self._connections)).abort()

    def connection_lost(self, _: Exception | None) -> None:
        self._connections.pop(self, None)
        self._timer.cancel()
        if self._task:
            self._task.cancel()

    def abort(self) -> None:
        """Close the connection at once."""
        self._connections.pop(self, None)
        self._transport.abort()

    def eof_received(self) -> bool:
        return self._task is not None  # True keeps the connection for the response

    def data_received(self, data: bytes) -> None:
        self._request = (self._request + data)[:_REQUEST]
        complete = b"\r\n\r\n" in self._request
        if complete or len(self._request) == _REQUEST:
            self._transport.pause_reading()
            self._task = asyncio.create_task(self._respond(complete=complete))

    async def _respond(self, *, complete: bool) -> None:
        line, accept = _REQUEST_LINE.match(self._request), _ACCEPT.search(self._request)
        method, path = (part.decode() for part in line.groups()) if line else ("", "")
        handler = self._handlers.get(path.partition("?")[0])
        if not complete:
            response = _text(431)
        elif not line:
            response = _text(400)
        elif method not in {"GET", "HEAD"}:
            response = _text(405)
        elif not handler:
            response = _text(404)
        else:
            try:
                response = await handler(accept[1].decode("latin-1") if accept else "")
            except Exception as error:  # noqa: BLE001 - one request must not stop others
                log.error("internal error", path=path[:100], reason=log.describe(error))
                response = _text(500)
        status, content_type, body = response
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\nCache-Control: no-store\r\n"
            "X-Content-Type-Options: nosniff\r\n\r\n"
        )
        self._transport.write(head.encode())
        if method != "HEAD":
            self._transport.write(body)
        if complete:
            self._transport.close()
        else:  # closing with unread data would reset the connection, and lose the response
            self._transport.write_eof()


class _Throttled:
    """Renders at most once a second after a burst; requests that wait share one rendering."""

    def __init__(self, render: Callable[[str], _Response], media_type: str) -> None:
        """`render` takes an Accept header, of which only `media_type` changes the result."""
        self._render = render
        self._media_type = media_type
        self._waiting: dict[bool, asyncio.Task[_Response]] = {}
        self._due = 0.0

    async def get(self, accept: str) -> _Response:
        """Return the next rendering for an Accept header."""
        key = self._media_type in accept
        if key not in self._waiting:
            self._waiting[key] = asyncio.create_task(self._next(accept))
        return await asyncio.shield(self._waiting[key])

    async def _next(self, accept: str) -> _Response:
        now = asyncio.get_running_loop().time()
        self._due = max(self._due, now) + _INTERVAL
        await asyncio.sleep(self._due - now - _BURST * _INTERVAL)
        del self._waiting[self._media_type in accept]
        return self._render(accept)


def _json(status: int, value: object) -> _Response:
    return status, "application/json", json.dumps(value).encode()


def _text(status: int) -> _Response:
    return status, "text/plain", HTTPStatus(status).phrase.encode()
