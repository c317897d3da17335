"""Delivery of one partition: messages in, lists out, acknowledgements back.

    events:          submit -> queue -> worker -> Sink.post -> Watermark.acknowledge
    unusable records: submit -> DeadLetterSink.dead_letter -> Watermark.acknowledge

Up to WebSinkConcurrency workers take lists from the queue; one worker preserves the order of the
partition. A worker closes its list when it is full or the queue is empty. It never waits for more
events, so an idle hub has no added latency and a busy one has full lists.

A message's bytes count in the receive buffer until each of its records is delivered or accepted by
the dead-letter sink. When the buffer is full, the consumer stops reading.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice, repeat
from operator import itemgetter
from typing import Any, Final, Protocol

from forwarder import log
from forwarder.audit.envelope import Event, Unpacked, Unusable
from forwarder.config.settings import Settings
from forwarder.deadletters.record import Record
from forwarder.delivery.buffer import ReceiveBuffer
from forwarder.delivery.watermark import Message, Watermark
from forwarder.errors import EvictedError, FaultError, OversizedError, Rejected
from forwarder.metrics import Metrics, PartitionMetrics
from forwarder.sink.webhook import LIST_OVERHEAD, Sink

Queued = tuple[Event, Message]  # an event, and the message that it came in
Post = Callable[[Sequence[bytes]], Awaitable[None]]
_IN_ORDER: Final = 60.0  # seconds for which one event holds up the others of an ordered partition


class DeadLetterSink(Protocol):
    """Stores what cannot be delivered; implemented by DeadLetterWriter."""

    async def dead_letter(self, records: Sequence[Record]) -> Awaitable[int]:
        """Accept records, or raise EvictedError: they cannot be written, and memory has no room.

        Once they are durable, the result is how many of them count as dropped.
        """


@dataclass(frozen=True, slots=True)
class DeliveryContext:
    """What all partitions of the process share."""

    settings: Settings
    sink: Sink
    dead_letters: DeadLetterSink
    buffer: ReceiveBuffer
    metrics: Metrics


class Partition:
    """Delivers the messages of one partition, submitted in the order of the hub."""

    def __init__(self, number: str, context: DeliveryContext) -> None:
        self.number = number
        self.metrics = PartitionMetrics(context.metrics, number)
        self.watermark = Watermark(context.buffer)
        self.delivered = 0
        """Events that the sink accepted."""
        self.last_received: Message | None = None
        self.start_after: int | None = None
        """The sequence number after which reading starts: the checkpoint's, if there is one."""
        self.blocked_message: Message | None = None
        """The next message, while the receive buffer has no room for it."""
        self.progress = time.monotonic()
        """When a message was last received or acknowledged, by the monotonic clock."""
        self._context = context
        self._sink = context.sink
        self._buffer = context.buffer
        self._concurrency = context.settings.web_sink_concurrency
        self._queue: deque[Queued] = deque()
        self._workers = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def last(self) -> int | None:
        """The sequence number after which reading continues, if it is known."""
        return self.last_received.sequence_number if self.last_received else self.start_after

    def submit(self, message: Message, unpacked: Unpacked) -> None:
        """Queue a message's events. The receive buffer counts its bytes already.

        Nothing is posted before `dispatch`, so that small messages share a list.
        """
        self._count(message, unpacked)
        self.last_received = message
        self.progress = time.monotonic()
        message.buffered = len(unpacked.events) + len(unpacked.unusable)
        message.charged = max(message.size, unpacked.size)
        self._buffer.charge(message.charged - message.size)
        self.watermark.track(message, message.buffered)
        message.release(0, self._buffer)  # all of it, if there are no records
        self._queue.extend(zip(unpacked.events, repeat(message)))
        if unpacked.unusable:
            self._spawn(self._dead_letter(message, unpacked.unusable))

    def dispatch(self) -> None:
        """Start workers for what is queued."""
        while self._queue and self._workers < self._concurrency:
            self._workers += 1
            self._spawn(self._worker())

    async def drain(self) -> None:
        """Wait until everything submitted is acknowledged."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def cancel(self) -> None:
        """Stop delivering; what is not acknowledged is read again from the checkpoint."""
        for task in self._tasks:
            task.cancel()

    async def _worker(self) -> None:
        settings, concurrency = self._context.settings, self._sink.concurrency
        try:
            while self._queue:
                most = min(concurrency.max_events, settings.web_sink_max_events)
                events = _next_list(self._queue, most, settings.web_sink_max_bytes)
                await self._deliver(events, self._sink.post)
        finally:
            self._workers -= 1

    async def _deliver(self, events: Sequence[Queued], post: Post) -> None:
        """Post the events; a list that the sink does not accept is halved until it does.

        A single event that is rejected becomes a dead letter. One at which the sink fails is posted
        again in the background; in an ordered partition the next ones wait for it up to a minute.
        """
        try:
            await post([event.body for event, _ in events])
        except (Rejected, OversizedError, FaultError) as error:
            if len(events) > 1:  # guard: split-rejected-list
                half = len(events) // 2
                once = partial(self._sink.post, faults=1)
                await self._deliver(events[:half], once)
                await self._deliver(events[half:], once)  # guard: second-half
            elif isinstance(error, FaultError):
                task = self._spawn(self._deliver(events, self._sink.retry_event))
                if self._concurrency == 1:
                    await asyncio.wait([task], timeout=_IN_ORDER)
            else:
                event, message = events[0]
                rejected = Unusable(event.body, f"refused by the sink: {error}")
                await self._dead_letter(message, [rejected])
        else:
            self.delivered += len(events)
            self.metrics.outcomes["delivered"].inc(len(events))
            self._context.metrics.delays.observe([event.stage_timestamp for event, _ in events])
            self.progress = time.monotonic()
            for message, group in groupby(events, itemgetter(1)):
                count = len(list(group))
                message.release(count, self._buffer)
                self.watermark.acknowledge(message, count)

    async def _dead_letter(self, message: Message, unusable: Sequence[Unusable]) -> None:
        """Pass records to the dead-letter sink. Only the message's checkpoint waits for it."""
        records = [Record.of(self.number, message.sequence_number, item) for item in unusable]
        try:
            durable = await self._context.dead_letters.dead_letter(records)
        except EvictedError:
            self.watermark.mark_unsettleable(message)  # guard: evicted-dead-letter
        else:
            self._spawn(self._await_durable(message, len(records), durable))
        message.release(len(records), self._buffer)

    async def _await_durable(self, message: Message, records: int, durable: Awaitable[int]) -> None:
        dropped = await durable  # guard: durable-dead-letter
        self.metrics.outcomes["dead_lettered"].inc(records - dropped)
        self.metrics.outcomes["dropped"].inc(dropped)
        self.progress = time.monotonic()
        self.watermark.acknowledge(message, records)

    def _count(self, message: Message, unpacked: Unpacked) -> None:
        """Count a message, and the messages before it that expired in the hub."""
        self.metrics.messages.inc()
        self.metrics.received_bytes.inc(message.size)
        self.metrics.records.inc(unpacked.records)
        self.metrics.outcomes["skipped"].inc(unpacked.skipped)
        self.metrics.outcomes["filtered"].inc(unpacked.filtered)
        for labels, count in unpacked.rule_counts.items():
            self._context.metrics.rules.labels(*labels).inc(count)
        self.metrics.salvaged.inc(sum(event.completed for event in unpacked.events))
        if self.last is None:
            self.start_after = message.sequence_number - 1
        elif lost := message.sequence_number - self.last - 1:  # guard: loss-is-counted
            self.metrics.lost.inc(lost)
            first, last = self.last + 1, self.last + lost
            reason = "they expired in the hub before they were read: see its retention"
            log.error("messages lost", partition=self.number, first=first, last=last, reason=reason)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("internal error", partition=self.number, reason=log.describe(error))


def _next_list(queue: deque[Queued], max_events: int, max_bytes: int) -> list[Queued]:
    """Remove the events of the next POST from a queue that is not empty.

    A deeply nested event, or one larger than a quarter of `max_bytes`, is posted alone, so that a
    sink that cannot handle it loses no other.
    """
    size, count, alone = LIST_OVERHEAD, 0, max_bytes // 4
    for event, _ in islice(queue, max_events):
        length = len(event.body)
        size += length + 1
        if length > alone or event.post_alone or size > max_bytes:
            count = count or 1
            break
        count += 1
    return [queue.popleft() for _ in range(count)]
