"""Messages made to take memory: each kind is read, counted and passed in little of it."""

import asyncio
import json
from pathlib import Path

import pytest

from support import events
from support.environment import environment
from support.events import real_events, record, wrap

MEGABYTE = 900_000
MOST = 160 * 1024 * 1024
MESSAGES = 24


def event(**fields: object) -> bytes:
    return json.dumps({**json.loads(real_events()[0]), **fields}).encode()


def filled(one: bytes) -> bytes:
    return wrap([one] * (MEGABYTE // (len(one) + 1)))


def small(log: str) -> bytes:
    return b'{"category":"kube-audit","properties":{"log":%b}}' % json.dumps(log).encode()


def message(kind: str, number: int) -> bytes:
    """Return a message of 900 KB, of which no two are equal where that matters."""
    long = f"{number}" * (MEGABYTE // len(f"{number}"))
    if kind == "user names":
        return wrap([record(event(user={"username": long}))])
    if kind == "groups":
        groups = [f"group-{each}" for each in range(60_000)]
        return wrap([record(event(user={"username": f"{number}", "groups": groups}))])
    if kind == "resource IDs":
        return wrap([record(event(), resource_id=long)])
    return filled(SMALL[kind])


SMALL = {
    "records without a log": b'{"category":"kube-audit"}',
    "empty logs": small(""),
    "records of other categories": b'{"category":"csi"}',
}
KINDS = [*SMALL, "user names", "groups", "resource IDs"]


@pytest.mark.parametrize("kind", KINDS)
async def test_hostile_messages_pass_in_little_memory(kind: str, tmp_path: Path) -> None:
    last = [*events.messages(20, per_message=10)]
    async with environment(tmp_path, partitions=2) as env:
        env.webhook.rule = None
        for number in range(MESSAGES):
            env.hub.publish(number % 2, message(kind, number))
        for number, body in enumerate(last):
            env.hub.publish(number, body.body)
        async with env.forwarder(
            VerboseLevel="1", AuditPolicyFile="quiet", ResourceIds="*", ClusterAnnotation="true"
        ) as process:
            held = [0]

            async def watch() -> None:
                while True:
                    held.append(process.rss())
                    await asyncio.sleep(0.05)

            watching = asyncio.create_task(watch())
            names = [{json.loads(one)["auditID"] for one in each.events} for each in last]

            def arrived() -> bool:
                found = {audit_id for audit_id, _ in env.webhook.bytes}
                return all(found & each for each in names)  # the policy keeps most

            await env.webhook.until(arrived, 300)
            watching.cancel()
    assert max(held) < MOST, f"{max(held) >> 20} MiB"


async def test_the_smallest_events_take_little_memory_while_the_sink_is_away(
    tmp_path: Path,
) -> None:
    """Each takes several times its bytes in the hub, which counts as received."""
    async with environment(tmp_path, partitions=2) as env:
        await env.webhook.stop()
        for number in range(80):
            env.hub.publish(number % 2, filled(small('{"auditID":"1","stage":"s"}')))
        async with env.forwarder(VerboseLevel="1") as process:
            await process.wait_for("sink down")
            held = [0]
            for _ in range(100):
                held.append(process.rss())
                await asyncio.sleep(0.1)
    assert max(held) < 110 * 1024 * 1024, f"{max(held) >> 20} MiB"
