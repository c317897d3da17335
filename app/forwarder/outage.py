"""Outages of a dependency: the hub, the sink, the checkpoint store, the dead-letter store.

Each of them fails for a while and then recovers. Health, the status page, the probes and the log
read the same object, so they agree about what is down, since when, and why.
"""

import time
from typing import Any

from forwarder import log


class Outage:
    """The state of one dependency. Logs an outage at its start, once a minute, and at its end."""

    def __init__(self, began: str, ended: str) -> None:
        """`began` and `ended` are the messages of the log entries."""
        self._began = began
        self._ended = ended
        self._limited = log.RateLimited()
        self.reason = ""
        """Why the dependency fails, in one line; empty while it is healthy."""
        self.since: float | None = None
        """When the outage began, by the monotonic clock; None while it is healthy."""
        self.recovered_at = time.monotonic()
        """When the dependency last became healthy, by the monotonic clock."""

    def begin(self, reason: str) -> None:
        """Record a failure without logging it: before the first attempt, it is only presumed."""
        self.reason = reason
        self.since = self.since or time.monotonic()

    def fail(self, reason: str, **fields: Any) -> None:
        """Record a failure."""
        self.begin(reason)
        self._limited.error(self._began, **fields, reason=reason)

    def note(self, message: str, **fields: Any) -> None:
        """Log a partial failure, once a minute, unless there is an outage that explains it."""
        if not self.reason:
            self._limited.error(message, **fields)

    def end(self, **fields: Any) -> None:
        """Record a success."""
        if self.since is None:
            return
        self.recovered_at = time.monotonic()
        seconds = round(self.recovered_at - self.since, 1)
        self.reason, self.since = "", None
        self._limited.forget()
        log.info(self._ended, **fields, downSeconds=seconds)
