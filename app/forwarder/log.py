"""One line an entry, to standard output, as JSON or as text."""

import logging
import sys
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from pythonjsonlogger.msgspec import MsgspecFormatter

from forwarder.config.settings import Settings

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


def configure(settings: Settings) -> None:
    """Send this package's entries to standard output; libraries stay silent, their errors reach us.

    The texts in `settings.secrets` are blotted out of errors, whose reasons others have worded.
    """
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Text() if settings.log_format == "text" else _Json())
    handler.addFilter(_redaction(settings.secrets))
    _recent.clear()
    _logger.handlers = [handler, _Memory(ERROR)]
    _logger.propagate = False
    _logger.setLevel(_THRESHOLDS[settings.verbose_level])
    logging.getLogger().handlers = [logging.NullHandler()]
    # Nobody asks which line, thread or process wrote an entry: to find out costs as much as it.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # noqa: SLF001 - see "Optimization" in the HOWTO of logging


def silence() -> None:
    """Write no entries from now on: a command reports by itself."""
    logging.disable()


def enabled(level: int) -> bool:
    """Tell whether entries of this level are written, to save the work of making them."""
    return _logger.isEnabledFor(level)


def write(level: int, message: str, **fields: Any) -> None:
    """Write an entry: the message's first words are stable, what varies goes into the fields."""
    if _logger.isEnabledFor(level):
        _logger.log(level, message, extra={"fields": fields})


def error(message: str, **fields: Any) -> None:
    """Write an error, which every VerboseLevel shows."""
    write(ERROR, message, **fields)


def info(message: str, **fields: Any) -> None:
    """Write an entry of VerboseLevel 2."""
    write(INFO, message, **fields)


def recent_errors() -> list[dict[str, Any]]:
    """Return the last errors that were written, the latest first."""
    return [msgspec.json.decode(entry) for entry in reversed(_recent)]


def describe(problem: BaseException) -> str:
    """Return an exception, of a group the first, as one line of bounded length."""
    while isinstance(problem, BaseExceptionGroup):
        problem = problem.exceptions[0]
    text = " ".join(str(problem).split())[:300]
    return f"{type(problem).__name__}: {text}" if text else type(problem).__name__


def redacted(text: str, secrets: tuple[str, ...]) -> str:
    """Return a text with its secrets blotted out."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


class RateLimited:
    """Says a lasting error once in `interval` seconds, with how often it came meanwhile."""

    def __init__(self, interval: float = _REPEAT_AFTER) -> None:
        self._interval = interval
        self._said: dict[str, float] = {}
        self._unsaid: dict[str, int] = {}

    def error(self, message: str, **fields: Any) -> None:
        """Write the error unless the same message was written within the interval."""
        now = time.monotonic()
        if now - self._said.get(message, -self._interval) < self._interval:
            self._unsaid[message] = self._unsaid.get(message, 0) + 1
            return
        self._said[message] = now
        if repeated := self._unsaid.pop(message, 0):
            fields["repeated"] = repeated
        error(message, **fields)

    def forget(self) -> None:
        """Start anew: the error is over, the next one is said at once."""
        self._said.clear()
        self._unsaid.clear()


class _Memory(logging.Handler):
    """Keeps what the handler before it has written, and cleaned of secrets."""

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
    """Return a filter that blots out secrets, the last net under every error."""

    def redact(record: logging.LogRecord) -> bool:
        if record.levelno >= ERROR:
            vars(record)["fields"] = {
                name: redacted(value, secrets) if isinstance(value, str) else value
                for name, value in vars(record)["fields"].items()
            }
        return True

    return redact


def _quoted(value: object) -> str:
    """Return a field's text, on one line and harmless to a terminal whatever is in it."""
    text = str(value)
    plain = text and text.isprintable() and not any(mark in text for mark in " \"'=")
    return text if plain else repr(text)


def _timestamp(record: logging.LogRecord) -> str:
    instant = datetime.fromtimestamp(record.created, UTC)
    return instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")
