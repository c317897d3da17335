"""The state of everything as one report: what an operator asks first."""

import time
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Final

from forwarder import __version__, log
from forwarder.config.settings import Settings
from forwarder.server.health import Health
from forwarder.sink.webhook import shown_url

_STARTED: Final = time.monotonic()


def look(settings: Settings, health: Health) -> dict[str, Any]:
    """Return the report in JSON's types: durations in seconds, no secret."""
    return {
        "version": __version__,
        "upSeconds": round(time.monotonic() - _STARTED),
        "notLive": health.not_live(),
        "notReady": health.not_ready(),
        "parts": health.components(),
        "partitions": [
            {
                **state._asdict(),
                "lastHour": [point._asdict() for point in health.history.of(state.partition)],
            }
            for state in health.states()
        ],
        "errors": log.recent_errors(),
        "settings": dict(_shown(settings)),
    }


def _shown(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield each setting by its variable; of what may be secret just whether it is given."""
    for item in fields(settings):
        value = getattr(settings, item.name)
        if item.name == "web_sink_url":
            value = shown_url(value)
        elif not item.repr:
            value = "given" if value else None
        elif isinstance(value, frozenset | tuple):
            value = ", ".join(sorted(value))
        yield item.metadata["variable"], "" if value is None else str(value)
