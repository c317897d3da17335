"""The filter: selects events by cluster, and applies the audit policy."""

import re
from collections.abc import Callable, Collection
from fnmatch import translate
from typing import Final

import msgspec

from forwarder.policy import attributes
from forwarder.policy.attributes import UNKNOWN, EventFields, RequiredFields
from forwarder.policy.document import Policy
from forwarder.policy.redact import annotated
from forwarder.policy.rules import UNSURE, Engine

_ANNOTATION: Final = "aks-audit/cluster"


class Filter:
    """The filter that `audit/envelope.py` describes."""

    wants: Callable[[str | None], bool] | None = None

    def __init__(self, policy: Policy | None, globs: Collection[str], *, annotates: bool) -> None:
        self._engine = Engine(policy) if policy else None
        self._annotates = annotates
        if globs:
            matches = re.compile("|".join(map(translate, globs)), re.IGNORECASE).match
            # A record without a resource ID may be of any cluster, and is forwarded.
            self.wants = lambda resource_id: not resource_id or bool(matches(resource_id))

    def apply(
        self, event: bytes, resource_id: str | None
    ) -> tuple[bytes | None, EventFields | RequiredFields, tuple[str, str] | None]:
        """Return the edited event, its fields, and its rule and level."""
        left: bytes | None = event
        fields: EventFields | RequiredFields
        rule = (UNSURE, UNKNOWN) if self._engine else None
        try:
            fields = known = attributes.decode(event)
        except msgspec.ValidationError:  # an unusual field, or it is not an event
            fields = attributes.decode_required(event)
        else:
            if self._engine:
                left, rule = self._engine.apply(event, known)
        if left and self._annotates and resource_id:
            left = annotated(left, fields.annotations, _ANNOTATION, resource_id)
        return left, fields, rule


def filter_for(
    policy: Policy | None, resource_ids: Collection[str], *, annotates: bool
) -> Filter | None:
    """Return the filter; None if all events are forwarded unchanged, so that this costs nothing."""
    wanted = policy or resource_ids or annotates
    return Filter(policy, resource_ids, annotates=annotates) if wanted else None
