"""Polls the hub's properties: the last message of each partition, and whether the hub answers.

It has a client of its own, without retries, whose errors are logged and shown. While the hub does
not answer, a receiver is attached to partition 0 as well, because the properties can also be read
without the consumer group or the right to listen. The hub does not report its time, so the clocks
are compared by means of the messages that arrive between two polls.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from forwarder import log
from forwarder.config.settings import Settings
from forwarder.diagnosis import causes
from forwarder.errors import ForwarderError
from forwarder.hub.client import connect, has_owner, moved_to, open_link
from forwarder.hub.message import Received
from forwarder.hub.transport import Management
from forwarder.outage import Outage

_TIMEOUT: Final = 20.0  # seconds for one poll
_SKEW: Final = 60.0  # seconds from which on it is logged: logins fail at five minutes or more
_AGES: Final = 3  # arrivals from which the skew is estimated
QUIET: Final = timedelta(hours=1)  # without a message: AKS writes some every minute


class _Partition(NamedTuple):
    number: str
    begin: int
    last: int
    last_offset: str
    last_enqueued: datetime


def _start_position(settings: Settings) -> str | datetime:
    start = settings.start_position
    if isinstance(start, str):
        return start  # guard: earliest
    instant = start if isinstance(start, datetime) else datetime.now(UTC) - start
    # guard: instant-is-included
    return instant - timedelta(milliseconds=1)  # a position is exclusive, in milliseconds


class HubMonitor:
    """The properties that the hub reported at the last poll."""

    def __init__(self, settings: Settings, credential: Any) -> None:
        self._client = connect(settings, credential, retry_total=0)
        self._management = Management(self._client)
        self._settings = settings
        self._quiet, self._hourly = log.RateLimited(3600), log.RateLimited(3600)
        self._lock = asyncio.Lock()
        self._start = _start_position(settings)
        self._latest: dict[str, tuple[int, str]] = {}
        """Sequence number and offset of each partition's last message at the first poll."""
        self.outage = Outage("hub does not answer", "hub answers")
        self.outage.begin("it has not answered yet")
        self.answered = asyncio.Event()
        """Set once the hub has described its partitions."""
        self.created = 0.0
        """When the hub was created, in Unix seconds."""
        self.first: dict[str, int] = {}
        """The first sequence number that each partition still has, or will have."""
        self.last: dict[str, int] = {}
        """The last sequence number in each partition, -1 if there was none."""
        self.skew = 0.0
        """Least number of seconds that the local clock is ahead of the hub's, or < 0 if behind."""
        self._ages = deque[float](maxlen=_AGES)  # least ages of messages at their arrival
        self.polled = 0.0
        """When the properties were last read, by the monotonic clock; 0 before the first time."""

    async def poll(self) -> None:
        """Read the properties once. A failure is logged, not raised."""
        if other := moved_to(self._settings):
            self._hourly.error("connection string is of another hub, restart to read it", hub=other)
        # Fails if the consumer group does not exist or may not be read.
        probe = asyncio.create_task(has_owner(self._client, "0")) if self.outage.reason else None
        try:
            async with self._lock, asyncio.timeout(_TIMEOUT):
                hub = await self._management.read("com.microsoft:eventhub")
                numbers = map(bytes.decode, hub[b"partition_ids"])
                partitions = [await self._partition(number) for number in numbers]
                newest = max(partition.last_enqueued for partition in partitions)
                arrived = self._compare_clocks(partitions, newest)
                self._update(hub[b"created_at"] / 1000, partitions)
                self.answered.set()
                if probe:
                    await probe
        except Exception as error:  # noqa: BLE001 - whatever the client raises, and time-outs
            self.outage.fail(str(causes.of_hub(error, self._settings)))
            if probe:
                probe.cancel()
                await asyncio.gather(probe, return_exceptions=True)
        else:
            silence = self.now() - newest.timestamp()
            if not self.outage.reason and not arrived and silence > QUIET.total_seconds():
                why = causes.of_silence(newest, self._settings.event_hub_name)
                self._quiet.error("hub is quiet", reason=str(why))
            else:
                self._quiet.forget()
            self.outage.end(partitions=len(self.last))

    def now(self) -> float:
        """Return the time by the hub's clock, in Unix seconds."""
        return time.time() - self.skew

    async def starting_position(self, partition: str) -> dict[str, Any]:
        """Return the position of the message before StartPosition.

        Every SDK takes the offset "-1" for the position before the first message.
        """
        number, offset = self.first[partition] - 1, "-1"
        if self._start == "latest":
            # guard: latest-in-an-added-partition
            number, offset = self._latest.get(partition, (-1, "-1"))
        elif isinstance(self._start, datetime):
            try:
                async with asyncio.timeout(_TIMEOUT):
                    number, offset = await self._before(partition, self._start)
            except Exception as error:  # noqa: BLE001 - whatever the client raises
                raise ForwarderError(str(causes.of_hub(error, self._settings))) from None
        return {"sequence_number": number, "offset": offset}

    async def _before(self, partition: str, instant: datetime) -> tuple[int, str]:
        """Return sequence number and offset of the last message up to an instant."""
        async with self._lock:
            properties = await self._partition(partition)
        expired = properties.begin > properties.last
        if expired or properties.last_enqueued <= instant:
            return properties.last, properties.last_offset
        first = await self._receive(partition, instant)
        number = (first.sequence_number or 0) - 1
        if number < properties.begin:
            return number, "-1"
        before = await self._receive(partition, number)
        # It may have expired in the meantime.
        return number, before.offset if before.sequence_number == number else "-1"

    async def _receive(self, partition: str, position: int | datetime) -> Received:
        """Return the first message after an instant, or at a sequence number."""
        inclusive = isinstance(position, int)
        link = await open_link(self._client, partition, position, inclusive=inclusive, owner=True)
        async with aclosing(link):
            while not (messages := link.take()):
                await link.read(_TIMEOUT)
            return messages[0]

    async def _partition(self, number: str) -> _Partition:
        read = await self._management.read("com.microsoft:partition", partition=number)
        return _Partition(
            number,
            read[b"begin_sequence_number"],
            read[b"last_enqueued_sequence_number"],
            read[b"last_enqueued_offset"].decode() or "-1",  # empty without a message
            datetime.fromtimestamp(read[b"last_enqueued_time_utc"] / 1000, UTC),
        )

    async def close(self) -> None:
        """Close the connection."""
        await self._management.close()
        await self._client.close()

    def _compare_clocks(self, partitions: Sequence[_Partition], newest: datetime) -> bool:
        """Estimate the skew; return whether a message has arrived, or may have.

        A message that arrives between two polls was enqueued between them. If the last ones all
        seem to be older, the local clock is ahead.
        """
        last = self.last
        arrived = not self.polled or any(p.last > last.get(p.number, -1) for p in partitions)
        age, now = time.time() - newest.timestamp(), time.monotonic()
        if age < 0:
            self._ages.clear()
            self.skew = age if arrived else min(age, self.skew)
        elif arrived:
            self._ages.append(age - (now - self.polled) if self.polled else 0.0)
            self.skew = max(0.0, min(self._ages))
        self.polled = now
        if abs(self.skew) > _SKEW:
            self._hourly.error(
                "clock differs from the hub's, check the node's NTP", aheadSeconds=round(self.skew)
            )
        return arrived

    def _update(self, created: float, partitions: Sequence[_Partition]) -> None:
        last = {p.number: p.last for p in partitions}
        if not self.answered.is_set():  # guard: latest-at-the-start
            self._latest = {p.number: (p.last, p.last_offset) for p in partitions}
        elif created != self.created:
            # guard: latest-in-a-new-hub
            self._latest = {}  # all messages of a new hub came after the first poll
        elif self.last.keys() < last.keys():  # guard: added-partitions
            log.info("partitions added", partitions=len(last))
        self.first = {p.number: p.begin for p in partitions}
        self.last, self.created = last, created
