"""The screen: what the user wants of each event, by its cluster and by the audit policy."""

import re
from collections.abc import Callable, Sequence
from fnmatch import translate
from functools import lru_cache
from typing import Final, Self

import msgspec

from forwarder.audit.envelope import Event, Unpacked, plain
from forwarder.config.settings import Settings
from forwarder.policy import attributes as facts
from forwarder.policy.document import LEVELS
from forwarder.policy.redact import annotated
from forwarder.policy.rules import UNSURE, Engine

ANNOTATION: Final = "aks-audit/cluster"


class Filter:
    """Treats the events of a message while it is unpacked; see `of`."""

    def __init__(self, settings: Settings) -> None:
        self._engine = Engine(settings.audit_policy) if settings.audit_policy else None
        self._annotates = settings.cluster_annotation
        self.wants = _clusters(settings.resource_ids) if settings.resource_ids else None
        """Tells whether a cluster is one of ResourceIds; None if all are wanted."""

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """Return the screen; None if everything is wanted as it is, which then costs nothing."""
        wishes = (settings.audit_policy, settings.cluster_annotation, settings.resource_ids)
        return cls(settings) if any(wishes) else None

    def add(
        self, unpacked: Unpacked, body: bytes, resource_id: str | None, *, salvaged: bool
    ) -> None:
        """Add what is left of an event, and count it; raises as `plain` does if it is none."""
        left: bytes | None = body
        rule, level, annotations = UNSURE, "", None
        try:
            found = facts.decode(body)
        except msgspec.ValidationError:  # of what no rule asks for, or it is none
            stamp = plain(body).stage_timestamp
        else:
            stamp, annotations = found.stage_timestamp or "", found.annotations
            if self._engine:
                rule, level, left = self._engine.apply(body, found)
        if self._engine:
            key = rule, level if level in LEVELS else "unknown"
            unpacked.ruled[key] = unpacked.ruled.get(key, 0) + 1
        if left is None:
            unpacked.filtered += 1
            return
        if self._annotates and resource_id:
            left = annotated(left, annotations, ANNOTATION, resource_id)
        unpacked.events.append(Event(left, stamp, salvaged))


def _clusters(globs: Sequence[str]) -> Callable[[str | None], bool]:
    pattern = re.compile("|".join(map(translate, globs)), re.IGNORECASE)

    @lru_cache(1024)
    def wants(resource_id: str | None) -> bool:
        # A record that names no cluster is not known to be of another one.
        return not resource_id or bool(pattern.match(resource_id))

    return wants
