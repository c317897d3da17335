"""Nothing is lost and no checkpoint is early when the process is killed."""

import asyncio
import random
import secrets
from pathlib import Path

import stores
from ledger import judge_sums
from scene import scene
from webhook import Answer

KILLS = 20


async def test_killed_at_random_moments_loses_nothing(tmp_path: Path) -> None:
    """SIGKILL twenty times: each start goes on from a checkpoint behind all that is settled."""
    seed = secrets.randbits(32)
    chance = random.Random(seed)
    try:
        async with scene(tmp_path) as stage:
            ledger = stage.ledger
            # What was sent when it died arrives later: in no checkpoint may it be by then.
            stage.webhook.rule = lambda post: Answer(
                ledger.answer(post), delay=chance.uniform(0, 0.2)
            )
            async with stage.traffic(refuse=97):
                for _ in range(KILLS):
                    async with stage.forwarder() as forwarder:
                        if chance.random() < 0.6:  # else it may not have come to a message yet
                            await forwarder.wait_for("hub message")
                        await asyncio.sleep(chance.uniform(0, 0.6))
                        forwarder.kill()
                        assert await forwarder.wait() == -9
                    stored = stores.embedded(tmp_path)
                    ledger.judge_checkpoints(stored)
                    ledger.restarted(stored)
            async with stage.forwarder() as forwarder:
                await ledger.settled()
                judge_sums(await forwarder.metrics())
                forwarder.terminate()
                assert await forwarder.wait() == 0
            ledger.judge_checkpoints(stores.embedded(tmp_path))
            ledger.judge()
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise
