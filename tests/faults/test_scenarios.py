"""A table of fault scenarios: settings, faults, and expected log entries.

The checks are the same for all scenarios: see `FaultEnvironment.verify`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from faults import hub, load, processes, replicas, sink, store
from faults.environment import fault_environment
from faults.processes import Fault, together


@dataclass(frozen=True)
class Scenario:
    """A row of the table."""

    faults: Sequence[tuple[Fault, float]]
    """Injected in turn, for these seconds, under traffic; everything must then be settled."""
    blobs: bool = False
    """Whether checkpoints are in a storage account instead of the state directory."""
    logged: Sequence[str] = ()
    """Log entries that must be there."""
    settings: Mapping[str, str] = field(default_factory=dict)
    no_duplicates: bool = False
    """Whether no event may be duplicated, not even one after a checkpoint."""
    tls: bool = False
    traffic: int = 400
    """Events per second; the sink rejects every fiftieth."""
    rss: float = 160
    """Maximum memory of a forwarder, in MiB."""
    quick: bool = False
    """Whether `make test` includes it."""


TOKEN = {"WebSinkTokenFile": "{folder}/token"}
CA = {"WebSinkCAFile": "{folder}/ca.pem"}
FAST_POLLS = {"StallTimeout": "6"}
"""The hub is polled every second, and a silent partition is reopened after two."""
REPLICAS = {"OwnershipExpiry": "30", "LoadBalancingInterval": "2"}
"""On a busy machine, a balancing round takes seconds: claims must not expire between two."""
LARGE_BATCHES = {"WebSinkMaxBytes": "1048576", "WebSinkMaxEvents": "100"}

SCENARIOS: dict[str, Scenario] = {
    # The hub: reading resumes automatically, without duplicates.
    "hub drops": Scenario(
        [(hub.drops, 3), (hub.drops_mid_message, 5), (hub.delivers_twice, 1), (hub.delays, 1)],
        no_duplicates=True,
        quick=True,
    ),
    "hub refuses receivers": Scenario(
        [(hub.is_busy, 2), (hub.is_full, 2), (hub.detaches, 1.5)], no_duplicates=True, quick=True
    ),
    "hub unavailable": Scenario(
        [(hub.unavailable, 12)], logged=["hub does not answer", "hub answers"], no_duplicates=True
    ),
    "hub silent": Scenario([(hub.is_silent, 3)], no_duplicates=True),
    "key revoked and restored": Scenario([(hub.revokes_the_key, 3)], no_duplicates=True),
    "consumer group deleted and recreated": Scenario(
        [(hub.recreates_the_group, 3)], no_duplicates=True
    ),
    "messages expired": Scenario([(hub.expires_messages, 1)], logged=["messages lost"], quick=True),
    "hub recreated": Scenario([(hub.is_recreated, 2)], logged=["hub was recreated"], quick=True),
    "hub recreated while stopped": Scenario(
        [(hub.is_recreated_while_stopped, 0)], logged=["hub was recreated"], settings=FAST_POLLS
    ),
    "hub recreated while stopped, with a storage account": Scenario(
        [(hub.is_recreated_while_stopped, 0)],
        logged=["hub was recreated"],
        settings=FAST_POLLS,
        blobs=True,
    ),
    "hub recreated, with a storage account": Scenario(
        [(hub.is_recreated, 2)], logged=["hub was recreated"], settings=FAST_POLLS, blobs=True
    ),
    "partitions added": Scenario(
        [(hub.adds_partitions, 0)], logged=["partitions added"], settings=FAST_POLLS, quick=True
    ),
    "receivers silent": Scenario(
        [(hub.mutes, 8)], logged=["stalled", "still stalled", "recovered"], settings=FAST_POLLS
    ),
    "partitions stolen": Scenario([(hub.partitions_stolen, 2)], logged=["partition given up"]),
    # The sink: nothing is lost, and nothing undelivered is checkpointed.
    "sink unavailable": Scenario(
        [(sink.unavailable, 5)],
        logged=["sink down", "sink up"],
        settings={"CheckpointInterval": "0.1"},
    ),
    "sink restarted every second": Scenario([(sink.restarts, 6)]),
    "sink returns errors": Scenario(
        [(sink.fails, 2), (sink.is_busy, 2), (sink.drops, 2), (sink.is_not_found, 2)],
        logged=["sink down", "sink up"],
        no_duplicates=True,
        quick=True,
    ),
    "sink slow": Scenario(
        [(sink.is_slow, 2), (sink.hangs, 12), (sink.responds_too_late, 6)],
        logged=["sink down"],
        settings=sink.SHORT_TIMEOUT,
    ),
    "token rotated": Scenario([(sink.changes_its_token, 8)], settings=TOKEN, logged=["sink up"]),
    "certificate expired and renewed": Scenario(
        [(sink.certificate_expires, 8)],
        settings=CA,
        tls=True,
        logged=["sink down", "sink up"],
    ),
    # The store: checkpoints are delayed, events are not.
    "store unavailable": Scenario(
        [(store.unavailable, 8), (store.hangs, 3), (store.slow, 3)],
        blobs=True,
        logged=["checkpoints cannot be written"],
    ),
    "store refuses writes": Scenario(
        [(store.busy, 2), (store.conflicts, 2), (store.refuses_conditions, 2), (store.forbids, 2)],
        blobs=True,
    ),
    "store unavailable at start": Scenario([(store.unavailable_at_start, 1)], blobs=True),
    "store unavailable at shutdown": Scenario(
        [(together(store.unavailable, processes.stopped), 3)], blobs=True
    ),
    # Processes: the next one resumes from a checkpoint that is past no unsettled message.
    "killed": Scenario([(processes.killed, 0.1)] * 3, quick=True),
    "killed fifty times in a minute": Scenario([(processes.killed_repeatedly, 60)]),
    "killed repeatedly while the sink hangs": Scenario(
        [(together(sink.hangs, processes.killed_repeatedly), 15)], settings=sink.SHORT_TIMEOUT
    ),
    "poison message": Scenario(
        [(processes.receives_a_poison_message, 300)],
        settings={"CRASH_ON": "deadly-"},
        logged=["the process died again and again", "messages are processed concurrently again"],
    ),
    "frozen": Scenario([(processes.frozen, 3)], quick=True),
    "stopped": Scenario([(processes.stopped, 0.1)] * 3),
    "stopped while the sink is slow": Scenario(
        [(together(sink.is_slow, processes.stopped), 2)], traffic=100
    ),
    "stopped while the sink hangs": Scenario(
        [(together(sink.hangs, processes.stopped), 2)],
        settings={"ShutdownGrace": "1", **sink.SHORT_TIMEOUT},
    ),
    # Replicas: partitions change owner, checkpoints never move back.
    "replicas join and leave": Scenario(
        [(replicas.joins, 0), (replicas.leaves, 0)], blobs=True, quick=True, settings=REPLICAS
    ),
    "replica cut off from the hub": Scenario(
        [(replicas.joins, 0), (replicas.loses_the_hub, 2)],
        blobs=True,
        logged=["hub does not answer", "hub answers"],
        settings=REPLICAS,
    ),
    "replica killed": Scenario(
        [(replicas.joins, 0), (replicas.is_killed, 0)], blobs=True, settings=REPLICAS
    ),
    "replica frozen": Scenario(
        [(replicas.joins, 0), (replicas.is_frozen, 0)],
        blobs=True,
        settings={"CheckpointInterval": "1", **REPLICAS},
    ),
    "clock of a replica jumps": Scenario(
        [
            (replicas.joins, 0),
            (replicas.clock_jumps_in_one, 12),
            (replicas.is_killed_while_a_clock_is_wrong, 0),
        ],
        blobs=True,
        settings=REPLICAS,
    ),
    "clock jumps": Scenario(
        [(processes.clock_jumps, 6), (together(sink.fails, processes.clock_jumps), 6)],
        no_duplicates=True,
    ),
    # Load: memory is bounded by bytes, for any size of messages and records.
    "5,000 records per message": Scenario(
        [(load.many_records, 0)], no_duplicates=True, settings=LARGE_BATCHES, rss=224
    ),
    "one record of 1 MiB": Scenario(
        [(load.large_record, 2**20)], no_duplicates=True, settings=LARGE_BATCHES
    ),
    "one record of 10 MiB": Scenario(
        [(load.large_record, 10 * 2**20)], no_duplicates=True, settings=LARGE_BATCHES, rss=256
    ),
    "100,000 dead letters": Scenario(
        [(load.dead_letters, 100_000)],
        no_duplicates=True,
        settings={"DeadLetterMaxBytes": "200000000", **LARGE_BATCHES},
    ),
}


def _parameter(name: str) -> object:
    marks = [] if SCENARIOS[name].quick else [pytest.mark.full]
    return pytest.param(SCENARIOS[name], id=name, marks=marks)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("scenario", [_parameter(name) for name in SCENARIOS])
async def test_nothing_is_lost(scenario: Scenario, tmp_path: Path) -> None:
    """Published = delivered + dead letters + counted lost; no checkpoint is early."""
    async with fault_environment(tmp_path, blobs=scenario.blobs, tls=scenario.tls) as env:
        env.defaults = scenario.settings
        await env.start()
        env.ledger.publish(100, reject_every=50)
        await env.wait_until_settled()
        for fault, seconds in scenario.faults:
            async with env.traffic(scenario.traffic, reject_every=50):
                await fault(env, seconds)
            env.ledger.publish(100, reject_every=50)
            await env.wait_until_settled()
        if scenario.no_duplicates:
            await env.assert_no_duplicates()
            # No receiver was closed because of errors and reopened in a later balancing round.
            assert not any(one.entries("partition given up") for one in env.running.values())
        for message in scenario.logged:
            await env.wait_for_log(message)
        await env.verify(scenario.rss)
