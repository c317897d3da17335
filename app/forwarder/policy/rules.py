"""The engine: applies a policy to events, as kube-apiserver would have when it wrote them."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final, NamedTuple

from msgspec import Raw

from forwarder.policy import attributes as facts
from forwarder.policy.attributes import EventFields, Request
from forwarder.policy.conditions import ON_TARGETS, conditions
from forwarder.policy.document import LEVELS, Policy
from forwarder.policy.redact import edited, without_managed_fields

NO_RULE: Final = "none"
UNSURE: Final = "unsure"
_RANK: Final = {level: rank for rank, level in enumerate(LEVELS)}
_HIGHEST: Final = len(LEVELS) - 1
_REMEMBERED: Final = 2048  # requests
_LONG: Final = 512  # characters of an URI: longer ones are not remembered, for little memory


class Decision(NamedTuple):
    """What a rule does: its number, the level up to which events stay, the stages that do not."""

    rule: str
    rank: int
    omitted: frozenset[str] = frozenset()
    strips: bool = False


Outcome = tuple[str, str, bytes | None]
"""The rule's number, `none` or `unsure`; what is left of an event, its level and its bytes.

At level None there are no bytes. `unsure`: the event was cut off before what a rule asks for, and
is left as it is.
"""


class Engine:
    """A policy, its rules made ready once."""

    def __init__(self, policy: Policy) -> None:
        self._rules = [
            (
                Decision(
                    str(number),
                    _RANK[rule.level],
                    frozenset((*policy.omit_stages, *rule.omit_stages)),
                    policy.omit_managed_fields
                    if rule.omit_managed_fields is None
                    else rule.omit_managed_fields,
                ),
                conditions(rule),
            )
            for number, rule in enumerate(policy.rules, 1)
        ]
        rules = policy.rules
        self._asked = facts.UsedFields(
            groups=any(rule.user_groups for rule in rules),
            names=any(one.resource_names for rule in rules for one in rule.resources),
            namespaces=any(rule.namespaces for rule in rules),
        )
        self._remembered = lru_cache(_REMEMBERED)(self._ruling)

    def apply(self, event: bytes, found: EventFields) -> Outcome:
        """Apply the first rule that matches; `found` is what was decoded of the event."""
        asked = facts.attributes(found, self._asked)
        if (found.target is None or not found.uri) and facts.is_cut_off(event):
            ruling = self._ruling(*asked, unsure=True)
        elif len(found.uri) < _LONG:
            ruling = self._remembered(*asked)
        else:
            ruling = self._ruling(*asked)
        if ruling is None:
            return UNSURE, found.level, event
        rule, rank, omitted, strips = ruling
        if not rank or found.stage in omitted:
            return rule, LEVELS[0], None
        given = _RANK.get(found.level, _HIGHEST)
        edits = None
        if found.request_object or found.response_object:
            edits = _edits(found, rank, strips=strips)
        if rank >= given and not edits:
            return rule, found.level, event
        level = found.level if rank >= given else LEVELS[rank]
        return rule, level, edited(event, found.level, level, edits or {})

    def steps(self, request: Request, *, unsure: bool) -> Iterator[tuple[Decision, str | None]]:
        """Yield each rule up to the first that matches, with the field that keeps it from matching.

        That is None for the match, and `unsure` where a cut-off event has lost what the rule asks
        for; nothing follows either.
        """
        for ruling, checks in self._rules:
            failed = None
            for name, met in checks.items():  # of user and verb first, which no event lacks
                if unsure and name in ON_TARGETS:
                    yield ruling, UNSURE
                    return
                if not met(request):
                    failed = name
                    break
            yield ruling, failed
            if failed is None:
                return

    def _ruling(self, *attributes: Any, unsure: bool = False) -> Decision | None:
        """Return what the rule that matches does; None if it is unsure which one that is."""
        for ruling, failed in self.steps(Request(*attributes), unsure=unsure):
            if failed in (None, UNSURE):
                return ruling if failed is None else None
        return Decision(NO_RULE, 0)


def _edits(found: EventFields, rank: int, *, strips: bool) -> dict[bytes, tuple[Raw, bytes]]:
    """Return what is to become of the objects in an event: see `edited`."""
    edits = {}
    if raw := found.request_object:
        if rank < _RANK["Request"]:
            edits[b"requestObject"] = raw, b""
        elif strips and found.verb != "patch" and (left := without_managed_fields(raw)):
            edits[b"requestObject"] = raw, left
    if raw := found.response_object:
        if rank < _HIGHEST:
            edits[b"responseObject"] = raw, b""
        elif strips and (left := without_managed_fields(raw)):
            edits[b"responseObject"] = raw, left
    return edits
