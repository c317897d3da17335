"""Dead letters on disk: a batch is a file, written to a temporary name, synced and renamed.

A file is therefore complete or absent, and no process needs a lock: the forwarder adds files and
drops old ones, a replay rewrites or removes them. All files together stay within
DeadLetterMaxBytes. To make room, the oldest file of the reason class that uses most space is
dropped, so that a flood of one kind does not push out the others.

A slow stream of dead letters makes up to 50,000 files, and reading their sizes takes a second of
CPU. So they are read only when the limit may be reached, and then some room is made in advance.
"""

import asyncio
import os
import re
import time
from collections import Counter, defaultdict, deque
from contextlib import suppress
from pathlib import Path
from typing import Final

from forwarder import log
from forwarder.errors import ForwarderError

DIRECTORY: Final = "deadletters"
_NAME: Final = re.compile(  # TIME-DIGEST-CLASS, or a number in version 0.1.0
    r"(?:\d{8}T\d{6}\.\d{6}Z-[0-9a-f]{16}-([a-z-]+)|\d{8})\.jsonl"
)
_MAX_BATCH: Final = 1_048_576
_MIN_BATCHES: Final = 10  # that fit into DeadLetterMaxBytes
_ADVANCE: Final = 100  # the part of DeadLetterMaxBytes that is freed in advance is 1/100
_ABANDONED: Final = 3600.0  # seconds after which a temporary file belongs to a killed process


class DeadLetterFiles:
    """A store in a directory, which is created if it is missing."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.max_batch = min(max_bytes // _MIN_BATCHES, _MAX_BATCH)
        self._directory = directory
        self._max_bytes = max_bytes
        self._at_most = max_bytes  # bytes in the directory
        self._dropped = 0  # records for which no `put` has returned yet
        self._versions: dict[str, int] = {}
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._adopt_files()

    async def put(self, name: str, data: bytes) -> int:
        """Write a file; return how many records were dropped: older ones, or all if too large."""
        if len(data) > self._max_bytes:
            records = data.count(b"\n")
            _log_dropped(records, bytes=len(data))
            return records
        self._dropped += await asyncio.to_thread(self._make_room, len(data))
        await asyncio.to_thread(self._write, name, data)
        dropped, self._dropped = self._dropped, 0
        return dropped

    async def sizes(self) -> dict[str, int]:
        """Return the sizes of the files in bytes, by name, oldest first."""
        return await asyncio.to_thread(self._sizes)

    async def read(self, name: str) -> bytes:
        """Return a file's content; nothing if it is gone."""
        with suppress(FileNotFoundError):
            self._versions[name] = self._version(name)
            return await asyncio.to_thread((self._directory / name).read_bytes)
        return b""

    async def replace(self, name: str, rest: bytes) -> None:
        """Write what is left of a file, or remove it; ForwarderError if it has changed since."""
        if self._version(name) != self._versions[name]:
            raise ForwarderError(f"{name} was changed by another replay")
        if rest:
            await asyncio.to_thread(self._write, name, rest)
        else:
            (self._directory / name).unlink(missing_ok=True)

    def _make_room(self, size: int) -> int:
        """Drop files if this many bytes may not fit; return the number of records dropped."""
        self._at_most += size
        if self._at_most <= self._max_bytes:
            return 0
        sizes, used, names = self._sizes(), Counter[str](), defaultdict[str, deque[str]](deque)
        for name, bytes_used in sizes.items():
            used[_class(name)] += bytes_used
            names[_class(name)].append(name)
        records = files = 0
        if used.total() + size > self._max_bytes:
            room = size + self._max_bytes // _ADVANCE
            while used.total() and used.total() + room > self._max_bytes:
                largest = used.most_common(1)[0][0]
                name = names[largest].popleft()
                with suppress(FileNotFoundError):  # a replay has removed it
                    path = self._directory / name
                    lines = path.read_bytes().count(b"\n")
                    path.unlink()
                    records, files = records + lines, files + 1
                used[largest] -= sizes[name]
        if files:
            _log_dropped(records, files=files)
        self._at_most = used.total() + size
        return records

    def _write(self, name: str, data: bytes) -> None:
        """Write a file durably and atomically, readable by its owner only."""
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
            os.fsync(directory)  # makes the name durable as well
        finally:
            os.close(directory)

    def _sizes(self) -> dict[str, int]:
        sizes = {}
        for file in sorted(self._directory.iterdir()):
            with suppress(FileNotFoundError):
                if _NAME.fullmatch(file.name) and file.is_file():
                    sizes[file.name] = file.stat().st_size
        return sizes

    def _version(self, name: str) -> int:
        with suppress(FileNotFoundError):
            return (self._directory / name).stat().st_mtime_ns
        return 0

    def _adopt_files(self) -> None:
        """Adopt files of version 0.1.0, and remove temporary files of killed processes.

        Version 0.1.0 appended to files such as `00000001.jsonl`, and replayed them in `taken/`.
        """
        for file in self._directory.glob("taken/*.jsonl"):
            file.replace(self._directory / file.name)
        for file in filter(Path.is_file, self._directory.glob("[0-9]" * 8 + ".jsonl")):
            file.chmod(0o600)
        for file in filter(Path.is_file, self._directory.glob("*.new")):
            with suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > _ABANDONED:
                    file.unlink()


def _class(name: str) -> str:
    """Return the reason class of a file; "" for files of version 0.1.0."""
    match = _NAME.fullmatch(name)
    return (match and match[1]) or ""


def _log_dropped(records: int, **fields: object) -> None:
    log.error("dead letters dropped", records=records, **fields, reason="DeadLetterMaxBytes")
