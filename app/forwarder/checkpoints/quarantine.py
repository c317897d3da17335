"""Quarantine: the message that kills the process is found by its deaths, and never taken again."""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from forwarder import log
from forwarder.delivery.watermark import Message

_DEATHS: Final = 3  # of so many none is chance
_PAGE: Final = 4096  # bytes
_SLOW: Final = 1.0  # seconds to wait for the disk before a message that may kill


class _Notes(msgspec.Struct):
    starts: dict[str, tuple[int | None, int]] = {}
    """By partition: the checkpoint at the claim, and how many starts in a row came no further."""
    suspect: str = ""
    """The message that is being processed alone."""
    deaths: dict[str, int] = {}
    """By message: how often it was the suspect when the process died, and was never survived."""


class Quarantine:
    """Counts starts that died without progress; after three, messages are to be taken one by one.

    In all partitions, and one at a time: then the suspect at a death is the only message that can
    be its cause. Whoever kills the process from without hits the same message three times in a
    row, in the moment that it takes, hardly ever. What is noted outlives the process, not the
    machine; while it cannot be noted, delivery goes on.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer = ThreadPoolExecutor(1)
        self._notes = _Notes()
        with suppress(OSError, msgspec.DecodeError, UnicodeError):  # what is no note is none
            self._notes = msgspec.json.decode(path.read_bytes().split(b"\n")[0], type=_Notes)
        self._repeated = log.RateLimited()
        deaths = self._notes.deaths
        if suspect := self._notes.suspect:
            deaths[suspect] = deaths.get(suspect, 0) + 1
            self._notes.suspect = ""
        dead = [number for number, (_, starts) in self._notes.starts.items() if starts >= _DEATHS]
        self.one_by_one = bool(dead) or any(count < _DEATHS for count in deaths.values())
        """Whether messages are to be taken one by one."""
        if self.one_by_one:
            log.error(
                "the process died again and again without progress, messages are taken one by one",
                partitions=dead,
                suspects=deaths,
            )

    def claimed(self, partition: str, checkpoint: int | None) -> None:
        """Note a start; a graceful stop is noted by `left`, progress by `passed`."""
        before, starts = self._notes.starts.get(partition, (None, 0))
        # guard: count-starts
        self._notes.starts[partition] = checkpoint, starts + 1 if before == checkpoint else 1
        self._note()

    def left(self, partition: str) -> None:
        """Note that the process has outlived what there is in the partition."""
        if self._notes.starts.pop(partition, None):
            self._note()

    def passed(self, partition: str, sequence_number: int) -> None:
        """Note that the partition has got as far as this: a checkpoint was written."""
        before = self._notes.starts.pop(partition, None), len(self._notes.deaths)
        for name in list(self._notes.deaths):
            where, number, _ = name.split("/")
            if where == partition and int(number) <= sequence_number:
                del self._notes.deaths[name]
        if before != (None, len(self._notes.deaths)):
            self._note()

    def is_quarantined(self, partition: str, message: Message) -> bool:
        """Tell whether the process died of this message."""
        # guard: quarantine-after-three-deaths
        return self._notes.deaths.get(_name(partition, message), 0) >= _DEATHS

    @contextmanager
    def guard(self, partition: str, message: Message) -> Iterator[None]:
        """Process a message, no other at the same time; it is innocent if the block ends."""
        if self.is_quarantined(partition, message):
            yield
            return
        name = self._notes.suspect = _name(partition, message)
        with suppress(TimeoutError):
            self._note().result(_SLOW)
        try:
            yield
        finally:
            self._notes.deaths.pop(name, None)  # guard: survivor-is-cleared
            if self._notes.suspect == name:  # it may be settled, and the next one under way
                self._notes.suspect = ""
            self._note()

    def over(self) -> None:
        """Note that the process has outlived what may have killed it."""
        self.one_by_one = False
        condemned = {name: n for name, n in self._notes.deaths.items() if n >= _DEATHS}
        self._notes = _Notes(deaths=condemned)
        self._note()
        log.info("messages are taken as ever")

    def _note(self) -> Future[None]:
        """Write in turn, and where a disk that hangs holds up nothing else."""
        return self._writer.submit(self._write, msgspec.json.encode(self._notes))

    def _write(self, notes: bytes) -> None:
        """Write in place: a page is written whole or not at all, and on a full disk too."""
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.pwrite(file, notes.ljust(_PAGE - 1) + b"\n", 0)
            finally:
                os.close(file)
        except OSError as error:
            self._repeated.error(
                "starts cannot be counted, a message that kills the process would not be found",
                reason=log.describe(error),
            )


def _name(partition: str, message: Message) -> str:
    """Return what names a message for good: numbers start again in a hub that is made anew."""
    return f"{partition}/{message.sequence_number}/{message.enqueued}"
