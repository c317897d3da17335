"""Messages that the process dies of, and those that are under way when others kill it."""

import asyncio
import math
import os
from pathlib import Path

import pytest

from forwarder.checkpoints.quarantine import Quarantine
from support.environment import environment
from support.ledger import judge_sums
from support.webhook import Answer


async def test_who_is_killed_from_without_condemns_no_message(tmp_path: Path) -> None:
    """The sink hangs, so that nothing is settled, and the process is killed time and again."""
    async with environment(tmp_path, partitions=2) as env:
        env.webhook.rule = lambda _: Answer(503, delay=math.inf)
        env.ledger.publish(2, per_message=1)
        for _ in range(8):
            async with env.forwarder() as forwarder:
                await forwarder.wait_for("hub message")
                await asyncio.sleep(0.3)
        assert forwarder.entries("the process died again and again")
        env.webhook.rule = env.ledger.answer
        async with env.forwarder() as forwarder:
            await env.ledger.settled()
            await forwarder.wait_for("messages are processed concurrently again")
            judge_sums(await forwarder.metrics())
        env.ledger.classify()


async def test_a_partition_without_messages_is_no_reason_for_suspicion(tmp_path: Path) -> None:
    notes = tmp_path / "poison.json"
    notes.touch()
    async with environment(tmp_path, partitions=1) as env:
        for _ in range(5):
            os.utime(notes, (0, 0))  # what is noted from now on is told from what was
            async with env.forwarder(StallTimeout="1") as forwarder:  # a look each 0.2 s
                await forwarder.until(
                    lambda: notes.stat().st_mtime and b'"starts":{}' in notes.read_bytes()
                )
        assert not forwarder.entries("the process died again and again")


async def test_a_disk_on_which_nothing_can_be_noted_stops_no_delivery(tmp_path: Path) -> None:
    (tmp_path / "poison.json").mkdir()
    async with environment(tmp_path) as env, env.forwarder() as forwarder:
        env.ledger.publish(100)
        await env.ledger.settled()
        forwarder.terminate()
        assert await forwarder.wait() == 0
        assert forwarder.entries("starts cannot be counted")
        env.ledger.classify()


@pytest.mark.parametrize(
    "notes",
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
def test_notes_of_another_shape_are_ignored(tmp_path: Path, notes: bytes) -> None:
    path = tmp_path / "poison.json"
    path.write_bytes(notes)
    quarantine = Quarantine(path)
    assert not quarantine.one_by_one
    quarantine.claimed("0", 5)
    quarantine.passed("0", 6)
