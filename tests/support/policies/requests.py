"""The recorded requests: a fixed list, each with a unique Audit-ID.

The API server writes a client's `Audit-ID` into the events. It identifies the events of the same
request under two policies. There are no controllers, no scheduler and no kubelet: pods stay
pending, a deleted namespace stays terminating, and exec fails. All of this is audited.
"""

import json
from dataclasses import dataclass, field
from typing import Any

USERS = {
    "admin": ("admin", "system:masters"),
    "alice": ("alice", "developers,auditors"),
    "bob": ("bob", "developers"),
    "carol": ("carol", ""),
    "gatekeeper": ("gatekeeper", "gatekeepers"),
    "robot": (
        "system:serviceaccount:team-a:robot",
        "system:serviceaccounts,system:serviceaccounts:team-a",
    ),
    "node": ("system:node:node-1", "system:nodes"),
    "proxy": ("system:kube-proxy", ""),
    "manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
}
"""User and comma-separated groups by short name; the server adds `system:authenticated`."""


def token(user: str) -> str:
    """Return a user's bearer token for the API server of a recording; it is not a secret."""
    return f"token-of-{user}"


@dataclass(frozen=True, slots=True)
class Request:
    """A request; `user` is a key of USERS, "" for anonymous; any other has an invalid token."""

    audit_id: str
    method: str
    path: str
    user: str = "admin"
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    then: tuple[str, str] | None = None
    """A user and a path that must answer 200 before the next request is sent."""

    @property
    def lasts(self) -> bool:
        """Whether it is a watch, which takes a second; the next request is sent meanwhile."""
        return "timeoutSeconds" in self.path


_SSA = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_JSON_PATCH = "application/json-patch+json"
_STRATEGIC = "application/strategic-merge-patch+json"

_A = "/api/v1/namespaces/team-a"
_APPS = "/apis/apps/v1/namespaces/team-a/deployments"
_RBAC = "/apis/rbac.authorization.k8s.io/v1"
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
_WIDGETS = "/apis/example.org/v1/namespaces/team-a/widgets"
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def _get(audit_id: str, path: str, user: str = "admin", **headers: str) -> Request:
    return Request(audit_id, "GET", path, user, headers=_named(headers))


def _delete(audit_id: str, path: str, user: str = "admin", body: Any = None) -> Request:
    return _send("DELETE", audit_id, path, body, user)


def _post(
    audit_id: str,
    path: str,
    body: Any,
    user: str = "admin",
    then: tuple[str, str] | None = None,
    **headers: str,
) -> Request:
    return _send("POST", audit_id, path, body, user, then, **headers)


def _put(audit_id: str, path: str, body: Any, user: str = "admin", **headers: str) -> Request:
    return _send("PUT", audit_id, path, body, user, None, **headers)


def _patch(audit_id: str, path: str, kind: str, body: Any, user: str = "admin") -> Request:
    return _send("PATCH", audit_id, path, body, user, content_type=kind)


def _send(  # noqa: PLR0913, PLR0917  a request has many parts
    method: str,
    audit_id: str,
    path: str,
    body: Any,
    user: str,
    then: tuple[str, str] | None = None,
    **headers: str,
) -> Request:
    content = (
        body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    )
    kind = {"content_type": "application/json"} if content else {}
    return Request(audit_id, method, path, user, content, _named(kind | headers), then)


def _named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def _object(api: str, kind: str, name: str, **rest: Any) -> dict[str, Any]:
    metadata = {"name": name, **rest.pop("metadata", {})}
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **rest}


def _config_map(name: str, **data: str) -> dict[str, Any]:
    return _object("v1", "ConfigMap", name, data=data)


def _pod(name: str) -> dict[str, Any]:
    containers = [{"name": "main", "image": "example.org/nothing:1"}]
    return _object("v1", "Pod", name, spec={"containers": containers})


def _rules(group: str, resource: str, *verbs: str) -> list[dict[str, Any]]:
    return [{"apiGroups": [group], "resources": [resource], "verbs": list(verbs)}]


def _binding(kind: str, role: str, subject: dict[str, str]) -> dict[str, Any]:
    group = "rbac.authorization.k8s.io"
    return {
        **_object(f"{group}/v1", f"{kind}Binding", role),
        "roleRef": {"apiGroup": group, "kind": kind, "name": role},
        "subjects": [{"apiGroup": group, **subject}],
    }


def _deployment() -> dict[str, Any]:
    labels = {"app": "web"}
    template = {"metadata": {"labels": labels}, "spec": _pod("")["spec"]}
    spec = {"replicas": 0, "selector": {"matchLabels": labels}, "template": template}
    return _object("apps/v1", "Deployment", "web", spec=spec)


def _crd() -> dict[str, Any]:
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}},
    }
    spec = {
        "group": "example.org",
        "names": {"kind": "Widget", "plural": "widgets"},
        "scope": "Namespaced",
        "versions": [version],
    }
    return _object(
        "apiextensions.k8s.io/v1", "CustomResourceDefinition", "widgets.example.org", spec=spec
    )


def _review(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    group = "authentication" if kind == "TokenReview" else "authorization"
    return {"apiVersion": f"{group}.k8s.io/v1", "kind": kind, "spec": spec}


def _of_pods(namespace: str) -> dict[str, Any]:
    return {"resourceAttributes": {"namespace": namespace, "verb": "list", "resource": "pods"}}


_NAMESPACES = [
    _post("namespace-create", "/api/v1/namespaces", _object("v1", "Namespace", "team-a")),
    _post("namespace-create-b", "/api/v1/namespaces", _object("v1", "Namespace", "team-b")),
    _get("namespace-get", _A),
    _get("namespace-get-by-alice", _A, "alice"),
    _get("namespace-list-by-name", "/api/v1/namespaces?fieldSelector=metadata.name%3Dteam-a"),
    _get("namespace-status-get", f"{_A}/status"),
    _patch("namespace-patch", _A, _MERGE, {"metadata": {"labels": {"tier": "one"}}}),
    _put(
        "namespace-status-update",
        "/api/v1/namespaces/team-b/status",
        _object("v1", "Namespace", "team-b"),
    ),
]

_ROLES = [
    _post(
        "clusterrole-create",
        f"{_RBAC}/clusterroles",
        _object(
            "rbac.authorization.k8s.io/v1",
            "ClusterRole",
            "developers",
            rules=_rules("", "configmaps", "*") + _rules("", "pods", "get", "list"),
        ),
    ),
    _post(
        "clusterrole-create-that-names-a-namespace",
        f"{_RBAC}/clusterroles",
        _object(
            "rbac.authorization.k8s.io/v1",
            "ClusterRole",
            "gatekeepers",
            metadata={"namespace": "team-a"},
            rules=[
                *_rules("", "users", "impersonate"),
                *_rules("", "groups", "impersonate"),
                *_rules("", "serviceaccounts", "impersonate"),
            ],
        ),
    ),
    _put(
        "clusterrole-update-that-names-a-namespace",
        f"{_RBAC}/clusterroles/developers",
        _object(
            "rbac.authorization.k8s.io/v1",
            "ClusterRole",
            "developers",
            metadata={"namespace": "team-b"},
            rules=_rules("", "configmaps", "*") + _rules("", "pods", "get", "list"),
        ),
    ),
    _post(
        "clusterrolebinding-create",
        f"{_RBAC}/clusterrolebindings",
        _binding("ClusterRole", "developers", {"kind": "Group", "name": "developers"}),
        then=("alice", f"{_A}/configmaps"),
    ),
    _post(
        "clusterrolebinding-create-gatekeepers",
        f"{_RBAC}/clusterrolebindings",
        _binding("ClusterRole", "gatekeepers", {"kind": "User", "name": "gatekeeper"}),
    ),
    _post(
        "role-create",
        f"{_RBAC}/namespaces/team-a/roles",
        _object(
            "rbac.authorization.k8s.io/v1",
            "Role",
            "reader",
            rules=_rules("", "secrets", "get"),
        ),
    ),
    _post(
        "rolebinding-create",
        f"{_RBAC}/namespaces/team-a/rolebindings",
        _binding("Role", "reader", {"kind": "User", "name": "system:serviceaccount:team-a:robot"}),
    ),
    _get("role-get", f"{_RBAC}/namespaces/team-a/roles/reader"),
    _delete("rolebinding-delete-by-bob", f"{_RBAC}/namespaces/team-a/rolebindings/reader", "bob"),
]

_SERVICE_ACCOUNTS = [
    _post(
        "serviceaccount-create", f"{_A}/serviceaccounts", _object("v1", "ServiceAccount", "robot")
    ),
    _post(
        "serviceaccount-create-default",
        f"{_A}/serviceaccounts",
        _object("v1", "ServiceAccount", "default", automountServiceAccountToken=False),
        then=("admin", f"{_A}/serviceaccounts/default"),
    ),
    _post(
        "serviceaccount-token",
        f"{_A}/serviceaccounts/robot/token",
        {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}},
    ),
    _get("serviceaccount-get", f"{_A}/serviceaccounts/robot", "robot"),
]

_TABLE = "application/json;as=Table;g=meta.k8s.io;v=v1"
_PARTIAL = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_APPLIED = {**_config_map("applied", colour="blue"), "metadata": {"name": "applied"}}

_CONFIG_MAPS = [
    _post("configmap-create", f"{_A}/configmaps", _config_map("settings", colour="red"), "alice"),
    _post(
        "configmap-create-generated",
        f"{_A}/configmaps",
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "generated-"}},
    ),
    _post(
        "configmap-create-dry",
        f"{_A}/configmaps?dryRun=All",
        _config_map("dry"),
    ),
    _post("configmap-create-again", f"{_A}/configmaps", _config_map("settings"), "bob"),
    _post("configmap-create-invalid", f"{_A}/configmaps", _config_map("No_Name")),
    _post("configmap-create-not-json", f"{_A}/configmaps", b"{"),
    _post(
        "configmap-create-in-another-namespace",
        f"{_A}/configmaps",
        _object("v1", "ConfigMap", "settings", metadata={"namespace": "team-b"}),
    ),
    _post(
        "configmap-create-b",
        "/api/v1/namespaces/team-b/configmaps",
        _config_map("settings"),
        "bob",
    ),
    _get("configmap-get", f"{_A}/configmaps/settings", "alice"),
    _get("configmap-get-other", f"{_A}/configmaps/applied", "alice"),
    _get("configmap-get-b", "/api/v1/namespaces/team-b/configmaps/settings", "bob"),
    _get("configmap-get-encoded", f"{_A}/configmaps/sett%69ngs"),
    _get("configmap-get-slash", f"{_A}/configmaps/settings/"),
    Request("configmap-head", "HEAD", f"{_A}/configmaps/settings"),
    Request("configmap-options", "OPTIONS", f"{_A}/configmaps/settings"),
    _get("configmap-get-partial", f"{_A}/configmaps/settings", accept=_PARTIAL),
    _get("configmap-get-yaml", f"{_A}/configmaps/settings", accept="application/yaml"),
    _get("configmap-get-unacceptable", f"{_A}/configmaps/settings", accept="text/html"),
    _get("configmap-list", f"{_A}/configmaps", "bob"),
    _get("configmap-list-by-name", f"{_A}/configmaps?fieldSelector=metadata.name%3Dsettings"),
    _get("configmap-list-but-name", f"{_A}/configmaps?fieldSelector=metadata.name%21%3Dsettings"),
    _get(
        "configmap-list-by-name-and-namespace",
        f"{_A}/configmaps?fieldSelector=metadata.namespace%3Dteam-a%2Cmetadata.name%3Dsettings",
    ),
    _get("configmap-list-wrong", f"{_A}/configmaps?fieldSelector=colour&labelSelector=%21%21"),
    _get(
        "configmap-list-everywhere",
        "/api/v1/configmaps?fieldSelector=metadata.name%3Dsettings",
    ),
    _get(
        "configmap-table",
        f"{_A}/configmaps?fieldSelector=metadata.name%3Dsettings",
        accept=_TABLE,
    ),
    _get("configmap-watch", f"{_A}/configmaps?watch=true&timeoutSeconds=1", "alice"),
    _get(
        "configmap-watch-by-name",
        f"{_A}/configmaps?fieldSelector=metadata.name%3Dsettings&timeoutSeconds=1&watch=1",
    ),
    _get("configmap-watch-old", "/api/v1/watch/namespaces/team-a/configmaps?timeoutSeconds=1"),
    _get(
        "configmap-watch-old-by-name",
        "/api/v1/watch/namespaces/team-a/configmaps/settings?timeoutSeconds=1",
    ),
    _put("configmap-update", f"{_A}/configmaps/settings", _config_map("settings", colour="green")),
    _put(
        "configmap-update-conflict",
        f"{_A}/configmaps/settings",
        _object("v1", "ConfigMap", "settings", metadata={"resourceVersion": "1"}),
        "alice",
    ),
    _put(
        "configmap-update-with-managed-fields",
        f"{_A}/configmaps/settings",
        _object(
            "v1",
            "ConfigMap",
            "settings",
            metadata={
                "managedFields": [
                    {
                        "manager": "hand",
                        "operation": "Update",
                        "apiVersion": "v1",
                        "time": "2024-01-01T00:00:00Z",
                        "fieldsType": "FieldsV1",
                        "fieldsV1": {"f:data": {"f:colour": {}}},
                    }
                ]
            },
            data={"colour": "grey", "managedFields": "a key like any other"},
        ),
    ),
    _put("configmap-update-absent", f"{_A}/configmaps/absent", _config_map("else")),
    _put("configmap-update-of-all", f"{_A}/configmaps", _config_map("settings")),
    _patch(
        "configmap-apply",
        f"{_A}/configmaps/applied?fieldManager=kubectl",
        _SSA,
        _APPLIED,
        "alice",
    ),
    _patch(
        "configmap-apply-conflict",
        f"{_A}/configmaps/applied?fieldManager=other",
        _SSA,
        {**_APPLIED, "data": {"colour": "black"}},
    ),
    _patch("configmap-merge", f"{_A}/configmaps/settings", _MERGE, {"data": {"a": "b"}}, "bob"),
    _patch(
        "configmap-json-patch",
        f"{_A}/configmaps/settings",
        _JSON_PATCH,
        [{"op": "add", "path": "/data/c", "value": "d"}],
    ),
    _patch(
        "configmap-strategic-patch",
        f"{_A}/configmaps/settings",
        _STRATEGIC,
        {"data": {"e": "f"}},
    ),
    _patch(
        "configmap-patch-of-managed-fields",
        f"{_A}/configmaps/settings",
        _MERGE,
        {"metadata": {"managedFields": [{}]}},
    ),
    _patch("configmap-patch-of-unknown-type", f"{_A}/configmaps/settings", "text/plain", {}),
    _get("configmap-get-absent", f"{_A}/configmaps/absent"),
    _delete("configmap-delete-by-carol", f"{_A}/configmaps/settings", "carol"),
    _delete("configmap-delete", f"{_A}/configmaps/settings", "alice"),
    _delete(
        "configmap-deletecollection",
        f"{_A}/configmaps",
        "bob",
        {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"},
    ),
]

_SECRETS = [
    _post(
        "secret-create",
        f"{_A}/secrets",
        _object("v1", "Secret", "key", stringData={"key": "nothing"}),
    ),
    _get("secret-get", f"{_A}/secrets/key", "robot"),
    _get("secret-get-by-alice", f"{_A}/secrets/key", "alice"),
    _get("secret-list", f"{_A}/secrets"),
    _get("secret-watch-by-carol", "/api/v1/secrets?watch=true&timeoutSeconds=1", "carol"),
    _patch("secret-patch", f"{_A}/secrets/key", _MERGE, {"data": {"key": "bm90aGluZw=="}}),
    _delete("secret-delete", f"{_A}/secrets/key"),
]

_PODS = [
    _post("pod-create", f"{_A}/pods", _pod("web-0")),
    _get("pod-get", f"{_A}/pods/web-0", "bob"),
    _get("pod-list", f"{_A}/pods", "alice"),
    _get("pod-list-everywhere", "/api/v1/pods", "scheduler"),
    _get("pod-watch", "/api/v1/pods?watch=true&timeoutSeconds=1", "scheduler"),
    _get("pod-status-get", f"{_A}/pods/web-0/status", "manager"),
    _patch(
        "pod-status-patch",
        f"{_A}/pods/web-0/status",
        _STRATEGIC,
        {"status": {"reason": "Waiting"}},
        "admin",
    ),
    _get("pod-log", f"{_A}/pods/web-0/log"),
    _get("pod-log-by-bob", f"{_A}/pods/web-0/log?follow=true", "bob"),
    _post("pod-exec", f"{_A}/pods/web-0/exec?command=id&stdout=true", None),
    _get("pod-exec-by-get", f"{_A}/pods/web-0/exec?command=id&stdout=true"),
    _post("pod-exec-by-alice", f"{_A}/pods/web-0/exec?command=id&stdout=true", None, "alice"),
    _post("pod-attach", f"{_A}/pods/web-0/attach?stdout=true", None),
    _post("pod-portforward", f"{_A}/pods/web-0/portforward", None),
    _get("pod-proxy", f"{_A}/pods/web-0:80/proxy/status/log"),
    _post(
        "pod-eviction",
        f"{_A}/pods/web-0/eviction?dryRun=All",
        _object("policy/v1", "Eviction", "web-0"),
    ),
    _post(
        "pod-binding",
        f"{_A}/pods/web-0/binding",
        _object("v1", "Binding", "web-0", target={"kind": "Node", "name": "node-1"}),
        "scheduler",
    ),
    _post(
        "binding-create",
        f"{_A}/bindings",
        _object("v1", "Binding", "web-0", target={"kind": "Node", "name": "node-1"}),
    ),
    _post("pod-create-outside", "/api/v1/pods", _pod("web-1")),
    _delete("pod-delete", f"{_A}/pods/web-0?gracePeriodSeconds=0"),
    _delete("pod-deletecollection", f"{_A}/pods"),
    _get("pod-get-absent", f"{_A}/pods/web-0"),
]

_DEPLOYMENTS = [
    _post("deployment-create", _APPS, _deployment()),
    _get("deployment-get", f"{_APPS}/web", "alice"),
    _get("deployment-scale-get", f"{_APPS}/web/scale"),
    _patch("deployment-scale-patch", f"{_APPS}/web/scale", _MERGE, {"spec": {"replicas": 1}}),
    _get("deployment-status-get", f"{_APPS}/web/status", "manager"),
    _patch(
        "deployment-status-patch",
        f"{_APPS}/web/status",
        _MERGE,
        {"status": {"observedGeneration": 1}},
        "manager",
    ),
    _delete("deployment-delete", f"{_APPS}/web"),
]

_NODES = [
    _post("node-create", "/api/v1/nodes", _object("v1", "Node", "node-1")),
    _get("node-get", "/api/v1/nodes/node-1", "node"),
    _get("node-list", "/api/v1/nodes?limit=1"),
    _patch(
        "node-status-patch",
        "/api/v1/nodes/node-1/status",
        _STRATEGIC,
        {"status": {"nodeInfo": {"operatingSystem": "linux"}}},
        "node",
    ),
    _get("node-proxy", "/api/v1/nodes/node-1/proxy/metrics"),
    _delete("node-delete", "/api/v1/nodes/node-1"),
]

_CHATTER = [
    _post(
        "lease-create",
        _LEASES,
        _object("coordination.k8s.io/v1", "Lease", "turn", spec={"holderIdentity": "one"}),
        "manager",
    ),
    _get("lease-get", f"{_LEASES}/turn", "manager"),
    _patch("lease-patch", f"{_LEASES}/turn", _MERGE, {"spec": {"holderIdentity": "two"}}),
    _post(
        "event-create",
        f"{_A}/events",
        _object(
            "v1",
            "Event",
            "web-0.1",
            involvedObject={"kind": "Pod", "name": "web-0", "namespace": "team-a"},
            reason="Waiting",
            type="Normal",
        ),
        "manager",
    ),
    _get("event-get", "/apis/events.k8s.io/v1/namespaces/team-a/events/web-0.1"),
    _post(
        "event-create-events-k8s-io",
        "/apis/events.k8s.io/v1/namespaces/team-a/events",
        _object("events.k8s.io/v1", "Event", "web-0.2", regarding={"name": "web-0"}),
        "scheduler",
    ),
    _get("endpoints-get", "/api/v1/namespaces/kube-system/endpoints/absent", "manager"),
    _get(
        "endpointslices-watch",
        "/apis/discovery.k8s.io/v1/endpointslices?watch=true&timeoutSeconds=1",
        "proxy",
    ),
    _get("services-list", "/api/v1/services?labelSelector=app%3Dweb", "proxy"),
    _get("configmap-get-kube-system", "/api/v1/namespaces/kube-system/configmaps/absent", "robot"),
]

_CUSTOM = [
    _post("crd-create", _CRDS, _crd(), then=("admin", _WIDGETS)),
    _post("widget-create", _WIDGETS, _object("example.org/v1", "Widget", "one", spec={"size": 1})),
    _patch(
        "widget-apply",
        f"{_WIDGETS}/one?fieldManager=kubectl",
        _SSA,
        _object("example.org/v1", "Widget", "one", spec={"colour": "red"}),
    ),
    _get("widget-get", f"{_WIDGETS}/one", "carol"),
    _get("widget-list", _WIDGETS),
    _patch("widget-status-patch", f"{_WIDGETS}/one/status", _MERGE, {"status": {"ready": True}}),
    _post(
        "widget-create-with-managed-fields",
        _WIDGETS,
        _object("example.org/v1", "Widget", "two", metadata={"managedFields": []}),
    ),
    _delete("widget-delete", f"{_WIDGETS}/one"),
    _delete("widget-deletecollection", _WIDGETS),
    _delete("crd-delete", f"{_CRDS}/widgets.example.org"),
]

_REVIEWS = [
    _post(
        "tokenreview",
        "/apis/authentication.k8s.io/v1/tokenreviews",
        _review("TokenReview", {"token": token("alice")}),
    ),
    _post(
        "subjectaccessreview",
        "/apis/authorization.k8s.io/v1/subjectaccessreviews",
        _review("SubjectAccessReview", {**_of_pods("team-a"), "user": "carol"}),
    ),
    _post(
        "localsubjectaccessreview",
        "/apis/authorization.k8s.io/v1/namespaces/team-a/localsubjectaccessreviews",
        {
            **_review("LocalSubjectAccessReview", {**_of_pods("team-a"), "user": "bob"}),
            "metadata": {"namespace": "team-a"},
        },
    ),
    _post(
        "selfsubjectaccessreview",
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        _review("SelfSubjectAccessReview", _of_pods("team-b")),
        "carol",
    ),
]

_PATHS = [
    _get("healthz", "/healthz"),
    _get("healthz-by-robot", "/healthz", "robot"),
    _get("healthz-anonymous", "/healthz", ""),
    _get("healthz-verbose", "/healthz?verbose=true", "alice"),
    _get("healthz-ping", "/healthz/ping", "alice"),
    _get("healthz-slash", "/healthz/", "alice"),
    _get("healthz-encoded", "/health%7A", "alice"),
    _get("healthz-two-slashes", "//healthz", "alice"),
    _get("healthz-longer", "/healthz2", "alice"),
    _get("readyz-ping", "/readyz/ping", ""),
    _get("livez", "/livez", "carol"),
    _get("metrics", "/metrics"),
    _get("metrics-by-carol", "/metrics", "carol"),
    _get("version", "/version", ""),
    _get("version-slash", "/version/", "alice"),
    _post("version-post", "/version", {}, "carol"),
    Request("version-head", "HEAD", "/version"),
    Request("version-options", "OPTIONS", "/version"),
    _get("root", "/", "alice"),
    _get("api", "/api", "proxy"),
    _get("api-v1-slash", "/api/v1/", ""),
    _get("apis-group", "/apis/authentication.k8s.io/v1", "alice"),
    _get("apis-absent", "/apis/x", "bob"),
    _get("openapi-v3", "/openapi/v3", "bob"),
    _get("openapi-v2", "/swagger-2.0.0.pb-v1", "bob"),
    _get("nowhere", "/nowhere/at/all"),
    _get("nowhere-star", "/nowhere/*"),
]

_REFUSED = [
    _get("pod-list-anonymous", f"{_A}/pods", ""),
    _get("pod-list-unauthenticated", f"{_A}/pods", "nobody"),
    _get("healthz-unauthenticated", "/healthz", "nobody"),
    _post(
        "configmap-create-unauthenticated", f"{_A}/configmaps", _config_map("settings"), "nobody"
    ),
    _post("secret-create-by-carol", f"{_A}/secrets", _object("v1", "Secret", "key"), "carol"),
    _get("unknown-resource", f"{_A}/unknowns/settings"),
    _get("unknown-group", "/apis/nowhere.example.org/v1/namespaces/team-a/widgets"),
    _get("unknown-subresource", f"{_A}/configmaps/settings/unknown"),
]

_IMPERSONATED = [
    _get(
        "impersonate-alice",
        f"{_A}/configmaps/settings",
        "gatekeeper",
        Impersonate_User="alice",
        Impersonate_Group="developers",
    ),
    _post(
        "impersonate-bob-create",
        f"{_A}/configmaps",
        _config_map("by-bob"),
        "gatekeeper",
        Impersonate_User="bob",
        Impersonate_Group="developers",
    ),
    _get("impersonate-carol-forbidden", f"{_A}/pods", "gatekeeper", Impersonate_User="carol"),
    _get(
        "impersonate-serviceaccount",
        f"{_A}/secrets/key",
        "admin",
        Impersonate_User="system:serviceaccount:team-a:robot",
    ),
    _get("impersonate-path", "/healthz", "gatekeeper", Impersonate_User="alice"),
    _get("impersonate-by-alice-forbidden", f"{_A}/pods", "alice", Impersonate_User="admin"),
    _get(
        "impersonate-admin-group",
        f"{_A}/pods",
        "admin",
        Impersonate_User="carol",
        Impersonate_Group="system:masters",
    ),
    _get("impersonate-group-alone", f"{_A}/pods", "gatekeeper", Impersonate_Group="developers"),
]

_LAST = [
    _delete("namespace-deletecollection", "/api/v1/namespaces"),
    _delete("namespace-delete", "/api/v1/namespaces/team-b"),
    _put(
        "namespace-finalize",
        "/api/v1/namespaces/team-b/finalize",
        {**_object("v1", "Namespace", "team-b"), "spec": {"finalizers": []}},
    ),
    _delete("role-delete", f"{_RBAC}/namespaces/team-a/roles/reader"),
    _delete("clusterrole-delete", f"{_RBAC}/clusterroles/developers"),
]

REQUESTS = [
    *_NAMESPACES,
    *_ROLES,
    *_SERVICE_ACCOUNTS,
    *_CONFIG_MAPS,
    *_SECRETS,
    *_PODS,
    *_DEPLOYMENTS,
    *_NODES,
    *_CHATTER,
    *_CUSTOM,
    *_REVIEWS,
    *_PATHS,
    *_REFUSED,
    *_IMPERSONATED,
    *_LAST,
]
"""In the order in which they are sent: later ones depend on earlier ones."""
