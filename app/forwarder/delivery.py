"""Delivery of one partition: lists are closed, posted, and their messages settled."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Coroutine, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Protocol

from forwarder import log
from forwarder.buffer import ReceiveBuffer
from forwarder.envelope import Event, Refused, Unpacked
from forwarder.errors import RejectedError, UnwrittenError
from forwarder.letter import Letter
from forwarder.metrics import Metrics
from forwarder.settings import Settings
from forwarder.sink import LIST_OVERHEAD, Sink
from forwarder.window import Message, Window

_Waiting = tuple[Event, Message]


class Keeper(Protocol):
    """Whoever keeps dead letters: see DeadLetters."""

    waiting: int
    let_go: int
    trouble: str

    async def add(self, letters: Sequence[Letter]) -> Awaitable[int]:
        """Take letters; what is returned is done when they are safe."""


@dataclass(frozen=True, slots=True)
class Outlets:
    """Where events go, shared by all partitions."""

    settings: Settings
    sink: Sink
    dead_letters: Keeper
    buffer: ReceiveBuffer
    metrics: Metrics


class Partition:
    """Takes the messages of one partition in order and delivers their events."""

    def __init__(self, number: str, outlets: Outlets) -> None:
        self.number = number
        self.metrics = outlets.metrics.partition(number)
        self.window = Window(outlets.buffer)
        self.delivered = 0
        """Events that the sink took."""
        self.newest: Message | None = None
        """The last message taken."""
        self.before: int | None = None
        """The sequence number before the first one to take: the checkpoint's if there is one."""
        self.held: Message | None = None
        """The next message while there is no room for it."""
        self.progress = time.monotonic()
        """When a message was last taken or settled, by the monotonic clock."""
        self._outlets = outlets
        self._queue: deque[_Waiting] = deque()
        self._posting = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def last(self) -> int | None:
        """The sequence number before the next one, if that is known."""
        return self.newest.sequence_number if self.newest else self.before

    def take(self, message: Message, unpacked: Unpacked) -> None:
        """Accept a message, whose bytes the buffer holds already; `pump` sets it moving."""
        self._count(message, unpacked)
        self.newest = message
        self.progress = time.monotonic()
        self.window.add(message, len(unpacked.events) + len(unpacked.refused))
        self._queue.extend(zip(unpacked.events, repeat(message)))
        if unpacked.refused:
            self._spawn(self._bury(message, unpacked.refused))

    def pump(self) -> None:
        """Post what is waiting, on as many connections as may be under way at once."""
        while self._queue and self._posting < self._outlets.settings.web_sink_concurrency:
            self._posting += 1
            self._spawn(self._work())

    async def drain(self) -> None:
        """Wait until everything taken is settled."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def cancel(self) -> None:
        """Give up what is under way; it will be read again from the checkpoint."""
        for task in self._tasks:
            task.cancel()

    async def _work(self) -> None:
        try:
            while self._queue:
                await self._deliver(self._next_list())
        finally:
            self._posting -= 1

    def _next_list(self) -> list[_Waiting]:
        """Close a list by count or bytes, or because nothing more is waiting; never wait."""
        settings, size = self._outlets.settings, LIST_OVERHEAD
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
            await self._outlets.sink.post([event.body for event, _ in events])
        except RejectedError as error:
            if len(events) == 1:
                ((event, message),) = events
                refused = Refused(event.body, f"refused by the sink: {error}")
                await self._bury(message, [refused])
                return
            half = len(events) // 2
            await self._deliver(events[:half])
            await self._deliver(events[half:])
        else:
            self.delivered += len(events)
            self.metrics.outcomes["delivered"].inc(len(events))
            self._outlets.metrics.delayed(event.stage_timestamp for event, _ in events)
            for message, count in Counter(message for _, message in events).items():
                self._settle(message, count)

    async def _bury(self, message: Message, refused: Sequence[Refused]) -> None:
        """Hand dead letters over; just the message's checkpoint waits until they are safe."""
        letters = [Letter.of(self.number, message.sequence_number, no) for no in refused]
        written = await self._outlets.dead_letters.add(letters)
        self.window.let_out(message, len(letters))
        self._spawn(self._buried(message, len(letters), written))

    async def _buried(self, message: Message, count: int, written: Awaitable[int]) -> None:
        try:
            dropped = await written
        except UnwrittenError:
            self.window.abandon(message)
            return
        self.metrics.outcomes["dead_lettered"].inc(count - dropped)
        self.metrics.outcomes["dropped"].inc(dropped)
        self._settle(message, count, held=False)

    def _settle(self, message: Message, count: int, *, held: bool = True) -> None:
        self.progress = time.monotonic()
        self.window.settle(message, count, held=held)

    def _count(self, message: Message, unpacked: Unpacked) -> None:
        """Count what was received, and what the hub forgot before it could be."""
        self.metrics.messages.inc()
        self.metrics.received_bytes.inc(message.size)
        self.metrics.records.inc(unpacked.records)
        self.metrics.outcomes["skipped"].inc(unpacked.skipped)
        if unpacked.ruled:
            self.metrics.outcomes["filtered"].inc(unpacked.filtered)
            self._outlets.metrics.judged(unpacked.ruled)
        self.metrics.salvaged.inc(sum(event.salvaged for event in unpacked.events))
        if self.last is None:
            self.before = message.sequence_number - 1
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
