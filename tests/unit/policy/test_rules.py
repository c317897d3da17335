"""The user's audit policy: what it accepts, what it keeps of events, and that it loses none."""

import json
import tracemalloc
from random import Random
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forwarder.audit.truncated import complete
from forwarder.errors import PolicyError
from forwarder.policy import document
from forwarder.policy.attributes import decode
from forwarder.policy.document import PRESETS
from forwarder.policy.rules import Engine
from support import events, policymodel

HEAD = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy"}
REAL = events.real_events()
Object = dict[str, Any]


def engine(*rules: Object, **more: Any) -> Engine:
    return Engine(document.parse(json.dumps({**HEAD, "rules": rules, **more})))


def kept_by(policy_engine: Engine, event: bytes) -> bytes | None:
    return policy_engine.apply(event, decode(event))[0]


def audit_event(**fields: Any) -> bytes:
    """Return an event as kube-apiserver writes it, with these fields."""
    event = {
        "kind": "Event",
        "apiVersion": "audit.k8s.io/v1",
        "level": "RequestResponse",
        "auditID": "1",
        "stage": "ResponseComplete",
        "requestURI": "/api/v1/namespaces/a/pods/b",
        "verb": "update",
        "user": {"username": "me", "groups": ["system:authenticated"]},
        "objectRef": {"resource": "pods", "namespace": "a", "name": "b", "apiVersion": "v1"},
        **fields,
    }
    return json.dumps(event, separators=(",", ":")).encode()


TRUNCATED = {"annotations": {"audit.aks/truncated": "true"}}
OBJECTS = {"requestObject": {"a": [1.0, "\u00e9"]}, "responseObject": {"b": 1e5}}


@pytest.mark.parametrize(
    ("yaml", "problems"),
    [
        ("", ["is not an object with rules"]),
        ("a: [", ["is not YAML: while parsing"]),
        ("a: 1\na: 2", ["is not YAML: 'a' twice"]),
        ("a: 1\n---\nb: 2", ["is not YAML: expected a single document"]),
        (
            "apiVersion: v1\nkind: Pod\nrules: [{level: None}]",
            ["apiVersion: must be audit", "kind: must be Policy"],
        ),
        ("rule: []", ["rules: must be a list of at least one", "rule: unknown field"]),
        ("rules: []", ["rules: must be a list of at least one"]),
        ("rules: {}", ["rules: must be a list of at least one"]),
        ("rules: [x, {}]", ["rule 1: Expected `object`", "rule 2: level: missing"]),
        ("rules: [{level: Metdata}]", ["rule 1: level: Invalid enum value 'Metdata'"]),
        ("omitStages: [A]\nrules: [{level: None}]", ["omitStages[0]: Invalid enum value 'A'"]),
        ("source: a\nrules: [{level: None}]", ["source: unknown field"]),
        ("rules: [{level: None, verb: [get]}]", ["rule 1: verb: unknown field"]),
        ("rules: [{level: None, verbs: [get, 1]}]", ["rule 1: verbs[1]: Expected `str`"]),
        ("rules: [{level: None, users: me}]", ["rule 1: users: Expected `array`, got `str`"]),
        (
            (
                "rules:\n- {level: None, resources: [{}, {group: apps/v1}]}\n"
                "- {level: None, resources: [{resourceNames: [a]}]}\n"
                "- {level: None, resources: [{b: 1}]}"
            ),
            [
                "rule 1: resources[1].group: 'apps/v1' is not an API group",
                "rule 2: resources[0].resourceNames: needs resources",
                "rule 3: resources[0].b: unknown field",
            ],
        ),
        (
            (
                'rules: [{level: None, resources: [{group: "a\\nb"}]}, {level: None, "a\\nb": 1}, '
                '{level: None, nonResourceURLs: ["a\\nb"]}]'
            ),
            [
                "rule 1: resources[0].group: 'a b' is not an API group",
                "rule 2: a b: unknown field",
                "rule 3: nonResourceURLs: 'a b' does not begin",
            ],
        ),
        (
            "rules: [{level: None, resources: [{group: a}], nonResourceURLs: [/a]}]",
            ["rule 1: nonResourceURLs: excludes resources"],
        ),
        (
            'rules: [{level: None, namespaces: [a], nonResourceURLs: ["/a"]}]',
            ["rule 1: nonResourceURLs: excludes namespaces"],
        ),
        (
            (
                'rules: [{level: None, nonResourceURLs: ["/", a]}, '
                '{level: None, nonResourceURLs: ["*", "/a*", "/*a"]}]'
            ),
            ["rule 1: nonResourceURLs: 'a' does not begin", "rule 2: nonResourceURLs: '/*a' has"],
        ),
    ],
)
def test_an_invalid_policy_is_refused_with_rule_and_field(yaml: str, problems: list[str]) -> None:
    with pytest.raises(PolicyError) as error:
        document.parse(yaml)
    reported = error.value.problems
    assert [
        text for text, start in zip(reported, problems, strict=True) if not text.startswith(start)
    ] == []


def test_api_version_and_kind_are_optional_as_in_the_chart() -> None:
    rules = "rules: [{level: None, users: [a]}, {level: Metadata}]\nomitStages: [Panic]"
    head = f"apiVersion: {HEAD['apiVersion']}\nkind: Policy\nmetadata: {{name: a}}\n"
    assert document.parse(rules) == document.parse(head + rules)
    assert document.parse(rules).omit_stages == ("Panic",)


def test_null_fields_count_as_absent() -> None:
    """As in kube-apiserver."""
    policy_engine = engine({"level": "None", "users": None, "resources": None}, metadata=None)
    assert kept_by(policy_engine, audit_event()) is None


@pytest.mark.parametrize("level", ["Metadata", "Request", "RequestResponse"])
def test_a_level_removes_objects_and_keeps_every_other_byte(level: str) -> None:
    for event in (*REAL, audit_event(**OBJECTS, responseStatus={"code": 200})):
        found = json.loads(event)
        for name, needed in (("requestObject", "Request"), ("responseObject", "RequestResponse")):
            if level < needed:  # the names sort in this order
                found.pop(name, None)
        found["level"] = min(level, found["level"])
        result = kept_by(engine({"level": level}), event)
        assert result is not None
        assert json.loads(result) == found
        # The rest is unchanged and in order: the bytes of the event without the removed ones.
        rest = iter(event.replace(b'"RequestResponse"', b'"%b"' % found["level"].encode(), 1))
        assert all(byte in rest for byte in result)


def test_an_event_that_needs_no_change_is_the_same_object() -> None:
    for event in REAL:
        assert kept_by(engine({"level": "RequestResponse"}), event) is event


def test_the_level_of_an_event_is_never_raised() -> None:
    event = audit_event(level="Metadata")
    for level in ("Metadata", "Request", "RequestResponse"):
        assert kept_by(engine({"level": level}), event) is event


def test_an_unknown_level_counts_as_the_highest() -> None:
    event = audit_event(level="Full", **OBJECTS)
    assert kept_by(engine({"level": "RequestResponse"}), event) == event
    result = json.loads(kept_by(engine({"level": "Metadata"}), event) or b"")
    assert (result["level"], "requestObject" in result) == ("Metadata", False)


def test_an_event_without_a_rule_is_dropped_and_the_first_match_wins() -> None:
    event = audit_event()
    assert kept_by(engine({"level": "Metadata", "verbs": ["get"]}), event) is None
    assert kept_by(engine({"level": "None"}, {"level": "Metadata"}), event) is None
    assert kept_by(engine({"level": "Metadata"}, {"level": "None"}), event) is not None


@pytest.mark.parametrize(
    ("spelling", "matched"),
    [
        ("pods", ["pods"]),
        ("pods/log", ["pods/log"]),
        ("pods/*", ["pods", "pods/log"]),
        ("*/log", ["pods/log", "jobs/log"]),
        ("*", ["pods", "pods/log", "jobs/log"]),
        ("*/*", []),
    ],
)
def test_resources_and_subresources_match_as_in_the_api_server(
    spelling: str, matched: list[str]
) -> None:
    policy_engine = engine({"level": "Metadata", "resources": [{"resources": [spelling]}]})
    found = []
    for name in ("pods", "pods/log", "jobs/log"):
        resource, _, subresource = name.partition("/")
        target = {"resource": resource} | ({"subresource": subresource} if subresource else {})
        if kept_by(policy_engine, audit_event(objectRef=target)):
            found.append(name)
    assert found == matched


@pytest.mark.parametrize(
    ("url", "matched"),
    [
        ("/a b", ["/a%20b?c=d"]),
        ("/a%20b", []),
        ("/a", ["/a"]),
        ("/a*", ["/a%20b?c=d", "/a", "/a/b"]),
        ("*", ["/a%20b?c=d", "/a", "/a/b", "/?/a"]),
    ],
)
def test_paths_match_only_requests_without_a_resource(url: str, matched: list[str]) -> None:
    policy_engine = engine({"level": "Metadata", "nonResourceURLs": [url]})
    uris = ["/a%20b?c=d", "/a", "/a/b", "/?/a"]
    assert [
        u for u in uris if kept_by(policy_engine, audit_event(requestURI=u, objectRef=None))
    ] == matched
    assert kept_by(policy_engine, audit_event(requestURI="/a")) is None


def test_a_field_of_the_same_name_inside_another_object_is_kept() -> None:
    inside = {"x": 1, "requestObject": {}, "responseObject": {}}
    result = kept_by(
        engine({"level": "Metadata"}),
        audit_event(other=inside, requestObject={}, responseObject={}),
    )
    assert json.loads(result or b"")["other"] == inside
    assert not {"requestObject", "responseObject"} & json.loads(result or b"").keys()


def test_long_request_uris_are_not_cached() -> None:
    policy_engine = engine({"level": "Metadata", "nonResourceURLs": ["/a"]}, {"level": "Metadata"})
    tracemalloc.start()
    try:
        for number in range(300):
            assert kept_by(
                policy_engine, audit_event(requestURI=f"/{number}{'a' * 100_000}", objectRef=None)
            )
        assert tracemalloc.get_traced_memory()[0] < 3_000_000
    finally:
        tracemalloc.stop()


def test_omitted_stages_of_policy_and_rule_are_combined() -> None:
    policy_engine = engine(
        {"level": "Metadata", "omitStages": ["Panic"]}, omitStages=["ResponseStarted"]
    )
    kept = [s for s in get_args(document.Stage) if kept_by(policy_engine, audit_event(stage=s))]
    assert kept == ["RequestReceived", "ResponseComplete"]


def test_resource_names_do_not_match_the_name_in_a_created_object() -> None:
    """The API server matches rules before it decodes the object; only its event has the name."""
    policy_engine = engine(
        {"level": "None", "resources": [{"resources": ["pods"], "resourceNames": ["b"]}]},
        {"level": "Metadata"},
    )
    uri = "/api/v1/namespaces/a/pods"
    assert kept_by(policy_engine, audit_event(verb="create", requestURI=f"{uri}?dryRun=All"))
    assert kept_by(policy_engine, audit_event(verb="create", requestURI=f"{uri}/b")) is None
    assert kept_by(policy_engine, audit_event(verb="delete", requestURI=uri)) is None
    namespaced = engine({"level": "None", "namespaces": ["a"]}, {"level": "Metadata"})
    assert kept_by(namespaced, audit_event(verb="create", requestURI=uri)) is None
    assert kept_by(namespaced, audit_event(verb="create", requestURI="/apis/x/v1/pods"))


def test_rules_match_the_impersonating_user() -> None:
    event = audit_event(impersonatedUser={"username": "other", "groups": ["others"]})
    assert kept_by(engine({"level": "None", "users": ["me"]}, {"level": "Metadata"}), event) is None
    assert kept_by(engine({"level": "Metadata", "users": ["other"]}), event) is None
    assert kept_by(engine({"level": "Metadata", "userGroups": ["others"]}), event) is None


def test_managed_fields_are_removed_from_objects_lists_and_tables_but_not_patches() -> None:
    managed = {"metadata": {"name": "n", "managedFields": [{"a": 1}]}, "x": 1.50}
    bare = {"metadata": {"name": "n"}, "x": 1.50}
    deep = {"spec": managed}
    for before, after in [
        (managed, bare),
        ({"items": [managed, 1]}, {"items": [bare, 1]}),
        ({"rows": [{"object": managed}, {}]}, {"rows": [{"object": bare}, {}]}),
        (deep, deep),
        (
            {"metadata": {"managedFields": [1], "a": 1}, "b": {"c": 1, "managedFields": [1]}},
            {"metadata": {"a": 1}, "b": {"c": 1, "managedFields": [1]}},
        ),
        ([managed], [managed]),
    ]:
        event = audit_event(requestObject=before, responseObject=before)
        for policy in ({"omitManagedFields": True}, {}):
            rule = {"level": "RequestResponse"} | ({} if policy else {"omitManagedFields": True})
            assert kept_by(engine(rule, **policy), event) == audit_event(
                requestObject=after, responseObject=after
            )
        unset = engine(
            {"level": "RequestResponse", "omitManagedFields": False}, omitManagedFields=True
        )
        assert kept_by(unset, event) == event
        patch = audit_event(verb="patch", requestObject=before, responseObject=before)
        assert kept_by(
            engine({"level": "RequestResponse"}, omitManagedFields=True), patch
        ) == audit_event(verb="patch", requestObject=before, responseObject=after)


# Rules on fields that a truncated event has lost.
RULES_ON_LOST_FIELDS: list[Object] = [
    {"level": "None", "resources": [{"resources": ["pods"]}]},
    {"level": "None", "resources": [{"group": ""}]},
    {"level": "None", "namespaces": ["", "a"]},
    {"level": "None", "nonResourceURLs": ["*"]},
]


@pytest.mark.parametrize("rule", RULES_ON_LOST_FIELDS, ids=lambda rule: list(rule)[1])
def test_a_truncated_event_is_unchanged_if_a_rule_reads_a_field_that_it_lost(rule: Object) -> None:
    for more in ({"objectRef": None}, {"requestURI": ""}):
        truncated = audit_event(**TRUNCATED, **OBJECTS, **more)
        for rules in (
            [rule],
            [rule, {"level": "None"}],
            [{"level": "None", "verbs": []}, rule][1:],
        ):
            assert kept_by(engine(*rules), truncated) is truncated
        # Earlier rules read only fields that the event has, so they apply.
        assert kept_by(engine({"level": "None", "users": ["me"]}, rule), truncated) is None
        assert kept_by(engine(rule | {"users": ["other"]}, {"level": "None"}), truncated) is None
        kept = kept_by(engine(rule | {"verbs": ["get"]}, {"level": "Metadata"}), truncated)
        assert kept
        assert b"Object" not in kept


def test_a_real_event_truncated_before_its_target_is_filtered_as_the_whole_one() -> None:
    policy_engine = engine(*RULES_ON_LOST_FIELDS)
    for event in REAL:
        text = event.decode()
        if (at := text.find('"objectRef"')) > 0:
            cut = complete(text[: at + 5], "2026-01-01T00:00:00Z").encode()
            assert bool(kept_by(policy_engine, cut)) == bool(kept_by(policy_engine, event))


HIDDEN = '{"auditID":"1","stage":"ResponseComplete","requestURI":"/api/v1/namespaces/a/pods?'


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ({"users": ["unknown"]}, True),
        ({"userGroups": ["system:authenticated"]}, True),
        ({"verbs": ["unknown", "get"]}, True),
        ({"verbs": ["get"], "resources": [{"resources": ["pods"]}]}, True),
        ({"verbs": ["get"], "resources": [{"resources": ["secrets"]}]}, False),
        ({"users": ["me"], "nonResourceURLs": ["*"]}, False),
        ({"users": ["me"], "namespaces": ["b"]}, False),
        ({"resources": [{"resources": ["secrets"]}]}, False),
    ],
)
def test_an_event_that_lost_verb_or_user_is_kept_if_a_rule_may_match(
    rule: Object,
    kept: bool,  # noqa: FBT001
) -> None:
    """Fields that it has, here the target, still decide."""
    event = complete(HIDDEN, "2026-01-01T00:00:00Z").encode()
    policy_engine = engine({"level": "None", **rule}, {"level": "None"})
    assert kept_by(policy_engine, event) == (event if kept else None)
    dropped = engine({"level": "None", "resources": [{"resources": ["pods"]}]})
    assert kept_by(dropped, event) is None
    forged = audit_event(verb="unknown", user={"username": "unknown"})
    assert kept_by(engine({"level": "None", "users": ["me"]}, {"level": "None"}), forged) is None


def test_a_hidden_request_without_a_resource_is_kept_for_rules_on_paths() -> None:
    event = complete(HIDDEN.replace("/api/v1/namespaces/a/pods", "/logs/"), None).encode()
    assert kept_by(engine({"level": "None", "nonResourceURLs": ["/a"]}), event) == event


def test_presets_keep_real_requests_that_lost_verb_and_user() -> None:
    for event in REAL:
        cut = event[: event.index(b'"verb"') - 10].decode()
        hidden = complete(cut, "2026-01-01T00:00:00Z").encode()
        for name in PRESETS:
            assert kept_by(Engine(document.load(name)), hidden) == hidden


@pytest.mark.parametrize(
    "user",
    [
        {"username": "a" * 900_000},
        {"username": "a", "groups": [str(number) for number in range(90_000)]},
        {"username": "a", "groups": ["g" * 900] * 1000},
    ],
)
def test_long_users_and_many_groups_are_not_cached(user: Object) -> None:
    policy_engine = engine({"level": "None", "userGroups": ["a"]}, {"level": "Metadata"})
    tracemalloc.start()
    try:
        for number in range(10):
            event = audit_event(user={**user, "username": f"{user['username']}{number}"})
            assert kept_by(policy_engine, event)
            del event
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()


words = st.sampled_from
names = words(["", "a", "b"])
resources = words(["pods", "services", "*", "pods/*", "*/log", "pods/log", "*/*", "namespaces"])
stages = words(["RequestReceived", "ResponseStarted", "ResponseComplete", "Panic"])
optional = {
    "users": st.lists(words(["me", "you", ""]), max_size=2),
    "userGroups": st.lists(words(["g", "h"]), max_size=2),
    "verbs": st.lists(words(["get", "create", "patch"]), max_size=2),
    "omitStages": st.lists(stages, max_size=2),
    "omitManagedFields": st.booleans(),
}
listed = st.fixed_dictionaries(
    {"resources": st.lists(resources, min_size=1, max_size=3)},
    optional={"group": words(["", "apps"]), "resourceNames": st.lists(names, max_size=2)},
) | st.fixed_dictionaries({"group": words(["", "apps"])})
on_resources = {
    "resources": st.lists(listed, max_size=2),
    "namespaces": st.lists(names, max_size=2),
}
paths = words(["/a", "/a*", "*", "/a%20b", "/a b*"])
on_paths = {"nonResourceURLs": st.lists(paths, max_size=2)}
a_level = {"level": words(policymodel.LEVELS)}
rule = st.fixed_dictionaries(a_level, optional=optional | on_resources) | st.fixed_dictionaries(
    a_level, optional=optional | on_paths
)
policies = st.fixed_dictionaries(
    {"rules": st.lists(rule, min_size=1, max_size=6)},
    optional={"omitStages": st.lists(stages, max_size=1), "omitManagedFields": st.booleans()},
)
MANAGED = {"name": "n", "managedFields": [{"manager": "m"}]}
VALUES: list[Any] = [
    *(None, 1.50, 10**30, "é", [], {}, {"level": "Metadata"}, {"managedFields": 1}),
    {"metadata": MANAGED, "spec": {"metadata": MANAGED}},
    {"metadata": None, "items": [{"metadata": MANAGED}, {"metadata": {}}, 1]},
    {"rows": [{"object": {"metadata": MANAGED}}, {"cells": []}, 1], "items": 1},
    {"a": 1, "requestObject": {"metadata": MANAGED}, "responseObject": {}, "level": "None"},
]
objects = words([value for value in VALUES if isinstance(value, dict)])
targets = st.fixed_dictionaries(
    {"resource": words(["pods", "services", "namespaces"])},
    optional={
        "subresource": words(["log", "status"]),
        "namespace": words(["a", "b"]),
        "name": words(["a", "b"]),
        "apiGroup": words(["apps"]),
    },
)
uris = words(
    [
        *("/a", "/a?b=/a", "/a%20b", "/", "/b", "/api/v1/pods", "/api/v1/pods/a"),
        *("/api/v1/namespaces", "/api/v1/namespaces/a", "/api/v1/namespaces/a/status"),
        *("/api/v1/namespaces/a/pods", "/api/v1/namespaces/a/pods/b/log", "/a" * 400),
        *("/apis/apps/v1/namespaces/a/pods", "/apis/apps/v1/pods/a"),
    ]
)
recorded = st.fixed_dictionaries(
    {
        "auditID": st.just("1"),
        "stage": stages,
        "verb": words(["get", "create", "update", "patch"]),
        "user": st.fixed_dictionaries(
            {}, optional={"username": words(["me", "you"]), "groups": st.lists(words(["g", "i"]))}
        ),
    },
    optional={
        "level": words([*policymodel.LEVELS[1:], "odd"]),
        "kind": st.just("Event"),
        "apiVersion": st.just("audit.k8s.io/v1"),
        "requestURI": uris,
        "objectRef": targets,
        "requestObject": objects,
        "responseObject": objects,
        "annotations": st.just({"audit.aks/truncated": "true"}) | st.just({"a": "b"}),
        "other": words(VALUES),
    },
)


first_fields = ("kind", "apiVersion", "level")
written = st.sampled_from([(",", ":"), (", ", " : ")])


@given(policies, recorded, st.randoms(use_true_random=False), written)
@settings(max_examples=400)
def test_the_engine_agrees_with_the_simple_model(
    policy: Object, event: Object, random: Random, spaces: tuple[str, str]
) -> None:
    """For any order of the fields, and any white space between them."""
    order = list(event)
    random.shuffle(order)
    if spaces == (",", ":"):  # as the API server writes it
        order = [*(name for name in first_fields if name in event), *order]
    event = {name: event[name] for name in order}
    text = json.dumps(event, separators=spaces).encode()
    result = kept_by(Engine(document.parse(json.dumps(HEAD | policy))), text)
    expected = policymodel.apply(policy, event)
    assert (None if result is None else json.loads(result)) == expected
    assert result is None or list(json.loads(result)) == list(expected or ())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_loads_and_shows_its_name(name: str) -> None:
    assert str(document.load(name)).startswith(f"{name}, ")
