"""While the sink is away nothing is lost, nothing is checkpointed and nobody is hammered."""

import asyncio
from pathlib import Path

import stores
from ledger import judge_sums
from scene import scene


async def test_holds_while_the_sink_is_down_and_goes_on(tmp_path: Path) -> None:
    """Some seconds of refused connections: unready, not dead; ever fewer posts; then all arrive."""
    async with scene(tmp_path) as stage, stage.forwarder() as forwarder:
        ledger = stage.ledger
        ledger.publish(100, refuse=10)
        await ledger.settled()
        async with stage.traffic():
            await asyncio.sleep(1)
            await stage.webhook.stop()
            await forwarder.wait_for("sink down")
            await asyncio.sleep(4)
            assert (await forwarder.get("/livez"))[0] == 200
            assert (await forwarder.get("/readyz"))[0] == 503
            before = stores.embedded(tmp_path)
            ledger.judge_checkpoints(before)
            samples = await forwarder.metrics()
            # 16 posts under way; without back-off there would be thousands, with it a handful each.
            assert samples.total("aks_audit_posts_total", status="error") < 16 * 8
            await asyncio.sleep(0.5)
            assert stores.embedded(tmp_path) == before
            await stage.webhook.start()
            await forwarder.wait_for("sink up", 40)
        await ledger.settled(60)
        assert (await forwarder.get("/readyz"))[0] == 200
        judge_sums(await forwarder.metrics())
        assert len(forwarder.entries("sink down")) == 1
        forwarder.terminate()
        assert await forwarder.wait() == 0
        ledger.judge()
        ledger.judge_checkpoints(stores.embedded(tmp_path))
