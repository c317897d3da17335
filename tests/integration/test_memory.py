"""Memory is bounded by bytes, however large the messages and however slow the sink."""

import asyncio
import gc
import shutil
from pathlib import Path

from azure.eventhub._pyamqp.aio._receiver_async import ReceiverLink

from support import events
from support.environment import environment
from support.eventhubs import Server
from support.harness import HUB
from support.inprocess import forwarding
from support.webhook import Webhook

MESSAGES = 340
PER_MESSAGE = 400  # events: 900 KB
MEMORY_LIMIT = 200 * 1024 * 1024


async def test_large_messages_stay_within_the_memory_limit(tmp_path: Path) -> None:
    """300 MB in messages of 900 KB; the sink is down for a while."""
    body = next(events.messages(PER_MESSAGE, per_message=PER_MESSAGE)).body
    async with environment(tmp_path) as env:
        env.webhook.fast = True
        env.webhook.rule = None
        for number in range(MESSAGES):
            env.hub.publish(number % 4, body)
        async with env.forwarder(WebSinkMaxEvents="100", VerboseLevel="1") as forwarder:
            sizes: list[int] = []

            async def watch() -> None:
                while True:
                    sizes.append(forwarder.rss())
                    await asyncio.sleep(0.05)

            watching = asyncio.create_task(watch())
            await env.webhook.until(lambda: env.webhook.total > 20 * PER_MESSAGE)
            await env.webhook.stop()
            await forwarder.wait_for("sink down")
            await asyncio.sleep(2)
            await env.webhook.start()
            await env.webhook.until(lambda: env.webhook.total >= MESSAGES * PER_MESSAGE, 300)
            watching.cancel()
        assert env.webhook.total == MESSAGES * PER_MESSAGE
        assert max(sizes) < MEMORY_LIMIT, f"{max(sizes) >> 20} MiB"


async def test_100000_waiting_dead_letters_stay_within_the_memory_limit(
    tmp_path: Path,
) -> None:
    """Sink and dead-letter store are both down; what waits in memory is bounded by bytes."""
    bad = events.wrap([events.record("x")] * 20)
    good = next(events.messages(20, per_message=20)).body
    async with environment(tmp_path) as env, env.forwarder(VerboseLevel="1") as forwarder:
        await env.webhook.stop()
        await forwarder.wait_until_listening()
        shutil.rmtree(tmp_path / "deadletters")
        (tmp_path / "deadletters").touch()
        for number in range(5_000):
            env.hub.publish(number % 4, bad)
            if number % 20 == 0:
                env.hub.publish(number % 4, good)

        async def all_wait() -> bool:
            return await forwarder.total("dead_letters_waiting") >= 100_000

        await forwarder.until(all_wait)
        assert forwarder.rss() < 160 * 1024 * 1024, f"{forwarder.rss() >> 20} MiB"


async def test_the_client_keeps_no_delivery_tags(webhook: Webhook, tmp_path: Path) -> None:
    """Receivers of the SDK would keep the delivery tag of every message."""
    assert await _tags(webhook, tmp_path) == 0


async def _tags(webhook: Webhook, state: Path) -> int:
    """Forward 200 messages; return how many delivery tags are kept."""
    body = next(events.messages(1, per_message=1)).body
    async with Server({HUB: 2}) as server:
        for number in range(200):
            server.hubs[HUB].publish(number % 2, body)
        async with forwarding(server, webhook.url, state):
            await webhook.until(lambda: webhook.total == 200)
            address = f":{server.port}/"
            links = [
                one
                for one in gc.get_objects()
                if isinstance(one, ReceiverLink) and address in (text := str(one.source))
                if "ConsumerGroups" in text
            ]
            assert len(links) >= 2  # the poll of the hub attaches one too
            return sum(len(one._received_delivery_tags) for one in links)  # noqa: SLF001
