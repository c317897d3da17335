"""Reads one partition in order, over one link after the other, until it is closed or taken away.

After an error a new link is opened, at once and then with growing pauses. It starts after the last
message that was received, so nothing is received twice. A refusal is kept until a link stays open.

The hub refuses a position whose offset has another format: in a namespace that became
geo-replicated, or behind an alias that failed over. Reading then continues by sequence number, and
if that is refused as well, by the time of the last message, or from the first message in the hub.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Final

from azure.eventhub._pyamqp.error import AMQPLinkError, ErrorCondition
from azure.eventhub.aio import EventHubConsumerClient

from forwarder import log
from forwarder.checkpoints.writer import Claim
from forwarder.delivery.partition import DeliveryContext, Partition
from forwarder.diagnosis import causes
from forwarder.hub.client import Position, open_link
from forwarder.hub.message import Received
from forwarder.hub.order import EndError
from forwarder.hub.transport import Link
from forwarder.outage import Outage

Handle = Callable[[Partition, Received], Awaitable[None]]
"""Handles a message once there is room for it; EndError ends the reading."""
OnEnd = Callable[[str, str], None]
"""Called with a partition that cannot be read further, and the reason."""

_OPENING: Final = 30.0  # seconds
_STOPPING: Final = 5.0  # seconds
_STABLE: Final = 1.0  # seconds after which an attached link counts as readable
_IDLE: Final = 15.0  # seconds after which a link without messages sends a heartbeat, if due
_GATHER: Final = 0.05  # seconds to wait for more after a burst, or each message would be a POST
_GATHER_BYTES: Final = 262_144  # of small messages handled at once, so that lists are full
_PAUSES: Final = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds before the next attempts
_TICK: Final = 0.001  # seconds, the resolution of the hub's clock
_POSITION: Final = re.compile(
    r"offset|sequence|argument-|out-of-range|invalid-field", re.IGNORECASE
)


@dataclass(eq=False)
class Reader:
    """Reads a partition, from its creation on until `stop`."""

    _client: EventHubConsumerClient
    _delivery: DeliveryContext
    _claim: Claim
    _outage: Outage
    _handle: Handle
    _on_end: OnEnd
    _link: Link | None = None
    _refused: int = 0  # how many of `_positions` the hub has refused
    _dispatched: float = 0.0
    _cancelled: bool = False
    refusal: str = ""
    """Why the partition cannot be read, in one line; empty while it can."""

    def __post_init__(self) -> None:
        self._partition, self._buffer = self._claim.partition, self._delivery.buffer
        self._task = asyncio.create_task(self._run(None))

    @property
    def blocked(self) -> bool:
        """Whether the next message, or the part of it that was read, waits for room."""
        reading = self._link is not None and self._link.blocked
        return reading or self._partition.blocked_message is not None

    def reopen(self) -> None:
        """Open the link again after the last message received, unless it was cancelled."""
        if not self._cancelled:
            self._task.cancel()
            self._task = asyncio.create_task(self._run(self._task))

    def cancel(self) -> None:
        """Begin to stop. No message is handled any more."""
        self._cancelled = True
        self._task.cancel()

    async def stop(self) -> None:
        """Close the link, whether the hub answers or not."""
        self.cancel()
        await asyncio.wait([self._task], timeout=_STOPPING)

    async def _run(self, previous: asyncio.Task[None] | None) -> None:
        """Read once the previous task has ended."""
        if previous:
            await asyncio.wait([previous], timeout=_STOPPING)
        self._on_end(self._partition.number, await self._read())

    async def _read(self) -> str:
        """Read over one link after the other; return why the partition cannot be read further."""
        failures, number = 0, self._partition.number
        while True:
            link: Link | None = None
            stable = False
            try:
                positions = self._positions()
                position = positions[min(self._refused, len(positions) - 1)]
                async with asyncio.timeout(_OPENING):
                    link = self._link = await open_link(
                        self._client, number, position, owner=True, buffer=self._buffer
                    )
                await link.read(_STABLE)  # the hub may attach a link and detach it at once
                stable, self.refusal, failures = True, "", 0
                while True:
                    await self._receive(link)
            except AMQPLinkError as error:
                if error.condition == ErrorCondition.LinkStolen:
                    if not stable:  # the other reader is no replica: its epoch is higher
                        self._fail(error)
                    return "OWNERSHIP_LOST"
                if not self._replace_position(error):
                    self._fail(error)
            except EndError as end:
                return str(end)
            except Exception as error:  # noqa: BLE001 - whatever the client raises
                self._fail(error)
            finally:
                if link:
                    await link.aclose()
            await asyncio.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])
            failures += 1

    async def _receive(self, link: Link) -> None:
        """Wait for messages, for more of them during a burst, and handle them."""
        await link.read(_IDLE)
        if (left := self._dispatched + _GATHER - time.monotonic()) > 0:
            await link.read(left, _GATHER_BYTES)
        # The SDK may have swallowed the cancellation.
        if self._cancelled or self._task is not asyncio.current_task():
            raise asyncio.CancelledError
        if not (messages := link.take()):
            return
        try:
            while messages:
                self._buffer.release(messages[0].reserved)
                await self._handle(self._partition, messages.popleft())
        finally:
            self._buffer.release(sum(message.reserved for message in messages))
        self._partition.dispatch()
        self._dispatched = time.monotonic()

    def _positions(self) -> list[Position]:
        """Return positions to read after: the best first, then what to use if it is refused."""
        newest = self._partition.last_received
        last = asdict(newest) if newest else self._claim.checkpoint
        offset, number, enqueued = map(last.get, ("offset", "sequence_number", "enqueued"))
        if number is None:
            return [offset or "-1"]  # guard: no-position
        # guard: same-millisecond
        by_time: Position = datetime.fromtimestamp(enqueued - _TICK, UTC) if enqueued else "-1"
        return list(dict.fromkeys((offset or number, number, by_time)))

    def _replace_position(self, error: AMQPLinkError) -> bool:
        """Continue with the next position if this one was refused; return whether there is one."""
        positions = self._positions()
        text = causes.without_names(error)
        of_partition = "partition is invalid" in text  # the hub has fewer than before
        if self._refused + 1 >= len(positions) or of_partition or not _POSITION.search(text):
            return False
        refused, position = positions[self._refused : self._refused + 2]
        self._refused += 1
        way = "its sequence number"
        if not isinstance(position, int):
            way = "time: messages may be delivered twice"
            self._partition.start_after = None  # the numbers that follow may be unrelated
        log.error(
            f"position refused, reading goes on by {way}",
            partition=self._partition.number,
            refused=str(refused),
            position=str(position),
            reason=log.describe(error),
        )
        return True

    def _fail(self, error: Exception) -> None:
        self.refusal = str(causes.of_hub(error, self._delivery.settings))
        self._outage.note("receiving failed", partition=self._partition.number, reason=self.refusal)
