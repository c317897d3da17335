"""Delivery of one partition: lists are closed, posted, and their messages settled."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Coroutine, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Protocol

from forwarder import log
from forwarder.audit.envelope import Event, Unpacked, Unusable
from forwarder.config.settings import Settings
from forwarder.deadletters.record import Record
from forwarder.delivery.buffer import ReceiveBuffer
from forwarder.delivery.watermark import Message, Watermark
from forwarder.errors import EvictedError, Rejected
from forwarder.metrics import Metrics
from forwarder.sink.webhook import LIST_OVERHEAD, Sink

_Waiting = tuple[Event, Message]


class DeadLetterSink(Protocol):
    """Whoever keeps dead letters: see DeadLetterWriter."""

    waiting: int
    evicted: int
    failure: str

    async def add(self, letters: Sequence[Record]) -> Awaitable[int]:
        """Take letters; what is returned is done when they are safe."""


@dataclass(frozen=True, slots=True)
class DeliveryContext:
    """Where events go, shared by all partitions."""

    settings: Settings
    sink: Sink
    dead_letters: DeadLetterSink
    buffer: ReceiveBuffer
    metrics: Metrics


class Partition:
    """Takes the messages of one partition in order and delivers their events."""

    def __init__(self, number: str, delivery: DeliveryContext) -> None:
        self.number = number
        self.metrics = delivery.metrics.partition(number)
        self.watermark = Watermark(delivery.buffer)
        self.delivered = 0
        """Events that the sink took."""
        self.last_received: Message | None = None
        """The last message taken."""
        self.start_after: int | None = None
        """The sequence number before the first one to take: the checkpoint's if there is one."""
        self.blocked_message: Message | None = None
        """The next message while there is no room for it."""
        self.progress = time.monotonic()
        """When a message was last taken or settled, by the monotonic clock."""
        self._delivery = delivery
        self._queue: deque[_Waiting] = deque()
        self._posting = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def last(self) -> int | None:
        """The sequence number before the next one, if that is known."""
        return self.last_received.sequence_number if self.last_received else self.start_after

    def submit(self, message: Message, unpacked: Unpacked) -> None:
        """Accept a message, whose bytes the buffer holds already; `pump` sets it moving."""
        self._count(message, unpacked)
        self.last_received = message
        self.progress = time.monotonic()
        self.watermark.add(message, len(unpacked.events) + len(unpacked.refused))
        self._queue.extend(zip(unpacked.events, repeat(message)))
        if unpacked.refused:
            self._spawn(self._dead_letter(message, unpacked.refused))

    def dispatch(self) -> None:
        """Post what is waiting, on as many connections as may be under way at once."""
        while self._queue and self._posting < self._delivery.settings.web_sink_concurrency:
            self._posting += 1
            self._spawn(self._worker())

    async def drain(self) -> None:
        """Wait until everything taken is settled."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def cancel(self) -> None:
        """Give up what is under way; it will be read again from the checkpoint."""
        for task in self._tasks:
            task.cancel()

    async def _worker(self) -> None:
        try:
            while self._queue:
                await self._deliver(self._next_list())
        finally:
            self._posting -= 1

    def _next_list(self) -> list[_Waiting]:
        """Close a list by count or bytes, or because nothing more is waiting; never wait."""
        settings, size = self._delivery.settings, LIST_OVERHEAD
        found: list[_Waiting] = []
        while self._queue and len(found) < settings.web_sink_max_events:
            size += len(self._queue[0][0].body) + 1
            if found and size > settings.web_sink_max_bytes:
                break
            found.append(self._queue.popleft())
        return found

    async def _deliver(self, events: Sequence[_Waiting]) -> None:
        """Post the events; what is refused is halved until the bad one stands alone."""
        try:
            await self._delivery.sink.post([event.body for event, _ in events])
        except Rejected as error:
            if len(events) == 1:  # guard: split-rejected-list
                ((event, message),) = events
                refused = Unusable(event.body, f"refused by the sink: {error}")
                await self._dead_letter(message, [refused])
                return
            half = len(events) // 2
            await self._deliver(events[:half])
            await self._deliver(events[half:])  # guard: second-half
        else:
            self.delivered += len(events)
            self.metrics.outcomes["delivered"].inc(len(events))
            self._delivery.metrics.delayed(event.stage_timestamp for event, _ in events)
            for message, count in Counter(message for _, message in events).items():
                self._acknowledge(message, count)

    async def _dead_letter(self, message: Message, refused: Sequence[Unusable]) -> None:
        """Hand dead letters over; just the message's checkpoint waits until they are safe."""
        letters = [Record.of(self.number, message.sequence_number, no) for no in refused]
        written = await self._delivery.dead_letters.add(letters)
        self.watermark.release_bytes(message, len(letters))
        self._spawn(self._dead_lettered(message, len(letters), written))

    async def _dead_lettered(self, message: Message, count: int, written: Awaitable[int]) -> None:
        try:
            dropped = await written
        except EvictedError:
            self.watermark.mark_unsettleable(message)
            return
        self.metrics.outcomes["dead_lettered"].inc(count - dropped)
        self.metrics.outcomes["dropped"].inc(dropped)
        self._acknowledge(message, count, held=False)

    def _acknowledge(self, message: Message, count: int, *, held: bool = True) -> None:
        self.progress = time.monotonic()
        self.watermark.acknowledge(message, count, held=held)

    def _count(self, message: Message, unpacked: Unpacked) -> None:
        """Count what was received, and what the hub forgot before it could be."""
        self.metrics.messages.inc()
        self.metrics.received_bytes.inc(message.size)
        self.metrics.records.inc(unpacked.records)
        self.metrics.outcomes["skipped"].inc(unpacked.skipped)
        if unpacked.ruled:
            self.metrics.outcomes["filtered"].inc(unpacked.filtered)
            self._delivery.metrics.judged(unpacked.ruled)
        self.metrics.salvaged.inc(sum(event.salvaged for event in unpacked.events))
        if self.last is None:
            self.start_after = message.sequence_number - 1
        elif lost := message.sequence_number - self.last - 1:
            self.metrics.lost.inc(lost)
            log.error(
                "messages lost",
                partition=self.number,
                first=self.last + 1,
                last=self.last + lost,
                reason="they expired in the hub before they were read: see its retention",
            )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("internal error", partition=self.number, reason=log.describe(error))
