"""`python -m forwarder policy` explains an audit policy on events from any source."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from forwarder.commands.explain import tally
from forwarder.deadletters.record import Record
from forwarder.policy.document import PRESETS, load
from support import events
from support.eventhubs import Server
from support.process import APP, Forwarder
from support.webhook import Webhook

HUB = "insights-logs-kube-audit"
FILE = str(events.EVENTS_FILE)
REAL = events.real_events()


def run(
    *arguments: str, stdin: bytes = b"", environ: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Run the command with only these variables; return exit status, stdout and stderr."""
    completed = subprocess.run(
        [sys.executable, "-m", "forwarder", "policy", *arguments],
        check=False,
        input=stdin,
        capture_output=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(APP), **(environ or {})},
    )
    return completed.returncode, completed.stdout.decode(), completed.stderr.decode()


def explain(*arguments: str, stdin: bytes = b"", **environ: str) -> list[str]:
    """Return the lines of `policy explain`."""
    status, output, errors = run("explain", *arguments, stdin=stdin, environ=environ)
    assert (status, errors) == (0, "")
    return output.splitlines()


def write(path: Path, *rules: dict[str, Any]) -> str:
    path.write_text(json.dumps({"rules": rules}))
    return str(path)


@pytest.mark.parametrize("preset", PRESETS)
def test_show_prints_a_preset_that_loads_from_a_file(preset: str, tmp_path: Path) -> None:
    status, shown, _ = run("show", preset)
    assert status == 0
    (tmp_path / "policy").write_text(shown)
    assert load(str(tmp_path / "policy")).rules == load(preset).rules


def test_explain_reports_events_bytes_and_examples_per_rule(tmp_path: Path) -> None:
    watch = {"level": "None", "verbs": ["watch"]}
    policy = write(tmp_path / "p", watch, watch, {"level": "Metadata", "verbs": ["get"]})
    tallies, unreadable = tally(load(policy), REAL, frozenset())
    watches = [event for event in REAL if json.loads(event)["verb"] == "watch"]
    gets = [event for event in REAL if json.loads(event)["verb"] == "get"]
    first, second, third, none, unsure = tallies
    assert (first.events, first.size) == (len(watches), sum(map(len, watches)))
    assert (first.events_left, first.size_left) == (0, 0)
    assert all(kind.startswith("watch ") for kind in first.examples)
    assert sum(first.examples.values()) == len(watches)
    assert (third.events, third.events_left) == (len(gets), len(gets))
    assert third.size_left == sum(map(len, gets))
    assert none.events == len(REAL) - len(watches) - len(gets)
    assert (second.events, unsure.events, unreadable) == (0, 0, 0)
    table = explain(FILE, "--policy", policy)
    (kind, count), *_ = first.examples.most_common()
    assert f"{count:,} x {kind}" in [line.strip() for line in table]
    assert table[-2].startswith(f"{len(REAL):,} events, ")
    assert f": {len(gets)} events (" in table[-2]
    assert table[-1] == "rules that never matched: 2"


def test_lines_may_be_events_event_lists_dead_letters_or_hub_messages() -> None:
    def dead(body: bytes) -> bytes:
        return Record(datetime.now(UTC), "no", "0", 1, body=body.decode()).line()

    lists = b'{"kind":"EventList","items":[%b]}\n' % b",".join(REAL[:3])
    lines = [REAL[0] + b"\n", lists, dead(REAL[1]), dead(events.envelope(REAL[:2]))]
    lines += [events.envelope(REAL[:4]) + b"\n", b"\n", b"no event\n", b'{"a": 1}\n', b"[]\n"]
    table = "\n".join(explain("-", "--policy", "quiet", stdin=b"".join(lines)))
    assert f"\n{1 + 3 + 1 + 2 + 4} events, " in table
    assert table.endswith("lines without an audit event: 3")


@pytest.mark.parametrize(
    "malformed",
    [
        b'{"auditID":"1","stage":"s","verb":"\xff","user":{}}',
        b'{"auditID":"1","stage":"s","verb":"g","user":{"username":"\xff"}}',
        b'{"auditID":"1","stage":"s","verb":"g","user":{},"x":%b%b}' % (b"[" * 9**5, b"]" * 9**5),
    ],
    ids=["a verb that is not UTF-8", "a user that is not UTF-8", "deep"],
)
def test_an_undecodable_event_does_not_stop_the_command(malformed: bytes) -> None:
    lines = explain("-", "--policy", "quiet", stdin=b"\n".join([malformed, REAL[0]]))
    assert "events, " in "\n".join(lines)
    status, _, message = run("explain", "-", "--event", "--policy", "quiet", stdin=malformed)
    assert (status, message) == (1, "there is no audit event\n")


def test_the_policy_option_overrides_the_environment_variable() -> None:
    assert "left by quiet, " in "\n".join(explain(FILE, AuditPolicyFile="quiet"))
    table = explain(FILE, "--policy", "security", AuditPolicyFile="quiet")
    assert "left by security, " in "\n".join(table)


def test_the_event_option_traces_one_event_through_the_rules(tmp_path: Path) -> None:
    policy = write(
        tmp_path / "p",
        {"level": "None", "users": ["nobody"]},
        {"level": "None", "nonResourceURLs": ["/a"]},
        {"level": "Metadata", "verbs": [json.loads(REAL[0])["verb"]]},
        {"level": "None"},
    )
    event, *rules, left = explain("-", "--event", "--policy", policy, stdin=b"\n".join(REAL))
    assert event.startswith(json.loads(REAL[0])["auditID"])
    verdicts = ["no, by its users", "no, by its nonResourceURLs", "matches"]
    assert len(rules) == len(verdicts)
    for number, (line, verdict) in enumerate(zip(rules, verdicts, strict=True), 1):
        assert line.split()[0] == str(number)
        assert verdict in line
    assert left.startswith("left: ")
    assert left.endswith(", at level Metadata")


def test_a_policy_in_the_format_of_the_chart_is_read_from_standard_input() -> None:
    rules = b"rules: [{level: None, verbs: [watch]}, {level: Metadata}]"
    table = explain(FILE, "--policy", "-", stdin=rules)
    levels = {line.split()[1] for line in table if line[:8].strip() in {"1", "2"}}
    assert levels == {"None", "Metadata"}


HOSTILE = "a\x1b[2J\r\nleft: forged \u202e\x9b1m"


@pytest.mark.parametrize("arguments", [[], ["--event"]])
def test_control_characters_of_events_and_policies_are_escaped(
    arguments: list[str], tmp_path: Path
) -> None:
    policy = write(tmp_path / "p", {"level": "None", "users": [HOSTILE]}, {"level": "Metadata"})
    event = json.loads(REAL[0])
    event |= dict.fromkeys(("auditID", "stage", "verb", "requestURI"), HOSTILE)
    event["user"]["username"] = event["objectRef"]["resource"] = HOSTILE + "!"
    status, table, _ = run(
        "explain", "-", *arguments, "--policy", policy, stdin=json.dumps(event).encode()
    )
    assert status == 0
    assert all(line.isprintable() for line in table.split("\n"))
    assert not any(line.startswith("left: forged") for line in table.split("\n"))
    _, _, errors = run("explain", FILE, "--policy", f"/{HOSTILE}")
    assert errors
    assert all(line.isprintable() for line in errors.split("\n")[:-1])


def test_the_table_contains_no_escape_sequences() -> None:
    event = json.loads(REAL[0])
    event["user"]["username"] = "me\x1b[2J"
    status, table, _ = run(
        "explain", "-", "--policy", "quiet", stdin=json.dumps(event).encode() + b"\nno\n"
    )
    assert status == 0
    assert "\x1b" not in table
    assert "1 events, " in table
    assert "rules that never matched: " in table
    assert table.endswith("lines without an audit event: 1\n")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["explain", FILE], 2, "AuditPolicyFile: missing; give --policy FILE"),
        (["explain", FILE, "--policy", "/nowhere/p"], 2, "--policy: '/nowhere/p' is not quiet"),
        (["explain", FILE, "--policy", FILE], 2, "--policy: is not YAML"),
        (["explain", "/nowhere/events", "--policy", "quiet"], 1, "No such file"),
        (["explain", "-", "--event", "--policy", "quiet"], 1, "no audit event"),
        (["explain", "--policy", "quiet"], 2, "one of the arguments FILE --hub is required"),
        (["explain", "--hub", "0", "--policy", "quiet"], 2, "--hub"),
        (["explain", "--hub", "3", "--policy", "quiet"], 2, "EhubNamespaceConnectionString: miss"),
    ],
)
def test_invalid_input_is_reported(arguments: list[str], status: int, message: str) -> None:
    found, output, errors = run(*arguments)
    assert (found, output) == (status, "")
    assert message in errors


@pytest.mark.parametrize("command", [[], ["check"]])
async def test_an_invalid_policy_stops_the_forwarder_and_the_check_at_startup(
    command: list[str], tmp_path: Path
) -> None:
    environment = {
        "EventHubNamespace": "a.servicebus.windows.net",
        "AuditPolicyFile": write(tmp_path / "p", {"level": "All"}, {"verb": [], "level": "None"}),
    }
    async with Forwarder(environment, *command) as forwarder:
        assert await forwarder.wait(30) == 2
    assert [line.partition(";")[0] for line in forwarder.stderr.splitlines()] == [
        "AuditPolicyFile: rule 1: level: Invalid enum value 'All'",
        "AuditPolicyFile: rule 2: verb: unknown field",
    ]


async def test_explaining_hub_events_leaves_no_state_and_no_receiver(tmp_path: Path) -> None:
    async with Server({HUB: 2}) as server:
        for number, message in enumerate(events.messages(60, per_message=10)):
            server.hubs[HUB].publish(number % 2, message.body)
        environment = {
            "EhubNamespaceConnectionString": server.connection_string(),
            "StateDirectory": str(tmp_path / "state"),
            "AuditPolicyFile": "quiet",
        }
        arguments = ("policy", "explain", "--hub", "4")
        async with Forwarder(environment, *arguments) as command:
            assert await command.wait(60) == 0
        assert any(line.startswith("40 events, ") for line in command.lines)
        assert not (tmp_path / "state").exists()
        assert not server.receivers


async def test_a_consumer_group_in_use_is_reported_and_its_reader_continues(
    webhook: Webhook, tmp_path: Path
) -> None:
    async with Server({HUB: 1}) as server:
        (message,) = events.messages(10, per_message=10)
        server.hubs[HUB].publish(0, message.body)
        environment = {
            "EhubNamespaceConnectionString": server.connection_string(),
            "StateDirectory": str(tmp_path / "state"),
            "WebSinkURL": webhook.url,
        }
        async with Forwarder(environment) as forwarder:
            await webhook.until(lambda: webhook.total == 10)
            arguments = ("policy", "explain", "--hub", "1", "--policy", "quiet")
            async with Forwarder(environment, *arguments) as command:
                assert await command.wait(60) == 1
            assert "a forwarder reads the hub as '$Default': set ConsumerGroup" in command.stderr
            server.hubs[HUB].publish(0, message.body)
            await forwarder.until(lambda: webhook.duplicates == 10)
