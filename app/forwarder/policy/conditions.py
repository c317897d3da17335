"""The conditions of a rule, by field: each tells whether a request meets it, as kube-apiserver."""

from collections.abc import Callable
from typing import Final

from forwarder.policy.attributes import Request
from forwarder.policy.document import GroupResources, Rule

Condition = Callable[[Request], bool]

ON_TARGETS: Final = {"namespaces", "resources", "nonResourceURLs"}
"""The fields whose conditions look at what a request is about."""


def conditions(rule: Rule) -> dict[str, Condition]:
    """Return the conditions that a request must meet, all of them, for the rule to match."""
    users, groups, verbs, namespaces = map(
        frozenset, (rule.users, rule.user_groups, rule.verbs, rule.namespaces)
    )
    found: dict[str, Condition] = {}
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
        found["resources"] = _resources(rule.resources)
    if rule.non_resource_urls:
        found["nonResourceURLs"] = _urls(rule.non_resource_urls)
    return found


def _resources(listed: tuple[GroupResources, ...]) -> Condition:
    by_group: dict[str, list[tuple[frozenset[str], frozenset[str]]]] = {}
    for one in listed:
        entry = (frozenset(one.resources), frozenset(one.resource_names))
        by_group.setdefault(one.group, []).append(entry)

    def condition(request: Request) -> bool:
        if request.resource is None or not (entries := by_group.get(request.group)):
            return False
        resource, subresource = request.resource, request.subresource
        # `pods/*` is for pods themselves too, whatever its documentation says.
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


def _urls(listed: tuple[str, ...]) -> Condition:
    exact = frozenset(listed)
    prefixes = tuple(url.rstrip("*") for url in listed if url.endswith("*"))

    def condition(request: Request) -> bool:
        return request.resource is None and (
            request.path in exact or request.path.startswith(prefixes)
        )

    return condition
