"""Dead letters on disk: numbered files of bounded size together, which can be taken away whole."""

import asyncio
import fcntl
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Final

from forwarder import log
from forwarder.errors import StateError

_FILES: Final = 10  # so many share DeadLetterMaxBytes: dropping the oldest costs a tenth
_REASON: Final = "DeadLetterMaxBytes"
_NAMES: Final = "[0-9]" * 8 + ".jsonl"


class DeadLetterFiles:
    """`00000001.jsonl`, … in a directory; the oldest goes first.

    One process appends; it or another takes files away, by renaming them into `taken/`, and gives
    back what is left. `lock` is held for each change, `taken/lock` by the one that takes.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._directory = directory
        self._taken = directory / "taken"
        self._max_bytes = max_bytes
        self._current: Path | None = None
        self.debt = 0
        """Letters dropped that nobody has counted yet."""
        self._taken.mkdir(parents=True, exist_ok=True)
        for lock in (self._directory / "lock", self._taken / "lock"):
            lock.touch()

    def append(self, lines: deque[bytes]) -> None:
        """Write the lines to the disk; each is taken off as soon as it is there. Blocks."""
        with _locked(self._directory / "lock"):
            while lines:
                if len(lines[0]) <= self._max_bytes:
                    self._append_some(lines)
                else:
                    self.debt += 1
                    size = len(lines.popleft())
                    log.error("dead letters dropped", letters=1, bytes=size, reason=_REASON)

    def _append_some(self, lines: deque[bytes]) -> None:
        """Append as many lines as the current file may hold, or one."""
        room = self._max_bytes // _FILES
        if not (current := self._current) or not 0 < _size(current) <= room - len(lines[0]):
            numbers = [int(file.stem) for file in self._all()]
            current = self._directory / f"{max(numbers, default=0) + 1:08}.jsonl"
        room, chunk = room - _size(current) - len(lines[0]), [lines[0]]
        for line in islice(lines, 1, None):
            if (room := room - len(line)) < 0:
                break
            chunk.append(line)
        self._make_room(sum(map(len, chunk)))
        size, self._current = _size(current), current
        try:
            with current.open("ab") as file:
                file.writelines(chunk)
                file.flush()
                os.fsync(file.fileno())  # before a checkpoint passes them
        except OSError:
            try:  # half a line would spoil the next one
                os.truncate(current, size)
            except OSError:
                self._current = None
            raise
        for _ in chunk:
            lines.popleft()

    def _make_room(self, size: int) -> None:
        """Drop the oldest files; what is taken counts, and is left to whoever has taken it."""
        files = self._here()
        while files and sum(map(_size, self._all())) + size > self._max_bytes:
            oldest = files.pop(0)
            letters = oldest.read_bytes().count(b"\n")
            oldest.unlink()
            self.debt += letters
            log.error("dead letters dropped", letters=letters, file=oldest.name, reason=_REASON)

    @contextmanager
    def taking(self) -> Iterator[None]:
        """Hold the right to take files; StateError if another has it."""
        try:
            with _locked(self._taken / "lock", fcntl.LOCK_NB):
                yield
        except BlockingIOError:
            raise StateError(f"dead letters in '{self._directory}' are being taken") from None

    async def sizes(self) -> dict[str, int]:
        """Return the files by name, the oldest first, with their bytes."""
        files = await asyncio.to_thread(self._all)
        return {file.name: _size(file) for file in sorted(files, key=lambda file: file.name)}

    async def read(self, name: str) -> bytes:
        """Return what a file holds, nothing if it is gone."""
        for directory in (self._directory, self._taken):
            with suppress(FileNotFoundError):
                return await asyncio.to_thread((directory / name).read_bytes)
        return b""

    async def take(self, name: str) -> bytes:
        """Take a file away; what it holds, nothing if it is gone."""
        await asyncio.to_thread(self._move, self._directory, self._taken, name)
        return await self.read(name)

    async def put_back(self, name: str, rest: bytes | None) -> None:
        """Give a file back with what is left of it; `None` is all, and a file of nothing goes."""
        if rest == b"":
            (self._taken / name).unlink(missing_ok=True)
            return
        try:
            if rest is not None:
                await asyncio.to_thread(_replace, self._taken / name, rest)
        finally:
            await asyncio.to_thread(self._move, self._taken, self._directory, name)

    def _move(self, source: Path, target: Path, name: str) -> None:
        with _locked(self._directory / "lock"), suppress(FileNotFoundError):
            (source / name).rename(target / name)  # a number is given once, so none is replaced

    def _here(self) -> list[Path]:
        return sorted(self._directory.glob(_NAMES))

    def _all(self) -> list[Path]:
        return [*self._here(), *self._taken.glob(_NAMES)]


@contextmanager
def _locked(lock: Path, how: int = 0) -> Iterator[None]:
    with lock.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | how)
        yield


def _size(file: Path) -> int:
    """Return a file's bytes, 0 if it is gone."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _replace(file: Path, data: bytes) -> None:
    """Put data in the place of a file's: a crash leaves the one or the other."""
    new = file.with_suffix(".new")
    try:
        with new.open("wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
        new.replace(file)
    except OSError:
        new.unlink(missing_ok=True)
        raise
