"""Writes dead-letter records in batches, without holding up delivery.

Records wait in memory until their batch is durable. Until then the watermark, and so the
checkpoint, does not pass their messages. Batches are at least a second apart, so that a slow stream
makes few files or blobs. While the store fails, waiting records are limited in bytes, and records
beyond the limit are evicted. Their messages are then never acknowledged by this process, and are
read again after a restart.
"""

import asyncio
import random
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from forwarder import log
from forwarder.deadletters.blobs import DeadLetterBlobs
from forwarder.deadletters.files import DeadLetterFiles
from forwarder.deadletters.record import Record, batches
from forwarder.errors import EvictedError
from forwarder.outage import Outage

DeadLetterStore = DeadLetterBlobs | DeadLetterFiles
"""Batches of records by name. A batch is written once, and only a replay changes it."""
_OVERHEAD: Final = 2048  # bytes of memory per group of waiting records, in addition to their own
_SLOW: Final = 5.0  # seconds after which a store counts as not answering
_MIN_PAUSE: Final = 0.2  # seconds before a batch is written again, doubled each time
_MAX_PAUSE: Final = 5.0
_JITTER: Final = random.SystemRandom()


@dataclass(slots=True, eq=False)
class _Waiting:
    records: Sequence[Record]
    size: int
    written: asyncio.Future[int]


class DeadLetterWriter:
    """The DeadLetterSink of the forwarder."""

    def __init__(
        self, store: DeadLetterStore, *, max_waiting: int = 8_388_608, pause: float = 1.0
    ) -> None:
        """Write to this store, `pause` seconds apart, with up to `max_waiting` bytes in memory."""
        self._store = store
        self._max_waiting = max_waiting
        self._pause = pause
        self._waiting: deque[_Waiting] = deque()
        self._bytes = 0
        self._dropped = 0  # older records that no result has counted yet
        self._room = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._logged: defaultdict[str, log.RateLimited] = defaultdict(log.RateLimited)
        self._evictions = log.RateLimited()
        self.outage = Outage("dead letters cannot be written", "dead letters are written again")
        self.waiting = 0
        """The number of records that are not written, including evicted ones."""
        self.evicted = 0
        """The number of evicted records. Their messages are read again at the next start."""

    async def dead_letter(self, records: Sequence[Record]) -> asyncio.Future[int]:
        """Accept records of one message, as `DeadLetterSink` describes.

        Older records are dropped several at a time. They are counted as dead letters already, so
        that many of these and of the next ones count as dropped instead.
        """
        for kind, reason in {record.reason_class: record.reason for record in records}.items():
            self._logged[kind].error("event dead-lettered", kind=kind, reason=reason)
        size = sum(len(record.original) for record in records) + _OVERHEAD
        self.waiting += len(records)
        while self._bytes and self._bytes + size > self._max_waiting:
            if self.outage.reason:
                self.evicted += len(records)
                reason = self.outage.reason
                self._evictions.error("dead letters evicted", evicted=self.evicted, reason=reason)
                raise EvictedError(reason)
            self._room.clear()
            await self._room.wait()
        self._bytes += size
        written: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(records, size, written))
        if not self._writer or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        return written

    async def _write(self) -> None:
        """Write until nothing waits."""
        while self._waiting:
            group = [self._waiting.popleft()]
            while self._waiting and sum(entry.size for entry in group) < self._store.max_batch:
                group.append(self._waiting.popleft())
            records = [record for entry in group for record in entry.records]
            for name, data in batches(records, self._store.max_batch):
                self._dropped += await self._put(name, data)
            self.outage.end()
            for entry in group:
                dropped = min(self._dropped, len(entry.records))
                self._dropped -= dropped
                self.waiting -= len(entry.records)
                self._bytes -= entry.size
                if not entry.written.done():
                    entry.written.set_result(dropped)
            self._room.set()
            if self._bytes < self._store.max_batch:
                await asyncio.sleep(self._pause)

    async def _put(self, name: str, data: bytes) -> int:
        """Write a batch until it succeeds; return how many records were dropped for it."""
        pause = _MIN_PAUSE
        while True:
            writing = asyncio.ensure_future(self._store.put(name, data))
            done, _ = await asyncio.wait([writing], timeout=_SLOW)
            try:
                if not done:
                    self._failed(f"no answer for {_SLOW:g} s")
                return await writing
            except Exception as error:  # noqa: BLE001 - whatever a store raises
                self._failed(log.describe(error))
            await asyncio.sleep(_JITTER.uniform(pause / 2, pause))
            pause = min(2 * pause, _MAX_PAUSE)

    def _failed(self, reason: str) -> None:
        self.outage.fail(reason, waiting=self.waiting)
        self._room.set()
