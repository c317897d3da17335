"""A client connection: SASL, open, keep-alive, and dispatch of frames to sessions."""

import asyncio
import time
from typing import TYPE_CHECKING, Any

from azure.eventhub._pyamqp import performatives
from azure.eventhub._pyamqp.error import AMQPError

from support.eventhubs import codec, websocket
from support.eventhubs.codec import EMPTY_FRAME, MAX_FRAME, frame
from support.eventhubs.session import Session

if TYPE_CHECKING:
    from support.eventhubs.server import Server

_HEADER = b"AMQP"
_HEADER_SASL = b"AMQP\x03\x01\x00\x00"
_SASL = b"\x01"


class Connection(asyncio.Protocol):
    """An AMQP connection. ``writable`` is false while its send buffer is full."""

    def __init__(self, server: "Server") -> None:
        self.server = server
        self.transport: asyncio.Transport
        self.writable = False
        self.max_frame = MAX_FRAME
        self.claims: dict[str, set[str]] = {}  # rights that tokens granted, by hub
        self._sessions: dict[int, Session] = {}
        self._rest = b""
        self._last_received = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        peer = transport.get_extra_info("peername")  # None inside a WebSocket
        if peer and self.server.faults.cuts_off(peer[1]):
            transport.abort()
            return
        self.transport.set_write_buffer_limits(high=1 << 20)
        self.writable = True
        self.server.connections.add(self)
        if self.server.faults.silent:
            self.transport.pause_reading()

    def connection_lost(self, _: Exception | None) -> None:
        self.writable = False
        self.server.connections.discard(self)
        if self._timer:
            self._timer.cancel()
        for session in self._sessions.values():
            session.end()

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self.wake()

    def wake(self) -> None:
        """Resume sending on all links."""
        for session in self._sessions.values():
            session.wake()

    def drop(self, *, flush: bool = False) -> None:
        """Drop the connection without an AMQP close; ``flush`` sends buffered data first."""
        self.writable = False
        (self.transport.close if flush else self.transport.abort)()

    def allows(self, right: str, hub: str) -> bool:
        """Whether a token granted this right on a hub, or on the whole namespace."""
        return any(right in self.claims.get(scope, ()) for scope in (hub.lower(), ""))

    def data_received(self, data: bytes) -> None:
        if not self._last_received and data.startswith(b"GET "):
            self.server.connections.discard(self)
            websocket.take_over(self.server, self.transport, data)
            return
        self._last_received = time.monotonic()
        view = memoryview(self._rest + data)
        start = 0
        while len(view) - start >= len(EMPTY_FRAME):
            head = bytes(view[start : start + 8])
            size = 8 if head.startswith(_HEADER) else int.from_bytes(head[:4], "big")
            if len(view) - start < size:
                break
            if head.startswith(_HEADER):
                self._header(head)
            elif size > len(EMPTY_FRAME):
                body = view[start + 4 * head[4] : start + size]
                self._frame(int.from_bytes(head[6:], "big"), body)
            start += size
        self._rest = bytes(view[start:])

    def _header(self, header: bytes) -> None:
        self.transport.write(header)
        if header == _HEADER_SASL:
            self.transport.write(frame(performatives.SASLMechanism([b"ANONYMOUS"]), kind=_SASL))

    def _frame(self, channel: int, body: memoryview) -> None:
        code, fields, payload = codec.parse(body)
        session = self._sessions.get(channel)  # the Python client detaches after end
        match code:
            case codec.TRANSFER if session:
                session.transfer(fields, payload)
            case codec.FLOW if session:
                session.flow(fields)
            case codec.ATTACH if session:
                session.attach(fields)
            case codec.DETACH if session:
                session.detach(fields)
            case codec.END if session:
                self._sessions.pop(channel).end()
                session.send(performatives.EndFrame(None))
            case codec.SASL_INIT:
                self.transport.write(frame(performatives.SASLOutcome(0, None), kind=_SASL))
            case codec.OPEN:
                self._open(fields)
            case codec.BEGIN:
                self._sessions[channel] = Session(self, channel, fields)
            case codec.CLOSE:
                self._close(None)

    def _open(self, fields: list[Any]) -> None:
        self.max_frame = min(MAX_FRAME, fields[2] or MAX_FRAME)
        idle_timeout = self.server.idle_timeout
        sizes = (MAX_FRAME, 4999, int(idle_timeout * 1000))
        response = performatives.OpenFrame("eventhubs", None, *sizes, None, None, None, None, None)
        self.transport.write(frame(response))
        self._keep_alive(min(idle_timeout, (fields[4] or idle_timeout * 1000) / 1000) / 2)

    def _keep_alive(self, interval: float) -> None:
        """Send an empty frame per interval; close the connection if the client sends none."""
        self._timer = asyncio.get_running_loop().call_later(interval, self._keep_alive, interval)
        if self.server.faults.silent:
            return
        if time.monotonic() - self._last_received > self.server.idle_timeout:
            self._close(AMQPError(b"amqp:connection:forced", "idle for too long", None))
        elif self.writable:
            self.transport.write(EMPTY_FRAME)

    def _close(self, error: AMQPError | None) -> None:
        self.transport.write(frame(performatives.CloseFrame(error)))
        self.drop(flush=True)
