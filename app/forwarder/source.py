"""The source: an event hub, read by the client library with its traps taken care of."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from azure.eventhub import CloseReason, EventData
from azure.eventhub.aio import CheckpointStore, PartitionContext
from azure.eventhub.amqp import AmqpMessageBodyType
from azure.eventhub.exceptions import EventHubError

from forwarder import cause, log
from forwarder.checkpoints import Checkpoints
from forwarder.delivery import Outlets, Partition
from forwarder.envelope import Refused, Unpacked, unpack
from forwarder.hub import connect, starting_position
from forwarder.settings import Settings
from forwarder.summary import summary
from forwarder.window import Message

# The client bounds its memory by counts of messages of up to 1 MB: these keep it small enough,
# and large enough not to starve between its rounds of 50 ms.
_PREFETCH: Final = 100
_BATCH: Final = 5
_CLOSE_TIMEOUT: Final = 5.0
_FEW: Final = 10  # messages prefetched while they are taken one by one
_CAREFUL: Final = 20  # checkpoint intervals: what is read between two of them is read one by one
_ALONE: Final = 0.02  # seconds of a free loop: by then a message is unpacked, packed and sent
_FOR_EVER: Final = 2**31  # the client counts a receiver's errors over its whole life


class Source:
    """Receives messages, unpacks them and hands them to their partition."""

    def __init__(
        self,
        settings: Settings,
        store: CheckpointStore,
        checkpoints: Checkpoints,
        outlets: Outlets,
        credential: Any,
    ) -> None:
        self._settings = settings
        self._checkpoints = checkpoints
        self._outlets = outlets
        self._repeated = log.Repeated()
        self._stopping = self._pausing = False
        self._leaving: set[Partition] = set()
        self.partitions: dict[str, Partition] = {}
        """The partitions that this process owns."""
        self._client = connect(
            settings,
            credential,
            checkpoint_store=store,
            retry_total=_FOR_EVER,
            retry_backoff_max=10,
            load_balancing_interval=settings.load_balancing_interval,
            partition_ownership_expiration_interval=settings.ownership_expiry,
        )

    async def run(self) -> None:
        """Receive until cancelled; no handler raises, for that would close its partition."""
        if self._checkpoints.poison.careful:
            await self._find_poison()
        if not self._stopping:
            await self._receive(_PREFETCH, _BATCH)

    async def _receive(self, prefetch: int, batch: int) -> None:
        await self._client.receive_batch(
            self._on_batch,
            max_batch_size=batch,
            prefetch=prefetch,
            starting_position=starting_position(self._settings),
            on_error=self._on_error,
            on_partition_initialize=self._on_claim,
            on_partition_close=self._on_close,
        )

    async def _find_poison(self) -> None:
        """Take one message at a time, with few in memory, until past what may have killed."""
        buffer, limit = self._outlets.buffer, self._outlets.buffer.limit
        buffer.limit = 0  # of all partitions, one message at a time
        receiving = asyncio.create_task(self._receive(_FEW, 1))
        try:
            seconds = _CAREFUL * self._settings.checkpoint_interval
            await asyncio.wait([receiving], timeout=seconds)
            self._pausing = True
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_TIMEOUT):
                    await self.drain()
        finally:
            receiving.cancel()
            await asyncio.wait([receiving])
        self._pausing = False
        buffer.limit = limit
        self._checkpoints.poison.over()

    def cancel(self) -> None:
        """Give up what is under way; it is read again from the checkpoint."""
        for partition in {*self.partitions.values(), *self._leaving}:
            partition.cancel()

    def stop(self) -> None:
        """Take no more messages; those that still come are read again from the checkpoint."""
        self._stopping = True

    async def drain(self) -> None:
        """Wait until everything taken is settled."""
        await asyncio.gather(*(p.drain() for p in {*self.partitions.values(), *self._leaving}))

    async def close(self) -> None:
        """Write last checkpoints, give up ownership and close the connections."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self._client.close()

    async def _on_claim(self, context: PartitionContext) -> None:
        number = context.partition_id
        partition = Partition(number, self._outlets)
        owned = await self._checkpoints.claim(context, partition)
        partition.before = owned.stored
        self.partitions[number] = partition
        self._outlets.metrics.owned.set(len(self.partitions))
        log.info("partition claimed", partition=number, checkpoint=owned.stored)

    async def _on_close(self, context: PartitionContext, reason: CloseReason) -> None:
        """Leave the partition; what was taken is still delivered, by whoever reads it again too."""
        number = context.partition_id
        if partition := self.partitions.pop(number, None):
            self._leaving = {one for one in self._leaving if one.window.oldest} | {partition}
        self._outlets.metrics.owned.set(len(self.partitions))
        owned = await self._checkpoints.release(number)
        stored = owned.stored if owned else None
        log.info("partition given up", partition=number, reason=reason.name, checkpoint=stored)

    async def _on_error(self, context: PartitionContext | None, error: Exception) -> None:
        if context:
            reason = str(cause.of_hub(error, self._settings))
            self._repeated.error("receiving failed", partition=context.partition_id, reason=reason)
        elif not isinstance(error, EventHubError):  # the monitor says what the hub's errors are
            reason = str(cause.of_store(error, self._settings))
            self._repeated.error("checkpoints cannot be read", reason=reason)

    async def _on_batch(self, context: PartitionContext, received: Sequence[EventData]) -> None:
        partition = self.partitions.get(context.partition_id)
        for data in received:
            if partition is None or self._stopping or self._pausing:
                return
            body = _body(data)
            message = Message(
                data.sequence_number or 0, data.offset or "", _enqueued(data), len(body)
            )
            if not partition.is_new(message):
                continue
            if not self._outlets.buffer.has_room(message.size):
                partition.pump()  # or nobody would make room
            await self._outlets.buffer.take(message.size)
            if not self._checkpoints.poison.careful:
                self._take(partition, message, body)
                continue
            with self._checkpoints.poison.suspected(partition.number, message):
                self._take(partition, message, body)
                partition.pump()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_ALONE):
                        await partition.drain()
        if partition:
            partition.pump()

    def _take(self, partition: Partition, message: Message, body: bytes) -> None:
        unpacked = self._unpack(partition.number, message, body)
        partition.take(message, unpacked)
        log.info(
            "hub message",
            partition=partition.number,
            sequenceNumber=message.sequence_number,
            records=unpacked.records,
            bytes=message.size,
        )
        if log.enabled(log.EVENT):
            for event in unpacked.events:
                log.write(log.EVENT, "audit event", **summary(event.body))

    def _unpack(self, partition: str, message: Message, body: bytes) -> Unpacked:
        if self._checkpoints.poison.condemns(partition, message):
            number = message.sequence_number
            log.error("the process died of a message", partition=partition, sequenceNumber=number)
            return Unpacked([], [Refused(body, "the process died of it")])
        try:
            return unpack(body, self._settings.categories)
        except Exception as error:  # noqa: BLE001 - a poison message must not stop its partition
            return Unpacked([], [Refused(body, f"internal error: {log.describe(error)}")])


def _body(data: EventData) -> bytes:
    """Return the message's bytes; a producer may send them as AMQP data, or as one value."""
    body: Any = data.body
    if data.body_type is AmqpMessageBodyType.DATA:
        return b"".join(body)
    return body if isinstance(body, bytes) else data.body_as_str().encode()


def _enqueued(data: EventData) -> float:
    return data.enqueued_time.timestamp() if data.enqueued_time else time.time()
