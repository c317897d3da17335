"""The target of a request is derived from its path as kube-apiserver derives it."""

import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder.audit.requestinfo import object_reference
from support.events import real_events
from support.policies import EVERYTHING, RECORDED

V1 = {"apiVersion": "v1"}
APPS = {"apiGroup": "apps", "apiVersion": "v1"}
PATHS = {
    "/": {},
    "/api": {},
    "/api/v1": {},
    "/apis/apps/v1": {},
    "/healthz/etcd/x": {},
    "/openapi/v3/apis/apps/v1": {},
    "/api/v1/pods": {"resource": "pods", **V1},
    "//api/v1/pods/?a=/b/c": {"resource": "pods", **V1},
    "/api/v1/nodes/a": {"resource": "nodes", "name": "a", **V1},
    "/api/v1/nodes/a/proxy/b/c": {"resource": "nodes", "name": "a", "subresource": "proxy", **V1},
    "/api/v1/namespaces": {"resource": "namespaces", **V1},
    "/api/v1/namespaces/a": {"resource": "namespaces", "namespace": "a", "name": "a", **V1},
    "/api/v1/namespaces/a/status": {
        "resource": "namespaces",
        "namespace": "a",
        "name": "a",
        "subresource": "status",
        **V1,
    },
    "/api/v1/namespaces/a/finalize": {
        "resource": "namespaces",
        "namespace": "a",
        "name": "a",
        "subresource": "finalize",
        **V1,
    },
    "/api/v1/namespaces/a/pods": {"resource": "pods", "namespace": "a", **V1},
    "/api/v1/namespaces/a/pods/b/exec?command=c": {
        "resource": "pods",
        "namespace": "a",
        "name": "b",
        "subresource": "exec",
        **V1,
    },
    "/api/v1/namespaces/a/pods/b%20c/log%2Fd": {
        "resource": "pods",
        "namespace": "a",
        "name": "b c",
        "subresource": "log",
        **V1,
    },
    "/apis/apps/v1/namespaces/a/deployments/b/scale": {
        "resource": "deployments",
        "namespace": "a",
        "name": "b",
        "subresource": "scale",
        **APPS,
    },
    "/apis/apps/v1/deployments": {"resource": "deployments", **APPS},
    "/api/v1/watch": {},
    "/api/v1/watch/pods": {"resource": "pods", **V1},
    "/api/v1/watch/namespaces/a/pods/b": {
        "resource": "pods",
        "namespace": "a",
        "name": "b",
        **V1,
    },
    "/api/v1/proxy/namespaces/a/services/b/c/d": {
        "resource": "services",
        "namespace": "a",
        "name": "b",
        **V1,
    },
    "/%61pi/v1/secrets": {"resource": "secrets", **V1},
}


@pytest.mark.parametrize("uri", PATHS)
def test_paths_are_parsed_as_the_api_server_parses_them(uri: str) -> None:
    assert object_reference(uri, whole=True) == PATHS[uri]


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("/api/v1/pods/a", {"resource": "pods", **V1}),
        ("/api/v1/pods", {}),
        ("/api/v1/namespaces/a", {}),
        ("/api/v1/namespaces/a/pods", {}),
        ("/api/v1/namespaces/a/pods/b", {"resource": "pods", "namespace": "a", **V1}),
        ("/apis/apps/v1/namespaces/a/stat", {}),
    ],
)
def test_a_truncated_path_yields_only_what_is_certain(path: str, known: dict[str, str]) -> None:
    assert object_reference(path, whole=False) == known
    assert object_reference(path + "?", whole=False) == object_reference(path, whole=True)


def test_targets_match_those_that_a_real_api_server_derived() -> None:
    recorded = (RECORDED / f"{EVERYTHING}.jsonl").read_bytes().splitlines()
    checked = 0
    for event in map(json.loads, (*real_events(), *recorded)):
        expected = dict(event.get("objectRef", {}))
        for filled_in in ("uid", "resourceVersion"):
            expected.pop(filled_in, None)
        derived = object_reference(event["requestURI"], whole=True)
        if event["verb"] in ("create", "update", "patch"):  # completed from the object
            expected = {k: v for k, v in expected.items() if k in derived}
        if "fieldSelector=metadata.name" in event["requestURI"]:
            expected.pop("name", None)
        assert derived == expected, event["requestURI"]
        checked += bool(derived)
    assert checked > 300


@given(st.text(alphabet="/apisv1%2F? wtcnm"), st.booleans())
def test_no_path_raises(path: str, whole: bool) -> None:  # noqa: FBT001
    found = object_reference(path, whole=whole)
    assert not found or found["apiVersion"] is not None
    assert (
        object_reference("/api/v1/pods/" + quote(path, safe=""), whole=True)["resource"] == "pods"
    )
