"""The source: an event hub, read by the client library with its traps taken care of."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from azure.eventhub import CloseReason, EventData
from azure.eventhub.aio import EventHubConsumerClient, PartitionContext
from azure.eventhub.exceptions import EventHubError

from forwarder import log
from forwarder.checkpoints.generation import GenerationStore
from forwarder.checkpoints.writer import Checkpoints, Owned
from forwarder.delivery.partition import DeliveryContext, Partition
from forwarder.delivery.watermark import Message
from forwarder.diagnosis import causes
from forwarder.hub.client import connect
from forwarder.hub.intake import Intake, message_of
from forwarder.hub.monitor import HubMonitor

# The client bounds its memory by counts of messages of up to 1 MB: these keep it small enough,
# and large enough not to starve between its rounds of 50 ms.
_PREFETCH: Final = 100
_AHEAD: Final = 800  # messages, or frames of 64 KB of larger ones, read ahead of all partitions
_BATCH: Final = 5
_CLOSE_TIMEOUT: Final = 5.0
_FEW: Final = 10  # messages read ahead at least, and while they are taken one by one
_CAREFUL: Final = 20  # checkpoint intervals: what is read between two of them is read one by one
_WAIT: Final = 0.5  # seconds without a message after which the client calls all the same
_PAUSE: Final = 0.5  # seconds between two questions to a hub that does not answer
# guard: receive-forever
_FOR_EVER: Final = 2**31  # the client counts a receiver's errors over its whole life


class _ReopenError(Exception):
    """Raised in a handler: the client closes the partition, and opens it at the next balancing."""


class Consumer:
    """Receives the messages of the partitions that this process owns, each once and in order."""

    def __init__(
        self,
        delivery: DeliveryContext,
        hub: HubMonitor,
        store: GenerationStore,
        checkpoints: Checkpoints,
        credential: Any,
    ) -> None:
        self._settings = delivery.settings
        self._delivery = delivery
        self._intake = Intake(delivery, checkpoints.quarantine)
        self._hub = hub
        self._store = store
        self._checkpoints = checkpoints
        self._credential = credential
        self._client: EventHubConsumerClient | None = None
        self._again = asyncio.Event()
        self._read: set[str] = set()
        self._ahead: set[str] = set()
        self._closing: set[str] = set()
        self._of_old_hub: list[Owned] = []
        self._repeated = log.RateLimited()
        self._stopping = self._pausing = False
        self._leaving: set[Partition] = set()
        self.partitions: dict[str, Partition] = {}
        """The partitions that this process owns."""

    async def run(self) -> None:
        """Receive until stopped, with one client after the other; see `reopen`."""
        await self._hub.answered.wait()
        while not self._stopping:
            if self._checkpoints.quarantine.one_by_one:
                await self._find_poison()
            else:
                each = _AHEAD // (len(self._hub.last) or 1)
                await self._run_client(max(_FEW, min(_PREFETCH, each)), _BATCH)

    def reopen(self, partition: str | None = None) -> None:
        """Close a partition, or the whole client, and open it anew, from its checkpoint."""
        if partition:
            self._closing.add(partition)
        else:
            self._again.set()

    def check(self) -> None:
        """Compare the hub, just looked at, with what is read."""
        if not self._client or self._again.is_set():
            return
        if self._hub.created != self._store.created:  # guard: recreated-hub
            # Nothing more is written of the old hub: what is under way there is still delivered.
            self._of_old_hub = list(self._checkpoints.owned.values())
            self._checkpoints.owned.clear()
            self._store.say(self._hub.created)
            self.reopen()
        elif self._read < self._hub.last.keys():  # guard: added-partitions
            log.info("partitions added", partitions=len(self._hub.last))
            self.reopen()
        ahead = {
            number
            for number, partition in self.partitions.items()
            if partition.last_received is None
            and partition.start_after is not None
            and partition.start_after > self._hub.last.get(number, partition.start_after)
        }
        # Twice, for the checkpoint may be younger than the look.
        for number in ahead & self._ahead:
            self._is_foreign(self.partitions[number])  # guard: checkpoint-ahead-of-hub
        self._ahead = ahead

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
                if self._client:
                    await self._client.close()
        for number in list(self.partitions):  # of a client that hangs
            await self._leave(number, CloseReason.SHUTDOWN)

    async def _find_poison(self) -> None:
        """Take one message at a time, with few in memory, until past what may have killed."""
        buffer, limit = self._delivery.buffer, self._delivery.buffer.limit
        buffer.limit = 0  # of all partitions, one message at a time
        await self._run_client(_FEW, 1, _CAREFUL * self._settings.checkpoint_interval)
        buffer.limit = limit
        if not self._stopping:
            self._checkpoints.quarantine.over()  # guard: end-of-one-by-one

    async def _run_client(self, prefetch: int, batch: int, seconds: float | None = None) -> None:
        """Receive for so long, until `reopen` wants another client, or until it is closed."""
        self._store.created = self._hub.created
        self._store.foreign |= {one.partition.number: one.stored for one in self._of_old_hub}
        self._of_old_hub.clear()
        self._read = set(self._hub.last)
        self._again = again = asyncio.Event()
        self._client = connect(
            self._settings,
            self._credential,
            checkpoint_store=self._store,
            retry_total=_FOR_EVER,
            retry_backoff_max=10,
            load_balancing_interval=self._settings.load_balancing_interval,
            partition_ownership_expiration_interval=self._settings.ownership_expiry,
        )
        receiving = asyncio.create_task(
            self._client.receive_batch(
                self._on_batch,
                max_batch_size=batch,
                max_wait_time=_WAIT,
                prefetch=prefetch,
                starting_position=self._hub.start,
                on_error=self._on_error,
                on_partition_initialize=self._on_claim,
                on_partition_close=self._on_close,
            )
        )
        receiving.add_done_callback(lambda _: again.set())
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await again.wait()
            if receiving.done():
                receiving.result()
            self._pausing = True
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_TIMEOUT):
                    await self.drain()
            await self.close()
            self._pausing = False
        finally:
            receiving.cancel()

    async def _on_claim(self, context: PartitionContext) -> None:
        number = context.partition_id
        partition = Partition(number, self._delivery)
        owned = await self._checkpoints.claim(context, partition)
        partition.start_after = owned.stored
        partition.progress = time.monotonic()
        self._closing.discard(number)
        self.partitions[number] = partition
        self._delivery.metrics.owned.set(len(self.partitions))
        log.info("partition claimed", partition=number, checkpoint=owned.stored)

    async def _on_close(self, context: PartitionContext, reason: CloseReason) -> None:
        owned = self._checkpoints.owned.get(context.partition_id)
        if not owned or owned.context is context:  # else a client that hung has come to its end
            await self._leave(context.partition_id, reason)

    async def _leave(self, number: str, reason: CloseReason) -> None:
        """Leave the partition; what was taken is still delivered, by whoever reads it again too."""
        if partition := self.partitions.pop(number, None):
            self._leaving = {one for one in self._leaving if one.watermark.oldest} | {partition}
        self._delivery.metrics.owned.set(len(self.partitions))
        owned = await self._checkpoints.release(number)
        if owned:
            log.info(
                "partition given up",
                partition=number,
                reason=reason.name,
                checkpoint=owned.stored,
                ownedSeconds=round(time.monotonic() - owned.since, 1),
            )

    async def _on_error(self, context: PartitionContext | None, error: Exception) -> None:
        if isinstance(error, _ReopenError):
            return
        partition = {"partition": context.partition_id} if context else {}
        if isinstance(error, EventHubError):
            reason = str(causes.of_hub(error, self._settings))
            self._repeated.error("receiving failed", **partition, reason=reason)
        else:
            reason = str(causes.of_store(error, self._settings))
            self._repeated.error("checkpoints cannot be read", **partition, reason=reason)

    async def _on_batch(self, context: PartitionContext, received: Sequence[EventData]) -> None:
        number = context.partition_id
        partition = self.partitions.get(number)
        if number in self._closing and not received:
            raise _ReopenError
        self._closing.discard(number)
        for data in received:
            if (
                partition is None
                or self._stopping  # guard: nothing-received-while-stopping
                or self._pausing
                or self.partitions.get(number) is not partition
            ):
                return
            message, body = message_of(data)
            if not await self._is_next(partition, message):
                continue
            await self._intake.take(partition, message, body)
        if partition:
            partition.dispatch()

    async def _is_next(self, partition: Partition, message: Message) -> bool:
        """Tell whether to take a message: of this hub, and not taken before.

        Where its number is not the next one, the hub is asked whether it is still the same.
        """
        number, newest, last = message.sequence_number, partition.last_received, partition.last
        if last is None or number == last + 1:  # guard: gap-asks-the-hub
            return True
        # Read again after a reconnect; or a checkpoint at 0, which the client takes for none.
        if number <= last and message.enqueued <= newest.enqueued if newest else number == last:
            return False  # guard: already-received
        await self._hub.poll()
        while self._hub.outage.reason and not self._stopping:
            await asyncio.sleep(_PAUSE)
            await self._hub.poll()
        self.check()
        if self._again.is_set() or self._stopping:
            return False
        if not newest and number <= last:
            self._is_foreign(partition)
            raise _ReopenError
        return number > last

    def _is_foreign(self, partition: Partition) -> None:
        """Have the partition read from StartPosition: its checkpoint is none of this hub's."""
        if self._store.foreign.get(partition.number) != partition.start_after:
            self._store.foreign[partition.number] = partition.start_after
            log.error(
                "checkpoint is of another hub, reading starts at StartPosition",
                partition=partition.number,
                checkpoint=partition.start_after,
            )
        self.reopen(partition.number)
