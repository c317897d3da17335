"""`replay` posts dead letters again; none is lost or stored twice."""

import asyncio
import functools
import json
import random
import secrets
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from forwarder.audit.envelope import Unusable
from forwarder.deadletters.blobs import DeadLetterBlobs
from forwarder.deadletters.files import DeadLetterFiles
from forwarder.deadletters.record import Record, batches, parse
from support import events
from support.azurite import azurite
from support.environment import environment
from support.faulty_store import faulty_store
from support.ledger import check_sums
from support.process import Forwarder
from support.stores import container
from support.webhook import Post, Response, Webhook

HUB = "Endpoint=sb://127.0.0.1:1;SharedAccessKeyName=Root;SharedAccessKey=c2VjcmV0IG9mIHRoZSBodWI="


def settings(webhook: Webhook, state: Path, **variables: str) -> dict[str, str]:
    return {
        "EhubNamespaceConnectionString": HUB,
        "WebSinkURL": webhook.url,
        "StateDirectory": str(state),
        "WebSinkMaxEvents": "10",
        **variables,
    }


async def replay(variables: Mapping[str, str], *arguments: str) -> tuple[int, str]:
    """Run the command; return its exit status and output."""
    async with Forwarder(variables, "replay", *arguments) as command:
        status = await command.wait()
        return status, "\n".join([*command.lines, command.stderr])


def new_events(count: int) -> list[bytes]:
    (message,) = events.messages(count, per_message=count, events=events.typical_events())
    return list(message.events)


async def store_dead_letters(state: Path, bodies: Sequence[bytes], max_bytes: int = 10**6) -> None:
    """Store dead letters as the forwarder does, in files of up to a tenth of `max_bytes`."""
    store = DeadLetterFiles(state / "deadletters", max_bytes)
    records = [Record.of("3", n, Unusable(body, "because")) for n, body in enumerate(bodies)]
    for name, data in batches(records, store.max_batch):
        await store.put(name, data)


def files(state: Path) -> list[Path]:
    return sorted((state / "deadletters").rglob("*.jsonl"), key=lambda file: file.name)


def stored_lines(state: Path) -> list[bytes]:
    """Return the lines of all files, oldest first."""
    return [line for file in files(state) for line in file.read_bytes().splitlines(keepends=True)]


def bodies(lines: Sequence[bytes]) -> list[bytes]:
    return [one.original for _, one in parse(b"".join(lines)) if one]


def refusing(refused: Sequence[bytes]) -> Any:
    return lambda post: 422 if any(one in post.body for one in refused) else None


async def test_accepted_dead_letters_are_removed_and_rejected_ones_are_kept(
    webhook: Webhook, tmp_path: Path
) -> None:
    originals = new_events(30)
    await store_dead_letters(tmp_path, originals)
    before = stored_lines(tmp_path)
    bad = [7, 8, 29]
    webhook.rule = refusing([originals[n] for n in bad])
    status, output = await replay(settings(webhook, tmp_path))
    assert status == 1, output
    assert "30 dead letters selected, 27 accepted and removed, 3 stay\n" in output
    assert "3 refused by the sink: 422" in output
    remaining = [json.loads(line) for line in stored_lines(tmp_path)]
    assert all(one.pop("reason").startswith("refused by the sink: 422") for one in remaining)
    expected = [json.loads(before[n]) for n in bad]
    assert remaining == [{k: v for k, v in one.items() if k != "reason"} for one in expected]
    status, output = await replay(settings(webhook, tmp_path), "--reason", "because")
    assert "0 dead letters selected" in output
    assert Counter(webhook.bytes.values()) == Counter(
        one for n, one in enumerate(originals) if n not in bad
    )
    webhook.rule = None
    status, output = await replay(settings(webhook, tmp_path))
    assert status == 0, output
    assert set(webhook.bytes.values()) == set(originals)
    assert webhook.duplicates == 0
    assert not files(tmp_path)
    assert "0 dead letters selected" in (await replay(settings(webhook, tmp_path)))[1]


async def test_more_rejections_than_web_sink_max_rejects_do_not_stop_a_replay(
    webhook: Webhook, tmp_path: Path
) -> None:
    originals = new_events(40)
    await store_dead_letters(tmp_path, originals)
    webhook.rule = refusing(originals[:30])
    one_by_one = {"WebSinkMaxRejects": "2", "WebSinkConcurrency": "1"}
    status, output = await replay(settings(webhook, tmp_path, **one_by_one))
    assert (status, bodies(stored_lines(tmp_path))) == (1, originals[:30]), output


async def test_since_and_reason_select_and_the_others_are_unchanged(
    webhook: Webhook, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    old, new = now - timedelta(hours=7), now
    originals = new_events(4)
    lines = [
        Record(time, reason, "0", n, body=originals[n].decode()).line()
        for n, (time, reason) in enumerate(
            [(old, "teapot 1"), (new, "teapot 2"), (new, "other"), (new, "a teapot")]
        )
    ]
    (tmp_path / "deadletters").mkdir()
    file = tmp_path / "deadletters" / "00000001.jsonl"
    file.write_bytes(b"".join(lines))
    status, output = await replay(
        settings(webhook, tmp_path), "--since", "6h", "--reason", "teapot", "--dry-run"
    )
    assert (status, webhook.total, file.read_bytes()) == (0, 0, b"".join(lines))
    assert "2 dead letters selected\n" in output
    assert "1 teapot 2\n" in output
    assert "1 a teapot\n" in output
    status, output = await replay(
        settings(webhook, tmp_path), "--since", "6h", "--reason", "teapot"
    )
    assert (status, stored_lines(tmp_path)) == (0, [lines[0], lines[2]]), output
    assert set(webhook.bytes.values()) == {originals[1], originals[3]}
    instant = (now - timedelta(hours=8)).isoformat()
    status, output = await replay(settings(webhook, tmp_path), "--since", instant)
    assert (status, stored_lines(tmp_path)) == (0, []), output


async def test_whole_messages_are_unpacked_again_and_unusable_records_are_kept(
    webhook: Webhook, tmp_path: Path
) -> None:
    originals = new_events(8)
    other_category = events.record(originals[6], category="guard")
    message = events.wrap([*(events.record(one) for one in originals[:5]), other_category])
    unusable = [b"\xff\xfe{", b"", b'{"auditID":"1"', b'{"a":1}', b"\0"]
    await store_dead_letters(
        tmp_path, [message, events.record(originals[5]), originals[7] + b"\n", *unusable]
    )
    before = stored_lines(tmp_path)
    webhook.rule = refusing([originals[1], originals[3]])
    status, output = await replay(settings(webhook, tmp_path))
    assert status == 1, output
    assert set(webhook.bytes.values()) == {originals[n] for n in (0, 2, 4, 5, 7)}
    first, second, *others = stored_lines(tmp_path)
    assert bodies(others) == bodies(before[3:])
    whole, one, two = (json.loads(line) for line in (before[0], first, second))
    assert [one.pop("body"), two.pop("body")] == [originals[1].decode(), originals[3].decode()]
    assert one == two
    assert one.pop("reason").startswith("refused by the sink: 422")
    assert one == {name: whole[name] for name in ("time", "partition", "sequenceNumber")}


async def test_unreadable_lines_are_kept_and_an_incomplete_last_line_is_removed(
    webhook: Webhook, tmp_path: Path
) -> None:
    originals = new_events(2)
    await store_dead_letters(tmp_path, originals)
    (file,) = files(tmp_path)
    good = file.read_bytes()
    file.write_bytes(b"garbage\r\xff\n" + good + good[:50])
    status, output = await replay(settings(webhook, tmp_path))
    assert (status, file.read_bytes()) == (0, b"garbage\r\xff\n")
    assert "1 lines unreadable" in output
    assert set(webhook.bytes.values()) == set(originals)


@pytest.mark.parametrize("response", [Response(503), Response(401), Response(drop=True)])
async def test_a_replay_stops_when_the_sink_is_down_and_keeps_all_dead_letters(
    webhook: Webhook, tmp_path: Path, response: Response
) -> None:
    await store_dead_letters(tmp_path, new_events(100))
    before = stored_lines(tmp_path)
    webhook.rule = lambda _: response
    status, output = await replay(settings(webhook, tmp_path))
    assert (status, stored_lines(tmp_path)) == (1, before)
    assert "\ngiven up, the sink accepts nothing: " in output
    assert len(webhook.posts) < 100


async def test_a_transient_failure_of_the_sink_is_retried(webhook: Webhook, tmp_path: Path) -> None:
    await store_dead_letters(tmp_path, new_events(50))
    webhook.responses.extend([503] * 2)
    status, output = await replay(settings(webhook, tmp_path))
    assert (status, stored_lines(tmp_path), webhook.total) == (0, [], 50), output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_stopped_replay_removes_accepted_dead_letters_and_keeps_the_rest(
    webhook: Webhook, tmp_path: Path, number: signal.Signals
) -> None:
    originals = new_events(2000)
    await store_dead_letters(tmp_path, originals, max_bytes=10**8)
    before = stored_lines(tmp_path)
    webhook.rule = lambda _: Response(delay=0.1)
    async with Forwarder(settings(webhook, tmp_path), "replay") as command:
        await webhook.until(lambda: webhook.total >= 100)
        command.process.send_signal(number)
        assert await command.wait() == 1
    assert "stopped" in command.stderr
    rest = stored_lines(tmp_path)
    assert 0 < len(rest) <= 1900
    assert {*bodies(rest), *webhook.bytes.values()} == set(originals)
    # Requests without a response may have been accepted: ten events each, four at once per batch.
    assert len(rest) + len(webhook.accepted) - 2000 <= 40 * len(files(tmp_path))
    assert rest == [line for line in before if line in set(rest)]


async def test_a_replay_that_is_killed_loses_nothing(webhook: Webhook, tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    rng = random.Random(seed)
    originals = new_events(600)
    await store_dead_letters(tmp_path, originals)
    webhook.rule = lambda _: Response(delay=rng.uniform(0, 0.02))

    def reached(total: int) -> bool:
        return webhook.total >= total

    try:
        for _ in range(5):
            target = webhook.total + rng.randrange(100)
            async with Forwarder(settings(webhook, tmp_path), "replay") as command:
                with suppress(RuntimeError):  # it had already finished
                    await command.until(functools.partial(reached, target))
                command.kill()
                await command.wait()
            rest = bodies(stored_lines(tmp_path))
            assert len(rest) == len(set(rest))
            assert {*rest, *webhook.bytes.values()} == set(originals)
        assert (await replay(settings(webhook, tmp_path)))[0] == 0
    except BaseException:
        print(f"seed {seed}")  # noqa: T201 - to reproduce a failure
        raise
    assert (stored_lines(tmp_path), set(webhook.bytes.values())) == ([], set(originals))


async def test_concurrent_replays_lose_nothing_and_report_each_other(
    webhook: Webhook, tmp_path: Path
) -> None:
    originals = new_events(300)
    await store_dead_letters(tmp_path, originals)
    webhook.rule = lambda _: Response(delay=0.02)
    variables = settings(webhook, tmp_path)
    results = await asyncio.gather(*(replay(variables) for _ in range(2)))
    assert set(webhook.bytes.values()) == set(originals)
    assert (await replay(variables))[0] == 0
    assert not stored_lines(tmp_path)
    for status, output in results:
        assert status == 0 or "changed by another replay" in output


async def test_discard_removes_the_selected_dead_letters(webhook: Webhook, tmp_path: Path) -> None:
    store = DeadLetterFiles(tmp_path / "deadletters", 10**6)
    records = [Record.of("3", n, Unusable(b"x\x9b", f"cut off: {n} lost")) for n in range(3)]
    records.append(Record.of("3", 3, Unusable(b"other", "refused by the sink: 400")))
    for name, data in batches(records, 10**6):
        await store.put(name, data)
    variables = settings(webhook, tmp_path)
    before = stored_lines(tmp_path)
    status, output = await replay(variables, "--show", "--reason", "cut off")
    assert (status, stored_lines(tmp_path)) == (0, before)
    shown = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert [one["sequenceNumber"] for one in shown] == [0, 1, 2]
    status, output = await replay(variables, "--discard")
    assert (status, stored_lines(tmp_path)) == (2, before), output
    status, output = await replay(variables, "--discard", "--reason", "cut off")
    assert status == 0, output
    assert "3 dead letters selected, 3 discarded, 0 stay" in output
    assert bodies(stored_lines(tmp_path)) == [b"other"]
    assert webhook.total == 0


async def test_dead_letters_on_disk_are_replayed_even_with_a_storage_account(
    webhook: Webhook, tmp_path: Path
) -> None:
    """They are from an earlier version, or from an installation with a volume."""
    originals = new_events(4)
    lines = [Record.of("3", n, Unusable(one, "")).line() for n, one in enumerate(originals)]
    (tmp_path / "deadletters" / "taken").mkdir(parents=True)
    (tmp_path / "deadletters" / "taken" / "00000001.jsonl").write_bytes(b"".join(lines[:2]))
    (tmp_path / "deadletters" / "00000002.jsonl").write_bytes(b"".join(lines[2:]))
    async with azurite() as store:
        account = {"BlobStorageConnectionString": store.connection_string}
        status, output = await replay(settings(webhook, tmp_path, **account))
    assert (status, stored_lines(tmp_path)) == (0, []), output
    assert set(webhook.bytes.values()) == set(originals)


async def test_a_replay_beside_a_running_forwarder_loses_and_duplicates_nothing(
    tmp_path: Path,
) -> None:
    """Files are added, dropped and removed concurrently; the sink accepts what is replayed."""
    async with environment(tmp_path, partitions=2) as env:
        ledger, webhook = env.ledger, env.webhook

        def rule(post: Post) -> int:
            return 200 if "X-Replay" in post.headers else ledger.respond(post)

        webhook.rule = rule
        variables = env.settings(
            DeadLetterMaxBytes="3000000", WebSinkHeaders='{"X-Replay": "yes"}', WebSinkMaxEvents="5"
        )
        async with env.forwarder(DeadLetterMaxBytes="3000000") as forwarder:
            async with env.traffic(per_second=800, reject_every=3):
                await forwarder.until(lambda: len(ledger.dead_lettered()) > 100)
                for _ in range(4):
                    status, output = await replay(variables)
                    assert status == 0, output
                    assert " 0 stay" in output
            await webhook.until(
                lambda: (
                    ledger.published.keys()
                    == webhook.accepted.keys() | ledger.dead_lettered().keys()
                )
            )
            dead_letters = ledger.dead_lettered()
            assert max(dead_letters.values(), default=1) == 1
            assert not dead_letters.keys() & webhook.accepted.keys()
            assert (await replay(variables))[0] == 0
            samples = await forwarder.metrics()
            check_sums(samples)
        outcome = samples.total("aks_audit_events_total", outcome="dead_lettered")
        assert outcome == len(ledger.rejected)
        assert webhook.accepted.keys() == ledger.published.keys()
        assert webhook.duplicates == 0
        assert not stored_lines(tmp_path)


async def test_dead_letters_in_blobs_are_replayed_and_removed(
    webhook: Webhook, tmp_path: Path
) -> None:
    originals = new_events(60)
    records = [Record.of("0", n, Unusable(one, "because")) for n, one in enumerate(originals)]
    webhook.rule = refusing(originals[10:12])
    async with azurite() as store, container(store) as client:
        variables = settings(webhook, tmp_path, BlobStorageConnectionString=store.connection_string)
        status, output = await replay(variables)
        assert (status, "0 dead letters selected" in output) == (0, True), output
        await client.create_container()
        blobs = DeadLetterBlobs(client)
        for start in range(0, 60, 5):
            for name, data in batches(records[start : start + 5], 10**6):
                await blobs.put(name, data)
        await client.upload_blob("other/deadletters/checkpoint/0", b"")
        status, output = await replay(variables, "--dry-run")
        assert (status, webhook.total, len(await blobs.sizes())) == (0, 0, 12), output
        status, output = await replay(variables)
        assert status == 1, output
        (name,) = await blobs.sizes()
        rest = [one for _, one in parse(await blobs.read(name)) if one]
        assert [one.original for one in rest] == originals[10:12]
        assert set(webhook.bytes.values()) == set(originals) - set(originals[10:12])
        webhook.rule = None
        assert (await replay(variables))[0] == 0
        assert [name async for name in client.list_blob_names()] == [
            "other/deadletters/checkpoint/0"
        ]
    assert webhook.duplicates == 0
    status, output = await replay(variables)
    assert status == 1
    assert "127.0.0.1" in output


async def test_a_store_that_refuses_changes_is_reported_and_keeps_all_dead_letters(
    webhook: Webhook, tmp_path: Path
) -> None:
    """For example a read-only role, or an immutability policy of the container."""
    records = [Record.of("0", n, Unusable(one, "")) for n, one in enumerate(new_events(3))]
    ((name, data),) = batches(records, 10**6)
    async with faulty_store() as store, container(store.back) as client:
        await client.create_container()
        await DeadLetterBlobs(client).put(name, data)
        store.status = 403
        account = {"BlobStorageConnectionString": store.front.connection_string}
        status, output = await replay(settings(webhook, tmp_path, **account))
        assert status == 1
        assert "HttpResponseError: Operation returned an invalid status 'Forbidden'" in output
        assert await DeadLetterBlobs(client).read(name) == data


async def test_a_blob_that_another_replay_changed_is_not_overwritten() -> None:
    async with azurite() as store, container(store) as client:
        await client.create_container()
        one, two = DeadLetterBlobs(client), DeadLetterBlobs(client)
        await one.put("name.jsonl", b"line\n")
        await one.read("name.jsonl")
        await two.read("name.jsonl")
        await two.replace("name.jsonl", b"rest\n")
        for rest in (b"other\n", b""):
            with pytest.raises(Exception, match="changed by another replay"):
                await one.replace("name.jsonl", rest)
        assert await two.read("name.jsonl") == b"rest\n"


@pytest.mark.parametrize(
    ("arguments", "variable", "message"),
    [
        (["--since", "yesterday"], {}, "'yesterday' is neither an ISO 8601 instant nor an age"),
        (["--since", "latest"], {}, "'latest' is neither"),
        (["--discard"], {}, "--discard needs --reason or --since"),
        (["--frobnicate"], {}, "unrecognized"),
        ([], {"VerboseLevel": "5"}, "VerboseLevel"),
    ],
)
async def test_invalid_arguments_and_settings_are_reported_with_exit_status_2(
    webhook: Webhook, tmp_path: Path, arguments: list[str], variable: dict[str, str], message: str
) -> None:
    status, output = await replay(settings(webhook, tmp_path, **variable), *arguments)
    assert (status, message in output) == (2, True), output


async def test_counts_are_shown_while_the_replay_runs(webhook: Webhook, tmp_path: Path) -> None:
    await store_dead_letters(tmp_path, new_events(60))
    webhook.rule = lambda _: Response(delay=0.5)
    one_by_one = {"WebSinkMaxEvents": "10", "WebSinkConcurrency": "1"}
    async with Forwarder(settings(webhook, tmp_path, **one_by_one), "replay") as command:
        assert await command.wait() == 0
    assert command.stderr.startswith("60 dead letters selected, ")
    assert command.lines == ["60 dead letters selected, 60 accepted and removed, 0 stay"]


async def test_the_audit_policy_applies_to_whole_messages_and_not_again_to_events(
    webhook: Webhook, tmp_path: Path
) -> None:
    """An event that the sink rejected has passed the policy, or was too truncated for it."""
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"rules": [{"level": "None"}]}))
    alone, *inside = new_events(5)
    await store_dead_letters(tmp_path, [alone, events.envelope(inside)])
    variables = settings(webhook, tmp_path, AuditPolicyFile=str(policy))
    status, output = await replay(variables)
    assert status == 0, output
    assert "2 accepted and removed" in output
    assert list(webhook.bytes.values()) == [alone]
