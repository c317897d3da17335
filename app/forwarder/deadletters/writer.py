"""Dead letters: what cannot be delivered is kept in the storage account, or on disk."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import stamina

from forwarder import log
from forwarder.deadletters.blobs import DeadLetterBlobs
from forwarder.deadletters.files import DeadLetterFiles
from forwarder.deadletters.record import Record
from forwarder.errors import EvictedError, StateError

_OVERHEAD: Final = 2048  # bytes that a letter costs while it waits, beside its own
_BATCH: Final = 1_048_576  # bytes written at a time, about
_SLOW: Final = 5.0  # seconds after which the disk counts as one that does not answer
_BLOB_PAUSE: Final = 1.0  # seconds between two small blobs: each is paid for, and read one by one
_BLOB_TIMEOUT: Final = 15.0


@dataclass(slots=True, eq=False)
class _Waiting:
    lines: list[bytes]
    size: int
    written: asyncio.Future[int]


class DeadLetterWriter:
    """Writes letters in batches; they wait in memory, in bounds, while nothing takes them."""

    def __init__(
        self,
        files: DeadLetterFiles,
        blobs: DeadLetterBlobs | None = None,
        *,
        max_waiting: int = 8_388_608,
        retry: float = 5.0,
    ) -> None:
        self._files = files
        self._blobs = blobs
        self._blobs_after = 0.0
        self._retry = retry
        self._max_waiting = max_waiting
        self._waiting: deque[_Waiting] = deque()
        self._bytes = 0
        self._room = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._repeated = log.RateLimited()
        self.waiting = 0
        """Letters that are not written; those that were let go too."""
        self.evicted = 0
        """Letters not written and forgotten: their messages are read again at the next start."""
        self.failure = ""
        """Why letters cannot be written, in a line."""

    async def add(self, letters: Sequence[Record]) -> asyncio.Future[int]:
        """Take letters, and return what is done when they are durable.

        Its result is how many others are to be counted `dropped` for them: a dropped letter was
        counted when it was kept, so a new one is counted as dropped in its place, and records
        stay the sum of their outcomes. EvictedError if they were let go: there was no room.
        """
        lines = [letter.line() for letter in letters]
        waiting = _Waiting(
            lines, sum(map(len, lines)) + _OVERHEAD, asyncio.get_running_loop().create_future()
        )
        self.waiting += len(lines)
        while self._bytes and self._bytes + waiting.size > self._max_waiting:
            if self.failure:
                self.evicted += len(lines)
                reason = self.failure
                self._repeated.error("dead letters let go", letGo=self.evicted, reason=reason)
                waiting.written.set_exception(EvictedError(reason))
                return waiting.written
            self._room.clear()
            await self._room.wait()
        self._bytes += waiting.size
        self._waiting.append(waiting)
        if not self._writer or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        return waiting.written

    async def run(self) -> None:
        """Move what is on the disk to the storage account, if there is one, for ever."""
        while self._blobs:
            if time.monotonic() >= self._blobs_after:
                await self._move(self._blobs)
            await asyncio.sleep(self._retry)

    async def _write(self) -> None:
        """Write until nothing waits."""
        while self._waiting:
            batch: list[_Waiting] = []
            while self._waiting and sum(one.size for one in batch) < _BATCH:
                batch.append(self._waiting.popleft())
            await self._keep(deque(line for one in batch for line in one.lines))
            for one in batch:
                dropped = min(self._files.debt, len(one.lines))
                self._files.debt -= dropped
                self.waiting -= len(one.lines)
                self._bytes -= one.size
                if not one.written.done():
                    one.written.set_result(dropped)
            self._room.set()
            if self._blobs and self._bytes < _BATCH:
                await asyncio.sleep(_BLOB_PAUSE)

    async def _keep(self, lines: deque[bytes]) -> None:
        """Write these lines to the storage account, else to the disk, as long as it takes."""
        async for attempt in stamina.retry_context(on=Exception, attempts=None, timeout=None):
            with attempt:
                blobs = self._blobs if time.monotonic() >= self._blobs_after else None
                if blobs and await self._put(blobs, b"".join(lines)):
                    break
                writing = asyncio.ensure_future(asyncio.to_thread(self._files.append, lines))
                done, _ = await asyncio.wait([writing], timeout=_SLOW)
                try:
                    if not done:
                        self._troubled(f"the disk has not answered for {_SLOW:g} s")
                    await writing
                except Exception as error:
                    self._troubled(log.describe(error))
                    raise
        if self.failure:
            log.info("dead letters are written again")
            self._repeated.forget()
            self.failure = ""

    def _troubled(self, reason: str) -> None:
        self.failure = reason
        self._repeated.error(
            "dead letters cannot be written", waiting=self.waiting, reason=self.failure
        )
        self._room.set()

    async def _put(self, blobs: DeadLetterBlobs, lines: bytes) -> bool:
        """Write a blob; False, and no other for a while, if the store does not take it."""
        try:
            async with asyncio.timeout(_BLOB_TIMEOUT):
                await blobs.put(lines)
        except Exception as error:  # noqa: BLE001 - whatever a store's client raises
            self._blobs_after = time.monotonic() + self._retry
            self._repeated.error(
                "dead letters stay on the disk until the storage account takes them",
                reason=log.describe(error),
            )
            return False
        if self._blobs_after:
            log.info("the storage account takes dead letters again")
            self._repeated.forget()
            self._blobs_after = 0.0
        return True

    async def _move(self, blobs: DeadLetterBlobs) -> None:
        """Move the files to the storage account, unless a replay has them."""
        try:
            with self._files.taking():
                for name in await self._files.sizes():
                    lines = await self._files.take(name)
                    moved = not lines or await self._put(blobs, lines)
                    await self._files.put_back(name, b"" if moved else None)
                    if not moved:
                        return
                    log.info("dead letters moved to the storage account", bytes=len(lines))
        except (OSError, StateError) as error:
            self._repeated.error("dead letters cannot be moved", reason=log.describe(error))
