"""Applies a policy to events, as kube-apiserver would have done when it wrote them.

The first rule that matches the request decides. If no rule matches, the event is dropped. Each
field of a rule is compiled to a condition once. Most requests in a cluster repeat, so the latest
decisions are cached by the fields that the policy uses.

A completed event (see `audit/truncated.py`) may lack what a condition needs. If that could change
the decision, the event is kept unchanged, and counted as `unsure`.
"""

from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from typing import Any, Final, NamedTuple

from msgspec import Raw

from forwarder.policy.attributes import UNKNOWN, EventFields, Request, UsedFields, attributes, lost
from forwarder.policy.document import LEVELS, GroupResources, Policy, Rule
from forwarder.policy.redact import edited, without_managed_fields

NO_RULE: Final = "none"
UNSURE: Final = "unsure"
_RANK: Final = {level: rank for rank, level in enumerate(LEVELS)}
_HIGHEST: Final = len(LEVELS) - 1
_REQUEST: Final = _RANK["Request"]
_CACHED: Final = 2048  # requests; to bound the memory, only those below both limits:
_MANY_BYTES: Final = 4096
_MANY_GROUPS: Final = 100
_NOTHING: Final = frozenset[str]()

_Condition = Callable[[Request], bool]


class Decision(NamedTuple):
    """The rule's number, its level as a rank, omitted stages, and whether to omit managedFields."""

    rule: str
    rank: int
    omitted: frozenset[str] = _NOTHING
    strips: bool = False


class Engine:
    """A compiled policy."""

    def __init__(self, policy: Policy) -> None:
        self._rules = list[tuple[Decision, dict[str, _Condition]]]()
        for number, rule in enumerate(policy.rules, 1):
            omitted = frozenset((*policy.omit_stages, *rule.omit_stages))
            own = rule.omit_managed_fields
            strips = policy.omit_managed_fields if own is None else own
            decision = Decision(str(number), _RANK[rule.level], omitted, strips)
            self._rules.append((decision, _conditions(rule)))
        self._used = UsedFields(
            groups=any(rule.user_groups for rule in policy.rules),
            names=any(one.resource_names for rule in policy.rules for one in rule.resources),
            namespaces=any(rule.namespaces for rule in policy.rules),
        )
        self._cached = lru_cache(_CACHED)(self._decide)

    def apply(self, event: bytes, fields: EventFields) -> tuple[bytes | None, tuple[str, str]]:
        """Apply the first rule that matches; return what it leaves (None: drop it), rule and level.

        The rule is its number, `none` or `unsure`; the level is `unknown` if it is not one of
        audit.k8s.io/v1. Removed objects are also removed from `fields`.
        """
        request, response = fields.request_object, fields.response_object
        used, user = attributes(fields, self._used), fields.user
        missing = _NOTHING
        if fields.target is None or not fields.uri or UNKNOWN in (fields.verb, user.username):
            missing = lost(fields, event)
        small = len(event) - len(request) - len(response) < _MANY_BYTES
        if small and not missing and len(user.groups) < _MANY_GROUPS:
            decision = self._cached(*used)
        else:
            decision = self._decide(*used, lost=missing)
        label = fields.level if fields.level in _RANK else UNKNOWN
        if decision is None:
            return event, (UNSURE, label)
        rule, rank, omitted, strips = decision
        if not rank or fields.stage in omitted:
            return None, (rule, LEVELS[0])
        level = fields.level
        if rank < _RANK.get(level, _HIGHEST):
            level = label = LEVELS[rank]
        elif not request and not response:
            return event, (rule, label)
        left = _redacted(event, fields, level, rank, strips=strips)
        if rank < _HIGHEST:
            fields.response_object = Raw()
            fields.request_object = request if rank == _REQUEST else Raw()
        return left, (rule, label)

    def steps(
        self, request: Request, lost: frozenset[str]
    ) -> Iterator[tuple[Decision, str | None]]:
        """Yield each rule up to the first that matches, with the field that does not match.

        The field is None for the rule that matches, and `unsure` if a field depends on what the
        event has `lost`. Nothing is yielded after either.
        """
        for decision, conditions in self._rules:
            for name, met in conditions.items():
                if name not in lost and not met(request):
                    failed: str | None = name
                    break
            else:
                failed = None if lost.isdisjoint(conditions) else UNSURE
            yield decision, failed
            if failed in (None, UNSURE):
                return

    def _decide(self, *attributes: Any, lost: frozenset[str] = _NOTHING) -> Decision | None:
        """Return the decision of the rule that matches; None if it is unsure which one does."""
        for decision, failed in self.steps(Request(*attributes), lost):
            if failed is None:
                return decision
            if failed == UNSURE:
                return None
        return Decision(NO_RULE, 0)


def _redacted(event: bytes, fields: EventFields, level: str, rank: int, *, strips: bool) -> bytes:
    """Return the event at its new level, without the objects and managedFields to omit."""
    edits: dict[str, bytes] = {}
    if level != fields.level:
        edits["level"] = b'"%b"' % level.encode()
    for name, value, least, strips_it in (
        ("responseObject", fields.response_object, _HIGHEST, strips),
        ("requestObject", fields.request_object, _REQUEST, strips and fields.verb != "patch"),
    ):
        if value and rank < least:
            edits[name] = b""
        elif value and strips_it and (left := without_managed_fields(value)):
            edits[name] = left
    return edited(event, edits) if edits else event


def _conditions(rule: Rule) -> dict[str, _Condition]:
    """Return the conditions by field of the rule; all must be met for the rule to match."""
    users, groups, verbs, namespaces = map(
        frozenset, (rule.users, rule.user_groups, rule.verbs, rule.namespaces)
    )
    conditions: dict[str, tuple[Collection[object], _Condition]] = {
        "users": (users, lambda request: request.user in users),
        "userGroups": (groups, lambda request: not groups.isdisjoint(request.groups)),
        "verbs": (verbs, lambda request: request.verb in verbs),
        "namespaces": (
            namespaces,
            lambda request: request.resource is not None and request.namespace in namespaces,
        ),
        "resources": (rule.resources, _on_resources(rule.resources)),
        "nonResourceURLs": (rule.non_resource_urls, _on_paths(rule.non_resource_urls)),
    }
    return {name: condition for name, (values, condition) in conditions.items() if values}


def _on_resources(listed: tuple[GroupResources, ...]) -> _Condition:
    by_group: dict[str, list[tuple[frozenset[str], frozenset[str]]]] = {}
    for group in listed:
        entry = (frozenset(group.resources), frozenset(group.resource_names))
        by_group.setdefault(group.group, []).append(entry)

    def condition(request: Request) -> bool:
        if request.resource is None or not (entries := by_group.get(request.group)):
            return False
        resource, subresource = request.resource, request.subresource
        # `pods/*` also matches pods, contrary to the documentation of the field.
        own = {f"{resource}/{subresource}", f"*/{subresource}"} if subresource else {resource}
        spellings = {"*", f"{resource}/*", *own}
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
