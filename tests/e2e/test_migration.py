"""Migration from the deployment that aks-audit replaces, by the steps of migration.md."""

import json
import time

import pytest

from e2e.cluster import until
from e2e.commands import MIGRATION, blocks, type_in
from e2e.conftest import Lap, Note
from e2e.feed import Feed
from e2e.hub import HUB
from e2e.world import World, program
from support.stores import CONTAINER

NAMESPACE = "aks-audit-migration"
OLD = "aks-audit-log-forwarder"
IN_FLIGHT = 4 * 22  # events: a message of each partition

pytestmark = pytest.mark.e2e


def test_it_takes_over_at_the_checkpoint(world: World, note: Note, lap: Lap) -> None:
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
        until("events by the old deployment", lambda: world.stats()["distinct"] > 400, 180)
        shown = type_in(settings, NAMESPACE)
        assert f"WebSinkURL=http://sysdig-agent.{NAMESPACE}" in shown
        assert "SharedAccessKey" not in shown
        assert "AccountKey" not in shown
        type_in(copy, NAMESPACE)
        type_in(stop, NAMESPACE)
        until("the old one's end", lambda: not world.get("pods", f"--selector=app={OLD}"))
        by_old = len(world.taken())
        time.sleep(3)
        lap()
        type_in(install, NAMESPACE)
        *health, claims = watch.splitlines()
        type_in("\n".join(health), NAMESPACE)
        look = f"{claims} || true"  # nothing found is no error yet
        until("four partitions", lambda: len(type_in(look, NAMESPACE).splitlines()) == 4, 150)
        note("migration: install to all partitions claimed", lap())
    taken_over = [json.loads(line) for line in type_in(claims, NAMESPACE).splitlines()]
    assert {one["partition"] for one in taken_over} == set("0123")
    assert None not in [one["checkpoint"] for one in taken_over]
    published = world.settled(120)
    assert published == len(feed.published)
    note("migration: events by the old one, by the new one", f"{by_old}, {published - by_old}")
    note("migration: doubled", world.doubled())
    assert world.doubled() <= IN_FLIGHT
    type_in(remove, NAMESPACE)
    assert world.pods()
    assert [one["metadata"]["name"] for one in world.get("deployments")].count(OLD) == 0
