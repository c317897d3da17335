"""Techniques of ATT&CK for Containers, one event each: every preset keeps it with its content.

Unless stated otherwise, the attacker has the token of an application's service account.
"""

import json
from typing import Any, NamedTuple

import pytest

from forwarder.policy import document
from forwarder.policy.attributes import decode
from forwarder.policy.document import PRESETS
from forwarder.policy.rules import Engine

Object = dict[str, Any]
ENGINES = {name: Engine(document.load(name)) for name in PRESETS}


def account(namespace: str) -> Object:
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}"]
    name = f"system:serviceaccount:{namespace}:default"
    return {"username": name, "groups": [*groups, "system:authenticated"]}


APP, KUBE = account("app"), account("kube-system")
NODE = {"username": "system:node:a", "groups": ["system:nodes", "system:authenticated"]}
PERSON = {"username": "me", "groups": ["system:authenticated"]}
ANONYMOUS = {"username": "system:anonymous", "groups": ["system:unauthenticated"]}
RBAC, AUTHN, AUTHZ = (
    f"{name}.k8s.io" for name in ("rbac.authorization", *("authentication", "authorization"))
)
WEBHOOKS = "admissionregistration.k8s.io"


class Attack(NamedTuple):
    """A request: verb, resource, API group and user."""

    technique: str
    verb: str
    resource: str
    group: str = ""
    user: Object = APP
    namespace: str = "app"
    code: int = 200


ATTACKS = [
    Attack("T1078 valid accounts", "list", "secrets"),
    Attack("T1133 external remote services", "get", "nodes/proxy"),
    Attack("T1190 exposed API", "list", "pods", user=ANONYMOUS),
    Attack("T1609 container administration command", "create", "pods/exec"),
    Attack("T1609 by GET", "get", "pods/exec"),
    Attack("T1609 attach", "create", "pods/attach"),
    Attack("T1610 deploy container", "create", "pods"),
    Attack("T1204.003 malicious image", "patch", "deployments", "apps"),
    Attack("T1053.007 container orchestration job", "create", "cronjobs", "batch"),
    Attack("T1098.006 additional cluster roles", "create", "clusterrolebindings", RBAC),
    Attack("T1098.006 a role widened", "update", "clusterroles", RBAC, KUBE),
    Attack("T1136.001 create account", "create", "serviceaccounts"),
    Attack("T1525 implant image", "update", "daemonsets", "apps", KUBE, "kube-system"),
    Attack("T1543.005 container service", "create", "daemonsets", "apps"),
    Attack("T1556 modify authentication", "create", "mutatingwebhookconfigurations", WEBHOOKS),
    Attack("T1611 escape to host", "patch", "pods/ephemeralcontainers"),
    Attack("T1611 static pod of a node", "create", "pods", user=NODE, namespace="kube-system"),
    Attack("T1036.005 match legitimate name", "create", "pods", namespace="kube-system"),
    Attack("T1070 indicator removal", "deletecollection", "events"),
    Attack("T1070 by a controller", "delete", "events", user=KUBE),
    Attack("T1562.001 disable tools", "delete", "daemonsets", "apps"),
    Attack("T1562.001 webhook removed", "delete", "validatingwebhookconfigurations", WEBHOOKS),
    Attack("T1550.001 application access token", "create", "serviceaccounts/token"),
    Attack("T1528 steal token", "get", "secrets", user=KUBE, namespace="kube-system"),
    Attack("T1552.001 credentials in files", "get", "configmaps"),
    Attack("T1552.007 container API", "watch", "secrets", user=NODE),
    Attack("T1110 brute force", "list", "pods", user={}, code=401),
    Attack("T1046 network service discovery", "list", "services"),
    Attack("T1069 permission discovery", "create", "selfsubjectrulesreviews", AUTHZ),
    Attack("T1069 one right", "create", "selfsubjectaccessreviews", AUTHZ),
    Attack("T1069 roles watched", "watch", "roles", RBAC),
    Attack("T1087 whose token is this", "create", "tokenreviews", AUTHN),
    Attack("T1613 discovery", "list", "pods"),
    Attack("T1613 by watch", "watch", "configmaps"),
    Attack("T1613 custom resources watched", "watch", "accounts", "cloud.example"),
    Attack("T1557 CVE-2020-8554", "patch", "services/status", user=KUBE),
    Attack("T1557 by a node", "patch", "services/status", user=NODE),
    Attack("T1557 addresses of a node", "patch", "nodes/status", user=NODE),
    Attack("T1557 DNS", "patch", "configmaps", user=KUBE, namespace="kube-system"),
    Attack("T1557 endpoints", "update", "endpointslices", "discovery.k8s.io"),
    Attack("T1496 resource hijacking", "create", "deployments", "apps"),
    Attack("T1499 denial of service", "patch", "deployments/scale", "apps"),
    Attack("T1485 data destruction", "delete", "persistentvolumeclaims"),
    Attack("T1490 inhibit recovery", "delete", "volumesnapshots", "snapshot.storage.k8s.io"),
    Attack("T1531 access removal", "delete", "rolebindings", RBAC),
    Attack("T1572 tunnel", "create", "pods/portforward"),
    Attack("T1619 a user lists namespaces", "list", "namespaces", user=PERSON),
]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.technique)
def test_the_presets_keep_an_event_of_each_technique(attack: Attack, preset: str) -> None:
    resource, _, subresource = attack.resource.partition("/")
    target = {"resource": resource, "subresource": subresource, "apiGroup": attack.group}
    event = {
        "level": "RequestResponse",
        "auditID": "1",
        "stage": "ResponseComplete",
        "requestURI": f"/api/v1/namespaces/{attack.namespace}/{resource}/a/{subresource}",
        "verb": attack.verb,
        "user": attack.user,
        "objectRef": {**target, "namespace": attack.namespace, "name": "a"},
        "responseStatus": {"code": attack.code},
        "requestObject": {"spec": {"hostPID": True}},
    }
    body = json.dumps(event).encode()
    left = json.loads(ENGINES[preset].apply(body, decode(body))[0] or b"null")
    assert left
    secret = resource in ("secrets", "tokenreviews") or subresource in ("token", "proxy")
    interactive = subresource in ("exec", "attach", "portforward")
    written = attack.verb in ("create", "update", "patch") and not secret and not interactive
    assert ("requestObject" in left) == (written or "delete" in attack.verb)
