"""Memory is bounded by bytes, however large the messages and however slow the sink."""

import asyncio
from pathlib import Path

import events
from scene import scene

MESSAGES = 340
PER_MESSAGE = 400  # events: 900 KB
MOST = 200 * 1024 * 1024


async def test_large_messages_pass_in_little_memory(tmp_path: Path) -> None:
    """300 MB in messages of 900 KB, the sink down for a while: the process stays small."""
    body = next(events.messages(PER_MESSAGE, per_message=PER_MESSAGE)).body
    async with scene(tmp_path) as stage:
        stage.webhook.fast = True
        stage.webhook.rule = None
        for number in range(MESSAGES):
            stage.hub.publish(number % 4, body)
        async with stage.forwarder(WebSinkMaxEvents="100", VerboseLevel="1") as forwarder:
            held: list[int] = []

            async def watch() -> None:
                while True:
                    held.append(forwarder.rss())
                    await asyncio.sleep(0.05)

            watching = asyncio.create_task(watch())
            await stage.webhook.until(lambda: stage.webhook.total > 20 * PER_MESSAGE)
            await stage.webhook.stop()
            await forwarder.wait_for("sink down")
            await asyncio.sleep(2)
            await stage.webhook.start()
            await stage.webhook.until(lambda: stage.webhook.total >= MESSAGES * PER_MESSAGE, 100)
            watching.cancel()
        assert stage.webhook.total == MESSAGES * PER_MESSAGE
        assert max(held) < MOST, f"{max(held) >> 20} MiB"
