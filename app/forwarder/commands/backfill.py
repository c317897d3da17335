"""Backfill: the events that the hub received between two times are posted again.

It reads with receivers of its own: it owns no partition and moves no checkpoint, and a running
forwarder goes on undisturbed. A hub admits no receiver beside an owner in the same consumer group,
so that a backfill beside a forwarder reads in another one, `--consumer-group`, and in $Default if
the forwarder has a group of its own. The audit policy applies. What the sink refuses is counted:
the forwarder has kept it as a dead letter.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from azure.eventhub._pyamqp.error import AMQPLinkError

from forwarder import __version__
from forwarder.audit.envelope import Unpacked, Unusable, unpack
from forwarder.commands.repost import Refused
from forwarder.config.settings import Settings
from forwarder.delivery.buffer import ReceiveBuffer
from forwarder.delivery.partition import DeliveryContext, Partition
from forwarder.delivery.watermark import Message
from forwarder.diagnosis import causes
from forwarder.errors import ForwarderError
from forwarder.hub.client import SHARED, attach, connect
from forwarder.hub.login import login
from forwarder.hub.message import Received
from forwarder.hub.transport import Link
from forwarder.metrics import Metrics
from forwarder.policy.filter import filter_for
from forwarder.sink.webhook import Sink

_WAIT: Final = 20.0  # seconds for the next message
_ATTEMPTS: Final = 3  # to open a link without a message between them
_TICK: Final = timedelta(milliseconds=1)  # of the hub's clock


_COUNTED: Final = (
    "messages",
    "events",
    "accepted",
    "refused",
    "filtered",
    "skipped",
    "unusable",
)


class Backfill:
    """Posts again what came since an instant and until another."""

    def __init__(
        self, settings: Settings, since: datetime, until: datetime | None, *, dry_run: bool
    ) -> None:
        self._settings = replace(settings, web_sink_max_rejects=sys.maxsize)
        self._since, self._until = since, until or datetime.now(UTC)
        self._dry_run = dry_run
        self._filter = filter_for(
            settings.audit_policy, settings.resource_ids, annotates=settings.cluster_annotation
        )
        metrics = Metrics(__version__)
        self.sink = Sink(self._settings, metrics)
        self._counts: dict[str, Counter[str]] = {}
        refused = Refused(lambda record: self._counts[record.partition].update(refused=1))
        self._buffer = ReceiveBuffer(settings.receive_buffer_bytes)
        self._delivery = DeliveryContext(self._settings, self.sink, refused, self._buffer, metrics)
        self._partitions: dict[str, Partition] = {}
        self._shares: dict[str, float] = {}

    @property
    def succeeded(self) -> bool:
        """Whether the sink has accepted every event."""
        return not any(count["refused"] for count in self._counts.values())

    def share(self) -> float:
        """Return how much of the time span is done, from 0 to 1."""
        return sum(self._shares.values()) / (len(self._counts) or 1)

    def counts(self) -> str:
        """Return what became of all messages and events as a line."""
        return self._line(*self._counts)

    def summary(self) -> Iterator[str]:
        """Yield a line for each partition."""
        for number in sorted(self._counts):
            yield f"partition {number}: {self._line(number)}"

    def _line(self, *numbers: str) -> str:
        total = Counter[str]()
        for number in numbers:
            total += self._counts[number]
            total["accepted"] += self._partitions[number].delivered
        return ", ".join(f"{total[name]:,} {name}" for name in _COUNTED)

    async def run(self, stack: AsyncExitStack) -> None:
        """Read all partitions and post; ForwarderError if one cannot be read."""
        credential = await login(self._settings, stack)
        client = connect(self._settings, credential, retry_total=0)
        stack.push_async_callback(client.close)
        try:
            numbers = await client.get_partition_ids()
            found = await asyncio.gather(*map(client.get_partition_properties, numbers))
            async with asyncio.TaskGroup() as group:
                for one in found:
                    self._counts[one["id"]] = Counter()
                    self._partitions[one["id"]] = Partition(one["id"], self._delivery)
                    group.create_task(self._partition(client, one))
        except* ForwarderError:
            raise
        except* Exception as errors:  # noqa: BLE001 - whatever the client raises
            raise ForwarderError(str(causes.of_hub(errors, self._settings))) from None

    async def _partition(self, client: Any, properties: Mapping[str, Any]) -> None:
        """Read a partition from the first message to its present end, and deliver."""
        number, last = properties["id"], properties["last_enqueued_sequence_number"]
        partition = self._partitions[number]
        position: int | datetime = self._since - _TICK
        failures = 0
        wanted = last >= 0 and properties["last_enqueued_time_utc"] > self._since - _TICK
        try:
            while wanted:
                link = await self._open(client, number, position)
                try:
                    while wanted:
                        async with asyncio.timeout(_WAIT):
                            while not (messages := link.take()):
                                await link.read(_WAIT)
                        while wanted and messages:
                            received = messages.popleft()
                            wanted = await self._take(partition, received, last)
                            position, failures = (received.sequence_number or 0) + 1, 0
                        partition.dispatch()
                except Exception:
                    failures += 1
                    if failures == _ATTEMPTS:
                        raise
                finally:
                    await link.close()
            await partition.drain()
            self._shares[number] = 1.0
        finally:
            partition.cancel()

    async def _open(self, client: Any, number: str, position: int | datetime) -> Link:
        """Open a link; in $Default if the partition has an owner in this consumer group."""
        inclusive = isinstance(position, int)
        for group in dict.fromkeys((self._settings.consumer_group, "$Default")):
            settings = replace(self._settings, consumer_group=group)
            try:
                return Link(await attach(client, settings, number, position, inclusive=inclusive))
            except AMQPLinkError as error:
                if error.condition not in SHARED:
                    raise
        raise ForwarderError(
            f"partition {number} is read in consumer group '{group}', where the hub admits nobody "
            "else: give another with --consumer-group, made by az eventhubs eventhub "
            "consumer-group create"
        )

    async def _take(self, partition: Partition, received: Received, last: int) -> bool:
        """Deliver a message if it came in time; return whether another one is wanted."""
        enqueued, number = received.enqueued or 0.0, received.sequence_number or 0
        if enqueued > self._until.timestamp() or number > last:
            return False
        since, until = self._since.timestamp(), self._until.timestamp()
        self._shares[partition.number] = min(1.0, (enqueued - since) / (until - since or 1))
        unpacked = (
            Unpacked([], [Unusable(received.body, received.problem)])
            if received.problem
            else unpack(received.body, self._settings.categories, self._filter)
        )
        self._counts[partition.number].update(
            messages=1,
            events=len(unpacked.events),
            filtered=unpacked.filtered,
            skipped=unpacked.skipped,
            unusable=len(unpacked.refused),
        )
        if unpacked.events and not self._dry_run:
            size = len(received.body)
            if not self._buffer.has_room(size):
                partition.dispatch()
            await self._buffer.acquire(size)
            unpacked.refused.clear()
            partition.last_received = None  # numbers that policy or category leave out are no loss
            partition.start_after = number - 1
            partition.submit(Message(number, received.offset, enqueued, size), unpacked)
        return number < last
