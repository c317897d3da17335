"""Dead letters: what cannot be delivered, kept as JSON lines in the state directory."""

import asyncio
import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
import stamina

from forwarder import log
from forwarder.envelope import Refused

_FILES: Final = 10  # so many share DeadLetterMaxBytes: dropping the oldest costs a tenth


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

    async def add(self, letters: Sequence[Letter]) -> int:
        """Keep these letters and return how many others are to be counted `dropped` for them.

        A dropped letter was counted when it was kept; the count is made up for by counting a new
        one as dropped in its place, so that records stay the sum of their outcomes.
        """
        async with self._lock:
            for letter in letters:
                self._debt += await self._keep(letter.line())
            dropped = min(self._debt, len(letters))
            self._debt -= dropped
            return dropped

    async def _keep(self, line: bytes) -> int:
        """Append a line, as long as it takes; return how many letters had to go for it."""
        async for attempt in stamina.retry_context(on=OSError, attempts=None, timeout=None):
            with attempt:
                try:
                    return await asyncio.to_thread(self._append, line)
                except OSError as error:
                    reason = log.describe(error)
                    self._repeated.error("dead letter cannot be written", reason=reason)
                    raise
        raise AssertionError  # the retries never end

    def _append(self, line: bytes) -> int:
        files = sorted(self._directory.glob("*.jsonl"))
        current = files[-1] if files else self._directory / "00000001.jsonl"
        if files and current.stat().st_size + len(line) > self._max_bytes // _FILES:
            current = self._directory / f"{int(current.stem) + 1:08}.jsonl"
        dropped = 0
        while files and sum(file.stat().st_size for file in files) + len(line) > self._max_bytes:
            dropped += _drop(files.pop(0))
        with current.open("ab") as file:
            file.write(line)
        return dropped


def _drop(oldest: Path) -> int:
    with oldest.open("rb") as file:
        letters = sum(1 for _ in file)
    oldest.unlink()
    log.error(
        "dead letters dropped", letters=letters, file=oldest.name, reason="DeadLetterMaxBytes"
    )
    return letters
