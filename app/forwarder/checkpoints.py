"""Checkpoints of the owned partitions, written at intervals and never on the delivery path."""

import asyncio
from dataclasses import dataclass
from typing import Any, Final

import stamina
from azure.eventhub.aio import CheckpointStore, PartitionContext

from forwarder import log
from forwarder.delivery import Partition
from forwarder.window import Message

_STORE_TIMEOUT: Final = 15.0  # seconds for one round


@dataclass(slots=True, eq=False)
class Owned:
    """A partition that this process reads, and the sequence number the store has for it."""

    context: PartitionContext
    partition: Partition
    stored: int | None


class Checkpoints:
    """Writes watermarks to the store, but never moves another process's checkpoint back.

    A process that was frozen, or cut off from the store, has lost its partitions meanwhile.
    """

    def __init__(self, store: CheckpointStore, interval: float) -> None:
        self._store = store
        self._interval = interval
        self._repeated = log.Repeated()
        self.failing_since: str | None = None
        self.owned: dict[str, Owned] = {}

    async def claim(self, context: PartitionContext, partition: Partition) -> Owned:
        """Start writing checkpoints of this partition; waits for the store as long as it takes."""
        async for attempt in stamina.retry_context(
            on=Exception, attempts=None, timeout=None, wait_max=10
        ):
            with attempt:
                stored = (await self._list(context)).get(context.partition_id)
        self.owned[context.partition_id] = Owned(context, partition, stored)
        return self.owned[context.partition_id]

    async def release(self, partition_id: str) -> Owned | None:
        """Write a last checkpoint and forget the partition."""
        if owned := self.owned.pop(partition_id, None):
            await self._round([owned])
        return owned

    async def run(self) -> None:
        """Write checkpoints for ever."""
        while True:
            await asyncio.sleep(self._interval)
            await self.flush()

    async def flush(self) -> None:
        """Write the checkpoints that have moved; a failure is said, counted and tried again."""
        await self._round(list(self.owned.values()))

    async def _round(self, owned: list[Owned]) -> None:
        moved = [
            (one, mark)
            for one in owned
            if (mark := one.partition.window.watermark) and (mark.sequence_number != one.stored)
        ]
        if not moved:
            return
        result = "error"
        try:
            async with asyncio.timeout(_STORE_TIMEOUT):
                stored = await self._list(moved[0][0].context)
                await asyncio.gather(*(self._write(one, mark, stored) for one, mark in moved))
            result = "ok"
            if self.failing_since:
                log.info("checkpoint store answers again")
            self.failing_since = None
            self._repeated.forget()
        except Exception as error:  # noqa: BLE001 - whatever a store's client raises
            self.failing_since = log.describe(error)
            self._repeated.error("checkpoints cannot be written", reason=self.failing_since)
        for one, _ in moved:
            one.partition.metrics.checkpoints[result].inc()

    async def _write(self, owned: Owned, mark: Message, stored: dict[str, int]) -> None:
        number = owned.context.partition_id
        found = stored.get(number, -1)
        if found != owned.stored and found > mark.sequence_number:
            log.error("checkpoint left alone, another process is ahead", partition=number)
            return
        await self._store.update_checkpoint(
            {
                **_where(owned.context),
                "partition_id": number,
                "offset": mark.offset,
                "sequence_number": mark.sequence_number,
            }
        )
        owned.stored = mark.sequence_number

    async def _list(self, context: PartitionContext) -> dict[str, int]:
        found = await self._store.list_checkpoints(**_where(context))
        return {
            entry["partition_id"]: entry["sequence_number"]
            for entry in found
            if entry["sequence_number"] is not None
        }


def _where(context: PartitionContext) -> dict[str, Any]:
    return {
        "fully_qualified_namespace": context.fully_qualified_namespace,
        "eventhub_name": context.eventhub_name,
        "consumer_group": context.consumer_group,
    }
