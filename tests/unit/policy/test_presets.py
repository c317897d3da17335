"""The built-in policies: `quiet`, and `security` compared with the rules of a sensor.

RULES restates the conditions of the rules for audit events that Falco publishes: the events on
which each rule fires, and the parts of the event's objects that it reads or shows.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from forwarder.commands.explain import tally
from forwarder.policy import document
from forwarder.policy.attributes import decode
from forwarder.policy.document import PRESETS
from forwarder.policy.rules import Engine
from support import events
from support.documents import page
from support.policies import EVERYTHING, RECORDED

Event = dict[str, Any]
ENGINE = Engine(document.load("security"))


class SensorRule(NamedTuple):
    """The events on which a rule fires, and the paths that it reads in their objects."""

    fires: Callable[[Event], bool]
    reads: tuple[str, ...] = ()


def get(event: Event, path: str) -> Any:
    """Return the value at a path, or the values of all items of a list."""
    found: Any = event
    for key in path.split("/"):
        if isinstance(found, list):
            found = [one.get(key) for one in found if isinstance(one, dict)]
        else:
            found = found.get(key) if isinstance(found, dict) else None
    return found


def user(event: Event) -> str:
    return str(event["user"].get("username") or "")


def is_system(event: Event) -> bool:
    return user(event).startswith("system:")


def is_complete(event: Event) -> bool:
    return bool(event["stage"] == "ResponseComplete")


def succeeded(event: Event) -> bool:
    return str(get(event, "responseStatus/code")).startswith("2")


def targets(*resources: str, sub: str | None = None, verbs: str = "") -> Callable[[Event], bool]:
    """Return a condition on the resource; `sub` is its subresource, or "" for none."""

    def condition(event: Event) -> bool:
        target = event.get("objectRef") or {}
        return (
            target.get("resource") in resources
            and (sub is None or target.get("subresource", "") in sub.split(","))
            and (not verbs or event["verb"] in verbs.split(","))
        )

    return condition


def all_of(*conditions: Callable[[Event], bool]) -> Callable[[Event], bool]:
    return lambda event: all(condition(event) for condition in conditions)


def is_not_probe(event: Event) -> bool:
    return event["requestURI"].partition("?")[0] not in {"/healthz", "/livez", "/readyz"}


def shares_host(event: Event) -> bool:
    return any(
        get(event, f"requestObject/spec/host{namespace}") for namespace in ("IPC", "PID", "Network")
    )


def privileged(event: Event) -> bool:
    kinds = ("containers", "initContainers", "ephemeralContainers")
    paths = (f"requestObject/spec/{kind}/securityContext/privileged" for kind in kinds)
    return any(True in (get(event, path) or []) for path in paths)


def mounts_host(event: Event) -> bool:
    return any(filter(None, get(event, "requestObject/spec/volumes/hostPath/path") or []))


def contains_password(event: Event) -> bool:
    return "password" in json.dumps(get(event, "requestObject/data"))


def has_type(kind: str) -> Callable[[Event], bool]:
    return lambda event: get(event, "requestObject/spec/type") == kind


def grants(*words: str) -> Callable[[Event], bool]:
    def condition(event: Event) -> bool:
        rules = get(event, "requestObject/rules") or []
        found = [word for rule in rules for key in rule for word in rule[key]]
        return bool(set(found) & set(words))

    return condition


POD_PARTS = (
    *("requestObject/spec/containers/image", "responseObject/metadata/name"),
    *("requestObject/spec/initContainers/image", "requestObject/spec/volumes"),
)
new_pod = all_of(is_complete, targets("pods", sub="", verbs="create"))
new_role = all_of(is_complete, targets("roles", "clusterroles", verbs="create"))
ROLE = ("requestObject/rules",)
BINDING = ("requestObject/subjects", "requestObject/roleRef/name")
KUBE = {"kube-system", "kube-public"}
RULES = {
    "any user outside the system": SensorRule(
        all_of(is_complete, lambda event: not is_system(event))
    ),
    "anonymous request, allowed or not": SensorRule(
        all_of(
            is_complete,
            lambda event: user(event) == "system:anonymous",
            is_not_probe,
        )
    ),
    "new pod": SensorRule(new_pod, POD_PARTS),
    "privileged pod": SensorRule(all_of(new_pod, privileged), POD_PARTS),
    "pod shares with its host": SensorRule(all_of(new_pod, shares_host), POD_PARTS),
    "pod mounts its host": SensorRule(all_of(new_pod, mounts_host), POD_PARTS),
    "pod in a system namespace": SensorRule(
        all_of(new_pod, lambda event: get(event, "objectRef/namespace") in KUBE), POD_PARTS
    ),
    "exec and attach": SensorRule(
        all_of(
            lambda event: event["stage"] == "ResponseStarted",
            targets("pods", sub="exec,attach", verbs="create,get"),
        )
    ),
    "port-forward, at any stage": SensorRule(
        lambda event: get(event, "objectRef/subresource") == "portforward"
    ),
    "ephemeral container": SensorRule(
        all_of(
            is_complete, targets("pods", sub="ephemeralcontainers", verbs="create,update,patch")
        ),
        ("requestObject/ephemeralContainers",),
    ),
    "node port": SensorRule(
        all_of(is_complete, targets("services", verbs="create"), has_type("NodePort")),
        ("requestObject/spec/ports", "requestObject/spec/type"),
    ),
    "password in a configmap": SensorRule(
        all_of(is_complete, targets("configmaps", verbs="create,update,patch"), contains_password),
        ("requestObject/data",),
    ),
    "namespace": SensorRule(all_of(is_complete, targets("namespaces", verbs="create,delete"))),
    "service account": SensorRule(
        all_of(is_complete, targets("serviceaccounts", verbs="create,delete"))
    ),
    "system role": SensorRule(
        all_of(
            is_complete,
            targets("roles", "clusterroles", verbs="create,update,patch,delete"),
            lambda event: str(get(event, "objectRef/name")).startswith("system:"),
        )
    ),
    "role": SensorRule(new_role, ROLE),
    "role with wildcard": SensorRule(all_of(new_role, grants("*")), ROLE),
    "role that may write": SensorRule(all_of(new_role, grants("create", "update", "delete")), ROLE),
    "role that may exec": SensorRule(all_of(new_role, grants("pods/exec")), ROLE),
    "role deleted": SensorRule(
        all_of(is_complete, targets("roles", "clusterroles", verbs="delete"))
    ),
    "binding": SensorRule(
        all_of(is_complete, targets("rolebindings", "clusterrolebindings", verbs="create,delete")),
        BINDING,
    ),
    "cluster-admin": SensorRule(
        all_of(
            is_complete,
            targets("clusterrolebindings", verbs="create"),
            lambda event: get(event, "requestObject/roleRef/name") == "cluster-admin",
        ),
        BINDING,
    ),
    "workload created or deleted": SensorRule(
        all_of(
            is_complete,
            succeeded,
            targets("deployments", "services", "configmaps", verbs="create,delete"),
        )
    ),
    "secret": SensorRule(all_of(is_complete, targets("secrets", verbs="get,create,delete"))),
    "ingress without TLS": SensorRule(
        all_of(
            is_complete,
            succeeded,
            targets("ingresses", verbs="create"),
            lambda event: get(event, "requestObject/spec/tls") is None,
        ),
        ("requestObject/spec",),
    ),
    "node joins": SensorRule(all_of(is_complete, targets("nodes", verbs="create"))),
}

CONTAINER = {"name": "a", "image": "a:1", "securityContext": {"privileged": True}}
OBJECT = {
    "metadata": {"name": "a", "managedFields": [{"manager": "m"}]},
    "data": {"password": "1"},
    "ephemeralContainers": [CONTAINER],
    "roleRef": {"name": "cluster-admin"},
    "rules": [{"verbs": ["*", "create"], "resources": ["pods/exec"]}],
    "spec": {
        "containers": [CONTAINER],
        "hostNetwork": True,
        "ports": [{"nodePort": 30000}],
        "type": "NodePort",
        "volumes": [{"hostPath": {"path": "/etc"}}],
    },
    "subjects": [{"kind": "User", "name": "a"}],
}
AUTHENTICATED = ["system:authenticated"]
USERS: list[Event] = [
    {},
    {"username": "system:anonymous", "groups": ["system:unauthenticated"]},
    {"username": "me", "groups": AUTHENTICATED},
    {"username": "aksService", "groups": ["system:masters", *AUTHENTICATED]},
    {"username": "system:node:a", "groups": ["system:nodes", *AUTHENTICATED]},
    *(
        {
            "username": f"system:serviceaccount:{namespace}:a",
            "groups": [
                "system:serviceaccounts",
                f"system:serviceaccounts:{namespace}",
                *AUTHENTICATED,
            ],
        }
        for namespace in ("kube-system", "a")
    ),
    *(
        {"username": f"system:{name}", "groups": AUTHENTICATED}
        for name in ("kube-controller-manager", "kube-scheduler", "apiserver", "other")
    ),
]
TARGETS = [
    *(("", "pods", sub) for sub in ("", "exec", "attach", "portforward", "ephemeralcontainers")),
    *(("", name, "") for name in ("services", "configmaps", "namespaces", "serviceaccounts")),
    *(("", name, "") for name in ("secrets", "nodes", "events")),
    *(("", name, "status") for name in ("pods", "nodes", "services", "namespaces")),
    *(
        ("", "serviceaccounts", "token"),
        ("apps", "deployments", ""),
        ("apps", "deployments", "scale"),
    ),
    *(("rbac.authorization.k8s.io", name, "") for name in ("roles", "clusterroles")),
    *(("rbac.authorization.k8s.io", f"{name}bindings", "") for name in ("role", "clusterrole")),
    *(("networking.k8s.io", "ingresses", sub) for sub in ("", "status")),
    *(("coordination.k8s.io", "leases", ""), ("extensions", "ingresses", "")),
    *(("serving.knative.dev", "services", ""), ("a.example", "secrets", "")),
    ("subresources.kubevirt.io", "virtualmachineinstances", "portforward"),
]
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
STAGES = ("RequestReceived", "ResponseStarted", "ResponseComplete")
PATHS = ("/healthz", "/healthz/etcd", "/livez?a", "/readyz", "/version", "/api", "/metrics", "/a")


def synthetic() -> Iterator[Event]:
    """Yield events of every user, verb, target and stage, allowed and forbidden."""
    for requester, stage, code in itertools.product(USERS, STAGES, (201, 403)):
        common = {"level": "RequestResponse", "auditID": "1", "stage": stage, "user": requester}
        common |= {"responseStatus": {"code": code}}
        for path, verb in itertools.product(PATHS, ("get", "head", "post")):
            yield {**common, "requestURI": path, "verb": verb}
        for (group, resource, sub), verb in itertools.product(TARGETS, VERBS):
            target = {"resource": resource, "apiGroup": group, "subresource": sub}
            yield {
                **common,
                "verb": verb,
                "requestURI": f"/apis/{group}/v1/{resource}/system:a",
                "objectRef": {**target, "name": "system:a", "namespace": "kube-system"},
                "requestObject": OBJECT,
                "responseObject": OBJECT,
            }


def recorded() -> Iterator[Event]:
    """Yield the events that a real API server wrote."""
    everything = (RECORDED / f"{EVERYTHING}.jsonl").read_bytes().splitlines()
    yield from map(json.loads, (*events.real_events(), *everything))


@pytest.mark.parametrize("source", [synthetic, recorded])
def test_security_keeps_every_event_and_field_that_a_sensor_rule_reads(
    source: Callable[[], Iterator[Event]],
) -> None:
    fired, lost = set(), []
    for event in source():
        firing = [name for name, rule in RULES.items() if rule.fires(event)]
        fired |= set(firing)
        body = json.dumps(event).encode()
        left = ENGINE.apply(body, decode(body))[0]
        after = json.loads(left or b"null")
        lost += [
            (name, event)
            for name in firing
            if not after
            or not RULES[name].fires(after)
            or any(get(event, path) != get(after, path) for path in RULES[name].reads)
        ]
    assert lost == []
    assert source is not synthetic or fired == set(RULES)


def is_kept(event: Event) -> bool:
    """Return whether `quiet` is documented to keep an event, of one of the last two stages."""
    target = event.get("objectRef", {})
    writes = event["verb"] in ("create", "update", "patch", "delete", "deletecollection")
    interactive = target.get("subresource") in ("exec", "attach", "portforward", "token")
    return event["stage"] != "RequestReceived" and (
        not user(event)  # authentication failed
        or (target.get("resource") == "secrets" and not target["apiGroup"])
        or (interactive and not target["apiGroup"])
        or (bool(target) and not is_system(event) and user(event) != "aksService")
        or (writes and target.get("subresource") == "" and target["resource"] not in CHATTER)
    )


CHATTER = ("events", "leases")


def test_quiet_keeps_what_is_documented_and_no_secret() -> None:
    engine, lost = Engine(document.load("quiet")), []
    for event in filter(is_kept, synthetic()):
        body = json.dumps(event).encode()
        left = json.loads(engine.apply(body, decode(body))[0] or b"null")
        target = event.get("objectRef", {})
        secret = target.get("resource") == "secrets" and not target["apiGroup"]
        secret = secret or target.get("subresource") == "token"
        written = event["verb"] in ("create", "update", "patch") and target and not secret
        interactive = target.get("subresource") in ("exec", "attach", "portforward")
        if (
            not left
            or (secret and {"requestObject", "responseObject"} & left.keys())
            or (written and not interactive and "requestObject" not in left)
        ):
            lost.append(event)
    assert lost == []


@pytest.mark.parametrize("name", PRESETS)
def test_the_documented_effect_matches_the_measured_one(name: str) -> None:
    tallies, _ = tally(document.load(name), events.real_events(), frozenset())
    kept = (
        f"{sum(one.events_left for one in tallies) / sum(one.events for one in tallies):.0%}",
        f"{sum(one.size_left for one in tallies) / sum(one.size for one in tallies):.0%}",
    )
    row = next(
        line for line in page("audit-policy.md").splitlines() if line.startswith(f"| `{name}` |")
    )
    assert row.replace(" %", "%").endswith(f"| {kept[0]} | {kept[1]} |")
