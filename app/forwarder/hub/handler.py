"""Handles a received message: waits for room in memory, unpacks it, submits it to its partition."""

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
from forwarder.hub.order import Order
from forwarder.policy.filter import filter_for

_ONE_BY_ONE: Final = 20  # checkpoint intervals for which messages are handled one by one
_ALONE: Final = 0.02  # seconds for such a message to be unpacked and posted, before the next one


class MessageHandler:
    """Handles the messages of all partitions. No message can close its partition by an error."""

    def __init__(self, delivery: DeliveryContext, quarantine: Quarantine, order: Order) -> None:
        settings = delivery.settings
        self._buffer = delivery.buffer
        self._categories = settings.categories
        self._filter = filter_for(
            settings.audit_policy, settings.resource_ids, annotates=settings.cluster_annotation
        )
        self._quarantine = quarantine
        self._order = order
        self._one_by_one_seconds = _ONE_BY_ONE * settings.checkpoint_interval

    def begin(self) -> None:
        """Hold one message in memory at a time for a while, if one may have killed the process."""
        if self._quarantine.one_by_one:
            limit, self._buffer.limit = self._buffer.limit, 0
            loop = asyncio.get_running_loop()
            loop.call_later(self._one_by_one_seconds, self._end_one_by_one, limit)

    async def handle(self, partition: Partition, received: Received) -> None:
        """Wait for room for the next message and submit it; EndError as in Order.accept."""
        if not (message := await self._order.accept(partition, received)):
            return
        if received.reserved or self._buffer.has_room(message.size):
            self._buffer.charge(message.size)
        else:
            partition.dispatch()  # what is queued has to be delivered to make room
            partition.blocked_message = message
            try:
                await self._buffer.acquire(message.size)
            finally:
                partition.blocked_message = None
        if not self._quarantine.one_by_one:
            self._submit(partition, message, received)
            return
        with self._quarantine.guard(partition.number, message):
            self._submit(partition, message, received)
            partition.dispatch()
            with suppress(TimeoutError):
                async with asyncio.timeout(_ALONE):
                    await partition.drain()

    def _end_one_by_one(self, limit: int) -> None:
        self._buffer.limit = limit
        self._buffer.release(0)  # wakes those that wait for room
        self._quarantine.end()  # guard: end-of-one-by-one

    def _submit(self, partition: Partition, message: Message, received: Received) -> None:
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
        text, reason = "message cannot be read", received.problem
        if self._quarantine.is_quarantined(partition, message):
            text, reason = "the process died of a message", "the process died of it"
        if not reason:
            try:
                return unpack(received.body, self._categories, self._filter)
            except Exception as error:  # noqa: BLE001 - one bad message must not stop its partition
                reason = f"internal error: {log.describe(error)}"
        number = message.sequence_number
        log.error(text, partition=partition, sequenceNumber=number, reason=reason)
        return Unpacked([], [Unusable(received.body, reason)])
