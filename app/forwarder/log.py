"""The log: one line per entry on standard output, as JSON or as text."""

import logging
import sys
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from pythonjsonlogger.msgspec import MsgspecFormatter

# VerboseLevel 1 to 4, each with all before it.
ERROR: Final = logging.ERROR
INFO: Final = logging.INFO
EVENT: Final = logging.INFO - 5
POST: Final = logging.DEBUG
_THRESHOLDS: Final = {1: ERROR, 2: INFO, 3: EVENT, 4: POST}
_NAMES: Final = {ERROR: "error", INFO: "info", EVENT: "info", POST: "debug"}
_REPEAT_AFTER: Final = 60.0

_RECENT: Final = 20

_logger: Final = logging.getLogger("forwarder")
_recent: Final = deque[str](maxlen=_RECENT)


def configure(verbose_level: int, log_format: str, secrets: tuple[str, ...]) -> None:
    """Send this package's entries to standard output and silence those of libraries.

    `secrets` are redacted in errors: their reasons may hold texts of other programs.
    """
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Text() if log_format == "text" else _Json())
    handler.addFilter(_redaction(secrets))
    _recent.clear()
    _logger.handlers = [handler, _Memory(ERROR)]
    _logger.propagate = False
    _logger.setLevel(_THRESHOLDS[verbose_level])
    logging.getLogger().handlers = [logging.NullHandler()]
    # Nothing shows which line, thread or process wrote an entry, and finding out is expensive.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # noqa: SLF001 - see "Optimization" in the HOWTO of logging


def silence() -> None:
    """Write no more entries: a command prints its own report."""
    logging.disable()


def enabled(level: int) -> bool:
    """Return whether entries of this level are written, so that callers can skip their cost."""
    return _logger.isEnabledFor(level)


def write(level: int, message: str, **fields: Any) -> None:
    """Write an entry; the message is constant, what varies goes into the fields."""
    if _logger.isEnabledFor(level):
        _logger.log(level, message, extra={"fields": fields})


def error(message: str, **fields: Any) -> None:
    """Write an error, which every VerboseLevel shows."""
    write(ERROR, message, **fields)


def info(message: str, **fields: Any) -> None:
    """Write an entry of VerboseLevel 2."""
    write(INFO, message, **fields)


def recent_errors() -> list[dict[str, Any]]:
    """Return the errors written last, newest first."""
    return [msgspec.json.decode(entry) for entry in reversed(_recent)]


def describe(problem: BaseException) -> str:
    """Return an exception, of a group the first, as one line of bounded length."""
    while isinstance(problem, BaseExceptionGroup):
        problem = problem.exceptions[0]
    text = " ".join(str(problem).split())[:300]
    return f"{type(problem).__name__}: {text}" if text else type(problem).__name__


def redacted(text: str, secrets: tuple[str, ...]) -> str:
    """Return a text with its secrets replaced by ***."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


class RateLimited:
    """Logs a repeated error once per `interval` seconds, with the number of repetitions."""

    def __init__(self, interval: float = _REPEAT_AFTER) -> None:
        self._interval = interval
        self._logged_at: dict[str, float] = {}
        self._repeated: dict[str, int] = {}

    def error(self, message: str, **fields: Any) -> None:
        """Write the error unless the same message was written within the interval."""
        now = time.monotonic()
        if now - self._logged_at.get(message, -self._interval) < self._interval:
            self._repeated[message] = self._repeated.get(message, 0) + 1
            return
        self._logged_at[message] = now
        if repeated := self._repeated.pop(message, 0):
            fields["repeated"] = repeated
        error(message, **fields)

    def forget(self) -> None:
        """Log the next error at once, because the outage is over."""
        self._logged_at.clear()
        self._repeated.clear()


class _Memory(logging.Handler):
    """Keeps the last errors; its records have passed the redaction of the handler before it."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.setFormatter(_Json())

    def emit(self, record: logging.LogRecord) -> None:
        _recent.append(self.format(record))


class _Json(MsgspecFormatter):
    def add_fields(
        self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        log_data.update(timestamp=_timestamp(record), level=_NAMES[record.levelno])
        log_data.update(message=record.message, **message_dict, **vars(record)["fields"])


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = (f"{name}={_quoted(value)}" for name, value in vars(record)["fields"].items())
        line = f"{_timestamp(record)} {_NAMES[record.levelno]:5} {record.getMessage():18}"
        return f"{line} {' '.join(fields)}".rstrip()


def _redaction(secrets: tuple[str, ...]) -> Callable[[logging.LogRecord], bool]:
    """Return a filter that redacts secrets in errors."""

    def redact(record: logging.LogRecord) -> bool:
        if record.levelno >= ERROR:
            vars(record)["fields"] = {
                name: redacted(value, secrets) if isinstance(value, str) else value
                for name, value in vars(record)["fields"].items()
            }
        return True

    return redact


def _quoted(value: object) -> str:
    """Return a field as text on one line, without terminal escapes."""
    text = str(value)
    plain = text and text.isprintable() and not any(mark in text for mark in " \"'=")
    return text if plain else repr(text)


def _timestamp(record: logging.LogRecord) -> str:
    instant = datetime.fromtimestamp(record.created, UTC)
    return instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")
