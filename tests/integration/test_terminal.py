"""Text from a sink or an event cannot control an operator's terminal or forge a line."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

from support import events
from support.environment import APP, Environment
from support.process import Forwarder
from support.webhook import Response

FORGED = "ok      sink            all parts answer"
HOSTILE = f"\x1b[2J\x9b31m\r\n{FORGED}\n\u2028\u202e\x07\\U0041"


def hostile_event() -> bytes:
    event = json.loads(events.typical_events()[0])
    event["auditID"] = event["verb"] = event["user"]["username"] = HOSTILE
    return json.dumps(event).encode()


async def test_no_output_contains_escape_sequences_or_forged_lines(
    env: Environment, tmp_path: Path
) -> None:
    recorded = tmp_path / "events.jsonl"
    recorded.write_bytes(hostile_event() + b"\n")
    env.hub.publish(0, events.envelope([hostile_event()]))
    record = {"category": HOSTILE, "properties": {"log": "x"}}
    env.hub.publish(0, json.dumps({"records": [record, HOSTILE]}).encode())
    env.webhook.rule = lambda _: Response(400, body=HOSTILE)
    settings = {"VerboseLevel": "3", "LogFormat": "text"}
    async with env.forwarder(None, **settings) as forwarder:
        await forwarder.until(lambda: "audit event" in forwarder.output)
        await env.webhook.until(lambda: env.webhook.posts)
        await asyncio.sleep(1)
        forwarder.terminate()
        await forwarder.wait()
    shown = {"log": forwarder.output}
    for command in (
        "check",
        "check --json",
        "replay --show",
        "replay",
        f"policy explain --policy quiet {recorded}",
        f"policy explain --policy quiet --event {recorded}",
    ):
        async with Forwarder(forwarder.environment, *command.split(), app=APP) as running:
            await running.wait()
            shown[command] = f"{running.output}\n{running.stderr}"
    assert_harmless(shown)


async def test_the_reason_for_giving_up_a_replay_contains_no_escape_sequences(
    env: Environment,
) -> None:
    env.hub.publish(0, events.envelope(events.typical_events()[:1]))
    env.webhook.rule = lambda _: Response(400)
    async with env.forwarder(None) as forwarder:
        await env.webhook.until(lambda: env.webhook.posts)
        await asyncio.sleep(1)
        forwarder.terminate()
        await forwarder.wait()
    env.webhook.rule = lambda _: Response(503, body=HOSTILE)
    async with Forwarder(forwarder.environment, "replay", app=APP) as running:
        assert await running.wait() == 1
    assert "given up" in running.stderr
    assert_harmless({"replay": f"{running.output}\n{running.stderr}"})


def assert_harmless(shown: Mapping[str, str]) -> None:
    """Assert that no output contains escape sequences or a forged line."""
    for command, text in shown.items():
        assert text.strip(), command
        unprintable = {char for char in text if not char.isprintable() and char != "\n"}
        assert unprintable == set(), command
        assert not [line for line in text.splitlines() if line.startswith(FORGED)], command
