"""A message that cannot be decoded becomes a dead letter, and its partition continues."""

import asyncio
import struct
from pathlib import Path

from support.environment import environment
from support.process import Forwarder

VALUE = b"\x00\x53\x77"
DATA = b"\x00\x53\x75"
BODIES = {
    "a value that is not UTF-8": VALUE + b"\xa1\x02\xff\xfe",
    "a sequence": b"\x00\x53\x76" + b"\xc0\x04\x01\xa0\x01\xff",
    "a decimal": VALUE + b"\x74\x00\x00\x00\x00",
    "a bad character": VALUE + b"\x73\x00\x11\x00\x00",
    "a deep list": VALUE + b"\xc0\x7f\x01" * 1500 + b"\x40",
    "garbage": b"garbage",
    "empty": b"",
}


async def test_an_undecodable_message_does_not_stop_its_partition(tmp_path: Path) -> None:
    async with environment(tmp_path, partitions=1) as env:
        for body in BODIES.values():
            env.hub.partitions[0].append(body, b"", None)
        env.ledger.publish(20)
        async with env.forwarder(None, StallTimeout="6") as forwarder:
            await forwarder.until(lambda: len(env.webhook.accepted) == 20)
            async with asyncio.timeout(90):
                while await _dead_lettered(forwarder) < len(BODIES):  # noqa: ASYNC110 - no event to wait for
                    await asyncio.sleep(0.1)
            samples = await forwarder.metrics()
            assert samples.total("aks_audit_hub_messages_total") == len(BODIES) + 2
            logged = forwarder.entries("message cannot be read")
            assert [entry["sequenceNumber"] for entry in logged] == [1, 2, 3, 4, 5, 6]
            assert not forwarder.entries("partition given up")
            assert not forwarder.entries("receiving failed")
            forwarder.terminate()
            assert await forwarder.wait() == 0
        assert env.webhook.duplicates == 0


async def test_unreadable_annotations_stop_no_partition_and_lose_no_checkpoint(
    tmp_path: Path,
) -> None:
    huge = b"\xa0\xc8" + b"\x7f" * 200
    keys = (b"x-opt-sequence-number", b"x-opt-enqueued-time", b"x-opt-offset")
    async with environment(tmp_path, partitions=1) as env:
        for heads in *([key] for key in keys), keys, None:
            env.ledger.publish(10)
            stored = env.hub.partitions[0].messages
            _, section, rest = stored[-1].head.partition(DATA)
            entries = b"".join(b"\xa3%c%b%b" % (len(key), key, huge) for key in heads or ())
            size = struct.pack(">II", len(entries) + 4, 2 * len(heads or ()))
            head = b"\x00\x53\x72\xd1" + size + entries if heads else b""
            stored[-1] = stored[-1]._replace(head=head + section + rest)
        async with env.forwarder(None) as forwarder:
            await forwarder.until(lambda: len(env.webhook.accepted) == 50)
            forwarder.terminate()
            assert await forwarder.wait() == 0
            assert not forwarder.entries("receiving failed")
        env.ledger.publish(10)
        async with env.forwarder(None, StartPosition="latest") as forwarder:
            await forwarder.until(lambda: len(env.webhook.accepted) == 60)
            assert not forwarder.entries("checkpoint unusable, it is ignored")
    assert env.webhook.duplicates == 0


async def _dead_lettered(forwarder: Forwarder) -> float:
    samples = await forwarder.metrics()
    return samples.total("aks_audit_events_total", outcome="dead_lettered")
