"""Receiving at once: the client sleeps 50 ms between two looks, this is woken by what comes."""
# ruff: noqa: SLF001 - in the place of the client's inside; see `mend_client` for versions

import asyncio
from collections import deque
from contextlib import suppress
from typing import Any, Final

import azure.eventhub
from azure.eventhub._pyamqp.aio import AMQPClientAsync
from azure.eventhub.aio._transport._pyamqp_transport_async import PyamqpTransportAsync

from forwarder import log

_LEAKY: Final = "5.15.1"  # the version of the client whose inside is known
_GATHER: Final = 0.05  # seconds for what comes next, or in a flood each message were a post
_BYTES: Final = 262_144  # of small messages at once: so lists close full
_LOOK: Final = 0.5  # seconds after which it is seen that the client has stopped
_FRAMES: Final = 10  # of an opening, one after the other; it takes some eight

_look_once: Final[Any] = AMQPClientAsync.client_ready_async


def mend_receiving() -> None:
    """Have connections open, and receivers hand on what comes, without pauses of their own."""
    transport: Any = PyamqpTransportAsync
    transport._callback_task = staticmethod(_hand_on)
    client: Any = AMQPClientAsync
    client.client_ready_async = _look


async def _look(client: AMQPClientAsync) -> bool:
    """Tell whether the client is open: a look takes in one frame, and waits 0.2 s for it."""
    for _ in range(_FRAMES):
        if await _look_once(client):
            return True
    return False


class _Buffer(deque[Any]):
    """The client's buffer of messages that were read, which wakes who waits for them."""

    def __init__(self) -> None:
        super().__init__()
        self.filled = asyncio.Event()

    def append(self, message: Any) -> None:
        super().append(message)
        self.filled.set()


async def _hand_on(consumer: Any, batch: object, most: int, seconds: float | None) -> None:
    """Hand on so many messages at once, more if they are small; none if none came for so long."""
    if not isinstance(consumer._message_buffer, _Buffer):
        consumer._message_buffer = _Buffer()
    buffer: _Buffer = consumer._message_buffer
    while consumer._callback_task_run:
        if not buffer:
            buffer.filled.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds or _LOOK):
                    await buffer.filled.wait()
        some: list[Any] = []
        size = 0
        while buffer and (len(some) < most or (most > 1 and size < _BYTES)):
            size += sum(map(len, buffer[0].data or ()))
            some.append(consumer._next_message_in_buffer())
        if some or seconds:
            await consumer._on_event_received(some if batch else next(iter(some), None))
        if some and not buffer:
            await asyncio.sleep(_GATHER)


def mend_client() -> None:
    """Stop the client from keeping every message's delivery tag for ever, and from dawdling.

    It looks a tag, 78 bytes, up only to settle a message, which nobody does with those of an event
    hub. Without effect, and said, with a version of the client that is not known.
    """
    if azure.eventhub.__version__ != _LEAKY:
        log.error("client library is another one, memory may grow, delivery dawdle", known=_LEAKY)
        return
    from azure.eventhub._pyamqp.aio import _receiver_async as inside  # noqa: PLC0415 - known

    link: Any = inside.ReceiverLink
    link._received_delivery_tags = property(lambda _: set(), lambda *_: None)
    mend_receiving()
