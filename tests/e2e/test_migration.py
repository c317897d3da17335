"""Migration from the deployment that aks-audit replaces, with the steps of migration.md."""

import json
import time

import pytest

from e2e.cluster import until
from e2e.commands import MIGRATION, blocks, run_in_shell
from e2e.conftest import Lap, Note
from e2e.feed import Feed
from e2e.hub import HUB
from e2e.world import World, program
from support.stores import CONTAINER

NAMESPACE = "aks-audit-migration"
OLD = "aks-audit-log-forwarder"
IN_FLIGHT = 4 * 22  # events: one message per partition

pytestmark = pytest.mark.e2e


def test_it_continues_from_the_checkpoint(world: World, note: Note, lap: Lap) -> None:
    service = {"selector": {"app": "sysdig-agent"}, "ports": [{"port": 7765}]}
    metadata = {"name": "sysdig-agent"}
    world.apply(
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service},
        *program(
            OLD,
            ["python", "-m", "e2e.old"],
            EhubNamespaceConnectionString=world.hub,
            BlobStorageConnectionString=world.storage,
            EventHubName=HUB,
            BlobContainerName=CONTAINER,
            WebSinkURL=f"http://sysdig-agent.{NAMESPACE}.svc.cluster.local:7765/k8s_audit",
            VerboseLevel="3",
        ),
    )
    settings, copy, stop, install, watch, remove = blocks(*MIGRATION)
    with Feed(world, 100) as feed:
        until("events from the old deployment", lambda: world.stats()["distinct"] > 400, 180)
        shown = run_in_shell(settings, NAMESPACE)
        assert f"WebSinkURL=http://sysdig-agent.{NAMESPACE}" in shown
        assert "SharedAccessKey" not in shown
        assert "AccountKey" not in shown
        run_in_shell(copy, NAMESPACE)
        run_in_shell(stop, NAMESPACE)
        until("no old pod", lambda: not world.get("pods", f"--selector=app={OLD}"))
        from_old = len(world.accepted())
        time.sleep(3)
        lap()
        run_in_shell(install, NAMESPACE)
        *health, claims = watch.splitlines()
        run_in_shell("\n".join(health), NAMESPACE)
        poll = f"{claims} || true"  # no match yet is not an error
        until("four partitions", lambda: len(run_in_shell(poll, NAMESPACE).splitlines()) == 4, 150)
        note("migration: install to all partitions claimed", lap())
    taken_over = [json.loads(line) for line in run_in_shell(claims, NAMESPACE).splitlines()]
    assert {one["partition"] for one in taken_over} == set("0123")
    assert None not in [one["checkpoint"] for one in taken_over]
    published = world.wait_until_settled(120)
    assert published == len(feed.published)
    note(
        "migration: events from the old one, from the new one",
        f"{from_old}, {published - from_old}",
    )
    note("migration: duplicates", world.duplicates())
    assert world.duplicates() <= IN_FLIGHT
    run_in_shell(remove, NAMESPACE)
    assert world.pods()
    assert [one["metadata"]["name"] for one in world.get("deployments")].count(OLD) == 0
