"""Three replicas that share the hub's partitions through a storage account."""

import time

import pytest

from e2e.cluster import until
from e2e.commands import block, run_in_shell
from e2e.conftest import Lap, Note
from e2e.feed import Feed
from e2e.world import World

NAMESPACE = "aks-audit-replicas"
RATE = 300  # events a second
REBALANCED = 180  # seconds

pytestmark = pytest.mark.e2e


def owned(world: World) -> list[float]:
    """Return the number of partitions of each pod, sorted."""
    names = [pod["metadata"]["name"] for pod in world.pods()]
    return sorted(world.metric(one, "aks_audit_partitions_owned") for one in names)


def balanced(world: World) -> None:
    """Wait until three pods share the four partitions evenly."""
    until("partitions balanced again", lambda: owned(world) == [1, 1, 2], REBALANCED)


def test_three_replicas_share_the_partitions(world: World, note: Note, lap: Lap) -> None:
    run_in_shell(block("install"), NAMESPACE, CONNECTION_STRING=world.hub)
    world.rolled()
    lap()
    run_in_shell(block("replicas"), NAMESPACE, STORAGE_CONNECTION_STRING=world.storage)
    world.rolled()
    note("replicas: from one to three ready pods", lap())
    balanced(world)
    note("replicas: partitions balanced after", lap())


def test_one_is_deleted_under_load(world: World, note: Note, lap: Lap) -> None:
    with Feed(world, RATE) as feed:
        time.sleep(5)
        before = world.wait_until_settled(), world.duplicates()
        lap()
        world.kubectl("delete", "pod", world.pods()[0]["metadata"]["name"], "--wait=false")
        time.sleep(1)
        balanced(world)
        note("replica deleted: partitions balanced again after", lap())
    assert world.wait_until_settled(120) >= before[0]
    note(
        "replica deleted: events, duplicates",
        f"{len(feed.published)}, {world.duplicates() - before[1]}",
    )


def test_all_are_restarted_under_load(world: World, note: Note, lap: Lap) -> None:
    before = world.wait_until_settled(), world.duplicates()
    old = {pod["metadata"]["uid"] for pod in world.pods()}
    with Feed(world, RATE) as feed:
        time.sleep(2)
        lap()
        world.kubectl("rollout", "restart", "deployment", "aks-audit")
        world.rolled()
        note("rollout restart of three: to ready pods", lap())
        balanced(world)
        note("rollout restart of three: partitions balanced again after", lap())
    assert world.wait_until_settled(120) >= before[0] + len(feed.published)
    assert not old & {pod["metadata"]["uid"] for pod in world.pods()}
    note(
        "rollout restart: events, duplicates",
        f"{len(feed.published)}, {world.duplicates() - before[1]}",
    )
