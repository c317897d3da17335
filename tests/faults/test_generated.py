"""Faults of hub, sink, store and processes at once, drawn by a seed.

`make faults ONLY=seed-17` repeats a seed: the same faults in the same order.
"""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from faults import hub, processes, sink, store
from faults.play import Play, play
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


async def befall(stage: Play, faults: Sequence[Fault], seed: str, told: list[str]) -> None:
    """Let one fault after the other befall, with pauses, for so many seconds in all."""
    chance = random.Random(seed)
    left = SECONDS
    while (left := left - (pause := chance.uniform(0.1, 1))) > 0:
        await asyncio.sleep(pause)
        fault, seconds = chance.choice(faults), round(chance.uniform(0.2, 2.5), 1)
        told.append(f"{fault.__module__}.{fault.__name__} {seconds}")
        await fault(stage, seconds)
        left -= seconds


async def befall_at_once(stage: Play, seed: int, told: list[str]) -> None:
    """Let faults of all kinds befall while events come."""
    kinds = (HUB, SINK, PROCESSES, *([STORE] if stage.store else []))
    async with stage.traffic(300, refuse=1000), stage.moving(), asyncio.TaskGroup() as group:
        for faults in kinds:
            group.create_task(befall(stage, faults, f"{seed} {faults[0].__module__}", told))


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", [_seed(number) for number in range(SEEDS)])
async def test_nothing_is_lost(seed: int, tmp_path: Path) -> None:
    """Whatever befalls them at once, the verdict is that of every scenario."""
    told: list[str] = []
    try:
        async with play(tmp_path, blobs=bool(seed % 2)) as stage:
            await stage.start()
            async with asyncio.timeout(150):
                await befall_at_once(stage, seed, told)
                stage.ledger.publish(100)
                await stage.verdict()
    except BaseException as error:
        error.add_note(f"what befell: {', '.join(told)}\nagain: make faults ONLY=seed-{seed}")
        raise
