"""The only place that works around the SDK, and uses its private parts to read and to ask.

Seen in azure-eventhub 5.15.1, each with a test that fails when the SDK no longer needs it:

- Opening a connection handles one frame at a time and sleeps 50 ms after each of about eight.
- A link to `$cbs` that the service detaches, as the firewall of a namespace does, is waited for
  until the time-out. Here its error is raised.
- A receiver looks for messages every 50 ms, a median latency of 8 to 21 ms, and wakes up five
  times a second while there are none. Here the socket wakes it.
- A link keeps the delivery tag of every message (78 bytes), in case somebody settles it. Nobody
  settles the messages of an event hub.
- A body that the SDK cannot decode ends the session: see `forwarder.hub.message`.
- Each question about the hub opens a connection and logs in. Here one connection stays open.

`Transport` is given to one client object; nothing is changed process-wide.
"""
# ruff: noqa: SLF001 - private parts of the SDK

import asyncio
import time
from collections import deque
from contextlib import suppress
from functools import partial
from typing import Any, Final

from azure.eventhub.aio._transport._pyamqp_transport_async import PyamqpTransportAsync

from forwarder.delivery.buffer import ReceiveBuffer
from forwarder.hub.message import Received, parse

_SDK: Final[Any] = PyamqpTransportAsync
_FRAMES: Final = 10  # of an opening; it takes about eight
_CREDIT: Final = 2**20  # bytes that the hub may send ahead, in messages of the size seen so far
_LARGEST: Final = 2**20  # bytes of a message
_FEWEST, _MOST = 10, 1000  # messages
_RENEW: Final = 1.0  # seconds between two looks at the token
_CLOSING: Final = 2.0  # seconds
_ERROR: Final = 400  # the first status of a response that is none


class Transport(PyamqpTransportAsync):
    """The SDK's transport, but for the pauses while a connection is opened."""

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
    """Tell whether the client is open: asked once, it handles one frame and waits 0.2 s for it."""
    for _ in range(_FRAMES):
        if await client_ready():
            return True
        if login := client._cbs_authenticator:
            link = login._mgmt_link._response_link
            if link._error:
                raise link._error
    return False


class Link:
    """Reads what an attached receiver of the SDK is sent, when it is asked to.

    Nothing reads ahead: what nobody asks for stays in the socket, which bounds the memory.
    """

    def __init__(self, receiver: Any, buffer: ReceiveBuffer | None = None) -> None:
        """Wait for room in the buffer before the rest of a message of several frames is read."""
        self._buffer = buffer
        self._reserved = 0
        self._receiver = receiver
        self._amqp = receiver._handler
        self._link = receiver._handler._link
        self._connection = receiver._handler._connection
        self._partial = bytearray()
        self._average = 1024.0  # bytes of a message
        self._checked = 0.0
        self._link._incoming_transfer = self._on_transfer
        self._link.current_link_credit = 0
        self._messages: deque[Received] = deque()
        self._size = 0  # bytes of them
        self.blocked = False
        """Whether there is no room for the message that is being read."""

    async def read(self, seconds: float, enough: int = 1) -> None:
        """Read until there are `enough` bytes or the time is up. Raises what ended the link."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._size < enough:
                    if (now := time.monotonic()) > self._checked + _RENEW:
                        self._checked = now
                        await self._amqp.auth_complete_async()  # renews the token
                    self._link.get_state()  # raises its error
                    credit = min(max(_FEWEST, int(_CREDIT / self._average)), _MOST)
                    if self._link.current_link_credit <= credit // 2:
                        await self._link.flow(link_credit=credit)
                    if self._buffer and self._partial and not self._reserved:
                        if self._messages:  # or they would wait for what this one reserves
                            return
                        # A part of a small buffer: the rest may be in use for long.
                        size = max(1, min(_LARGEST, self._buffer.limit // 4))
                        self.blocked = not self._buffer.has_room(size)
                        await self._buffer.acquire(size)
                        self._reserved, self.blocked = size, False
                    # Handles a frame, sends a heartbeat if due, raises the connection's error.
                    await self._connection.listen(wait=True)

    def take(self) -> deque[Received]:
        """Return what was read since the last call."""
        taken, self._messages, self._size = self._messages, deque(), 0
        return taken

    async def close(self) -> None:
        """Detach and close the connection, whether the hub answers or not."""
        if self._buffer:
            self._buffer.release(self._reserved + sum(m.reserved for m in self.take()))
            self._reserved, self.blocked = 0, False
        with suppress(Exception):
            async with asyncio.timeout(_CLOSING):
                await self._receiver.close()

    async def _on_transfer(self, frame: Any) -> None:
        """Take the place of the SDK's own: parse the message, keep no delivery tag."""
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
        self._auth: Any = None
        self._amqp: Any = None

    async def read(self, kind: str, **where: str) -> dict[bytes, Any]:
        """Return the properties of a kind of entity; once more if the connection was cut."""
        while True:
            kept = self._amqp is not None
            try:
                return await self._read(kind, where)
            except BaseException as error:
                await self.close()
                if not kept or not isinstance(error, Exception):
                    raise

    async def close(self) -> None:
        """Close the connection."""
        amqp, self._amqp = self._amqp, None
        if amqp:
            with suppress(Exception):
                async with asyncio.timeout(_CLOSING):
                    await amqp.close_async()

    async def _read(self, kind: str, where: dict[str, str]) -> dict[bytes, Any]:
        client, sdk = self._client, self._client._amqp_transport
        try:
            if self._amqp is None:
                self._auth = await client._create_auth_async()
                self._amqp = sdk.create_mgmt_client(
                    client._address, mgmt_auth=self._auth, config=client._config
                )
                await self._amqp.open_async()
                while not await self._amqp.client_ready_async():
                    pass
            token = (await self._auth.get_token()).token
            question = {"name": client.eventhub_name, **where, "security_token": token}
            status, description, response = await sdk.mgmt_client_request_async(
                self._amqp,
                sdk.build_message(application_properties=question),
                operation=b"READ",
                operation_type=kind.encode(),
                status_code_field=b"status-code",
                description_fields=b"status-description",
            )
            if int(status) >= _ERROR:
                text = description.decode() if isinstance(description, bytes) else description
                raise sdk.get_error(int(status), text)
        except TimeoutError:
            raise
        except Exception as error:
            raise await sdk._handle_exception_async(error, client, is_consumer=True) from error
        properties: dict[bytes, Any] = response.value
        return properties
