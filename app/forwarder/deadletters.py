"""Dead letters: what cannot be delivered, kept as JSON lines in the state directory."""

import asyncio
import base64
import os
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
import stamina

from forwarder import log
from forwarder.envelope import Refused

_FILES: Final = 10  # so many share DeadLetterMaxBytes: dropping the oldest costs a tenth
_REASON: Final = "DeadLetterMaxBytes"


@dataclass(frozen=True, slots=True)
class Letter:
    """An undeliverable event, record or message, and where in the hub it was."""

    partition: str
    sequence_number: int
    refused: Refused

    def line(self) -> bytes:
        """Return it as a JSON line; `body` is text, or `bodyBase64` if it is not UTF-8."""
        entry = {
            "time": datetime.now(UTC).isoformat(),
            "reason": self.refused.reason,
            "partition": self.partition,
            "sequenceNumber": self.sequence_number,
        }
        try:
            entry["body"] = self.refused.body.decode()
        except UnicodeDecodeError:
            entry["bodyBase64"] = base64.b64encode(self.refused.body).decode()
        return msgspec.json.encode(entry) + b"\n"


class DeadLetters:
    """Rotated files `00000001.jsonl`, … of bounded size together; the oldest goes first."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._lock = asyncio.Lock()
        self._debt = 0
        self._repeated = log.Repeated()
        directory.mkdir(exist_ok=True)
        for file in self._files()[-1:]:
            _mend(file)

    async def add(self, letters: Sequence[Letter]) -> int:
        """Keep these letters and return how many others are to be counted `dropped` for them.

        A dropped letter was counted when it was kept; the count is made up for by counting a new
        one as dropped in its place, so that records stay the sum of their outcomes.
        """
        async with self._lock:
            await self._keep(deque(letter.line() for letter in letters))
            dropped = min(self._debt, len(letters))
            self._debt -= dropped
            return dropped

    async def _keep(self, lines: deque[bytes]) -> None:
        """Append lines, as long as it takes."""
        async for attempt in stamina.retry_context(on=OSError, attempts=None, timeout=None):
            with attempt:
                try:
                    await asyncio.to_thread(self._append, lines)
                except OSError as error:
                    reason = log.describe(error)
                    self._repeated.error("dead letter cannot be written", reason=reason)
                    raise

    def _append(self, lines: deque[bytes]) -> None:
        while lines:
            self._append_line(lines[0])
            lines.popleft()
        for file in self._files()[-2:]:  # on the disk before a checkpoint passes them
            with file.open("rb") as opened:
                os.fsync(opened.fileno())

    def _append_line(self, line: bytes) -> None:
        """Append a line, make room before; the letters that go for it are added to the debt."""
        if len(line) > self._max_bytes:
            self._debt += 1
            log.error("dead letters dropped", letters=1, bytes=len(line), reason=_REASON)
            return
        files = self._files()
        current = files[-1] if files else self._directory / "00000001.jsonl"
        if files and current.stat().st_size + len(line) > self._max_bytes // _FILES:
            current = self._directory / f"{int(current.stem) + 1:08}.jsonl"
        while files and sum(file.stat().st_size for file in files) + len(line) > self._max_bytes:
            self._debt += _drop(files.pop(0))
        try:
            with current.open("ab") as file:
                file.write(line)
        except OSError:
            with suppress(OSError):
                _mend(current)
            raise

    def _files(self) -> list[Path]:
        return sorted(self._directory.glob("[0-9]" * 8 + ".jsonl"))


def _mend(file: Path) -> None:
    """Cut off half a line, which would spoil the next one; its letter is written again."""
    os.truncate(file, file.read_bytes().rfind(b"\n") + 1)


def _drop(oldest: Path) -> int:
    with oldest.open("rb") as file:
        letters = sum(1 for _ in file)
    oldest.unlink()
    log.error("dead letters dropped", letters=letters, file=oldest.name, reason=_REASON)
    return letters
