"""The filter: selects events by cluster, and applies the audit policy."""

import re
from collections.abc import Callable, Collection, Iterable
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
    """Decides on the events of a message while it is unpacked."""

    def __init__(
        self, policy: Policy | None = None, resource_ids: Collection[str] = (), *, annotates: bool
    ) -> None:
        self._engine = Engine(policy) if policy else None
        self._annotates = annotates
        self.wants = _cluster_matcher(resource_ids) if resource_ids else None
        """Returns whether a resource ID matches `resource_ids`; None to forward all clusters."""

    def apply(
        self, event: bytes, resource_id: str | None
    ) -> tuple[bytes | None, EventFields | RequiredFields, tuple[str, str] | None]:
        """Return the edited event (None: drop it), its fields, and its rule and level.

        Raises msgspec's errors if a field is missing that audit.k8s.io/v1 requires.
        """
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


def _cluster_matcher(globs: Iterable[str]) -> Callable[[str | None], bool]:
    matches = re.compile("|".join(map(translate, globs)), re.IGNORECASE).match
    # A record without a resource ID may be of any cluster, and is forwarded.
    return lambda resource_id: not resource_id or bool(matches(resource_id))
