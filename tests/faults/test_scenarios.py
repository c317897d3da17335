"""Each line of the table is a scenario: what runs, what fails, and what must be logged.

What must hold is the same for all, and stands in `FaultEnvironment.verdict`.
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
    """A line of the table."""

    faults: Sequence[tuple[Fault, float]]
    """One after the other, each for so many seconds while events come; then all must settle."""
    blobs: bool = False
    """Whether checkpoints are kept in a storage account, or in the state directory."""
    said: Sequence[str] = ()
    """Log entries that tell an operator."""
    settings: Mapping[str, str] = field(default_factory=dict)
    once: bool = False
    """Whether no event may come twice, not even behind a checkpoint."""
    tls: bool = False
    traffic: int = 400
    """Events a second; every fiftieth is one that the sink refuses."""
    rss: float = 160
    """MiB that a forwarder may hold."""
    quick: bool = False
    """Whether `make test` runs it too."""


TOKEN = {"WebSinkTokenFile": "{folder}/token"}
CA = {"WebSinkCAFile": "{folder}/ca.pem"}
LOOKS = {"StallTimeout": "6"}
"""Looks at the hub every second, and reopens a silent partition after two."""
REPLICAS = {"OwnershipExpiry": "30", "LoadBalancingInterval": "2"}
"""On a busy machine a round takes seconds: a claim must not expire before the next one."""
WHOLE = {"WebSinkMaxBytes": "1048576", "WebSinkMaxEvents": "100"}

SCENARIOS: dict[str, Scenario] = {
    # The hub: reading goes on by itself, without a duplicate.
    "hub drops": Scenario(
        [(hub.drops, 3), (hub.drops_mid_message, 5), (hub.delivers_twice, 1), (hub.delays, 1)],
        once=True,
        quick=True,
    ),
    "hub refuses": Scenario(
        [(hub.is_busy, 2), (hub.is_full, 2), (hub.detaches, 1.5)], once=True, quick=True
    ),
    "hub away": Scenario([(hub.away, 12)], said=["hub does not answer", "hub answers"], once=True),
    "hub silent": Scenario([(hub.is_silent, 3)], once=True),
    "key revoked and given back": Scenario([(hub.revokes_the_key, 3)], once=True),
    "consumer group deleted and made again": Scenario([(hub.lacks_the_group, 3)], once=True),
    "hub forgets": Scenario([(hub.forgets, 1)], said=["messages lost"], quick=True),
    "hub recreated": Scenario([(hub.is_recreated, 2)], said=["hub was recreated"], quick=True),
    "hub recreated while nobody reads": Scenario(
        [(hub.is_recreated_unseen, 0)], said=["hub was recreated"], settings=LOOKS
    ),
    "hub recreated while nobody reads, with a storage account": Scenario(
        [(hub.is_recreated_unseen, 0)], said=["hub was recreated"], settings=LOOKS, blobs=True
    ),
    "hub recreated, with a storage account": Scenario(
        [(hub.is_recreated, 2)], said=["hub was recreated"], settings=LOOKS, blobs=True
    ),
    "partitions added": Scenario(
        [(hub.grows, 0)], said=["partitions added"], settings=LOOKS, quick=True
    ),
    "receivers silent": Scenario(
        [(hub.mutes, 8)], said=["stalled", "still stalled", "recovered"], settings=LOOKS
    ),
    "partitions stolen": Scenario([(hub.lets_steal, 2)], said=["partition given up"]),
    # The sink: nothing is lost, nothing is checkpointed, nobody is hammered.
    "sink away": Scenario(
        [(sink.away, 5)], said=["sink down", "sink up"], settings={"CheckpointInterval": "0.1"}
    ),
    "sink restarted every second": Scenario([(sink.restarts, 6)]),
    "sink answers badly": Scenario(
        [(sink.fails, 2), (sink.is_busy, 2), (sink.drops, 2), (sink.is_gone, 2)],
        said=["sink down", "sink up"],
        once=True,
        quick=True,
    ),
    "sink slow": Scenario(
        [(sink.is_slow, 2), (sink.hangs, 12), (sink.answers_too_late, 6)],
        said=["sink down"],
        settings=sink.SHORT_TIMEOUT,
    ),
    "token rotated": Scenario([(sink.changes_its_token, 8)], settings=TOKEN, said=["sink up"]),
    "certificate expired and renewed": Scenario(
        [(sink.lets_its_certificate_expire, 8)],
        settings=CA,
        tls=True,
        said=["sink down", "sink up"],
    ),
    # The store: checkpoints wait for it, events do not.
    "store away": Scenario(
        [(store.away, 8), (store.hangs, 3), (store.slow, 3)],
        blobs=True,
        said=["checkpoints cannot be written"],
    ),
    "store refuses": Scenario(
        [(store.busy, 2), (store.conflicts, 2), (store.refuses_conditions, 2), (store.forbids, 2)],
        blobs=True,
    ),
    "store away at the start": Scenario([(store.away_at_the_start, 1)], blobs=True),
    "store away at the stop": Scenario([(together(store.away, processes.stopped), 3)], blobs=True),
    # Processes: the next one goes on from a checkpoint that is behind all that is settled.
    "killed": Scenario([(processes.killed, 0.1)] * 3, quick=True),
    "killed fifty times in a minute": Scenario([(processes.killed_over_and_over, 60)]),
    "killed over and over while the sink hangs": Scenario(
        [(together(sink.hangs, processes.killed_over_and_over), 15)], settings=sink.SHORT_TIMEOUT
    ),
    "poison": Scenario(
        [(processes.poisoned, 300)],
        settings={"DIES_OF": "deadly-"},
        said=["the process died again and again", "messages are processed concurrently again"],
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
    # Replicas: partitions change hands, checkpoints never go back.
    "replicas come and go": Scenario(
        [(replicas.joins, 0), (replicas.leaves, 0)], blobs=True, quick=True, settings=REPLICAS
    ),
    "replica cut off from the hub": Scenario(
        [(replicas.joins, 0), (replicas.loses_the_hub, 2)],
        blobs=True,
        said=["hub does not answer", "hub answers"],
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
    "clocks of replicas jump": Scenario(
        [
            (replicas.joins, 0),
            (replicas.have_clocks_that_jump, 12),
            (replicas.die_while_a_clock_is_wrong, 0),
        ],
        blobs=True,
        settings=REPLICAS,
    ),
    "clock jumps": Scenario(
        [(processes.clock_jumps, 6), (together(sink.fails, processes.clock_jumps), 6)], once=True
    ),
    # Load: bounded by bytes, whatever a message is made of.
    "5,000 records a message": Scenario(
        [(load.many_records, 0)], once=True, settings=WHOLE, rss=224
    ),
    "one record of a megabyte": Scenario([(load.large_record, 2**20)], once=True, settings=WHOLE),
    "one record of ten megabytes": Scenario(
        [(load.large_record, 10 * 2**20)], once=True, settings=WHOLE, rss=256
    ),
    "100,000 dead letters": Scenario(
        [(load.dead_letters, 100_000)],
        once=True,
        settings={"DeadLetterMaxBytes": "200000000", **WHOLE},
    ),
}


def _line(name: str) -> object:
    marks = [] if SCENARIOS[name].quick else [pytest.mark.full]
    return pytest.param(SCENARIOS[name], id=name, marks=marks)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("scenario", [_line(name) for name in SCENARIOS])
async def test_nothing_is_lost(scenario: Scenario, tmp_path: Path) -> None:
    """Published = delivered + dead letters + counted lost; no checkpoint is early."""
    async with fault_environment(tmp_path, blobs=scenario.blobs, tls=scenario.tls) as env:
        env.defaults = scenario.settings
        await env.start()
        env.ledger.publish(100, refuse=50)
        await env.settled()
        for fault, seconds in scenario.faults:
            async with env.traffic(scenario.traffic, refuse=50):
                await fault(env, seconds)
            env.ledger.publish(100, refuse=50)
            await env.settled()
        if scenario.once:
            await env.once()
            # No receiver was closed for its count of errors, to be opened a balancing later.
            assert not any(one.entries("partition given up") for one in env.running.values())
        for message in scenario.said:
            await env.says(message)
        await env.verdict(scenario.rss)
