"""The server side of links: deliveries to receivers, messages from producers."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from azure.eventhub._pyamqp.outcomes import Accepted, Rejected
from azure.eventhub._pyamqp.performatives import DetachFrame, DispositionFrame

from support.eventhubs import codec
from support.eventhubs.codec import SERIALS, AmqpError, Buffer, Incoming
from support.eventhubs.hub import Hub, Partition

if TYPE_CHECKING:
    from support.eventhubs.session import Session

MAX_MESSAGE = 1 << 20
_BATCH = 0x80013700  # the message format of a producer's batch
_BURST = 1 << 19  # bytes that a link sends before others get a turn
_CREDIT = 300  # granted to a producer


class Link:
    """A link; ``handle`` is the number that both sides use. ``fields`` are the client's attach."""

    def __init__(self, session: "Session", fields: list[Any]) -> None:
        self.session = session
        self.name: str = fields[0].decode()
        self.handle: int = fields[1]

    def detach(self, error: AmqpError | None = None) -> None:
        """Close the link from this side."""
        self.session.send(DetachFrame(self.handle, closed=True, error=error and error.wire))
        self.session.links.pop(self.handle, None)
        self.ended()

    def ended(self) -> None:
        """Clean up after the link."""


class Outgoing(Link):
    """A link on which the server sends, within the client's credit and session window."""

    def __init__(self, session: "Session", fields: list[Any]) -> None:
        super().__init__(session, fields)
        self.credit = 0
        self._delivered = 0
        self._frames: Iterator[tuple[list[Buffer], bool]] | None = None
        self._scheduled = self._over = False

    def pull(self) -> tuple[Buffer, ...] | None:
        """Return the parts of the next message, or None."""
        raise NotImplementedError

    def drops(self, *, more: bool) -> bool:  # noqa: ARG002 - for receivers
        """Whether connections drop after this frame."""
        return False

    def flow(self, fields: list[Any]) -> None:
        """Handle a flow frame: set the credit; a drain uses it up."""
        count, credit, drain, echo = fields[5] or 0, fields[6] or 0, bool(fields[8]), fields[9]
        left = (count + credit - self._delivered) % SERIALS
        self.credit = left if left < SERIALS // 2 else 0  # less than what is in flight
        if drain:
            self._pump()
            self._delivered += self.credit
            self.credit = 0
        if drain or echo:
            self.session.send_flow(self.handle, self._delivered, self.credit, drain=drain)
        self.wake()

    def wake(self) -> None:
        """Schedule sending."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._pump)

    def ended(self) -> None:
        self._over = True

    def _pump(self) -> None:
        self._scheduled = drop = False
        session, connection = self.session, self.session.connection
        buffers: list[Buffer] = []
        size = 0
        # Use the window's last slot even in mid-message: clients renew it only at zero.
        while not (self._over or drop) and size < _BURST and session.window and connection.writable:
            if self._frames is None:
                parts = self.pull() if self.credit else None
                if parts is None:
                    break
                self.credit -= 1
                self._delivered = (self._delivered + 1) % SERIALS
                self._frames = codec.transfers(
                    parts, self.handle, session.channel, session.next_id(), connection.max_frame
                )
            frame, more = next(self._frames)
            if not more:
                self._frames = None
            buffers += frame
            size += sum(map(len, frame))
            session.spend()
            drop = self.drops(more=more)
        if buffers:
            # One system call. writelines ignores close() and the buffer limit (CPython 3.13.0).
            connection.transport.write(b"".join(buffers))
        if drop:
            connection.server.faults.drop(flush=True)
        elif size >= _BURST:
            self.wake()


class Replies(Outgoing):
    """Responses of a node. Requests refer to this link by its target address."""

    def __init__(self, session: "Session", fields: list[Any], node: str) -> None:
        super().__init__(session, fields)
        self.node = node
        self.address: str = ((fields[6] and fields[6][0]) or b"").decode()
        self._queue: deque[bytes] = deque()

    def put(self, message: bytes) -> None:
        """Send a message when there is credit."""
        self._queue.append(message)
        self.wake()

    def pull(self) -> tuple[Buffer, ...] | None:
        return (self._queue.popleft(),) if self._queue else None


class Receiver(Outgoing):
    """A client's receiver of a partition; ``start`` is a sequence number."""

    def __init__(
        self, session: "Session", fields: list[Any], source: tuple[Hub, str, Partition], start: int
    ) -> None:
        super().__init__(session, fields)
        hub, self.group, log = source
        self.hub, self.partition = hub.name, log.id
        self.epoch: int | None = (fields[13] or {}).get(b"com.microsoft:epoch")
        self._metrics = b"com.microsoft:enable-receiver-runtime-metric" in (fields[12] or ())
        self._log, self._next = log, start
        self._repeated = False
        self._flowed = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._server = session.connection.server
        self._server.receivers.add(self)
        self.mute = self._server.faults.mute_next[self.partition] > 0
        self._server.faults.mute_next[self.partition] -= self.mute
        log.readers.add(self)

    def flow(self, fields: list[Any]) -> None:
        self._flowed = time.time()
        super().flow(fields)

    def pull(self) -> tuple[Buffer, ...] | None:
        log, faults = self._log, self._server.faults
        self._next = max(self._next, log.begin)
        if self._next > log.last or faults.silenced(self):
            return None
        message = log.messages[self._next - log.begin]
        wait = max(message.enqueued / 1000, self._flowed) + faults.delay - time.time()
        if faults.delay and wait > 0:
            if self._timer:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(wait, self.wake)
            return None
        self._repeated = bool(faults.duplicates) and not self._repeated
        if self._repeated:
            faults.duplicates -= 1
        else:
            self._next += 1
        if not self._metrics:
            return message.head, message.body
        metrics = codec.runtime_metrics(log.last, log.last_offset, log.last_enqueued)
        return metrics, message.head, message.body

    def drops(self, *, more: bool) -> bool:
        return self._server.faults.cut(more=more)

    def ended(self) -> None:
        super().ended()
        if self._timer:
            self._timer.cancel()
        self._log.readers.discard(self)
        self._server.receivers.discard(self)


class Inbound(Link):
    """A link on which the client sends; ``accept`` is called with each message."""

    def __init__(
        self, session: "Session", fields: list[Any], accept: Callable[[Incoming], None]
    ) -> None:
        super().__init__(session, fields)
        self._accept = accept
        self._received = 0
        self._first: list[Any] = []  # fields of the message's first frame
        self._parts: list[bytes] = []

    def grant(self) -> None:
        """Give the client credit."""
        self.session.send_flow(self.handle, self._received, _CREDIT)

    def transfer(self, fields: list[Any], payload: memoryview) -> None:
        """Handle a transfer frame; the last one of a message settles the delivery."""
        if not self._parts:
            self._first = fields
        self._parts.append(bytes(payload))
        if fields[5]:  # more
            return
        message = memoryview(b"".join(self._parts))
        self._parts.clear()
        self._received += 1
        state: Any = Accepted()
        try:
            if len(message) > MAX_MESSAGE:
                raise AmqpError("amqp:link:message-size-exceeded", f"{len(message)} bytes")
            envelope = codec.read_message(message)
            if self._first[3] == _BATCH:
                for part in envelope.data:
                    self._accept(codec.read_message(memoryview(part)))
            else:
                self._accept(envelope)
        except AmqpError as error:
            state = Rejected(error.wire)
        delivery = self._first[1]
        self.session.send(DispositionFrame(True, delivery, delivery, True, state, None))  # noqa: FBT003 - by position, as on the wire
        if self._received % (_CREDIT // 2) == 0:
            self.grant()


def store(hub: Hub, partition: Partition | None) -> Callable[[Incoming], None]:
    """Return a function that stores a producer's message in its partition."""

    def accept(message: Incoming) -> None:
        key = message.annotations.get(b"x-opt-partition-key")
        key = key.decode() if isinstance(key, bytes) else key
        body = b"".join(message.data)
        sections = message.sections + (codec.data_head(len(body)) if message.data else b"")
        (partition or hub.choose(key)).append(body, sections, key)

    return accept
