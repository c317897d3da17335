"""Under an admission policy for labels, limits and probes: changes of the checkpoint store."""

import json
from collections.abc import Iterator

import pytest

from e2e.cluster import CommandError, run, until
from e2e.commands import run_in_shell
from e2e.conftest import Lap, Note
from e2e.world import World, program
from support.events import messages, real_events

NAMESPACE = "aks-audit-admission"
RULES = {
    "label costcenter is required": "has(object.metadata.labels) "
    "&& 'costcenter' in object.metadata.labels",
    "cpu and memory limits are required": "object.spec.containers.all(c, has(c.resources.limits) "
    "&& 'cpu' in c.resources.limits && 'memory' in c.resources.limits)",
    "probes are required": "object.spec.containers.all(c, "
    "has(c.readinessProbe) && has(c.livenessProbe))",
    "no token": "has(object.spec.automountServiceAccountToken) "
    "&& !object.spec.automountServiceAccountToken",
}
PODS = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
VALUES = "--set commonLabels.costcenter=a --set resources.limits.cpu=1"

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module", autouse=True)
def no_policy() -> Iterator[None]:
    """Delete the policy at the end; before, delete one left by an interrupted run."""
    kinds = "validatingadmissionpolicybindings,validatingadmissionpolicies"
    delete = ("kubectl", "delete", kinds, NAMESPACE, "--ignore-not-found")
    run(*delete)
    yield
    run(*delete)


def policy() -> list[dict[str, object]]:
    """Return the policy and its binding to the namespace of this module."""
    api = "admissionregistration.k8s.io/v1"
    metadata = {"name": NAMESPACE}
    selector = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}}}
    return [
        {
            "apiVersion": api,
            "kind": "ValidatingAdmissionPolicy",
            "metadata": metadata,
            "spec": {
                "matchConstraints": {"resourceRules": [PODS]},
                "validations": [
                    {"expression": text, "message": message} for message, text in RULES.items()
                ],
            },
        },
        {
            "apiVersion": api,
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": metadata,
            "spec": {
                "policyName": NAMESPACE,
                "validationActions": ["Deny"],
                "matchResources": selector,
            },
        },
    ]


def upgrade(world: World, values: str, flag: str = "--reuse-values") -> None:
    run_in_shell(f"helm upgrade aks-audit ./chart --namespace {NAMESPACE} {flag} {values}")
    world.rolled()


def publish_and_settle(world: World) -> None:
    """Publish events and wait until the sink has all of them."""
    world.publish([event for message in messages(100) for event in message.events])
    world.wait_until_settled()


def test_pods_and_the_pod_of_helm_test_are_admitted(world: World) -> None:
    world.apply(*policy())
    world.publish(real_events())
    (deployment,) = program("bad", ["true"])
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bad"}}
    bad = json.dumps(pod | {"spec": deployment["spec"]["template"]["spec"]})

    def denied() -> bool:
        try:
            world.kubectl("create", "--dry-run=server", "--filename=-", given=bad)
        except CommandError as error:
            return "costcenter is required" in str(error)
        return False

    until("the policy to hold", denied)
    run_in_shell(
        f"helm install aks-audit ./chart --namespace {NAMESPACE} {VALUES} "
        f'--set eventHub.connectionString="{world.hub}"'
    )
    world.rolled()
    world.wait_until_settled()
    assert "all parts answer" in run_in_shell(f"helm test aks-audit --namespace {NAMESPACE} --logs")


def test_it_changes_to_a_storage_account_and_back(world: World, note: Note, lap: Lap) -> None:
    upgrade(world, f'--set replicaCount=2 --set blobStorage.connectionString="{world.storage}"')
    publish_and_settle(world)
    note("volume to storage account", lap())
    upgrade(
        world,
        "--set replicaCount=1 --set blobStorage.connectionString=",
        "--reset-then-reuse-values",
    )
    publish_and_settle(world)
    note("and back", lap())


def test_it_rolls_back_to_the_storage_account_and_to_the_volume(world: World) -> None:
    for revision in (2, 1):
        run("helm", "rollback", "aks-audit", str(revision), "--namespace", NAMESPACE)
        world.rolled()
        publish_and_settle(world)


def test_a_second_release_shares_the_namespace(world: World) -> None:
    run_in_shell(
        f"helm install other ./chart --namespace {NAMESPACE} {VALUES} "
        f'--set eventHub.connectionString="{world.hub}" --set webhook.service.create=false'
    )
    world.kubectl("rollout", "status", "deployment", "other-aks-audit", "--timeout=180s")
    output = run_in_shell(f"helm test other --namespace {NAMESPACE} --logs")
    assert "kubectl exec deployment/other-aks-audit -- python -m forwarder check" in output
    for release in ("other", "aks-audit"):
        run("helm", "uninstall", release, "--namespace", NAMESPACE)
    until("no pod", lambda: not world.pods())
    kept = world.kubectl("get", "persistentvolumeclaims", "--output=name").split()
    assert kept == ["persistentvolumeclaim/aks-audit", "persistentvolumeclaim/other-aks-audit"]
