"""Faults of hub, sink, store and processes at once, drawn by a seed.

`make faults ONLY=seed-17` repeats a seed: the same faults in the same order.
"""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from faults import hub, processes, sink, store
from faults.environment import FaultEnvironment, fault_environment
from faults.processes import Fault

SEEDS = 30
QUICK = {3, 8}
"""Seeds that `make test` runs: one with each store."""
SECONDS = 8.0

HUB: Sequence[Fault] = (
    hub.away,
    hub.delays,
    hub.delivers_twice,
    hub.detaches,
    hub.drops,
    hub.is_busy,
    hub.is_full,
    hub.is_silent,
    hub.lets_steal,
    hub.revokes_the_key,
)
SINK: Sequence[Fault] = (
    sink.answers_too_late,
    sink.away,
    sink.drops,
    sink.fails,
    sink.is_busy,
    sink.is_gone,
    sink.is_slow,
    sink.restarts,
)
STORE: Sequence[Fault] = (
    store.away,
    store.busy,
    store.conflicts,
    store.forbids,
    store.hangs,
    store.refuses_conditions,
    store.slow,
)
PROCESSES: Sequence[Fault] = (
    processes.clock_jumps,
    processes.frozen,
    processes.killed,
    processes.stopped,
)


def _seed(number: int) -> object:
    marks = [] if number in QUICK else [pytest.mark.full]
    return pytest.param(number, id=f"seed-{number}", marks=marks)


async def inject(
    env: FaultEnvironment, faults: Sequence[Fault], seed: str, told: list[str]
) -> None:
    """Inject one fault after the other, with pauses, for SECONDS in all."""
    chance = random.Random(seed)
    left = SECONDS
    while (left := left - (pause := chance.uniform(0.1, 1))) > 0:
        await asyncio.sleep(pause)
        fault, seconds = chance.choice(faults), round(chance.uniform(0.2, 2.5), 1)
        told.append(f"{fault.__module__}.{fault.__name__} {seconds}")
        await fault(env, seconds)
        left -= seconds


async def inject_at_once(env: FaultEnvironment, seed: int, told: list[str]) -> None:
    """Inject faults of all kinds at once while events come."""
    kinds = (HUB, SINK, PROCESSES, *([STORE] if env.store else []))
    async with env.traffic(300, refuse=1000), env.moving(), asyncio.TaskGroup() as group:
        for faults in kinds:
            group.create_task(inject(env, faults, f"{seed} {faults[0].__module__}", told))


@pytest.mark.timeout(700)
@pytest.mark.parametrize("seed", [_seed(number) for number in range(SEEDS)])
async def test_nothing_is_lost(seed: int, tmp_path: Path) -> None:
    """Whatever fails at once, the verdict is that of every scenario."""
    told: list[str] = []
    try:
        async with fault_environment(tmp_path, blobs=bool(seed % 2)) as env:
            env.defaults = sink.SHORT_TIMEOUT
            await env.start()
            async with asyncio.timeout(600):
                await inject_at_once(env, seed, told)
                env.ledger.publish(100)
                await env.verdict()
    except BaseException as error:
        error.add_note(f"what befell: {', '.join(told)}\nagain: make faults ONLY=seed-{seed}")
        raise
