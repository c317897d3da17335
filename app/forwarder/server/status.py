"""The report behind /status, as JSON types: state, partitions, latest errors and settings."""

import time
from collections.abc import Iterator
from typing import Any, Final

from forwarder import __version__, log
from forwarder.config.parsers import shown_url
from forwarder.config.settings import Settings
from forwarder.server.health import Health

_STARTED: Final = time.monotonic()


def report(settings: Settings, health: Health) -> dict[str, Any]:
    """Return the state of the process; durations are in seconds."""
    now = time.monotonic()
    not_live, not_ready = health.not_live(), health.not_ready()
    state = "stalled" if not_live else "not delivering" if not_ready else "delivering"
    return {
        "version": __version__,
        "upSeconds": round(now - _STARTED),
        "state": "draining" if health.consumer.stopping else state,
        "notLive": not_live,
        "notReady": not_ready,
        "postConcurrency": health.sink.concurrency.limit,
        "components": {name: why or "healthy" for name, why in health.components().items()},
        "partitions": [
            {**one._asdict(), "lastHour": health.history.curve(now, one)} for one in health.states()
        ],
        "errors": log.recent_errors(),
        "settings": dict(_shown(settings)),
    }


def _shown(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield each setting by its variable; for a secret, only whether it is set."""
    for variable, item in settings.variables().items():
        value = getattr(settings, item.name)
        if item.name == "web_sink_url":
            value = shown_url(value)
        elif not item.repr:
            value = "set" if value else None
        elif isinstance(value, frozenset | tuple):
            value = ", ".join(sorted(value))
        yield variable, "" if value is None else str(value)
