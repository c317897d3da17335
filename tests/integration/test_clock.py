"""Ages are measured by the hub's clock, independently of the local clock."""

import asyncio
import os
import signal
from pathlib import Path

from support.environment import APP, CHILD, environment
from support.process import Forwarder
from support.webhook import Response

SETTINGS = {"PYTHONPATH": f"{CHILD}:{APP}", "StallTimeout": "6", "WebSinkTimeout": "30"}
HOUR = 3600


async def test_clock_skew_is_reported_and_does_not_affect_ages(tmp_path: Path) -> None:
    async with (
        environment(tmp_path) as env,
        env.forwarder(None, **SETTINGS) as forwarder,
    ):
        # accepts tokens issued while the local clock is behind
        env.server.faults.clock_offset = -2 * HOUR
        async with env.traffic(100):
            await forwarder.wait_for("hub message")
            assert await _skew(forwarder) == 0
            os.kill(forwarder.pid, signal.SIGUSR1)
            entry = await forwarder.wait_for("clock differs from the hub's")
            assert HOUR - 60 < entry["aheadSeconds"] <= HOUR
            assert HOUR - 60 < await _skew(forwarder) <= HOUR + 1
            assert not forwarder.entries("hub is quiet")
            for behind in (0, HOUR):  # one at a time: pending signals of one kind do not queue
                os.kill(forwarder.pid, signal.SIGUSR2)
                async with asyncio.timeout(90):
                    while await _skew(forwarder) > 60 - behind:  # noqa: ASYNC110 - no event
                        await asyncio.sleep(0.2)
        rule, env.webhook.rule = env.webhook.rule, lambda _: Response(delay=HOUR)
        env.ledger.publish(10)
        await asyncio.sleep(3)
        samples = await forwarder.metrics()
        oldest = max(
            samples.total("aks_audit_oldest_undelivered_seconds", partition=number)
            for number in "0123"
        )
        assert 1 < oldest < 60
        env.webhook.rule = rule


async def _skew(forwarder: Forwarder) -> float:
    return (await forwarder.metrics()).total("aks_audit_clock_skew_seconds")
