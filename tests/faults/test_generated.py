"""Random faults of hub, sink, store and processes at the same time, by a seed.

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
    hub.unavailable,
    hub.delays,
    hub.delivers_twice,
    hub.detaches,
    hub.drops,
    hub.is_busy,
    hub.is_full,
    hub.is_silent,
    hub.partitions_stolen,
    hub.revokes_the_key,
)
SINK: Sequence[Fault] = (
    sink.responds_too_late,
    sink.unavailable,
    sink.drops,
    sink.fails,
    sink.is_busy,
    sink.is_not_found,
    sink.is_slow,
    sink.restarts,
)
STORE: Sequence[Fault] = (
    store.unavailable,
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
    env: FaultEnvironment, faults: Sequence[Fault], seed: str, injected: list[str]
) -> None:
    """Inject one fault after the other, with pauses, for SECONDS in total."""
    rng = random.Random(seed)
    left = SECONDS
    while (left := left - (pause := rng.uniform(0.1, 1))) > 0:
        await asyncio.sleep(pause)
        fault, seconds = rng.choice(faults), round(rng.uniform(0.2, 2.5), 1)
        injected.append(f"{fault.__module__}.{fault.__name__} {seconds}")
        await fault(env, seconds)
        left -= seconds


async def inject_concurrently(env: FaultEnvironment, seed: int, injected: list[str]) -> None:
    """Inject faults of all kinds concurrently while events are published."""
    kinds = (HUB, SINK, PROCESSES, *([STORE] if env.store else []))
    async with (
        env.traffic(300, reject_every=1000),
        env.owners_change(),
        asyncio.TaskGroup() as group,
    ):
        for faults in kinds:
            group.create_task(inject(env, faults, f"{seed} {faults[0].__module__}", injected))


@pytest.mark.timeout(700)
@pytest.mark.parametrize("seed", [_seed(number) for number in range(SEEDS)])
async def test_nothing_is_lost(seed: int, tmp_path: Path) -> None:
    """The checks are those of the scenarios, for any combination of faults."""
    injected: list[str] = []
    try:
        async with fault_environment(tmp_path, blobs=bool(seed % 2)) as env:
            env.defaults = sink.SHORT_TIMEOUT
            await env.start()
            async with asyncio.timeout(600):
                await inject_concurrently(env, seed, injected)
                env.ledger.publish(100)
                await env.verify()
    except BaseException as error:
        error.add_note(f"faults: {', '.join(injected)}\nto repeat: make faults ONLY=seed-{seed}")
        raise
