"""The intake: a message that was received finds room, is unpacked and set moving."""

import asyncio
from contextlib import suppress
from typing import Final

from forwarder import log
from forwarder.audit.envelope import Unpacked, Unusable, unpack
from forwarder.audit.summary import summary
from forwarder.checkpoints.quarantine import Quarantine
from forwarder.delivery.partition import DeliveryContext, Partition
from forwarder.delivery.watermark import Message
from forwarder.hub.message import Received
from forwarder.policy.filter import filter_for

_ONE_BY_ONE: Final = 20  # checkpoint intervals in which messages are taken one by one
_ALONE: Final = 0.02  # seconds of a free loop: by then a message is unpacked, packed and sent


class Intake:
    """Takes messages for their partitions; never raises, for that would close the partition."""

    def __init__(self, delivery: DeliveryContext, quarantine: Quarantine) -> None:
        self._buffer = delivery.buffer
        self._categories = delivery.settings.categories
        self._filter = filter_for(
            delivery.settings.audit_policy,
            delivery.settings.resource_ids,
            annotates=delivery.settings.cluster_annotation,
        )
        self._quarantine = quarantine
        self._one_by_one_seconds = _ONE_BY_ONE * delivery.settings.checkpoint_interval

    async def take(self, partition: Partition, message: Message, received: Received) -> None:
        """Wait for room and hand the message over: alone, if one of them may kill the process."""
        if received.reserved:
            self._buffer.charge(message.size)
        else:
            if not self._buffer.has_room(message.size):
                partition.dispatch()  # or nobody would make room
            partition.blocked_message = message
            await self._buffer.acquire(message.size)
            partition.blocked_message = None
        if not self._quarantine.one_by_one:
            self._hand_over(partition, message, received)
            return
        with self._quarantine.guard(partition.number, message):
            self._hand_over(partition, message, received)
            partition.dispatch()
            with suppress(TimeoutError):
                async with asyncio.timeout(_ALONE):
                    await partition.drain()

    async def take_one_by_one(self) -> None:
        """Keep one message in memory at a time until past what may have killed the process."""
        limit, self._buffer.limit = self._buffer.limit, 0
        await asyncio.sleep(self._one_by_one_seconds)
        self._buffer.limit = limit
        self._buffer.release(0)
        self._quarantine.over()  # guard: end-of-one-by-one

    def _hand_over(self, partition: Partition, message: Message, received: Received) -> None:
        unpacked = self._unpack(partition.number, message, received)
        partition.submit(message, unpacked)
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

    def _unpack(self, partition: str, message: Message, received: Received) -> Unpacked:
        if self._quarantine.is_quarantined(partition, message):
            number = message.sequence_number
            log.error("the process died of a message", partition=partition, sequenceNumber=number)
            return Unpacked([], [Unusable(received.body, "the process died of it")])
        if received.problem:
            log.error(
                "message cannot be read",
                partition=partition,
                sequenceNumber=message.sequence_number,
                reason=received.problem,
            )
            return Unpacked([], [Unusable(received.body, received.problem)])
        try:
            return unpack(received.body, self._categories, self._filter)
        except Exception as error:  # noqa: BLE001 - a poison message must not stop its partition
            return Unpacked([], [Unusable(received.body, f"internal error: {log.describe(error)}")])
