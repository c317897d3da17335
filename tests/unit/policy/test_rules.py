"""The user's audit policy: what is accepted, what it leaves of events, and that it loses none."""

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


def left(applied: Engine, event: bytes) -> bytes | None:
    return applied.apply(event, decode(event))[0]


def made(**fields: Any) -> bytes:
    """Return an event as kube-apiserver would write it, with these fields."""
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


CUT = {"annotations": {"audit.aks/truncated": "true"}}
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
def test_a_wrong_policy_is_refused_by_rule_and_field(yaml: str, problems: list[str]) -> None:
    with pytest.raises(PolicyError) as error:
        document.parse(yaml)
    said = error.value.problems
    assert [
        text for text, start in zip(said, problems, strict=True) if not text.startswith(start)
    ] == []


def test_a_policy_may_leave_out_api_version_and_kind_as_in_the_chart() -> None:
    rules = "rules: [{level: None, users: [a]}, {level: Metadata}]\nomitStages: [Panic]"
    head = f"apiVersion: {HEAD['apiVersion']}\nkind: Policy\nmetadata: {{name: a}}\n"
    assert document.parse(rules) == document.parse(head + rules)
    assert document.parse(rules).omit_stages == ("Panic",)


def test_fields_that_are_null_are_as_if_they_were_not_there() -> None:
    """As kube-apiserver reads them."""
    applied = engine({"level": "None", "users": None, "resources": None}, metadata=None)
    assert left(applied, made()) is None


@pytest.mark.parametrize("level", ["Metadata", "Request", "RequestResponse"])
def test_a_level_takes_objects_off_and_leaves_every_other_byte(level: str) -> None:
    for event in (*REAL, made(**OBJECTS, responseStatus={"code": 200})):
        found = json.loads(event)
        for name, needed in (("requestObject", "Request"), ("responseObject", "RequestResponse")):
            if level < needed:  # the names happen to sort so
                found.pop(name, None)
        found["level"] = min(level, found["level"])
        result = left(engine({"level": level}), event)
        assert result is not None
        assert json.loads(result) == found
        # What is left is there as it was, in order: the event's bytes minus those cut out.
        rest = iter(event.replace(b'"RequestResponse"', b'"%b"' % found["level"].encode(), 1))
        assert all(byte in rest for byte in result)


def test_what_needs_no_cut_is_the_same_object() -> None:
    for event in REAL:
        assert left(engine({"level": "RequestResponse"}), event) is event


def test_an_event_at_a_lower_level_is_never_raised() -> None:
    event = made(level="Metadata")
    for level in ("Metadata", "Request", "RequestResponse"):
        assert left(engine({"level": level}), event) is event


def test_an_unknown_level_counts_as_the_highest() -> None:
    event = made(level="Full", **OBJECTS)
    assert left(engine({"level": "RequestResponse"}), event) == event
    result = json.loads(left(engine({"level": "Metadata"}), event) or b"")
    assert (result["level"], "requestObject" in result) == ("Metadata", False)


def test_no_rule_drops_and_the_first_one_wins() -> None:
    event = made()
    assert left(engine({"level": "Metadata", "verbs": ["get"]}), event) is None
    assert left(engine({"level": "None"}, {"level": "Metadata"}), event) is None
    assert left(engine({"level": "Metadata"}, {"level": "None"}), event) is not None


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
def test_resources_and_subresources_are_spelt_as_for_the_api_server(
    spelling: str, matched: list[str]
) -> None:
    applied = engine({"level": "Metadata", "resources": [{"resources": [spelling]}]})
    found = []
    for name in ("pods", "pods/log", "jobs/log"):
        resource, _, subresource = name.partition("/")
        target = {"resource": resource} | ({"subresource": subresource} if subresource else {})
        if left(applied, made(objectRef=target)):
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
def test_paths_are_those_of_requests_about_no_resource(url: str, matched: list[str]) -> None:
    applied = engine({"level": "Metadata", "nonResourceURLs": [url]})
    uris = ["/a%20b?c=d", "/a", "/a/b", "/?/a"]
    assert [u for u in uris if left(applied, made(requestURI=u, objectRef=None))] == matched
    assert left(applied, made(requestURI="/a")) is None


def test_a_field_of_the_same_name_inside_another_object_stays() -> None:
    inside = {"x": 1, "requestObject": {}, "responseObject": {}}
    result = left(
        engine({"level": "Metadata"}), made(other=inside, requestObject={}, responseObject={})
    )
    assert json.loads(result or b"")["other"] == inside
    assert not {"requestObject", "responseObject"} & json.loads(result or b"").keys()


def test_requests_are_not_remembered_by_what_a_client_can_make_long() -> None:
    applied = engine({"level": "Metadata", "nonResourceURLs": ["/a"]}, {"level": "Metadata"})
    tracemalloc.start()
    try:
        for number in range(300):
            assert left(applied, made(requestURI=f"/{number}{'a' * 100_000}", objectRef=None))
        assert tracemalloc.get_traced_memory()[0] < 3_000_000
    finally:
        tracemalloc.stop()


def test_stages_are_omitted_by_policy_and_rule_together() -> None:
    applied = engine({"level": "Metadata", "omitStages": ["Panic"]}, omitStages=["ResponseStarted"])
    kept = [s for s in get_args(document.Stage) if left(applied, made(stage=s))]
    assert kept == ["RequestReceived", "ResponseComplete"]


def test_the_name_in_a_created_object_came_too_late_for_rules() -> None:
    """The API server matches rules before it has read the object that its event then names."""
    applied = engine(
        {"level": "None", "resources": [{"resources": ["pods"], "resourceNames": ["b"]}]},
        {"level": "Metadata"},
    )
    uri = "/api/v1/namespaces/a/pods"
    assert left(applied, made(verb="create", requestURI=f"{uri}?dryRun=All"))
    assert left(applied, made(verb="create", requestURI=f"{uri}/b")) is None
    assert left(applied, made(verb="delete", requestURI=uri)) is None
    namespaced = engine({"level": "None", "namespaces": ["a"]}, {"level": "Metadata"})
    assert left(namespaced, made(verb="create", requestURI=uri)) is None
    assert left(namespaced, made(verb="create", requestURI="/apis/x/v1/pods"))


def test_the_user_who_impersonates_is_the_one_that_rules_see() -> None:
    event = made(impersonatedUser={"username": "other", "groups": ["others"]})
    assert left(engine({"level": "None", "users": ["me"]}, {"level": "Metadata"}), event) is None
    assert left(engine({"level": "Metadata", "users": ["other"]}), event) is None
    assert left(engine({"level": "Metadata", "userGroups": ["others"]}), event) is None


def test_managed_fields_go_from_objects_lists_and_tables_but_not_from_patches() -> None:
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
        event = made(requestObject=before, responseObject=before)
        for policy in ({"omitManagedFields": True}, {}):
            rule = {"level": "RequestResponse"} | ({} if policy else {"omitManagedFields": True})
            assert left(engine(rule, **policy), event) == made(
                requestObject=after, responseObject=after
            )
        unset = engine(
            {"level": "RequestResponse", "omitManagedFields": False}, omitManagedFields=True
        )
        assert left(unset, event) == event
        patch = made(verb="patch", requestObject=before, responseObject=before)
        assert left(engine({"level": "RequestResponse"}, omitManagedFields=True), patch) == made(
            verb="patch", requestObject=before, responseObject=after
        )


# Each loses what a rule asks for.
ASKING: list[Object] = [
    {"level": "None", "resources": [{"resources": ["pods"]}]},
    {"level": "None", "resources": [{"group": ""}]},
    {"level": "None", "namespaces": ["", "a"]},
    {"level": "None", "nonResourceURLs": ["*"]},
]


@pytest.mark.parametrize("rule", ASKING, ids=lambda rule: list(rule)[1])
def test_a_cut_off_event_is_left_as_it_is_if_a_rule_asks_for_what_it_lost(rule: Object) -> None:
    for more in ({"objectRef": None}, {"requestURI": ""}):
        lost = made(**CUT, **OBJECTS, **more)
        for rules in (
            [rule],
            [rule, {"level": "None"}],
            [{"level": "None", "verbs": []}, rule][1:],
        ):
            assert left(engine(*rules), lost) is lost
        # What the rules before it ask for is there: they hold.
        assert left(engine({"level": "None", "users": ["me"]}, rule), lost) is None
        assert left(engine(rule | {"users": ["other"]}, {"level": "None"}), lost) is None
        kept = left(engine(rule | {"verbs": ["get"]}, {"level": "Metadata"}), lost)
        assert kept
        assert b"Object" not in kept


def test_a_real_event_cut_off_before_its_target_is_filtered_as_the_whole_one() -> None:
    applied = engine(*ASKING)
    for event in REAL:
        text = event.decode()
        if (at := text.find('"objectRef"')) > 0:
            cut = complete(text[: at + 5], "2026-01-01T00:00:00Z").encode()
            assert bool(left(applied, cut)) == bool(left(applied, event))


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
def test_an_event_that_lost_verb_or_user_is_kept_if_a_rule_may_be_for_it(
    rule: Object,
    kept: bool,  # noqa: FBT001
) -> None:
    """What is known of it, here the target, still decides."""
    event = complete(HIDDEN, "2026-01-01T00:00:00Z").encode()
    applied = engine({"level": "None", **rule}, {"level": "None"})
    assert left(applied, event) == (event if kept else None)
    dropped = engine({"level": "None", "resources": [{"resources": ["pods"]}]})
    assert left(dropped, event) is None
    forged = made(verb="unknown", user={"username": "unknown"})
    assert left(engine({"level": "None", "users": ["me"]}, {"level": "None"}), forged) is None


def test_a_hidden_request_about_no_resource_is_kept_for_rules_on_paths() -> None:
    event = complete(HIDDEN.replace("/api/v1/namespaces/a/pods", "/logs/"), None).encode()
    assert left(engine({"level": "None", "nonResourceURLs": ["/a"]}), event) == event


def test_real_requests_that_hide_are_kept_by_the_presets() -> None:
    for event in REAL:
        cut = event[: event.index(b'"verb"') - 10].decode()
        hidden = complete(cut, "2026-01-01T00:00:00Z").encode()
        for name in PRESETS:
            assert left(Engine(document.load(name)), hidden) == hidden


@pytest.mark.parametrize(
    "user",
    [
        {"username": "a" * 900_000},
        {"username": "a", "groups": [str(number) for number in range(90_000)]},
        {"username": "a", "groups": ["g" * 900] * 1000},
    ],
)
def test_long_users_and_many_groups_are_not_remembered(user: Object) -> None:
    applied = engine({"level": "None", "userGroups": ["a"]}, {"level": "Metadata"})
    tracemalloc.start()
    try:
        for number in range(10):
            event = made(user={**user, "username": f"{user['username']}{number}"})
            assert left(applied, event)
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
THINGS: list[Any] = [
    *(None, 1.50, 10**30, "é", [], {}, {"level": "Metadata"}, {"managedFields": 1}),
    {"metadata": MANAGED, "spec": {"metadata": MANAGED}},
    {"metadata": None, "items": [{"metadata": MANAGED}, {"metadata": {}}, 1]},
    {"rows": [{"object": {"metadata": MANAGED}}, {"cells": []}, 1], "items": 1},
    {"a": 1, "requestObject": {"metadata": MANAGED}, "responseObject": {}, "level": "None"},
]
objects = words([thing for thing in THINGS if isinstance(thing, dict)])
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
        "other": words(THINGS),
    },
)


made_first = ("kind", "apiVersion", "level")
written = st.sampled_from([(",", ":"), (", ", " : ")])


@given(policies, recorded, st.randoms(use_true_random=False), written)
@settings(max_examples=400)
def test_the_engine_is_as_the_simple_model(
    policy: Object, event: Object, random: Random, spaces: tuple[str, str]
) -> None:
    """Whatever the order of the fields and the white space between them."""
    order = list(event)
    random.shuffle(order)
    if spaces == (",", ":"):  # as the API server writes it
        order = [*(name for name in made_first if name in event), *order]
    event = {name: event[name] for name in order}
    text = json.dumps(event, separators=spaces).encode()
    result = left(Engine(document.parse(json.dumps(HEAD | policy))), text)
    expected = policymodel.apply(policy, event)
    assert (None if result is None else json.loads(result)) == expected
    assert result is None or list(json.loads(result)) == list(expected or ())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_loads_and_says_what_it_is(name: str) -> None:
    assert str(document.load(name)).startswith(f"{name}, ")
