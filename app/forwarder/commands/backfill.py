"""Backfill: posts the events again that the hub received between two instants.

It reads with its own receivers, claims no partition and writes no checkpoint, so it does not
disturb a running forwarder. While a forwarder reads a partition, the hub admits no other receiver
in its consumer group. A backfill then reads in another group: `--consumer-group`, or $Default if
the forwarder uses another one. The audit policy applies. Events that the sink refuses are only
counted, because the forwarder has stored them as dead letters.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import AsyncExitStack, aclosing
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from azure.eventhub._pyamqp.error import AMQPLinkError

from forwarder.audit.envelope import Unpacked, Unusable
from forwarder.commands.posting import Replay
from forwarder.config.settings import Settings
from forwarder.deadletters.record import Record
from forwarder.delivery.partition import Partition
from forwarder.delivery.watermark import Message
from forwarder.diagnosis import causes
from forwarder.errors import ForwarderError
from forwarder.hub.client import IN_USE, connect, open_link
from forwarder.hub.login import login
from forwarder.hub.message import Received
from forwarder.hub.transport import Link

_WAIT: Final = 20.0  # seconds for the next message
_ATTEMPTS: Final = 3  # links in a row without a message
_TICK: Final = timedelta(milliseconds=1)  # of the hub's clock; positions are exclusive
_COUNTED: Final = ["messages", "events", "accepted", "refused", "filtered", "skipped", "unusable"]


class Backfill(Replay):
    """Posts what the hub received between two instants."""

    def __init__(
        self, settings: Settings, since: datetime, until: datetime | None, *, dry_run: bool
    ) -> None:
        super().__init__(settings)
        self._after, self._until = since - _TICK, until or datetime.now(UTC)
        self._dry_run = dry_run
        self._counts = defaultdict[str, Counter[str]](Counter)  # by partition
        self._partitions: dict[str, Partition] = {}

    def report(self) -> list[str]:
        """Return the counts of all partitions together, then of each that had messages."""
        each = [f"partition {number}: {self._line(number)}" for number in sorted(self._counts)]
        return [self._line(*self._counts), *each]

    def _line(self, *numbers: str) -> str:
        total = Counter[str]()
        for number in numbers:
            total += self._counts[number]
            total["accepted"] += self._partitions[number].delivered
        return ", ".join(f"{total[name]:,} {name}" for name in _COUNTED)

    async def run(self, stack: AsyncExitStack) -> bool:
        """Read all partitions, and post; True if the sink accepted everything.

        ForwarderError if a partition cannot be read.
        """
        client = connect(self._settings, login(self._settings, stack), retry_total=0)
        stack.push_async_callback(client.close)
        try:
            numbers = await client.get_partition_ids()
            partitions = await asyncio.gather(*map(client.get_partition_properties, numbers))
            async with asyncio.TaskGroup() as group:
                for properties in partitions:
                    group.create_task(self._read(client, properties))
        except Exception as error:  # noqa: BLE001 - whatever the client raises
            raise ForwarderError(str(causes.of_hub(error, self._settings))) from None
        return not any(count["refused"] for count in self._counts.values())

    async def _read(self, client: Any, properties: Mapping[str, Any]) -> None:
        """Read a partition from the first message to its present end, and deliver its events."""
        number, last = properties["id"], properties["last_enqueued_sequence_number"]
        partition = self._partitions[number] = Partition(number, self._delivery)
        position: int | datetime = self._after
        failures = 0
        wanted = not properties["is_empty"] and properties["last_enqueued_time_utc"] > self._after
        try:
            while wanted:
                try:
                    async with aclosing(await self._open(client, number, position)) as link:
                        while wanted:
                            await link.read(_WAIT)
                            if not (messages := link.take()):
                                raise TimeoutError
                            while wanted and messages:
                                received = messages.popleft()
                                wanted = await self._submit(partition, received, last)
                                position, failures = (received.sequence_number or 0) + 1, 0
                            partition.dispatch()
                except Exception:
                    failures += 1
                    if failures == _ATTEMPTS:
                        raise
                    await asyncio.sleep(failures)
            await partition.drain()
        finally:
            partition.cancel()

    async def _open(self, client: Any, number: str, position: int | datetime) -> Link:
        """Open a link; in $Default if the partition has an owner in the consumer group."""
        inclusive = isinstance(position, int)
        for group in dict.fromkeys((self._settings.consumer_group, "$Default")):
            try:
                return await open_link(client, number, position, inclusive=inclusive, group=group)
            except AMQPLinkError as error:
                if error.condition not in IN_USE:
                    raise
        raise ForwarderError(
            f"partition {number} is read in consumer group '{group}', where the hub admits nobody "
            "else: name another one with --consumer-group, which you create once: az eventhubs "
            "eventhub consumer-group create"
        )

    async def _submit(self, partition: Partition, received: Received, last: int) -> bool:
        """Submit a message that came before `until`; return whether to read another one."""
        enqueued, number = received.enqueued or 0.0, received.sequence_number or 0
        if enqueued > self._until.timestamp() or number > last:
            return False
        unpacked = (
            Unpacked([], [Unusable(received.body, received.problem)])
            if received.problem
            else self._unpack(received.body)
        )
        self._counts[partition.number].update(
            messages=1,
            events=len(unpacked.events),
            filtered=unpacked.filtered,
            skipped=unpacked.skipped,
            unusable=len(unpacked.unusable),
        )
        if unpacked.events and not self._dry_run:
            size = len(received.body)
            if not self._buffer.has_room(size):
                partition.dispatch()
            await self._buffer.acquire(size)
            unpacked.unusable.clear()
            partition.last_received = None  # gaps left by the policy or a category are no loss
            partition.start_after = number - 1
            partition.submit(Message(number, received.offset, enqueued, size), unpacked)
        return number < last

    def _refuse(self, record: Record) -> None:
        self._counts[record.partition].update(refused=1)
