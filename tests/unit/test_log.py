"""Log entries of each VerboseLevel, as JSON and as text, and a log that nothing reads."""

import asyncio
import json
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from forwarder import log
from forwarder.config.settings import Settings
from support import events
from support.environment import Environment
from support.harness import HUB
from support.process import Forwarder

SOME = events.typical_events()[:22]
MESSAGE = events.envelope(SOME)
KEY = "aHViLWtleS1vZi10aGUtdGVzdA=="

HEAD = ["timestamp", "level", "message"]
# Messages that each level adds, and their fields in order.
ADDED: dict[int, dict[str, list[str]]] = {
    1: {},
    2: {
        "start": ["version", "url"],
        "hub answers": ["partitions", "downSeconds"],
        "partition claimed": ["partition", "checkpoint"],
        "hub message": ["partition", "sequenceNumber", "records", "bytes"],
        "stopping": ["graceSeconds"],
        "partition given up": ["partition", "reason", "checkpoint", "ownedSeconds"],
        "stopped": [],
    },
    3: {
        "audit event": [
            "auditID", "stage", "verb", "user", "resource", "namespace", "name", "code",
        ],
    },
    4: {
        "post": ["url", "events", "bytes"],
        "response": ["status", "milliseconds"],
        "settings": [
            "EventHubName", "BlobContainerName", "WebSinkURL", "VerboseLevel",
            "EhubNamespaceConnectionString", "BlobStorageConnectionString",
        ],
    },
}  # fmt: skip


async def run(env: Environment, *, hub_answers: bool = True, **settings: str) -> Forwarder:
    """Run a forwarder until it has delivered all events of the hub, and stop it."""
    async with env.forwarder(None, **settings) as forwarder:
        published = len(env.hub.partitions[0].messages) * len(SOME)
        await env.webhook.until(lambda: env.webhook.total == published)
        if hub_answers:
            await forwarder.until(lambda: "hub answers" in "\n".join(forwarder.lines))
        else:
            await asyncio.sleep(1)  # for entries that must not be logged
        forwarder.terminate()
        assert await forwarder.wait() == 0
    assert forwarder.stderr == ""
    return forwarder


@pytest.mark.parametrize("level", [1, 2, 3, 4])
async def test_a_level_logs_its_messages_with_their_fields_and_nothing_else(
    env: Environment, level: int
) -> None:
    env.hub.publish(0, MESSAGE)
    forwarder = await run(env, hub_answers=level > 1, VerboseLevel=str(level))
    expected = {name: fields for n in range(1, level + 1) for name, fields in ADDED[n].items()}
    assert len(forwarder.log) == len(forwarder.lines)  # each line is JSON
    assert {entry["message"] for entry in forwarder.log} == set(expected)
    for entry in forwarder.log:
        assert list(entry) == [*HEAD, *expected[entry["message"]]]
        assert entry["level"] == ("debug" if entry["message"] in ADDED[4] else "info")


async def test_timestamps_are_rfc_3339_in_utc_and_in_order_in_any_time_zone(
    env: Environment,
) -> None:
    env.hub.publish(0, MESSAGE)
    before = datetime.now(UTC) - timedelta(milliseconds=1)  # they are truncated to milliseconds
    stamps = [entry["timestamp"] for entry in (await run(env, TZ="Asia/Kolkata")).log]
    rfc_3339 = re.compile(r"\d{4}(-\d\d){2}T\d\d(:\d\d){2}\.\d{3}Z")
    assert [stamp for stamp in stamps if not rfc_3339.fullmatch(stamp)] == []
    assert sorted(stamps) == stamps
    assert before <= datetime.fromisoformat(stamps[0])
    assert datetime.fromisoformat(stamps[-1]) <= datetime.now(UTC)


async def test_a_hub_message_is_logged_with_its_position_and_size(env: Environment) -> None:
    for _ in range(2):
        env.hub.publish(0, MESSAGE)
    entries = [
        [entry[name] for name in ADDED[2]["hub message"]]
        for entry in (await run(env)).entries("hub message")
    ]
    assert entries == [["0", 0, 22, len(MESSAGE)], ["0", 1, 22, len(MESSAGE)]]


async def test_an_audit_event_is_logged_with_user_verb_object_and_status(env: Environment) -> None:
    env.hub.publish(0, MESSAGE)
    entries = (await run(env, VerboseLevel="3")).entries("audit event")
    for entry, text in zip(entries, SOME, strict=True):
        event = json.loads(text)
        target = event.get("objectRef", {})
        resource = [target[name] for name in ("resource", "subresource") if name in target]
        assert [entry[name] for name in ADDED[3]["audit event"]] == [
            event["auditID"],
            event["stage"],
            event["verb"],
            event["user"].get("username", ""),
            "/".join(resource),
            target.get("namespace", ""),
            target.get("name", ""),
            event.get("responseStatus", {}).get("code", 0),
        ]


def fields(entry: dict[str, object]) -> dict[str, object]:
    return {name: found for name, found in entry.items() if name not in HEAD}


async def test_a_post_its_response_and_the_settings_are_logged_without_secrets(
    env: Environment,
) -> None:
    env.hub.publish(0, MESSAGE)
    connection = env.server.connection_string(HUB)
    forwarder = await run(
        env,
        VerboseLevel="4",
        WebSinkMaxEvents="100",
        WebSinkURL=f"{env.webhook.url.replace('//', '//me:p4ssw0rd@')}?token=t0k3n",
        EhubNamespaceConnectionString=connection,
    )
    [request] = env.webhook.posts
    url = env.webhook.url
    [post] = forwarder.entries("post")
    assert fields(post) == {"url": url, "events": 22, "bytes": len(request.body)}
    [response] = forwarder.entries("response")
    assert response["status"] == 200
    assert 0 < response["milliseconds"] < 30_000
    [settings] = forwarder.entries("settings")
    assert fields(settings) == {
        "EventHubName": HUB,
        "BlobContainerName": "kubeauditlogcontainer",
        "WebSinkURL": url,
        "VerboseLevel": 4,
        "EhubNamespaceConnectionString": len(connection),
        "BlobStorageConnectionString": 0,
    }


async def test_level_1_logs_errors(env: Environment) -> None:
    env.webhook.rule = lambda _: 401
    env.hub.publish(0, MESSAGE)
    async with env.forwarder(VerboseLevel="1") as forwarder:
        entry = await forwarder.wait_for("sink down")
    assert (entry["level"], entry["url"]) == ("error", env.webhook.url)
    assert "WebSinkTokenFile" in entry["reason"]
    assert {entry["level"] for entry in forwarder.log} == {"error"}


async def test_each_entry_in_text_format_is_one_line_for_any_event(env: Environment) -> None:
    hostile_names = ["x\ny", "x\ry", "x\x1b[31my", "x\u2028y", 'x "y" z=1', "x=y", "x'y"]
    odd = [json.loads(event) for event in SOME[: len(hostile_names)]]
    for event, name in zip(odd, hostile_names, strict=True):
        event["user"]["username"] = name
    body = events.envelope(
        [*(json.dumps(event).encode() for event in odd), *SOME[len(hostile_names) :]]
    )
    env.hub.publish(0, body)
    output = "\n".join((await run(env, VerboseLevel="4", LogFormat="text")).lines)
    lines = output.splitlines()  # at every line boundary of Unicode
    assert [line for line in lines if not re.match(r"\d{4}-\S+Z (info |debug) [a-z]", line)] == []
    assert [char for char in output if not char.isprintable() and char != "\n"] == []
    [message] = [line for line in lines if " hub message " in line]
    assert message.split()[2:] == [
        "hub", "message", "partition=0", "sequenceNumber=0", "records=22", f"bytes={len(body)}",
    ]  # fmt: skip
    summaries = [line for line in lines if " audit event " in line]
    assert len(summaries) == 22
    for line, name in zip(summaries, hostile_names, strict=False):
        assert f" user={name!r} " in line


def redirected(env: Environment, to: str, **settings: str) -> Forwarder:
    """Return a forwarder whose standard output is redirected by the shell."""
    return Forwarder(
        env.settings(None, **settings), wrapper=("sh", "-c", f'exec "$@" {to}', "forwarder")
    )


async def test_a_log_that_nothing_reads_blocks_neither_delivery_nor_sigterm(
    env: Environment, tmp_path: Path
) -> None:
    fifo = tmp_path / "log"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDWR)  # held open, and never read
    async with redirected(env, f"> {fifo}", VerboseLevel="4") as forwarder:
        env.ledger.publish(30_000)
        await env.webhook.until(lambda: len(env.webhook.accepted) == 30_000)
        dropped = (await forwarder.metrics()).total("aks_audit_log_entries_dropped_total")
        assert 0 < dropped < 30_000
        forwarder.terminate()
        assert await forwarder.wait() == 0
    assert forwarder.stderr == ""
    os.close(reader)


@pytest.mark.parametrize("state", ["closed", "closed by its reader"])
async def test_a_closed_standard_output_does_not_affect_delivery(
    env: Environment, tmp_path: Path, state: str
) -> None:
    fifo = tmp_path / "log"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    to = ">&-" if state == "closed" else f"> {fifo}"
    async with redirected(env, to, VerboseLevel="4") as forwarder:
        env.ledger.publish(100)
        await env.webhook.until(lambda: env.webhook.total == 100)
        os.close(reader)
        env.ledger.publish(100)
        await env.webhook.until(lambda: env.webhook.total == 200)
        metrics = await forwarder.metrics()
        assert metrics.total("aks_audit_log_entries_dropped_total") > 0
        forwarder.terminate()
        assert await forwarder.wait() == 0
    assert forwarder.stderr == ""


@pytest.fixture
def silent_afterwards() -> Iterator[None]:
    """Log nothing after the test, when its standard output is closed."""
    yield
    log.flush()
    log.silence()


def configure(**variables: str) -> Settings:
    settings = Settings.from_env({"EventHubNamespace": "hub.example", **variables})
    log.configure(settings.verbose_level, settings.log_format, settings.secrets)
    return settings


def printed(capfd: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    log.flush()
    entries = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    return [{k: v for k, v in e.items() if k not in {"timestamp", "level"}} for e in entries]


@pytest.mark.usefixtures("silent_afterwards")
async def test_a_repeated_error_is_logged_once_per_interval_with_its_count(
    capfd: pytest.CaptureFixture[str],
) -> None:
    configure()
    repeated = log.RateLimited(interval=0.5)
    for _ in range(4):
        repeated.error("away", reason="why")
    repeated.error("other")
    assert printed(capfd) == [{"message": "away", "reason": "why"}, {"message": "other"}]
    await asyncio.sleep(0.6)
    repeated.error("away", reason="still")
    assert printed(capfd) == [{"message": "away", "reason": "still", "repeated": 3}]
    repeated.error("away")
    repeated.forget()
    repeated.error("away", reason="again")
    assert printed(capfd) == [{"message": "away", "reason": "again"}]


@pytest.mark.usefixtures("silent_afterwards")
def test_a_repeated_error_is_logged_once_a_minute(capfd: pytest.CaptureFixture[str]) -> None:
    configure()
    minute = log.RateLimited()
    for _ in range(2):
        minute.error("away")
    assert len(printed(capfd)) == 1
    assert vars(minute)["_interval"] == 60


@pytest.mark.usefixtures("silent_afterwards")
def test_a_secret_that_is_a_plain_word_is_redacted_in_errors_only(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A header's value may be an ordinary word, which audit events have as well."""
    configure(WebSinkHeaders='{"X-Cluster": "production", "X-Key": "a \\"quoted\\" key"}')
    log.error("failed", reason='"production" and a "quoted" key', status=1)
    log.info("audit event", name="production")
    assert printed(capfd) == [
        {"message": "failed", "reason": '"***" and ***', "status": 1},
        {"message": "audit event", "name": "production"},
    ]
