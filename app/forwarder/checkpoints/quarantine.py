"""Quarantine: a message that kills the process is identified, and not processed again.

A bug in a C library may end the process at one message, before Python code can react, and again
after each restart. So starts are counted in a file that outlives the process. After three starts in
a row without progress, messages are processed one by one: each is recorded as the suspect, and
cleared when the process has survived it. A message that was the suspect at three deaths is
quarantined: it becomes a dead letter without being unpacked. If the process is killed from outside,
such as by the kubelet, it is unlikely that the same message is the suspect three times.

While the file cannot be written, delivery continues without it.
"""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from forwarder import log
from forwarder.delivery.watermark import Message

_DEATHS: Final = 3  # in a row
_NAME: Final = r"[^/]+/\d{1,19}/[^/]+"  # of a message, see `_name`
_PAGE: Final = 4096  # bytes
_DISK_TIMEOUT: Final = 1.0  # seconds to wait for the disk before a suspect is processed


class _Notes(msgspec.Struct):
    starts: dict[str, tuple[int | None, int]] = {}
    """By partition: the checkpoint at the claim, and the starts in a row without progress."""
    suspect: Annotated[str, Meta(pattern=f"^({_NAME})?$")] = ""
    """The message that is being processed alone."""
    deaths: dict[Annotated[str, Meta(pattern=f"^{_NAME}$")], int] = {}
    """By message: how often it was the suspect when the process died."""


class Quarantine:
    """Starts and deaths of the process, in a file of one page."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer = ThreadPoolExecutor(1)
        self._notes = _Notes()
        # A damaged file has no notes.
        with suppress(OSError, msgspec.DecodeError, RecursionError, UnicodeError):
            self._notes = msgspec.json.decode(path.read_bytes().split(b"\n")[0], type=_Notes)
        self._repeated = log.RateLimited()
        deaths = self._notes.deaths
        if suspect := self._notes.suspect:
            deaths[suspect] = deaths.get(suspect, 0) + 1
            self._notes.suspect = ""
        stuck = [number for number, (_, starts) in self._notes.starts.items() if starts >= _DEATHS]
        self.one_by_one = bool(stuck) or any(count < _DEATHS for count in deaths.values())
        """Whether messages are to be processed one by one."""
        if self.one_by_one:
            text = "the process died again and again, messages are processed one by one"
            log.error(text, partitions=stuck, suspects=deaths)

    def claimed(self, partition: str, checkpoint: int | None) -> None:
        """Note a start at this checkpoint."""
        before, starts = self._notes.starts.get(partition, (None, 0))
        # guard: count-starts
        self._notes.starts[partition] = checkpoint, starts + 1 if before == checkpoint else 1
        self._note()

    def left(self, partition: str) -> None:
        """Note that the process has survived the messages of the partition."""
        if self._notes.starts.pop(partition, None):
            self._note()

    def passed(self, partition: str, sequence_number: int) -> None:
        """Note progress: a checkpoint was written at this sequence number."""
        self.left(partition)
        for name in list(self._notes.deaths):
            where, number, _ = name.split("/")
            if where == partition and int(number) <= sequence_number:
                del self._notes.deaths[name]
                self._note()

    def is_quarantined(self, partition: str, message: Message) -> bool:
        """Return whether the process died of this message three times."""
        # guard: quarantine-after-three-deaths
        return self._notes.deaths.get(_name(partition, message), 0) >= _DEATHS

    @contextmanager
    def guard(self, partition: str, message: Message) -> Iterator[None]:
        """Process one message in this block; it is cleared when the block ends."""
        if self.is_quarantined(partition, message):
            yield
            return
        name = self._notes.suspect = _name(partition, message)
        with suppress(TimeoutError):
            self._note().result(_DISK_TIMEOUT)
        try:
            yield
        finally:
            self._notes.deaths.pop(name, None)  # guard: survivor-is-cleared
            if self._notes.suspect == name:  # not if the next message is being processed already
                self._notes.suspect = ""
            self._note()

    def end(self) -> None:
        """Process messages concurrently again: the process has survived the dangerous ones."""
        self.one_by_one = False
        quarantined = {name: n for name, n in self._notes.deaths.items() if n >= _DEATHS}
        self._notes = _Notes(deaths=quarantined)
        self._note()
        log.info("messages are processed concurrently again")

    def _note(self) -> Future[None]:
        """Write the notes in a thread, because a disk may hang; one thread keeps their order."""
        return self._writer.submit(self._write, msgspec.json.encode(self._notes))

    def _write(self, notes: bytes) -> None:
        """Overwrite the one page of the file, which works on a full disk as well."""
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.pwrite(file, notes.ljust(_PAGE - 1) + b"\n", 0)
            finally:
                os.close(file)
        except OSError as error:
            text = "starts cannot be counted, a message that kills the process is not identified"
            self._repeated.error(text, reason=log.describe(error))


def _name(partition: str, message: Message) -> str:
    """Return a name that is unique even if the hub is recreated."""
    return f"{partition}/{message.sequence_number}/{message.enqueued}"
