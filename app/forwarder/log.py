"""The log: one line per entry on standard output, as JSON or as text.

A thread writes entries in batches from a bounded queue, so that a reader that has stopped (a full
pipe) delays neither delivery nor signals. Entries that do not fit into the queue are dropped and
counted. The thread writes to the file descriptor: if it were blocked inside Python's own buffer,
the interpreter would abort at exit (CPython 3.11 to 3.13).
"""

import atexit
import logging
import math
import os
import select
import sys
import threading
import time
from collections import deque
from datetime import UTC, datetime
from typing import Any, Final

from pythonjsonlogger.msgspec import MsgspecFormatter

from forwarder import redaction
from forwarder.errors import ForwarderError

# VerboseLevel 1 to 4; each includes the lower ones.
ERROR: Final = 1
INFO: Final = 2
EVENT: Final = 3
POST: Final = 4
_NAMES: Final = {ERROR: "error", INFO: "info", EVENT: "info", POST: "debug"}

_REPEAT_AFTER: Final = 60.0  # seconds
_RECENT: Final = 20  # errors that the status page shows
_MAX_ENTRY: Final = 16_384  # characters; in a longer entry each field is shortened
_MAX_FIELD: Final = 1_000  # characters of such a field
_MAX_QUEUE: Final = 4_194_304  # characters
_BATCH: Final = 0.05  # seconds to gather a batch
_STDERR: Final = 2
_FLUSH: Final = 1.0  # seconds


class _Writer:
    """The configuration of the log, and a thread that writes lines to a file descriptor."""

    def __init__(self) -> None:
        self.threshold, self.as_text = 0, False  # nothing is logged before `configure`
        self.descriptor: int | None = None
        self.dropped = 0
        self._lines: list[str] = []
        self._size = 0  # characters that wait or are being written
        self._flushing = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def put(self, line: str) -> None:
        with self._changed:
            if self.descriptor is None or self._size + len(line) > _MAX_QUEUE:
                self.dropped += 1
                return
            self._lines.append(line)
            self._size += len(line)
            if len(self._lines) == 1:
                self._changed.notify()
            if not self._thread:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()

    def flush(self) -> None:
        """Wait until all entries are written, at most one second."""
        with self._changed:
            self._flushing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._size, _FLUSH)
            self._flushing = False

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
                self._changed.wait_for(lambda: self._flushing, _BATCH)
                lines, self._lines = self._lines, []
            written = self._write(_clean(lines).encode("utf-8", "backslashreplace"))
            with self._changed:
                self._size -= sum(map(len, lines))
                if not written:
                    self.dropped += len(lines)
                self._changed.notify_all()

    def _write(self, text: bytes) -> bool:
        rest = memoryview(text)
        while rest and self.descriptor is not None:
            try:
                rest = rest[os.write(self.descriptor, rest) :]
            except BlockingIOError:  # another process that shares the pipe made it non-blocking
                select.select([], [self.descriptor], [])
            except OSError:
                return False
        return True


_recent: Final = deque[dict[str, Any]](maxlen=_RECENT)
_writer: Final = _Writer()
flush: Final = atexit.register(_writer.flush)
_formatter: Final = MsgspecFormatter()


def configure(verbose_level: int, log_format: str, secrets: tuple[str, ...]) -> None:
    """Log to standard output, redact these secrets, and silence the logs of libraries."""
    redaction.configure(secrets)
    flush()
    try:
        _writer.descriptor = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # it is closed
        _writer.descriptor = None
        # Occupy descriptors 0 to 2: libuv 1.52 aborts when it closes a socket below 3.
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
            pass
        os.close(descriptor)
    _writer.threshold, _writer.as_text = verbose_level, log_format == "text"
    _recent.clear()
    logging.getLogger().handlers = [logging.NullHandler()]


def silence() -> None:
    """Write no more entries, because a command prints its own report."""
    _writer.threshold = 0


def dropped() -> int:
    """Return the number of entries that were dropped because the log is not read fast enough."""
    return _writer.dropped


def enabled(level: int) -> bool:
    """Return whether entries of this level are written, so that callers can skip their cost."""
    return level <= _writer.threshold


def write(level: int, message: str, **fields: Any) -> None:
    """Write an entry. The message is constant; values go into the fields."""
    if level > _writer.threshold:
        return
    if level == ERROR:
        fields = redaction.redact_all(fields)
    timestamp = datetime.now(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
    entry = {"timestamp": timestamp, "level": _NAMES[level], "message": message, **fields}
    if level == ERROR:
        _recent.append(entry)
    try:
        line = _line(entry)
    except (OverflowError, RecursionError, UnicodeError):  # an event may hold any value
        line = ""
    if not line or len(line) > _MAX_ENTRY:
        line = _line({name: _short(value) for name, value in entry.items()})
    _writer.put(line)


def error(message: str, **fields: Any) -> None:
    """Write an error, which is shown at every VerboseLevel."""
    write(ERROR, message, **fields)


def info(message: str, **fields: Any) -> None:
    """Write an entry of VerboseLevel 2."""
    write(INFO, message, **fields)


def recent_errors() -> list[dict[str, Any]]:
    """Return the latest errors, newest first."""
    return list(reversed(_recent))


def describe(problem: BaseException) -> str:
    """Describe an exception, or the first one of a group, on one line.

    The text of an error of this package is one line already. That of any other is shortened.
    """
    while isinstance(problem, BaseExceptionGroup):
        problem = problem.exceptions[0]
    if isinstance(problem, ForwarderError) and (text := str(problem)):
        return text
    text = redaction.redact(" ".join(str(problem).split()))[:300]
    return f"{type(problem).__name__}: {text}" if text else type(problem).__name__


class RateLimited:
    """Logs a repeated error once per `interval` seconds, with the number of repetitions."""

    def __init__(self, interval: float = _REPEAT_AFTER) -> None:
        self._interval = interval
        self._logged: dict[str, tuple[float, int]] = {}
        """When each message was last written, and how many repetitions were left out since."""

    def error(self, message: str, **fields: Any) -> None:
        """Write the error unless the same message was written within the interval."""
        now = time.monotonic()
        at, repeated = self._logged.get(message, (-math.inf, 0))
        if now - at < self._interval:
            self._logged[message] = at, repeated + 1
            return
        self._logged[message] = now, 0
        if repeated:
            fields["repeated"] = repeated
        error(message, **fields)

    def forget(self) -> None:
        """Log the next error at once, because the outage is over."""
        self._logged.clear()


def _line(entry: dict[str, Any]) -> str:
    if not _writer.as_text:
        return _formatter.jsonify_log_record(entry) + "\n"
    stamp, level, message, *_ = entry.values()
    fields = (f"{name}={_quoted(entry[name])}" for name in list(entry)[3:])
    return f"{stamp} {level:5} {message:18} {' '.join(fields)}".rstrip() + "\n"


def _quoted(value: object) -> str:
    """Return a field as text on one line, quoted if it could be misread or is not printable."""
    text = str(value)
    plain = text.isprintable() and set(text).isdisjoint(" \"'=")
    return text if text and plain else repr(text)


def _short(value: object) -> object:
    """Return a value that can be encoded, of bounded length."""
    if isinstance(value, float | bool) or value is None:
        return value
    return redaction.printable(redaction.redact(str(value))[:_MAX_FIELD])


def _clean(lines: list[str]) -> str:
    """Join lines, without secrets and without characters that a terminal interprets."""
    text = "".join(lines)
    if redaction.has_secret(text.encode("utf-8", "surrogatepass")):
        text = "".join(map(redaction.redact, lines))
    return text if text.isascii() and "\x7f" not in text else redaction.escape_hidden(text)
