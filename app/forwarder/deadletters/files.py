"""Dead letters on disk: a batch is a file, written to a temporary name, synced and renamed.

A file is therefore complete or absent, and no process needs a lock: the forwarder adds files and
drops old ones, a replay rewrites or removes them. The sum of all files stays within
DeadLetterMaxBytes. To make room, the class of reasons that takes most loses its oldest file, so
that a flood of one kind does not push out the others.
"""

import asyncio
import os
import re
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Final

from forwarder import log
from forwarder.errors import ForwarderError

DIRECTORY: Final = "deadletters"
_NAME: Final = re.compile(  # see `record.batches`; version 0.1.0 numbered its files
    r"(?:\d{8}T\d{6}\.\d{6}Z-[0-9a-f]{16}-([a-z-]+)|\d{8})\.jsonl"
)
_LARGEST_BATCH: Final = 1_048_576
_LARGEST_SHARE: Final = 10  # a batch has a tenth of DeadLetterMaxBytes at most
_ABANDONED: Final = 3600.0  # seconds after which nobody writes a temporary file any more


class DeadLetterFiles:
    """A store in a directory, which is created if it is missing."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.max_batch = min(max_bytes // _LARGEST_SHARE, _LARGEST_BATCH)
        self._directory = directory
        self._max_bytes = max_bytes
        self._read: dict[str, int] = {}
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._adopt()

    async def put(self, name: str, lines: list[bytes]) -> int:
        """Write a file; return how many records were dropped, its own if it is too large."""
        return await asyncio.to_thread(self._put, name, lines)

    async def sizes(self) -> dict[str, int]:
        """Return the sizes of the files in bytes, by name, the oldest first."""
        return await asyncio.to_thread(self._sizes)

    async def read(self, name: str) -> bytes:
        """Return a file's content; nothing if it is gone."""
        with suppress(FileNotFoundError):
            self._read[name] = self._version(name)
            return await asyncio.to_thread((self._directory / name).read_bytes)
        return b""

    async def replace(self, name: str, rest: bytes) -> None:
        """Write what is left of a file, or remove it; ForwarderError if it was changed since."""
        if self._version(name) != self._read[name]:
            raise ForwarderError(f"{name} was changed by another replay")
        if rest:
            await asyncio.to_thread(self._write, name, rest)
        else:
            (self._directory / name).unlink(missing_ok=True)

    def _put(self, name: str, lines: list[bytes]) -> int:
        data = b"".join(lines)
        if len(data) > self._max_bytes:
            _log_dropped(len(lines), bytes=len(data))
            return len(lines)
        dropped = self._make_room(len(data))
        self._write(name, data)
        return dropped

    def _make_room(self, size: int) -> int:
        """Drop files until this many bytes fit; return the number of records dropped."""
        sizes, dropped = self._sizes(), 0
        by_class = Counter[str]()
        for name, used in sizes.items():
            by_class[_class(name)] += used
        while sizes and by_class.total() + size > self._max_bytes:
            largest = by_class.most_common(1)[0][0]
            name = next(name for name in sizes if _class(name) == largest)
            with suppress(FileNotFoundError):  # a replay was faster
                path = self._directory / name
                records = path.read_bytes().count(b"\n")
                path.unlink()
                dropped += records
                _log_dropped(records, file=name)
            by_class[largest] -= sizes.pop(name)
        return dropped

    def _write(self, name: str, data: bytes) -> None:
        """Write a file durably and at once, readable by its owner only."""
        path = self._directory / name
        new = path.with_suffix(".new")
        try:
            new.touch(mode=0o600)
            with new.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        except OSError:
            new.unlink(missing_ok=True)
            raise
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(directory)  # or the name may be lost although the data is not
        finally:
            os.close(directory)

    def _sizes(self) -> dict[str, int]:
        sizes = {}
        for file in sorted(self._directory.iterdir()):
            with suppress(FileNotFoundError):
                if _NAME.fullmatch(file.name):
                    sizes[file.name] = file.stat().st_size
        return sizes

    def _version(self, name: str) -> int:
        with suppress(FileNotFoundError):
            return (self._directory / name).stat().st_mtime_ns
        return 0

    def _adopt(self) -> None:
        """Adopt files of version 0.1.0, and remove what a killed process was writing.

        They were appended to, named `00000001.jsonl`, and in `taken/` during a replay.
        """
        for file in self._directory.glob("taken/*.jsonl"):
            file.replace(self._directory / file.name)
        for file in self._directory.glob("[0-9]" * 8 + ".jsonl"):
            file.chmod(0o600)
        for file in self._directory.glob("*.new"):
            with suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > _ABANDONED:
                    file.unlink()


def _class(name: str) -> str:
    """Return the class of reasons of a file; those of version 0.1.0 count as one."""
    match = _NAME.fullmatch(name)
    return (match and match[1]) or ""


def _log_dropped(records: int, **fields: object) -> None:
    log.error("dead letters dropped", records=records, **fields, reason="DeadLetterMaxBytes")
