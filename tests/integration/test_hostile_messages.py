"""Messages crafted to exhaust memory: each kind is processed within a memory limit."""

import asyncio
import json
from pathlib import Path

import pytest

from support import events
from support.environment import environment
from support.events import real_events, record, wrap

MEGABYTE = 900_000
MEMORY_LIMIT = 160 * 1024 * 1024
MESSAGES = 24


def event(**fields: object) -> bytes:
    return json.dumps({**json.loads(real_events()[0]), **fields}).encode()


def filled(one: bytes) -> bytes:
    return wrap([one] * (MEGABYTE // (len(one) + 1)))


def small(log: str) -> bytes:
    return b'{"category":"kube-audit","properties":{"log":%b}}' % json.dumps(log).encode()


def message(kind: str, number: int) -> bytes:
    """Return a message of 900 KB; messages of a kind differ where that matters."""
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
async def test_hostile_messages_stay_within_the_memory_limit(kind: str, tmp_path: Path) -> None:
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
            sizes = [0]

            async def watch() -> None:
                while True:
                    sizes.append(process.rss())
                    await asyncio.sleep(0.05)

            watching = asyncio.create_task(watch())
            names = [{json.loads(one)["auditID"] for one in each.events} for each in last]

            def arrived() -> bool:
                found = {audit_id for audit_id, _ in env.webhook.bytes}
                return all(found & each for each in names)  # the policy keeps most

            await env.webhook.until(arrived, 300)
            watching.cancel()
    assert max(sizes) < MEMORY_LIMIT, f"{max(sizes) >> 20} MiB"


async def test_the_smallest_events_stay_within_the_memory_limit_while_the_sink_is_down(
    tmp_path: Path,
) -> None:
    """In memory each takes several times its size in the hub, and the buffer counts that."""
    async with environment(tmp_path, partitions=2) as env:
        await env.webhook.stop()
        for number in range(80):
            env.hub.publish(number % 2, filled(small('{"auditID":"1","stage":"s"}')))
        async with env.forwarder(VerboseLevel="1") as process:
            await process.wait_for("sink down")
            sizes = [0]
            for _ in range(100):
                sizes.append(process.rss())
                await asyncio.sleep(0.1)
    assert max(sizes) < 110 * 1024 * 1024, f"{max(sizes) >> 20} MiB"
