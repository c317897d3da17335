"""Work-arounds of the SDK, all in this module; it uses private parts of the SDK.

Seen in azure-eventhub 5.15.1, each with a test that fails when the SDK no longer needs it:

- Opening a connection handles one frame at a time and sleeps 50 ms after each of about eight.
- When the service detaches the link to `$cbs`, as the firewall of a namespace makes it do, the SDK
  waits until the time-out. Here the error of the link is raised.
- A receiver looks for messages every 50 ms, a median latency of 8 to 21 ms, and wakes up five
  times a second while there are none. Here the socket wakes it.
- A link keeps the delivery tag of every message (78 bytes) for a later settlement. Messages of an
  event hub are never settled.
- A body that the SDK cannot decode ends the session: see `forwarder.hub.message`.
- A receiver does not notice that the service ended its session, and is silent from then on.
- Each request for properties opens a connection and logs in. Here one connection stays open.
- A socket stays open if the hub closes a connection without TLS, or if an opening is given up, and
  so does the session of a WebSocket that is refused, until the garbage collector happens to find
  them. Here they are closed with their client.

`Transport` is given to one client object; nothing is changed process-wide.
"""
# ruff: noqa: SLF001 - private parts of the SDK

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from azure.eventhub._pyamqp.constants import SessionState
from azure.eventhub._pyamqp.error import AMQPConnectionError, ErrorCondition
from azure.eventhub.aio._transport._pyamqp_transport_async import PyamqpTransportAsync

from forwarder.delivery.buffer import ReceiveBuffer
from forwarder.hub.message import Received, parse

_SDK: Final[Any] = PyamqpTransportAsync
_FRAMES: Final = 10  # to open a connection; it takes about eight
_CREDIT_BYTES: Final = 2**20  # that the hub may send ahead, estimated by the average message
_MIN_CREDIT, _MAX_CREDIT = 10, 1000  # messages
_MAX_MESSAGE: Final = 2**20  # bytes
_TOKEN_CHECK: Final = 1.0  # seconds between two checks whether the token has to be renewed
_CLOSING: Final = 2.0  # seconds
_ERROR: Final = 400  # the lowest status code of an error
_CLOSED: Final = ErrorCondition.ConnectionCloseForced


class Transport(PyamqpTransportAsync):
    """The SDK's transport without the pauses while a connection is opened."""

    @staticmethod
    def create_mgmt_client(*arguments: Any, **options: Any) -> Any:
        """Return the AMQP client that reads properties."""
        return _opening_at_once(_SDK.create_mgmt_client(*arguments, **options))

    @staticmethod
    def create_receive_client(**options: Any) -> Any:
        """Return the AMQP client of a receiver."""
        return _opening_at_once(_SDK.create_receive_client(**options))


def _opening_at_once(client: Any) -> Any:
    client.client_ready_async = partial(_open_at_once, client, client.client_ready_async)
    return client


async def _open_at_once(client: Any, client_ready: Any) -> bool:
    """Return whether the client is open; one call of `client_ready` handles one frame."""
    for _ in range(_FRAMES):
        if await client_ready():
            return True
        if login := client._cbs_authenticator:
            link = login._mgmt_link._response_link
            if link._error:
                raise link._error
    return False


class Link:
    """Reads from an attached receiver of the SDK, only during a call of `read`.

    At other times messages stay in the socket, which bounds the memory.
    """

    def __init__(self, receiver: Any, buffer: ReceiveBuffer | None = None) -> None:
        """With a buffer, room is reserved for a message of several frames before it is read."""
        self._buffer = buffer
        self._reserved = 0
        self._amqp = receiver._handler
        self._link = receiver._handler._link
        self._connection = receiver._handler._connection
        self._partial = bytearray()
        self._average = 1024.0  # bytes of a message
        self._checked = 0.0
        self._link._incoming_transfer = self._on_transfer
        self._link.current_link_credit = 0
        self._messages: deque[Received] = deque()
        self._size = 0  # bytes in `_messages`
        self.blocked = False
        """Whether there is no room for the message that is being read."""

    async def read(self, seconds: float, enough: int = 1) -> None:
        """Read until there are `enough` bytes or the time is up. Raises the error of the link."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._size < enough:
                    if (now := time.monotonic()) > self._checked + _TOKEN_CHECK:
                        self._checked = now
                        await self._amqp.auth_complete_async()  # renews the token
                    self._link.get_state()  # raises its error
                    if self._amqp._session.state != SessionState.MAPPED:
                        raise AMQPConnectionError(_CLOSED, description="the session was ended")
                    credit = int(_CREDIT_BYTES / self._average)
                    credit = min(max(_MIN_CREDIT, credit), _MAX_CREDIT)
                    if self._link.current_link_credit <= credit // 2:
                        await self._link.flow(link_credit=credit)
                    if self._buffer and self._partial and not self._reserved:
                        # Not all of a small buffer, or this would wait until it is empty.
                        size = max(1, min(_MAX_MESSAGE, self._buffer.limit // 4))
                        full = not self._buffer.has_room(size)
                        # Messages come first if their delivery may make the room, or if they have
                        # no room reserved themselves and would wait for that of this one.
                        if self._messages and (full or not self._messages[-1].reserved):
                            return
                        self.blocked = full
                        await self._buffer.acquire(size)
                        self._reserved, self.blocked = size, False
                    # Handles a frame, sends a heartbeat if due, raises the connection's error.
                    await self._connection.listen(wait=True)

    def take(self) -> deque[Received]:
        """Return what was read since the last call."""
        taken, self._messages, self._size = self._messages, deque(), 0
        return taken

    async def aclose(self) -> None:
        """Detach and close the connection, whether the hub answers or not."""
        if self._buffer:
            self._buffer.release(self._reserved + sum(m.reserved for m in self.take()))
            self._reserved, self.blocked = 0, False
        await close_client(self._amqp)

    async def _on_transfer(self, frame: Any) -> None:
        """Handle a transfer instead of the SDK: parse the message, keep no delivery tag."""
        payload, more = frame[11], frame[5]
        if self._partial or more:
            self._partial += payload
            payload = self._partial
        if more:
            return
        self._link.delivery_count += 1
        self._link.current_link_credit -= 1
        self._average += (len(payload) - self._average) / 8
        self._size += len(payload)
        self._messages.append(parse(memoryview(payload), self._reserved))
        self._partial, self._reserved = bytearray(), 0


class Management:
    """Reads properties of the hub over one connection that stays open."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._amqp: Any = None

    async def read(self, kind: str, **where: str) -> dict[bytes, Any]:
        """Return the properties of an entity. A connection that fails is replaced once."""
        while True:
            reused = self._amqp is not None
            try:
                return await self._read(kind, where)
            except BaseException as error:
                await self.close()
                if not reused or not isinstance(error, Exception):
                    raise

    async def close(self) -> None:
        """Close the connection."""
        amqp, self._amqp = self._amqp, None
        if amqp:
            await close_client(amqp)

    async def _read(self, kind: str, where: dict[str, str]) -> dict[bytes, Any]:
        client, sdk = self._client, self._client._amqp_transport
        if self._amqp is None:
            auth = await client._create_auth_async()
            self._amqp = sdk.create_mgmt_client(client._address, auth, client._config)
            await self._amqp.open_async()
            while not await self._amqp.client_ready_async():
                pass
        token = (await self._amqp._auth.get_token()).token
        request = {"name": client.eventhub_name, **where, "security_token": token}
        status, description, response = await self._amqp.mgmt_request_async(
            sdk.build_message(application_properties=request),
            operation="READ",
            operation_type=kind,
            status_code_field=b"status-code",
            description_fields=b"status-description",
        )
        if int(status) >= _ERROR:
            text = description.decode() if isinstance(description, bytes) else description
            raise sdk.get_error(int(status), text)
        properties: dict[bytes, Any] = response.value
        return properties


async def close_client(amqp: Any) -> None:
    """Close an AMQP client of the SDK, and its socket in any case; takes four seconds at most."""
    connection = amqp._connection
    try:
        await close_in_time(amqp.close_async)
    finally:
        if connection:  # a WebSocket would wait for the hub
            transport = connection._transport
            await close_in_time((getattr(transport, "session", None) or transport).close)


async def close_in_time(close: Callable[[], Awaitable[object]]) -> None:
    """Call and await `close`, for two seconds at most; the server may not answer."""
    with suppress(Exception):
        async with asyncio.timeout(_CLOSING):
            await close()
