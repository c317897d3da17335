"""Applies a policy to events, as kube-apiserver would have when it wrote them.

The first rule whose conditions a request meets decides, and no rule at all drops the event. Each
condition is a function made once from a field of the rule. Clusters repeat few requests, so the
decisions on the last ones are remembered, by the fields that the policy uses.

A completed event (see `audit/truncated.py`) may lack what a condition asks for. Where that could
decide, the event is kept as it is: `unsure`.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Final, NamedTuple

from msgspec import Raw

from forwarder.policy.attributes import (
    UNKNOWN,
    EventFields,
    Request,
    UsedFields,
    attributes,
    lost,
)
from forwarder.policy.document import LEVELS, GroupResources, Policy, Rule
from forwarder.policy.redact import edited, without_managed_fields

NO_RULE: Final = "none"
UNSURE: Final = "unsure"
_RANK: Final = {level: rank for rank, level in enumerate(LEVELS)}
_HIGHEST: Final = len(LEVELS) - 1
_REQUEST: Final = _RANK["Request"]
_REMEMBERED: Final = 2048  # requests, for little memory just those of few bytes and groups
_MANY_BYTES: Final = 4096
_MANY_GROUPS: Final = 100
_NOTHING: Final = frozenset[str]()

_Condition = Callable[[Request], bool]
Outcome = tuple[bytes | None, tuple[str, str]]
"""What is left of an event, None if nothing, and the rule's number (or `none`, `unsure`) and level.

The level is the one that the event is left at, `unknown` if audit.k8s.io/v1 has none of this name.
"""


class Decision(NamedTuple):
    """What a rule decides: its number, the highest level of what is kept, and omitted stages."""

    rule: str
    rank: int
    omitted: frozenset[str] = _NOTHING
    strips: bool = False


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
                _conditions(rule),
            )
            for number, rule in enumerate(policy.rules, 1)
        ]
        rules = policy.rules
        self._used = UsedFields(
            groups=any(rule.user_groups for rule in rules),
            names=any(one.resource_names for rule in rules for one in rule.resources),
            namespaces=any(rule.namespaces for rule in rules),
        )
        self._remembered = lru_cache(_REMEMBERED)(self._decide)

    def apply(self, event: bytes, found: EventFields) -> Outcome:
        """Apply the first rule that matches; `found`, decoded from the event, loses what is cut."""
        request, response = found.request_object, found.response_object
        used = attributes(found, self._used)
        missing = _NOTHING
        if found.target is None or not found.uri or UNKNOWN in (found.verb, found.user.username):
            missing = lost(found, event)
        small = len(event) - len(request) - len(response) < _MANY_BYTES
        if small and not missing and len(found.user.groups) < _MANY_GROUPS:
            decision = self._remembered(*used)
        else:
            decision = self._decide(*used, lost=missing)
        label = found.level if found.level in _RANK else UNKNOWN
        if decision is None:
            return event, (UNSURE, label)
        rule, rank, omitted, strips = decision
        if not rank or found.stage in omitted:
            return None, (rule, LEVELS[0])
        level = found.level
        if rank < _RANK.get(level, _HIGHEST):
            level = label = LEVELS[rank]
        elif not request and not response:
            return event, (rule, label)
        left = _redacted(event, found, level, rank, strips=strips)
        if rank < _HIGHEST:
            found.response_object = Raw()
            found.request_object = request if rank == _REQUEST else Raw()
        return left, (rule, label)

    def steps(
        self, request: Request, lost: frozenset[str] = _NOTHING
    ) -> Iterator[tuple[Decision, str | None]]:
        """Yield each rule up to the first that matches, with the field that keeps it from matching.

        That is None for the match, and `unsure` where the event has `lost` what decides; nothing
        follows either.
        """
        for decision, conditions in self._rules:
            failed = None
            for name, met in conditions.items():
                if name not in lost and not met(request):
                    failed = name
                    break
            if failed is None and not lost.isdisjoint(conditions):
                failed = UNSURE
            yield decision, failed
            if failed in (None, UNSURE):
                return

    def _decide(self, *attributes: Any, lost: frozenset[str] = _NOTHING) -> Decision | None:
        """Return what the rule that matches does; None if it is unsure which one that is."""
        for decision, failed in self.steps(Request(*attributes), lost):
            if failed in (None, UNSURE):
                return decision if failed is None else None
        return Decision(NO_RULE, 0)


def _redacted(event: bytes, found: EventFields, level: str, rank: int, *, strips: bool) -> bytes:
    """Return the event at its new level, without the objects and managed fields beyond it."""
    edits: dict[str, bytes] = {}
    if level != found.level:
        edits["level"] = b'"%b"' % level.encode()
    if found.response_object:
        if rank < _HIGHEST:
            edits["responseObject"] = b""
        elif strips and (left := without_managed_fields(found.response_object)):
            edits["responseObject"] = left
    if found.request_object:
        if rank < _REQUEST:
            edits["requestObject"] = b""
        elif (
            strips
            and found.verb != "patch"
            and (left := without_managed_fields(found.request_object))
        ):
            edits["requestObject"] = left
    return edited(event, edits) if edits else event


def _conditions(rule: Rule) -> dict[str, _Condition]:
    """Return the conditions that a request must meet, all of them, for the rule to match."""
    users, groups, verbs, namespaces = map(
        frozenset, (rule.users, rule.user_groups, rule.verbs, rule.namespaces)
    )
    found: dict[str, _Condition] = {}
    if users:
        found["users"] = lambda request: request.user in users
    if groups:
        found["userGroups"] = lambda request: not groups.isdisjoint(request.groups)
    if verbs:
        found["verbs"] = lambda request: request.verb in verbs
    if namespaces:
        found["namespaces"] = lambda request: (
            request.resource is not None and request.namespace in namespaces
        )
    if rule.resources:
        found["resources"] = _on_resources(rule.resources)
    if rule.non_resource_urls:
        found["nonResourceURLs"] = _on_paths(rule.non_resource_urls)
    return found


def _on_resources(listed: tuple[GroupResources, ...]) -> _Condition:
    by_group: dict[str, list[tuple[frozenset[str], frozenset[str]]]] = {}
    for one in listed:
        entry = (frozenset(one.resources), frozenset(one.resource_names))
        by_group.setdefault(one.group, []).append(entry)

    def condition(request: Request) -> bool:
        if request.resource is None or not (entries := by_group.get(request.group)):
            return False
        resource, subresource = request.resource, request.subresource
        # `pods/*` also matches pods, contrary to the documentation of the field.
        spellings = {"*", f"{resource}/*"}
        spellings |= (
            {f"{resource}/{subresource}", f"*/{subresource}"} if subresource else {resource}
        )
        return any(
            not resources
            or ((not names or request.name in names) and not resources.isdisjoint(spellings))
            for resources, names in entries
        )

    return condition


def _on_paths(listed: tuple[str, ...]) -> _Condition:
    exact = frozenset(listed)
    prefixes = tuple(url.rstrip("*") for url in listed if url.endswith("*"))
    return lambda request: (
        request.resource is None and (request.path in exact or request.path.startswith(prefixes))
    )
