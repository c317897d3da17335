"""Three replicas that share the hub's partitions through a storage account."""

import time

import pytest

from e2e.cluster import until
from e2e.commands import block, type_in
from e2e.conftest import Lap, Note
from e2e.feed import Feed
from e2e.world import World

NAMESPACE = "aks-audit-replicas"
RATE = 300  # events a second
RESPREAD = 180  # seconds

pytestmark = pytest.mark.e2e


def owned(world: World) -> list[float]:
    """Return how many partitions each pod has."""
    names = [pod["metadata"]["name"] for pod in world.pods()]
    return sorted(world.metric(one, "aks_audit_partitions_owned") for one in names)


def spread(world: World) -> None:
    """Wait until three pods have the four partitions, none two more than another."""
    until("partitions spread again", lambda: owned(world) == [1, 1, 2], RESPREAD)


def test_three_replicas_share_the_partitions(world: World, note: Note, lap: Lap) -> None:
    type_in(block("install"), NAMESPACE, CONNECTION_STRING=world.hub)
    world.rolled()
    lap()
    type_in(block("replicas"), NAMESPACE, STORAGE_CONNECTION_STRING=world.storage)
    world.rolled()
    note("replicas: from one to three ready pods", lap())
    spread(world)
    note("replicas: partitions spread after", lap())


def test_one_is_deleted_under_load(world: World, note: Note, lap: Lap) -> None:
    with Feed(world, RATE) as feed:
        time.sleep(5)
        before = world.settled(), world.doubled()
        lap()
        world.kubectl("delete", "pod", world.pods()[0]["metadata"]["name"], "--wait=false")
        time.sleep(1)
        spread(world)
        note("replica deleted: partitions spread again after", lap())
    assert world.settled(120) >= before[0]
    note(
        "replica deleted: events, doubled", f"{len(feed.published)}, {world.doubled() - before[1]}"
    )


def test_all_are_restarted_under_load(world: World, note: Note, lap: Lap) -> None:
    before = world.settled(), world.doubled()
    old = {pod["metadata"]["uid"] for pod in world.pods()}
    with Feed(world, RATE) as feed:
        time.sleep(2)
        lap()
        world.kubectl("rollout", "restart", "deployment", "aks-audit")
        world.rolled()
        note("rollout restart of three: to ready pods", lap())
        spread(world)
        note("rollout restart of three: partitions spread again after", lap())
    assert world.settled(120) >= before[0] + len(feed.published)
    assert not old & {pod["metadata"]["uid"] for pod in world.pods()}
    note(
        "rollout restart: events, doubled", f"{len(feed.published)}, {world.doubled() - before[1]}"
    )
