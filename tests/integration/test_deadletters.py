"""Dead letters are stored unchanged and within their limits, and each is counted."""

import asyncio
import base64
import itertools
import json
import os
import random
import resource
import stat
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.core.exceptions import ResourceExistsError
from azure.storage.blob.aio import ContainerClient
from hypothesis import given, settings
from hypothesis import strategies as st

from forwarder.audit.envelope import Unusable
from forwarder.deadletters.blobs import DeadLetterBlobs
from forwarder.deadletters.files import DeadLetterFiles
from forwarder.deadletters.record import Record, batches, parse
from forwarder.deadletters.writer import DeadLetterWriter
from forwarder.errors import EvictedError, ForwarderError
from support.azurite import Azurite, azurite
from support.environment import environment
from support.events import key, real_events
from support.ledger import check_sums
from support.stores import CONTAINER, container

BODIES = [
    real_events()[0],
    '{"é":"漢\u2028😀"}\r\n\t '.encode(),
    b"",
    b"\0",
    b'"\\',
    b"\xff\xfe{\0",
    "\ud800".encode(errors="surrogatepass"),
]


def record(body: bytes, number: int = 7, reason: str = "because") -> Record:
    return Record.of("3", number, Unusable(body, reason))


def numbered(numbers: Iterable[int], size: int = 0, reason: str = "because") -> list[Record]:
    return [record(b"x" * size, number, reason) for number in numbers]


def file_writer(directory: Path, max_bytes: int, **options: Any) -> DeadLetterWriter:
    return DeadLetterWriter(DeadLetterFiles(directory, max_bytes), pause=0, **options)


async def write(writer: DeadLetterWriter, records: list[Record]) -> int:
    """Add records and wait until they are written; return how many of them were dropped."""
    return await (await writer.dead_letter(records))


def body(entry: dict[str, Any]) -> bytes:
    if "body" in entry:
        return str(entry["body"]).encode()
    return base64.b64decode(entry["bodyBase64"], validate=True)


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.jsonl"))


def entries(directory: Path) -> list[dict[str, Any]]:
    lines = [
        line for file in files(directory) for line in file.read_bytes().splitlines(keepends=True)
    ]
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def stored(directory: Path) -> list[int]:
    return [entry["sequenceNumber"] for entry in entries(directory)]


def total(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.iterdir())


@pytest.mark.parametrize("original", BODIES)
async def test_a_record_is_one_line_of_json_with_the_original_bytes(
    tmp_path: Path, original: bytes
) -> None:
    assert await write(file_writer(tmp_path, 10_000), [record(original, 12, 'no "stage"\n')]) == 0
    (entry,) = entries(tmp_path)
    written = datetime.fromisoformat(entry["time"])
    assert written.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - written) < timedelta(minutes=1)
    assert (entry["reason"], entry["partition"], entry["sequenceNumber"]) == (
        'no "stage"\n',
        "3",
        12,
    )
    assert body(entry) == original
    try:
        original.decode()
    except UnicodeDecodeError:
        assert entry.keys() == {"time", "reason", "partition", "sequenceNumber", "bodyBase64"}
    else:
        assert entry.keys() == {"time", "reason", "partition", "sequenceNumber", "body"}


@given(st.binary() | st.text(st.characters()).map(lambda text: text.encode(errors="surrogatepass")))
@settings(max_examples=200)
def test_any_bytes_are_restored_from_a_line(original: bytes) -> None:
    line = record(original).line()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert body(json.loads(line)) == original


@given(st.lists(st.tuples(st.text(), st.binary(max_size=300)), min_size=1), st.integers(1, 2000))
@settings(max_examples=200)
def test_batches_contain_every_record_once_and_one_reason_class_each(
    contents: list[tuple[str, bytes]], max_bytes: int
) -> None:
    records = [record(original, n, reason) for n, (reason, original) in enumerate(contents)]
    result = list(batches(records, max_bytes))
    lines = [line for _, data in result for line, _ in parse(data)]
    assert Counter(lines) == Counter(one.line() for one in records)
    for name, data in result:
        (kind,) = {one.reason_class for _, one in parse(data) if one}
        assert name.endswith(f"-{kind}.jsonl")
        assert data.count(b"\n") == 1 or len(data) <= max_bytes


def test_details_of_a_reason_do_not_change_its_class() -> None:
    texts = [f"refused by the sink: 4{n} {n:x}" for n in range(50)]
    assert {record(b"", reason=text).reason_class for text in texts} == {"refused-by-the-sink"}


async def test_files_are_private_to_their_owner_and_contain_whole_batches(tmp_path: Path) -> None:
    directory = tmp_path / "deadletters"
    await write(
        file_writer(directory, 10_000), [*numbered([1, 2]), *numbered([3], reason="other: 9")]
    )
    assert [file.name.split("-", 2)[2] for file in files(directory)] == [
        "because.jsonl",
        "other.jsonl",
    ]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files(directory)} == {0o600}
    assert stored(directory) == [1, 2, 3]


@pytest.mark.parametrize("max_bytes", [1024, 3000, 20_000])
async def test_the_total_size_never_exceeds_the_limit_and_dropped_records_are_counted(
    tmp_path: Path, max_bytes: int
) -> None:
    writer = file_writer(tmp_path, max_bytes)
    rng = random.Random(max_bytes)
    numbers, dropped, written = itertools.count(), 0, 0
    for _ in range(200):
        added = numbered(
            itertools.islice(numbers, rng.randrange(1, 4)),
            min(rng.choice([0, 10, 200, 700, max_bytes]), 5000),
        )
        written += len(added)
        newly_dropped = await write(writer, added)
        assert 0 <= newly_dropped <= len(added)
        dropped += newly_dropped
        assert total(tmp_path) <= max_bytes
    found = stored(tmp_path)
    assert found == sorted(set(found))
    assert found[-1] >= written - 30
    assert 0 < dropped <= written - len(found)


async def test_no_more_of_the_oldest_files_are_deleted_than_necessary(tmp_path: Path) -> None:
    writer = file_writer(tmp_path, 20_000)
    for number in range(300):
        await write(writer, numbered([number], 100))
        found = stored(tmp_path)
        assert found == list(range(number + 1 - len(found), number + 1))
    assert 20_000 * 0.9 < total(tmp_path) <= 20_000


@pytest.mark.parametrize("size", [1, 250])
async def test_the_cost_of_a_batch_does_not_depend_on_the_number_of_files(
    tmp_path: Path, size: int
) -> None:
    """Files of 250 bytes fill the directory: each batch drops old files, of one record each."""
    writer = file_writer(tmp_path, 10**6)
    for number in range(4_000):
        file = tmp_path / f"20260101T000000.000000Z-{number:016x}-because.jsonl"
        file.write_bytes(b"\n".rjust(size))
    began = time.process_time()
    await DeadLetterFiles(tmp_path, 10**6).sizes()
    listed = time.process_time()
    dropped = [await write(writer, numbered([number])) for number in range(60)]
    assert time.process_time() - listed < 20 * (listed - began)
    assert sum(dropped) == 4_060 - len(files(tmp_path))


async def test_a_flood_of_one_reason_does_not_push_out_the_others(tmp_path: Path) -> None:
    writer = file_writer(tmp_path, 20_000)
    await write(writer, numbered(range(1000, 1010), 100, "cut off: user lost"))
    for number in range(0, 600, 6):
        await write(writer, numbered(range(number, number + 6), 100, "refused by the sink: 400"))
    found = stored(tmp_path)
    assert set(range(1000, 1010)) <= set(found)
    assert max(number for number in found if number < 1000) == 599
    assert min(found) > 0


async def test_a_record_above_the_limit_is_counted_as_dropped_and_displaces_no_other(
    tmp_path: Path,
) -> None:
    writer = file_writer(tmp_path, 5000)
    await write(writer, numbered([1, 2]))
    assert await write(writer, numbered([3], 5000)) == 1
    assert await write(writer, numbered([4])) == 0
    assert stored(tmp_path) == [1, 2, 4]


async def test_an_unknown_file_is_left_alone(tmp_path: Path) -> None:
    unknown = tmp_path / "00000001-copy.jsonl"
    unknown.write_bytes(b"x" * 4000)
    for number in range(10):
        await write(file_writer(tmp_path, 3000), numbered([number], 1000))
    assert unknown.read_bytes() == b"x" * 4000


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path)])
async def test_anything_but_a_regular_file_is_left_alone(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    names = "00000001.jsonl", "20260101T000000.000000Z-0123456789abcdef-because.jsonl", "x.new"
    for name in names:
        make(tmp_path / name)
        os.utime(tmp_path / name, (0, 0), follow_symlinks=False)
    for number in range(10):
        assert await write(file_writer(tmp_path, 3000), numbered([number], 1000)) == (number > 1)
    assert len(await DeadLetterFiles(tmp_path, 3000).sizes()) == 2
    assert {*names} <= {*os.listdir(tmp_path)}  # noqa: PTH208 - names only


def test_a_record_without_a_time_zone_is_invalid() -> None:
    """It could not be compared with `--since`."""
    line = record(b"").line()
    at = line.index(b'Z"')
    assert None not in [one for _, one in parse(line)]
    assert [one for _, one in parse(line[:at] + line[at + 1 :])] == [None]


async def test_files_of_version_0_1_0_are_read_and_counted(tmp_path: Path) -> None:
    """It appended to numbered files, left half a line when killed, and moved files to a folder."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "lock").touch()
    old, taken = tmp_path / "00000002.jsonl", tmp_path / "taken" / "00000001.jsonl"
    taken.write_bytes(b"".join(one.line() for one in numbered([1, 2], 1300)))
    old.write_bytes(record(b"", 3).line() + record(b"", 4).line()[:-20])
    store = DeadLetterFiles(tmp_path, 4000)
    assert list(await store.sizes()) == ["00000001.jsonl", "00000002.jsonl"]
    found = [one for name in await store.sizes() for _, one in parse(await store.read(name))]
    assert [one and one.sequence_number for one in found] == [1, 2, 3]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files(tmp_path)} == {0o600}
    for number in range(10, 15):
        await write(DeadLetterWriter(store, pause=0), numbered([number], 600))
    assert not set(stored(tmp_path)) & {1, 2}
    assert stored(tmp_path)[-1] == 14


async def test_a_temporary_file_of_a_killed_process_is_ignored_and_deleted(tmp_path: Path) -> None:
    leftover = tmp_path / "20260101T000000.000000Z-0123456789abcdef-because.new"
    leftover.write_bytes(record(b"").line()[:30])
    assert await DeadLetterFiles(tmp_path, 1000).sizes() == {}
    assert leftover.exists()  # another process may be writing it
    os.utime(leftover, (0, 0))
    DeadLetterFiles(tmp_path, 1000)
    assert not leftover.exists()


async def test_concurrent_records_share_files(tmp_path: Path) -> None:
    writer = DeadLetterWriter(DeadLetterFiles(tmp_path, 10**6), pause=0.2)
    await asyncio.gather(*(write(writer, numbered([n], 200)) for n in range(100)))
    assert sorted(stored(tmp_path)) == list(range(100))
    assert len(files(tmp_path)) <= 5


@contextmanager
def no_directory(directory: Path) -> Iterator[None]:
    """Replace the directory with a file."""
    aside = directory.with_name("aside")
    directory.rename(aside)
    directory.touch()
    yield
    directory.unlink()
    aside.rename(directory)


def full_disk(_: Path) -> AbstractContextManager[None]:
    """Limit files to a few bytes, so that a write ends in the middle."""
    return no_file_larger_than(50)


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@asynccontextmanager
async def _blocked(
    writer: DeadLetterWriter, records: list[Record]
) -> AsyncIterator[asyncio.Task[int]]:
    adding = asyncio.create_task(write(writer, records))
    yield adding
    done, _ = await asyncio.wait([adding], timeout=0.5)
    assert not done


@pytest.mark.parametrize("failure", [no_directory, full_disk])
async def test_no_record_is_lost_or_duplicated_while_writes_fail(
    tmp_path: Path, failure: Any
) -> None:
    directory = tmp_path / "deadletters"
    writer = file_writer(directory, 100_000)
    await write(writer, numbered([1]))
    with failure(directory):
        async with _blocked(writer, numbered([2, 3, 4], 300)) as adding:
            second = asyncio.create_task(write(writer, numbered([5])))
        assert writer.outage.reason
    assert await asyncio.wait_for(adding, 90) == 0
    assert await asyncio.wait_for(second, 90) == 0
    assert not writer.outage.reason
    assert sorted(stored(directory)) == [1, 2, 3, 4, 5]
    assert all(file.suffix == ".jsonl" for file in directory.iterdir())


async def test_records_above_the_memory_limit_wait_while_writes_succeed(tmp_path: Path) -> None:
    writer = file_writer(tmp_path, 10**7, max_waiting=20_000)
    written = [await writer.dead_letter(numbered([n], 1000)) for n in range(300)]
    assert sum(not one.done() for one in written) < 20
    assert await asyncio.gather(*written) == [0] * 300
    assert (writer.waiting, writer.evicted, writer.outage.reason) == (0, 0, "")
    assert sorted(stored(tmp_path)) == list(range(300))


async def test_records_above_the_memory_limit_are_evicted_while_writes_fail(
    tmp_path: Path,
) -> None:
    writer = file_writer(tmp_path, 10**7, max_waiting=20_000)
    with no_file_larger_than(0):
        written = {}
        for n in range(100):
            with suppress(EvictedError):
                written[n] = await writer.dead_letter(numbered([n], 1000))
        assert 0 < len(written) <= 10
        assert (writer.waiting, writer.evicted) == (100, 100 - len(written))
    assert await asyncio.gather(*written.values()) == [0] * len(written)
    assert stored(tmp_path) == list(written)
    assert (writer.waiting, writer.outage.reason) == (100 - len(written), "")


async def test_a_file_is_replaced_only_if_it_is_unchanged_since_it_was_read(tmp_path: Path) -> None:
    one, two = DeadLetterFiles(tmp_path, 10_000), DeadLetterFiles(tmp_path, 10_000)
    await write(DeadLetterWriter(one), numbered(range(3), 100))
    (name,) = await one.sizes()
    lines = (await one.read(name)).splitlines(keepends=True)
    await two.read(name)
    await two.replace(name, b"".join(lines[1:]))
    for rest in (b"".join(lines[:1]), b""):
        with pytest.raises(ForwarderError, match="changed by another replay"):
            await one.replace(name, rest)
    assert stored(tmp_path) == [1, 2]
    await one.read(name)
    await one.replace(name, b"")
    assert not files(tmp_path)
    assert await one.read(name) == b""


async def test_a_failed_replacement_leaves_the_file_unchanged(tmp_path: Path) -> None:
    store = DeadLetterFiles(tmp_path, 20_000)
    await write(DeadLetterWriter(store), numbered(range(5), 100))
    (name,) = await store.sizes()
    lines = await store.read(name)
    with no_file_larger_than(100), pytest.raises(OSError, match="too large"):
        await store.replace(name, lines[:500])
    assert stored(tmp_path) == list(range(5))
    assert total(tmp_path) == len(lines)


# In the storage account


@pytest.fixture
async def store() -> AsyncIterator[Azurite]:
    async with azurite() as store:
        yield store


async def in_blobs(store: Azurite) -> list[int]:
    """Return the sequence numbers in the container, in the order of the blobs' names."""
    async with container(store) as client:
        blobs = DeadLetterBlobs(client)
        data = [await blobs.read(name) for name in await blobs.sizes()]
    return [json.loads(line)["sequenceNumber"] for one in data for line in one.splitlines()]


@asynccontextmanager
async def blob_writer(store: Azurite) -> AsyncIterator[DeadLetterWriter]:
    client = ContainerClient.from_connection_string(
        store.connection_string, CONTAINER, retry_total=0, read_timeout=1
    )
    async with client:
        with suppress(ResourceExistsError):
            await client.create_container()
        yield DeadLetterWriter(DeadLetterBlobs(client), pause=0.2)


async def test_replicas_write_to_the_same_container(store: Azurite) -> None:
    async with blob_writer(store) as one, blob_writer(store) as two:
        for number in range(0, 6, 2):
            await write(one, numbered([number], 100))
            await write(two, numbered([number + 1], 100))
    assert await in_blobs(store) == list(range(6))


async def test_records_of_a_burst_share_blobs(store: Azurite) -> None:
    async with blob_writer(store) as writer, container(store) as client:
        written = [await writer.dead_letter(numbered([n])) for n in range(200)]
        await asyncio.gather(*written)
        assert await in_blobs(store) == list(range(200))
        assert len(await DeadLetterBlobs(client).sizes()) <= 3


async def test_a_batch_that_is_uploaded_again_is_stored_once(store: Azurite) -> None:
    async with blob_writer(store), container(store) as client:
        ((name, data),) = batches(numbered([1, 2]), 10_000)
        await DeadLetterBlobs(client).put(name, data)
        await DeadLetterBlobs(client).put(name, data)
    assert await in_blobs(store) == [1, 2]


async def test_records_wait_for_a_store_that_does_not_respond(store: Azurite) -> None:
    async with blob_writer(store) as writer:
        store.pause()
        async with _blocked(writer, numbered([1])) as adding:
            await asyncio.sleep(2)
        assert writer.outage.reason
        store.resume()
        assert await asyncio.wait_for(adding, 90) == 0
        assert not writer.outage.reason
    assert await in_blobs(store) == [1]


async def test_no_checkpoint_passes_a_dead_letter_while_the_account_is_unavailable(
    store: Azurite, tmp_path: Path
) -> None:
    """There is no fallback store: after a restart, the message is received and refused again."""
    async with environment(tmp_path) as env:
        async with env.replica("one", store, OwnershipExpiry="60") as forwarder:
            env.ledger.publish(40)
            await env.ledger.wait_until_settled()
            store.pause()
            env.ledger.publish(100, reject_every=10)
            await forwarder.wait_for("dead letters cannot be written")
            forwarder.kill()
            await forwarder.wait()
        store.resume()
        async with env.replica("two", store):
            for _ in range(300):
                if len(found := await events_in_blobs(store)) >= len(env.ledger.rejected):
                    break
                await asyncio.sleep(0.1)
        assert {key(one) for one in found} == env.ledger.rejected
        assert not files(tmp_path / "state")


async def test_a_replica_stores_its_dead_letters_in_the_account(tmp_path: Path) -> None:
    async with azurite() as store, environment(tmp_path) as env:
        async with env.replica("one", store) as forwarder:
            env.ledger.publish(200, reject_every=10)
            await env.webhook.until(lambda: len(env.webhook.accepted) == 180)
            for _ in range(300):
                if len(found := await events_in_blobs(store)) == 20:
                    break
                await asyncio.sleep(0.1)
            check_sums(await forwarder.metrics())
            (logged,) = forwarder.entries("event dead-lettered")
            assert (logged["level"], logged["kind"]) == ("error", "refused-by-the-sink")
            forwarder.kill()
            await forwarder.wait()
        assert not env.ledger.dead_lettered()
        assert {key(one) for one in found} == env.ledger.rejected
        assert found == await events_in_blobs(store)


async def events_in_blobs(store: Azurite) -> list[bytes]:
    """Return the events of the records in the container, if it is there yet."""
    async with container(store) as client:
        blobs = DeadLetterBlobs(client)
        data = [await blobs.read(name) for name in await blobs.sizes()]
    return [one.original for lines in data for _, one in parse(lines) if one]
