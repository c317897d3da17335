"""Dead letters are posted again by a command of its own, and none is lost or kept twice by it."""

import asyncio
import functools
import json
import os
import pty
import random
import secrets
import signal
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from forwarder.audit.envelope import Unusable
from forwarder.deadletters.blobs import DeadLetterBlobs
from forwarder.deadletters.files import DeadLetterFiles
from forwarder.deadletters.record import Record, letters
from support import events
from support.azurite import azurite
from support.ledger import judge_sums
from support.process import Forwarder
from support.scene import scene
from support.stores import container
from support.webhook import Answer, Post, Webhook

HUB = "Endpoint=sb://127.0.0.1:1;SharedAccessKeyName=Root;SharedAccessKey=c2VjcmV0IG9mIHRoZSBodWI="


@pytest.fixture
async def webhook() -> AsyncIterator[Webhook]:
    async with Webhook() as webhook:
        yield webhook


def settings(webhook: Webhook, state: Path, **variables: str) -> dict[str, str]:
    return {
        "EhubNamespaceConnectionString": HUB,
        "WebSinkURL": webhook.url,
        "StateDirectory": str(state),
        "WebSinkMaxEvents": "10",
        **variables,
    }


async def replay(environment: Mapping[str, str], *arguments: str) -> tuple[int, str]:
    """Run the command to its end; its exit status and all it said."""
    async with Forwarder(environment, "replay", *arguments) as command:
        status = await command.wait()
        return status, "\n".join([*command.lines, command.stderr])


def fresh(count: int) -> list[bytes]:
    (message,) = events.messages(count, per_message=count, events=events.typical_events())
    return list(message.events)


def bury(state: Path, bodies: Sequence[bytes], most: int = 10**6) -> None:
    """Keep dead letters as the forwarder does."""
    lines = [Record.of("3", n, Unusable(body, "because")).line() for n, body in enumerate(bodies)]
    DeadLetterFiles(state / "deadletters", most).append(deque(lines))


def files(state: Path) -> list[Path]:
    return sorted((state / "deadletters").rglob("*.jsonl"), key=lambda file: file.name)


def kept(state: Path) -> list[bytes]:
    """Return the lines of all files, the oldest first."""
    return [line for file in files(state) for line in file.read_bytes().splitlines(keepends=True)]


def bodies(lines: Sequence[bytes]) -> list[bytes]:
    return [one.original for _, one in letters(b"".join(lines)) if one]


def refusing(refused: Sequence[bytes]) -> Any:
    return lambda post: 422 if any(one in post.body for one in refused) else None


async def test_what_is_accepted_goes_and_what_is_not_stays_as_it_was(
    webhook: Webhook, tmp_path: Path
) -> None:
    buried = fresh(30)
    bury(tmp_path, buried)
    before = kept(tmp_path)
    bad = [7, 8, 29]
    webhook.rule = refusing([buried[n] for n in bad])
    status, said = await replay(settings(webhook, tmp_path))
    assert status == 1, said
    assert "30 dead letters selected, 27 accepted and removed, 3 stay\n" in said
    assert "3 refused by the sink: 422" in said
    assert kept(tmp_path) == [before[n] for n in bad]
    assert Counter(webhook.bytes.values()) == Counter(
        one for n, one in enumerate(buried) if n not in bad
    )
    webhook.rule = None
    status, said = await replay(settings(webhook, tmp_path))
    assert status == 0, said
    assert set(webhook.bytes.values()) == set(buried)
    assert webhook.duplicates == 0
    assert not files(tmp_path)
    assert "0 dead letters selected" in (await replay(settings(webhook, tmp_path)))[1]


async def test_more_refusals_than_web_sink_max_rejects_hold_nothing_up(
    webhook: Webhook, tmp_path: Path
) -> None:
    buried = fresh(40)
    bury(tmp_path, buried)
    webhook.rule = refusing(buried[:30])
    one_by_one = {"WebSinkMaxRejects": "2", "WebSinkConcurrency": "1"}
    status, said = await replay(settings(webhook, tmp_path, **one_by_one))
    assert (status, bodies(kept(tmp_path))) == (1, buried[:30]), said


async def test_since_and_reason_select_and_the_others_stay_as_they_were(
    webhook: Webhook, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    old, new = now - timedelta(hours=7), now
    buried = fresh(4)
    lines = [
        Record(time, reason, "0", n, body=buried[n].decode()).line()
        for n, (time, reason) in enumerate(
            [(old, "teapot 1"), (new, "teapot 2"), (new, "other"), (new, "a teapot")]
        )
    ]
    (tmp_path / "deadletters").mkdir()
    file = tmp_path / "deadletters" / "00000001.jsonl"
    file.write_bytes(b"".join(lines))
    status, said = await replay(
        settings(webhook, tmp_path), "--since", "6h", "--reason", "teapot", "--dry-run"
    )
    assert (status, webhook.total, file.read_bytes()) == (0, 0, b"".join(lines))
    assert "2 dead letters selected" in said
    assert "1 teapot 2\n" in said
    assert "1 a teapot\n" in said
    status, said = await replay(settings(webhook, tmp_path), "--since", "6h", "--reason", "teapot")
    assert (status, kept(tmp_path)) == (0, [lines[0], lines[2]]), said
    assert set(webhook.bytes.values()) == {buried[1], buried[3]}
    instant = (now - timedelta(hours=8)).isoformat()
    status, said = await replay(settings(webhook, tmp_path), "--since", instant)
    assert (status, kept(tmp_path)) == (0, []), said


async def test_whole_messages_are_unpacked_again_and_what_still_is_of_no_use_stays(
    webhook: Webhook, tmp_path: Path
) -> None:
    found = fresh(8)
    foreign = events.record(found[6], category="guard")
    message = events.wrap([*(events.record(one) for one in found[:5]), foreign])
    useless = [b"\xff\xfe{", b"", b'{"auditID":"1"', b'{"a":1}', b"\0"]
    bury(tmp_path, [message, events.record(found[5]), found[7] + b"\n", *useless])
    before = kept(tmp_path)
    webhook.rule = refusing([found[1], found[3]])
    status, said = await replay(settings(webhook, tmp_path))
    assert status == 1, said
    assert set(webhook.bytes.values()) == {found[n] for n in (0, 2, 4, 5, 7)}
    first, second, *others = kept(tmp_path)
    assert others == before[3:]
    was, one, two = (json.loads(line) for line in (before[0], first, second))
    assert [one.pop("body"), two.pop("body")] == [found[1].decode(), found[3].decode()]
    assert one == two
    assert one.pop("reason").startswith("refused by the sink: 422")
    assert one == {name: was[name] for name in ("time", "partition", "sequenceNumber")}


async def test_lines_that_are_no_letters_stay_and_half_a_line_of_a_crash_goes(
    webhook: Webhook, tmp_path: Path
) -> None:
    buried = fresh(2)
    bury(tmp_path, buried)
    (file,) = files(tmp_path)
    good = file.read_bytes()
    file.write_bytes(b"garbage\r\xff\n" + good + good[:50])
    status, said = await replay(settings(webhook, tmp_path))
    assert (status, file.read_bytes()) == (0, b"garbage\r\xff\n")
    assert "1 lines unreadable" in said
    assert set(webhook.bytes.values()) == set(buried)


@pytest.mark.parametrize("answer", [Answer(503), Answer(401), Answer(drop=True)])
async def test_it_gives_up_when_the_sink_is_down_and_keeps_all(
    webhook: Webhook, tmp_path: Path, answer: Answer
) -> None:
    bury(tmp_path, fresh(100))
    before = kept(tmp_path)
    webhook.rule = lambda _: answer
    status, said = await replay(settings(webhook, tmp_path))
    assert (status, kept(tmp_path)) == (1, before)
    assert "given up, the sink takes nothing: " in said
    assert len(webhook.posts) < 100
    assert {file.parent.name for file in files(tmp_path)} == {"deadletters"}


async def test_a_failure_of_the_sink_that_passes_is_waited_for(
    webhook: Webhook, tmp_path: Path
) -> None:
    bury(tmp_path, fresh(50))
    webhook.answers.extend([503] * 12)
    status, said = await replay(settings(webhook, tmp_path))
    assert (status, kept(tmp_path), webhook.total) == (0, [], 50), said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_stopped_it_removes_what_was_accepted_and_keeps_the_rest(
    webhook: Webhook, tmp_path: Path, number: signal.Signals
) -> None:
    buried = fresh(2000)
    bury(tmp_path, buried, most=10**8)  # one file, more than is unpacked at a time
    before = kept(tmp_path)
    webhook.rule = lambda _: Answer(delay=0.1)
    async with Forwarder(settings(webhook, tmp_path), "replay") as command:
        await webhook.until(lambda: webhook.total >= 100)
        command.process.send_signal(number)
        assert await command.wait() == 1
    assert "stopped" in command.stderr
    rest = kept(tmp_path)
    assert 0 < len(rest) <= 1900
    assert {*bodies(rest), *webhook.bytes.values()} == set(buried)
    # Posts whose answer was not awaited may have been taken: four at once, of ten each.
    assert len(rest) + len(webhook.taken) - 2000 <= 40
    assert rest == [line for line in before if line in set(rest)]


async def test_killed_at_any_moment_it_loses_nothing(webhook: Webhook, tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    chance = random.Random(seed)
    buried = fresh(600)
    bury(tmp_path, buried)
    webhook.rule = lambda _: Answer(delay=chance.uniform(0, 0.02))

    def reached(total: int) -> bool:
        return webhook.total >= total

    try:
        for _ in range(5):
            at = webhook.total + chance.randrange(100)
            async with Forwarder(settings(webhook, tmp_path), "replay") as command:
                with suppress(RuntimeError):  # it came to its end before
                    await command.until(functools.partial(reached, at))
                command.kill()
                await command.wait()
            rest = bodies(kept(tmp_path))
            assert len(rest) == len(set(rest))
            assert {*rest, *webhook.bytes.values()} == set(buried)
        assert (await replay(settings(webhook, tmp_path)))[0] == 0
    except BaseException:
        print(f"seed {seed}")  # noqa: T201 - to repeat it
        raise
    assert (kept(tmp_path), set(webhook.bytes.values())) == ([], set(buried))


async def test_two_at_once_post_nothing_twice(webhook: Webhook, tmp_path: Path) -> None:
    bury(tmp_path, fresh(300))
    webhook.rule = lambda _: Answer(delay=0.02)
    environment = settings(webhook, tmp_path)
    results = await asyncio.gather(*(replay(environment) for _ in range(2)))
    assert [status for status, _ in results] == [0, 0], results
    assert (webhook.total, webhook.duplicates, kept(tmp_path)) == (300, 0, [])


async def test_beside_a_forwarder_nothing_is_lost_and_nothing_kept_twice(tmp_path: Path) -> None:
    """Files are appended to, rotated and taken at once; the sink takes again what is replayed."""
    async with scene(tmp_path, partitions=2) as stage:
        ledger, webhook = stage.ledger, stage.webhook

        def rule(post: Post) -> int:
            return 200 if "X-Replay" in post.headers else ledger.answer(post)

        webhook.rule = rule
        environment = stage.settings(
            DeadLetterMaxBytes="3000000", WebSinkHeaders='{"X-Replay": "yes"}', WebSinkMaxEvents="5"
        )
        async with stage.forwarder(DeadLetterMaxBytes="3000000") as forwarder:
            async with stage.traffic(per_second=800, refuse=3):
                await forwarder.until(lambda: len(ledger.dead()) > 100)
                for _ in range(4):
                    status, said = await replay(environment)
                    assert status == 0, said
                    assert " 0 stay" in said
            await webhook.until(
                lambda: ledger.published.keys() == webhook.taken.keys() | ledger.dead().keys()
            )
            dead = ledger.dead()
            assert max(dead.values(), default=1) == 1
            assert not dead.keys() & webhook.taken.keys()
            assert (await replay(environment))[0] == 0
            samples = await forwarder.metrics()
            judge_sums(samples)
        outcome = samples.total("aks_audit_events_total", outcome="dead_lettered")
        assert outcome == len(ledger.refused)
        assert webhook.taken.keys() == ledger.published.keys()
        assert webhook.duplicates == 0
        assert not kept(tmp_path)


async def test_blobs_are_replayed_and_removed_from_anywhere(
    webhook: Webhook, tmp_path: Path
) -> None:
    buried = fresh(60)
    lines = [Record.of("0", n, Unusable(one, "because")).line() for n, one in enumerate(buried)]
    webhook.rule = refusing(buried[10:12])
    async with azurite() as store, container(store) as client:
        environment = settings(
            webhook, tmp_path, BlobStorageConnectionString=store.connection_string
        )
        status, said = await replay(environment)
        assert (status, "0 dead letters selected" in said) == (0, True), said
        await client.create_container()
        blobs = DeadLetterBlobs(client)
        for start in range(0, 60, 5):
            await blobs.put(b"".join(lines[start : start + 5]))
        await client.upload_blob("other/deadletters/checkpoint/0", b"")
        status, said = await replay(environment, "--dry-run")
        assert (status, webhook.total, len(await blobs.sizes())) == (0, 0, 12), said
        status, said = await replay(environment)
        assert status == 1, said
        (name,) = await blobs.sizes()
        assert await blobs.read(name) == b"".join(lines[10:12])
        assert set(webhook.bytes.values()) == set(buried) - set(buried[10:12])
        webhook.rule = None
        assert (await replay(environment))[0] == 0
        assert [name async for name in client.list_blob_names()] == [
            "other/deadletters/checkpoint/0"
        ]
    assert webhook.duplicates == 0
    status, said = await replay(environment)
    assert status == 1
    assert "127.0.0.1" in said


async def test_a_blob_that_changed_meanwhile_is_left_alone() -> None:
    async with azurite() as store, container(store) as client:
        await client.create_container()
        one, two = DeadLetterBlobs(client), DeadLetterBlobs(client)
        await one.put(Record.of("0", 1, Unusable(b"", "")).line())
        (name,) = await one.sizes()
        before = await one.take(name)
        await two.take(name)
        await two.put_back(name, b"rest\n")
        for rest in (b"other\n", b""):
            with pytest.raises(Exception, match="another replay has changed"):
                await one.put_back(name, rest)
        assert await two.read(name) == b"rest\n" != before


@pytest.mark.parametrize(
    ("arguments", "variable", "said"),
    [
        (["--since", "yesterday"], {}, "'yesterday' is neither an ISO 8601 instant nor an age"),
        (["--since", "latest"], {}, "'latest' is neither"),
        (["--frobnicate"], {}, "unrecognized"),
        ([], {"VerboseLevel": "5"}, "VerboseLevel"),
    ],
)
async def test_bad_arguments_and_settings_are_named_and_end_with_2(
    webhook: Webhook, tmp_path: Path, arguments: list[str], variable: dict[str, str], said: str
) -> None:
    status, output = await replay(settings(webhook, tmp_path, **variable), *arguments)
    assert (status, said in output) == (2, True), output


async def test_a_terminal_shows_a_bar(webhook: Webhook, tmp_path: Path) -> None:
    bury(tmp_path, fresh(60))
    webhook.rule = lambda _: Answer(delay=0.2)
    terminal, its_end = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "forwarder", "replay"),
        env=Forwarder(settings(webhook, tmp_path)).environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=its_end,
    )
    os.close(its_end)
    output, _ = await process.communicate()
    shown = os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert (process.returncode, webhook.total) == (0, 60)
    assert "60 accepted" in output.decode()
    assert "░   0%" in shown
    assert f"\r{'█' * 30} 100%  60 dead letters selected" in shown


async def test_the_audit_policy_is_for_messages_and_not_again_for_events(
    webhook: Webhook, tmp_path: Path
) -> None:
    """An event that the sink refused has passed the policy, or was too cut off for it."""
    policy = tmp_path / "policy.json"
    head = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy"}
    policy.write_text(json.dumps({**head, "rules": [{"level": "None"}]}))
    alone, *inside = fresh(5)
    bury(tmp_path, [alone, events.envelope(inside)])
    environment = settings(webhook, tmp_path, AuditPolicyFile=str(policy))
    status, said = await replay(environment)
    assert status == 0, said
    assert "2 accepted and removed" in said
    assert list(webhook.bytes.values()) == [alone]
