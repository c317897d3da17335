"""The only place that works around the SDK: a transport that is given to one client object.

Seen in azure-eventhub 5.15.1, each with a test that fails when the SDK no longer needs it:

- A receiver looks for messages every 50 ms: a median latency of 8 to 21 ms. Here they wake it.
- Opening a connection handles one frame at a time and sleeps 50 ms after each of about eight.
- A link keeps the delivery tag of every message (78 bytes), in case somebody settles it. Nobody
  settles the messages of an event hub.
"""
# ruff: noqa: SLF001 - overrides private parts of the SDK

import asyncio
from collections import deque
from contextlib import suppress
from functools import partial
from typing import Any, Final

from azure.eventhub.aio._transport._pyamqp_transport_async import PyamqpTransportAsync

_SDK: Final[Any] = PyamqpTransportAsync

_GATHER: Final = 0.05  # seconds to wait for more after a burst, or each message would be a POST
_BYTES: Final = 262_144  # of small messages dispatched at once, so that lists are full
_CHECK: Final = 0.5  # seconds after which a closed receiver is noticed
_FRAMES: Final = 10  # of an opening; it takes about eight


class Transport(PyamqpTransportAsync):
    """The SDK's transport, without its delays and its leak."""

    @staticmethod
    def create_mgmt_client(*arguments: Any, **options: Any) -> Any:
        """Return the AMQP client that reads properties."""
        client = _SDK.create_mgmt_client(*arguments, **options)
        client.client_ready_async = partial(_open_at_once, client.client_ready_async)
        return client

    @staticmethod
    def create_receive_client(**options: Any) -> Any:
        """Return the AMQP client of a receiver."""
        client = _SDK.create_receive_client(**options)
        client.client_ready_async = partial(_open_at_once, client.client_ready_async)
        client._client_ready_async = partial(_attach, client, client._client_ready_async)
        return client

    @staticmethod
    async def receive_messages_async(
        consumer: Any, batch: object, most: int, seconds: float | None
    ) -> None:
        """Receive and dispatch until the consumer is closed or fails."""
        consumer._message_buffer = _Buffer()
        consumer._callback_task_run = True
        tasks = [
            asyncio.create_task(_dispatch(consumer, batch, most, seconds)),
            asyncio.create_task(_SDK._receive_task(consumer, most)),
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            consumer._callback_task_run = False
            await asyncio.wait(tasks, timeout=1)


async def _open_at_once(client_ready: Any) -> bool:
    """Tell whether the client is open: asked once, it handles one frame and waits 0.2 s for it."""
    for _ in range(_FRAMES):
        if await client_ready():
            return True
    return False


async def _attach(client: Any, attached: Any) -> bool:
    ready: bool = await attached()
    client._link._received_delivery_tags = _NoTags()  # guard: no-delivery-tags
    return ready


class _NoTags(set[bytes]):
    """Forgets every delivery tag."""

    def add(self, _: bytes) -> None:
        pass


class _Buffer(deque[Any]):
    """Messages that were read and not dispatched; wakes `_dispatch`."""

    def __init__(self) -> None:
        super().__init__()
        self.filled = asyncio.Event()

    def append(self, message: Any) -> None:
        super().append(message)
        self.filled.set()


async def _dispatch(consumer: Any, batch: object, most: int, seconds: float | None) -> None:
    """Pass on up to `most` messages at once, more if they are small; none after `seconds`."""
    buffer: _Buffer = consumer._message_buffer
    while consumer._callback_task_run:
        if not buffer:
            buffer.filled.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds or _CHECK):
                    await buffer.filled.wait()
        messages: list[Any] = []
        size = 0
        while buffer and (len(messages) < most or (most > 1 and size < _BYTES)):
            size += sum(map(len, buffer[0].data or ()))
            messages.append(consumer._next_message_in_buffer())
        if messages or seconds:
            await consumer._on_event_received(messages if batch else next(iter(messages), None))
        if messages and not buffer:
            await asyncio.sleep(_GATHER)
