"""Upgrade from the chart and image of the previous version, and uninstall."""

import os
import re
import time

import pytest

from e2e.cluster import ROOT, run, until
from e2e.commands import IMAGE, block, run_in_shell
from e2e.conftest import Lap, Note
from e2e.world import World
from support.events import messages, real_events

NAMESPACE = "aks-audit-upgrade"
CHECKPOINTED = 7  # seconds, longer than the checkpoint interval

pytestmark = pytest.mark.e2e


def release_objects(world: World) -> set[str]:
    """Return all objects with the release's label, of every kind, and its Secrets."""
    kinds = run("kubectl", "api-resources", "--namespaced", "--verbs=list,delete", "--output=name")
    wanted = ",".join(
        kind for kind in kinds.split() if kind.split(".")[0] not in {"events", "endpoints"}
    )
    labelled = world.kubectl(
        "get", wanted, "--selector=app.kubernetes.io/instance=aks-audit", "--output=name"
    )
    return {line for line in labelled.splitlines() if "/" in line} | {
        line
        for line in world.kubectl("get", "secrets", "--output=name").splitlines()
        if "aks-audit" in line
    }


def test_an_upgrade_keeps_volume_and_checkpoints(world: World, note: Note, lap: Lap) -> None:
    run(
        "helm", "package", str(ROOT / ".cache" / "previous" / "chart"),
        "--destination", str(ROOT / ".cache"), "--version", "0.0.1", "--app-version", "0.0.1",
    )  # fmt: skip
    repository, _, tag = os.environ["E2E_OLD"].rpartition(":")
    run(
        "helm", "install", "aks-audit", str(ROOT / ".cache" / "aks-audit-0.0.1.tgz"),
        "--namespace", NAMESPACE, "--set", f"image.repository={repository},image.tag={tag}",
        "--set", f"eventHub.connectionString={world.hub}", "--set", "verboseLevel=3",
    )  # fmt: skip
    world.publish(real_events())
    world.rolled()
    world.wait_until_settled()
    time.sleep(CHECKPOINTED)
    claim = world.get("persistentvolumeclaim", "aks-audit")["spec"]["volumeName"]
    lap()
    run_in_shell(f"helm upgrade aks-audit ./chart -n {NAMESPACE} --reuse-values")
    world.rolled()
    note("upgrade from the previous version: to ready pod", lap())
    assert world.pod()["spec"]["containers"][0]["image"] == IMAGE
    world.publish([event for message in messages(500) for event in message.events])
    assert world.wait_until_settled() == len(real_events()) + 500
    assert world.duplicates() == 0
    assert world.get("persistentvolumeclaim", "aks-audit")["spec"]["volumeName"] == claim


def test_uninstalling_leaves_only_the_objects_named_in_the_readme(world: World) -> None:
    assert len(release_objects(world)) > 5
    run_in_shell("helm test aks-audit --namespace sysdig-agent", NAMESPACE)
    uninstall, delete_claim = block("uninstall").splitlines()
    run_in_shell(uninstall, NAMESPACE)
    kept = {"persistentvolumeclaim/aks-audit", "pod/aks-audit-check"}
    until("no pod", lambda: not world.get("pods", "--selector=app=aks-audit-log-forwarder"))
    assert release_objects(world) == kept
    (delete_check,) = re.findall(
        r"`(kubectl delete pod .*?)`", (ROOT / "chart" / "README.md").read_text()
    )
    run_in_shell(delete_check, NAMESPACE)
    run_in_shell(delete_claim, NAMESPACE)
    until("nothing", lambda: not release_objects(world))
