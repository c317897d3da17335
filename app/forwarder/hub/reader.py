"""Reads one partition in order, over one link after the other, until it is closed or loses it.

After an error the link is opened again behind the last message that was received: at once, then
with pauses. Nothing is received twice. The refusal that is met is the partition's state until the
next message.

A position is refused where its offset is of another kind: in a namespace that became
geo-replicated, or behind an alias that failed over. Then the sequence number serves, and if that
is refused as well, the time of the last message, or everything that the hub has.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from azure.eventhub._pyamqp.error import AMQPLinkError, ErrorCondition
from azure.eventhub.aio import EventHubConsumerClient

from forwarder import log
from forwarder.config.settings import Settings
from forwarder.delivery.buffer import ReceiveBuffer
from forwarder.delivery.partition import Partition
from forwarder.diagnosis import causes
from forwarder.hub.client import Position, open_link
from forwarder.hub.message import Received
from forwarder.hub.order import StaleError
from forwarder.hub.transport import Link
from forwarder.outage import Outage

Take = Callable[[Received], Awaitable[None]]

_OPENING: Final = 30.0  # seconds
_STOPPING: Final = 5.0  # seconds
_SETTLED: Final = 1.0  # seconds after which an attached link counts as one that can be read
_IDLE: Final = 15.0  # seconds after which a link without messages sends a sign of life, if due
_GATHER: Final = 0.05  # seconds to wait for more after a burst, or each message would be a POST
_BYTES: Final = 262_144  # of small messages taken at once, so that lists are full
_PAUSES: Final = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds before the next attempts
_POSITION: Final = re.compile(r"offset|sequence|argument|out-of-range|invalid-field", re.IGNORECASE)


class LostError(Exception):
    """Another reader has taken the partition."""


class Reader:
    """The receiving end of a partition."""

    def __init__(  # noqa: PLR0913 - what a link is opened with
        self,
        client: EventHubConsumerClient,
        settings: Settings,
        partition: Partition,
        checkpoint: Mapping[str, Any],
        *,
        hub: Outage,
        buffer: ReceiveBuffer,
    ) -> None:
        """`hub` is what is logged of the hub already."""
        self._client = client
        self._settings = settings
        self._partition = partition
        self._checkpoint = checkpoint
        self._hub = hub
        self._buffer = buffer
        self._link: Link | None = None
        self._task: asyncio.Task[None]
        self._refused = 0  # positions, of those in `_positions`
        self._cancelled = False
        self._dispatched = 0.0
        self._repeated = log.RateLimited()
        self.refusal = ""
        """Why the partition cannot be read, in one line; empty while it can."""

    @property
    def blocked(self) -> bool:
        """Whether it waits for room in the buffer."""
        return self._link is not None and self._link.blocked

    def start(self, take: Take, on_end: Callable[[str, str], None]) -> None:
        """Read until stopped, or until `on_end` is told the partition and why it cannot go on."""
        self._cancelled = False
        self._task = asyncio.create_task(self._run(take, on_end))

    def cancel(self) -> None:
        """Begin to stop. Nothing is taken any more, even if the SDK swallows the cancellation."""
        self._cancelled = True
        self._task.cancel()

    async def stop(self) -> None:
        """Close the link, whether the hub answers or not."""
        self.cancel()
        await asyncio.wait([self._task], timeout=_STOPPING)

    async def _run(self, take: Take, on_end: Callable[[str, str], None]) -> None:
        try:
            await self._read(take)
        except LostError:
            on_end(self._partition.number, "OWNERSHIP_LOST")
        except StaleError:
            on_end(self._partition.number, "STALE_CHECKPOINT")

    async def _read(self, take: Take) -> None:
        """Read until another reader takes the partition (LostError); `take` waits for room."""
        failures = 0
        while True:
            link: Link | None = None
            try:
                async with asyncio.timeout(_OPENING):
                    link = await self._open()
                await link.read(_SETTLED)  # the hub may attach a link and detach it at once
                self.refusal = ""
                failures = 0
                while True:
                    await self._receive(link, take)
            except AMQPLinkError as error:
                if error.condition == ErrorCondition.LinkStolen:
                    raise LostError from None
                if not self._replace_position(error):
                    self._fail(error)
            except StaleError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever the client raises
                self._fail(error)
            finally:
                if link:
                    await link.close()
            await asyncio.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])
            failures += 1

    async def _open(self) -> Link:
        positions = self._positions()
        position = positions[min(self._refused, len(positions) - 1)]
        number = self._partition.number
        self._link = await open_link(
            self._client, number, position, owner=True, buffer=self._buffer
        )
        return self._link

    async def _receive(self, link: Link, take: Take) -> None:
        """Wait for messages, for more of them in a flood, and have them taken."""
        await link.read(_IDLE)
        if (left := self._dispatched + _GATHER - time.monotonic()) > 0:
            await link.read(left, _BYTES)
        if self._cancelled:
            raise asyncio.CancelledError
        if not (messages := link.take()):
            return
        try:
            while messages:
                self._buffer.release(messages[0].reserved)
                await take(messages.popleft())
        finally:
            self._buffer.release(sum(one.reserved for one in messages))
        self._partition.dispatch()
        self._dispatched = time.monotonic()

    def _positions(self) -> list[Position]:
        """Return what to read behind: the best, and what replaces it where it is refused."""
        if newest := self._partition.last_received:
            moment = datetime.fromtimestamp(newest.enqueued, UTC) - timedelta(milliseconds=1)
            return [newest.offset or newest.sequence_number, newest.sequence_number, moment]
        number = self._checkpoint.get("sequence_number")
        if number is None:
            return [self._checkpoint.get("offset") or "-1"]
        enqueued = self._checkpoint.get("enqueued")
        last: Position = datetime.fromtimestamp(enqueued - 0.001, UTC) if enqueued else "-1"
        offset = self._checkpoint.get("offset")
        return [number if offset is None else offset, number, last]

    def _replace_position(self, error: AMQPLinkError) -> bool:
        """Go on with the next position if this one was refused; tell whether there is one."""
        positions = self._positions()
        text = f"{error.condition!r} {error.description!r}"
        if self._refused + 1 >= len(positions) or not _POSITION.search(text):
            return False
        refused = positions[self._refused]
        self._refused += 1
        if positions[self._refused] == refused:
            return self._replace_position(error)
        by_number = isinstance(positions[self._refused], int)
        if not by_number:
            self._partition.start_after = None  # what follows may be numbered in another way
        log.error(
            "position refused, reading goes on by "
            + ("its sequence number" if by_number else "time: messages may be delivered twice"),
            partition=self._partition.number,
            refused=str(refused),
            position=str(positions[self._refused]),
            reason=log.describe(error),
        )
        return True

    def _fail(self, error: Exception) -> None:
        self.refusal = str(causes.of_hub(error, self._settings))
        if not self._hub.reason:
            number = self._partition.number
            self._repeated.error("receiving failed", partition=number, reason=self.refusal)
