"""Messages that crash the process, and messages in flight when something else kills it."""

import asyncio
import math
import os
from pathlib import Path

import pytest

from forwarder.checkpoints.quarantine import Quarantine
from support.environment import environment
from support.ledger import check_sums
from support.webhook import Response


async def test_kills_from_outside_quarantine_no_message(tmp_path: Path) -> None:
    """The sink hangs, so nothing is acknowledged, and the process is killed repeatedly."""
    async with environment(tmp_path, partitions=2) as env:
        env.webhook.rule = lambda _: Response(503, delay=math.inf)
        env.ledger.publish(2, per_message=1)
        for _ in range(8):
            async with env.forwarder() as forwarder:
                await forwarder.wait_for("hub message")
                await asyncio.sleep(0.3)
        assert forwarder.entries("the process died again and again")
        env.webhook.rule = env.ledger.respond
        async with env.forwarder() as forwarder:
            await env.ledger.wait_until_settled()
            await forwarder.wait_for("messages are processed concurrently again")
            check_sums(await forwarder.metrics())
        env.ledger.verify()


async def test_restarts_without_messages_do_not_count_as_crashes(tmp_path: Path) -> None:
    file = tmp_path / "poison.json"
    file.touch()
    async with environment(tmp_path, partitions=1) as env:
        for _ in range(5):
            os.utime(file, (0, 0))  # distinguishes new writes from old ones
            async with env.forwarder(StallTimeout="1") as forwarder:  # polls every 0.2 s
                await forwarder.until(
                    lambda: file.stat().st_mtime and b'"starts":{}' in file.read_bytes()
                )
        assert not forwarder.entries("the process died again and again")


async def test_delivery_continues_if_the_quarantine_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "poison.json").mkdir()
    async with environment(tmp_path) as env, env.forwarder() as forwarder:
        env.ledger.publish(100)
        await env.ledger.wait_until_settled()
        forwarder.terminate()
        assert await forwarder.wait() == 0
        assert forwarder.entries("starts cannot be counted")
        env.ledger.verify()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"\xff\xfe",
        b'{"x":' + b"[" * 100_000,
        b'{"starts":{"0":[1,1e400]}}',
        b'{"suspect":"0/%b/1"}' % (b"9" * 5000),
        b'{"deaths":{"0/%b/1":1}}' % (b"9" * 5000),
        b'{"deaths":{"0/x/1":1}}',
    ],
    ids=["empty", "null", "text", "deep", "float", "long suspect", "long number", "no number"],
)
def test_an_invalid_quarantine_file_is_ignored(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "poison.json"
    path.write_bytes(content)
    quarantine = Quarantine(path)
    assert not quarantine.one_by_one
    quarantine.claimed("0", 5)
    quarantine.passed("0", 6)
