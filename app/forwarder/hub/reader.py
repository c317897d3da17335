"""Reads one partition in order, over one link after the other, until it is closed or loses it.

After an error the link is opened again after the last message that was received: at once, then
with pauses. Nothing is received twice. A refusal is the partition's state until a link is open.

A position is refused where its offset is of another kind: in a namespace that became
geo-replicated, or behind an alias that failed over. Then the sequence number serves, and if that
is refused as well, the time of the last message, or everything that the hub has.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from azure.eventhub._pyamqp.error import AMQPLinkError, ErrorCondition
from azure.eventhub.aio import EventHubConsumerClient

from forwarder import log
from forwarder.checkpoints.writer import Owned
from forwarder.delivery.partition import DeliveryContext, Partition
from forwarder.diagnosis import causes
from forwarder.hub.client import Position, open_link
from forwarder.hub.message import Received
from forwarder.hub.order import EndError
from forwarder.hub.transport import Link
from forwarder.outage import Outage

Take = Callable[[Partition, Received], Awaitable[None]]
"""Waits for room for a message; EndError ends the reading."""
OnEnd = Callable[[str, str], None]
"""Called with a partition that cannot be read further, and the reason."""

_OPENING: Final = 30.0  # seconds
_STOPPING: Final = 5.0  # seconds
_SETTLED: Final = 1.0  # seconds after which an attached link counts as one that can be read
_IDLE: Final = 15.0  # seconds after which a link without messages sends a heartbeat, if due
_GATHER: Final = 0.05  # seconds to wait for more after a burst, or each message would be a POST
_BYTES: Final = 262_144  # of small messages taken at once, so that lists are full
_PAUSES: Final = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds before the next attempts
_TICK: Final = 0.001  # seconds: of the hub's clock
_POSITION: Final = re.compile(r"offset|sequence|argument|out-of-range|invalid-field", re.IGNORECASE)


@dataclass(eq=False)
class Reader:
    """The receiving end of a partition; it reads from its creation on."""

    _client: EventHubConsumerClient
    _delivery: DeliveryContext
    _owned: Owned
    _hub: Outage
    _take: Take
    _on_end: OnEnd
    _link: Link | None = None
    _refused: int = 0  # positions, of those in `_positions`
    _dispatched: float = 0.0
    refusal: str = ""
    """Why the partition cannot be read, in one line; empty while it can."""

    def __post_init__(self) -> None:
        self._partition, self._buffer = self._owned.partition, self._delivery.buffer
        self._last = asyncio.create_task(self._run(None))
        self._task: asyncio.Task[None] | None = self._last

    @property
    def blocked(self) -> bool:
        """Whether the next message, or what has come of it, waits for room in the buffer."""
        reading = self._link is not None and self._link.blocked
        return reading or self._partition.blocked_message is not None

    def reopen(self) -> None:
        """Open the link again behind what was received, unless it was cancelled."""
        if self._task:
            self._task.cancel()
            self._last = self._task = asyncio.create_task(self._run(self._task))

    def cancel(self) -> None:
        """Begin to stop. Nothing is taken any more, even if the SDK swallows the cancellation."""
        self._task = None
        self._last.cancel()

    async def stop(self) -> None:
        """Close the link, whether the hub answers or not."""
        self.cancel()
        await asyncio.wait([self._last], timeout=_STOPPING)

    async def _run(self, before: asyncio.Task[None] | None) -> None:
        """Read once the task before has ended."""
        if before:
            await asyncio.wait([before], timeout=_STOPPING)
        try:
            await self._read()
        except EndError as end:
            self._on_end(self._partition.number, str(end))

    async def _read(self) -> None:
        """Read over one link after the other; EndError if the partition cannot be read on."""
        failures, number = 0, self._partition.number
        while True:
            link: Link | None = None
            settled = False
            try:
                positions = self._positions()
                position = positions[min(self._refused, len(positions) - 1)]
                async with asyncio.timeout(_OPENING):
                    link = self._link = await open_link(
                        self._client, number, position, owner=True, buffer=self._buffer
                    )
                await link.read(_SETTLED)  # the hub may attach a link and detach it at once
                settled, self.refusal, failures = True, "", 0
                while True:
                    await self._receive(link)
            except AMQPLinkError as error:
                if error.condition == ErrorCondition.LinkStolen:
                    if not settled:  # no replica has a higher epoch
                        self._fail(error)
                    raise EndError("OWNERSHIP_LOST") from None
                if not self._replace_position(error):
                    self._fail(error)
            except EndError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever the client raises
                self._fail(error)
            finally:
                if link:
                    await link.close()
            await asyncio.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])
            failures += 1

    async def _receive(self, link: Link) -> None:
        """Wait for messages, for more of them in a flood, and have them taken."""
        await link.read(_IDLE)
        if (left := self._dispatched + _GATHER - time.monotonic()) > 0:
            await link.read(left, _BYTES)
        if self._task is not asyncio.current_task():
            raise asyncio.CancelledError
        if not (messages := link.take()):
            return
        try:
            while messages:
                self._buffer.release(messages[0].reserved)
                await self._take(self._partition, messages.popleft())
        finally:
            self._buffer.release(sum(message.reserved for message in messages))
        self._partition.dispatch()
        self._dispatched = time.monotonic()

    def _positions(self) -> list[Position]:
        """Return what to read behind: the best, and what replaces it where it is refused."""
        newest = self._partition.last_received
        find: Any = partial(getattr, newest) if newest else self._owned.checkpoint.get
        offset, number, enqueued = map(find, ("offset", "sequence_number", "enqueued"))
        if number is None:
            return [offset or "-1"]
        last: Position = datetime.fromtimestamp(enqueued - _TICK, UTC) if enqueued else "-1"
        return list(dict.fromkeys((offset or number, number, last)))

    def _replace_position(self, error: AMQPLinkError) -> bool:
        """Go on with the next position if this one was refused; tell whether there is one."""
        positions = self._positions()
        text = f"{error.condition!r} {error.description!r}"
        if self._refused + 1 >= len(positions) or not _POSITION.search(text):
            return False
        refused, position = positions[self._refused : self._refused + 2]
        self._refused += 1
        by_number = isinstance(position, int)
        if not by_number:
            self._partition.start_after = None  # what follows may be numbered in another way
        log.error(
            "position refused, reading goes on by "
            + ("its sequence number" if by_number else "time: messages may be delivered twice"),
            partition=self._partition.number,
            refused=str(refused),
            position=str(position),
            reason=log.describe(error),
        )
        return True

    def _fail(self, error: Exception) -> None:
        self.refusal = str(causes.of_hub(error, self._delivery.settings))
        self._hub.note("receiving failed", partition=self._partition.number, reason=self.refusal)
