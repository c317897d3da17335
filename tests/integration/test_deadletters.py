"""Dead letters are kept as they were, within their bounds, and all are accounted for."""

import asyncio
import base64
import fcntl
import itertools
import json
import random
import resource
from collections import deque
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
from forwarder.deadletters.record import Record
from forwarder.deadletters.record import letters as letters_in
from forwarder.deadletters.writer import DeadLetterWriter
from forwarder.errors import EvictedError, StateError
from support.azurite import Azurite, azurite
from support.events import key, real_events
from support.ledger import judge_sums
from support.scene import scene
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


def letter(body: bytes, number: int = 7, reason: str = "because") -> Record:
    return Record.of("3", number, Unusable(body, reason))


def numbered(numbers: Iterable[int], size: int = 0) -> list[Record]:
    return [letter(b"x" * size, number) for number in numbers]


def local(directory: Path, most: int) -> DeadLetterWriter:
    return DeadLetterWriter(DeadLetterFiles(directory, most))


async def keep(letters: DeadLetterWriter, batch: list[Record]) -> int:
    """Add them and wait until they are written; how many others are to be counted dropped."""
    return await (await letters.add(batch))


def body(entry: dict[str, Any]) -> bytes:
    if "body" in entry:
        return str(entry["body"]).encode()
    return base64.b64decode(entry["bodyBase64"], validate=True)


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.jsonl"))


def entries(directory: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for file in files(directory)
        for line in file.read_bytes().splitlines(keepends=True)
        if line.endswith(b"\n")
    ]


def kept(directory: Path) -> list[int]:
    return [entry["sequenceNumber"] for entry in entries(directory)]


def total(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*.jsonl"))


@pytest.mark.parametrize("original", BODIES)
async def test_a_letter_is_a_line_of_json_with_the_bytes_as_they_were(
    tmp_path: Path, original: bytes
) -> None:
    letters = local(tmp_path / "letters", 10_000)
    assert await keep(letters, [letter(original, 12, 'no "stage"\n')]) == 0
    (entry,) = entries(tmp_path / "letters")
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
@settings(max_examples=200, deadline=None)
def test_any_bytes_come_back_from_a_line(original: bytes) -> None:
    line = letter(original).line()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert body(json.loads(line)) == original


@pytest.mark.parametrize("most", [1024, 3000, 20_000])
async def test_all_files_together_never_exceed_the_limit_and_every_letter_is_counted(
    tmp_path: Path, most: int
) -> None:
    directory = tmp_path / "letters"
    letters = local(directory, most)
    rng = random.Random(most)
    numbers, dropped, written = itertools.count(), 0, 0
    for _ in range(300):
        batch = numbered(
            itertools.islice(numbers, rng.randrange(1, 4)),
            min(rng.choice([0, 10, 200, 700, most]), 5000),
        )
        written += len(batch)
        dropped += await keep(letters, batch)
        assert total(directory) <= most
        # What is kept was counted dead-lettered; what went is dropped, or will be by later ones.
        assert len(kept(directory)) <= written - dropped
    found = kept(directory)
    assert found == sorted(set(found))
    assert found[-1] >= written - 30
    assert dropped > 0
    for _ in range(500):
        if written - dropped == len(kept(directory)):
            break
        dropped += await keep(letters, numbered(itertools.islice(numbers, 1)))
        written += 1
    assert written - dropped == len(kept(directory))


async def test_the_debt_is_never_more_than_the_letters_of_a_file_and_is_paid_at_once(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "letters"
    letters = local(directory, 20_000)
    added = dropped = 0
    debts = []
    per_file = 0
    while added < 300:
        dropped += await keep(letters, numbered([added], 100))
        added += 1
        debts.append(added - dropped - len(kept(directory)))
        per_file = max(per_file, *(file.read_bytes().count(b"\n") for file in files(directory)))
    assert min(debts) == debts[-1 - debts[::-1].index(0)] == 0
    assert 0 < max(debts) <= per_file
    # Each letter added while there is a debt pays one off, also when another file goes for it.
    assert all(
        later in {debt - 1, debt - 1 + per_file}
        for debt, later in itertools.pairwise(debts)
        if debt
    )


async def test_the_oldest_file_goes_and_costs_about_a_tenth(tmp_path: Path) -> None:
    directory = tmp_path / "letters"
    letters = local(directory, 20_000)
    for number in range(400):
        await keep(letters, numbered([number], 100))
        found = kept(directory)
        assert found == list(range(number + 1 - len(found), number + 1))
    assert 20_000 * 0.8 < total(directory) <= 20_000
    assert 9 <= len(files(directory)) <= 11


async def test_letters_go_on_after_those_of_an_earlier_process(tmp_path: Path) -> None:
    directory = tmp_path / "letters"
    for number in range(50):
        await keep(local(directory, 100_000), numbered([number], 1000))
    assert kept(directory) == list(range(50))
    assert len(files(directory)) > 1


async def test_a_letter_larger_than_the_limit_is_counted_dropped_and_costs_no_other(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "letters"
    letters = local(directory, 5000)
    await keep(letters, numbered([1, 2]))
    assert await keep(letters, numbered([3], 5000)) == 1
    assert await keep(letters, numbered([4])) == 0
    assert kept(directory) == [1, 2, 4]


async def test_a_strange_file_in_the_directory_is_left_alone(tmp_path: Path) -> None:
    directory = tmp_path / "letters"
    directory.mkdir()
    strange = directory / "00000001-copy.jsonl"
    strange.write_bytes(b"x" * 4000)
    letters = local(directory, 5000)
    await keep(letters, numbered([1], 1000))
    assert strange.read_bytes() == b"x" * 4000
    strange.unlink()
    assert kept(directory) == [1]


async def test_half_a_line_of_a_killed_process_does_not_spoil_the_next_letter(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "letters"
    await keep(local(directory, 10_000), numbered([1, 2]))
    (file,) = files(directory)
    file.write_bytes(file.read_bytes() + letter(b"", 3).line()[:-20])
    await keep(local(directory, 10_000), numbered([3]))
    assert kept(directory) == [1, 2, 3]
    found = [one for file in files(directory) for _, one in letters_in(file.read_bytes())]
    assert [one and one.sequence_number for one in found] == [1, 2, 3]


async def test_letters_of_all_partitions_at_once_are_whole(tmp_path: Path) -> None:
    letters = local(tmp_path / "letters", 10**6)
    await asyncio.gather(*(keep(letters, numbered([n], 200)) for n in range(100)))
    assert sorted(kept(tmp_path / "letters")) == list(range(100))


@contextmanager
def no_directory(directory: Path) -> Iterator[None]:
    """Put a file in the place of the directory."""
    aside = directory.with_name("aside")
    directory.rename(aside)
    directory.touch()
    yield
    directory.unlink()
    aside.rename(directory)


def full_disk(directory: Path) -> AbstractContextManager[None]:
    """Let no file grow beyond one that is there and some bytes: a write ends in the middle."""
    return no_file_larger_than(50 + max(file.stat().st_size for file in files(directory)))


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@asynccontextmanager
async def _held_up(
    letters: DeadLetterWriter, batch: list[Record]
) -> AsyncIterator[asyncio.Task[int]]:
    adding = asyncio.create_task(keep(letters, batch))
    yield adding
    done, _ = await asyncio.wait([adding], timeout=0.5)
    assert not done


@pytest.mark.parametrize("trouble", [no_directory, full_disk])
async def test_no_letter_is_lost_or_doubled_while_none_can_be_written(
    tmp_path: Path, trouble: Any
) -> None:
    directory = tmp_path / "letters"
    letters = local(directory, 100_000)
    await keep(letters, numbered([1]))
    with trouble(directory):
        async with _held_up(letters, numbered([2, 3, 4], 300)) as adding:
            second = asyncio.create_task(keep(letters, numbered([5])))
    assert await asyncio.wait_for(adding, 20) == 0
    assert await asyncio.wait_for(second, 20) == 0
    assert kept(directory) == [1, 2, 3, 4, 5]
    assert b"".join(file.read_bytes() for file in files(directory)).count(b"\n") == 5


async def test_letters_dropped_for_one_that_could_not_be_written_at_once_are_counted(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "letters"
    letters = local(directory, 3000)
    for number in range(12):
        await keep(letters, numbered([number], 100))
    assert len(kept(directory)) == 12
    with no_file_larger_than(500):
        async with _held_up(letters, numbered([12], 1500)) as adding:
            pass
    dropped = await asyncio.wait_for(adding, 20)
    for number in range(13, 30):
        dropped += await keep(letters, numbered([number]))
    gone = 30 - len(kept(directory))
    assert gone > 0
    assert dropped == gone


async def test_letters_that_wait_past_the_bound_are_held_back_while_the_disk_is_well(
    tmp_path: Path,
) -> None:
    letters = DeadLetterWriter(DeadLetterFiles(tmp_path / "letters", 10**7), max_waiting=20_000)
    written = [await letters.add(numbered([n], 1000)) for n in range(300)]
    assert sum(not one.done() for one in written) < 20
    assert await asyncio.gather(*written) == [0] * 300
    assert (letters.waiting, letters.evicted, letters.failure) == (0, 0, "")
    assert kept(tmp_path / "letters") == list(range(300))


async def test_letters_past_the_bound_are_let_go_while_nothing_can_be_written(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "letters"
    letters = DeadLetterWriter(DeadLetterFiles(directory, 10**7), max_waiting=20_000)
    with no_file_larger_than(0):
        written = [await letters.add(numbered([n], 1000)) for n in range(100)]
        gone = [n for n, one in enumerate(written) if one.done()]
        assert 90 <= len(gone) < 100
        assert all(isinstance(written[n].exception(), EvictedError) for n in gone)
        assert (letters.waiting, letters.evicted) == (100, len(gone))
    rest = [n for n in range(100) if n not in gone]
    assert await asyncio.gather(*(written[n] for n in rest)) == [0] * len(rest)
    assert kept(directory) == rest
    assert (letters.waiting, letters.failure) == (len(gone), "")


async def test_a_file_that_is_taken_is_not_appended_to_and_counts_as_long(tmp_path: Path) -> None:
    directory = tmp_path / "letters"
    files_of = DeadLetterFiles(directory, 20_000)
    letters = DeadLetterWriter(files_of)
    await keep(letters, numbered(range(5), 100))
    with files_of.taking():
        with pytest.raises(StateError), DeadLetterFiles(directory, 20_000).taking():
            pass
        taken = await files_of.take("00000001.jsonl")
        for number in range(5, 200):
            await keep(letters, numbered([number], 100))
            assert total(directory) <= 20_000
        await files_of.put_back("00000001.jsonl", b"".join(taken.splitlines(keepends=True)[3:]))
    found = kept(directory)
    assert found[:2] == [3, 4]
    assert found[2:] == list(range(found[2], 200))


async def test_nothing_is_lost_between_one_that_appends_and_one_that_takes(tmp_path: Path) -> None:
    appender, taker = (DeadLetterFiles(tmp_path / "letters", 10**7) for _ in range(2))

    def append() -> None:
        for number in range(400):
            appender.append(deque([letter(b"", number).line()]))

    found: list[int] = []
    appending = asyncio.create_task(asyncio.to_thread(append))
    while not appending.done():
        for name in await taker.sizes():
            taken = [one for _, one in letters_in(await taker.take(name))]
            found += [one.sequence_number for one in taken if one]
            await taker.put_back(name, b"")
    assert sorted([*found, *kept(tmp_path / "letters")]) == list(range(400))
    assert len(found) > 200


async def test_a_file_given_back_takes_nothings_place(tmp_path: Path) -> None:
    files_of = DeadLetterFiles(tmp_path / "letters", 10_000)
    letters = DeadLetterWriter(files_of)
    await keep(letters, numbered([1]))
    await files_of.take("00000001.jsonl")
    await keep(letters, numbered([2]))
    await files_of.put_back("00000001.jsonl", None)
    assert kept(tmp_path / "letters") == [1, 2]


async def test_a_file_is_taken_only_between_two_appends(tmp_path: Path) -> None:
    directory = tmp_path / "letters"
    files_of = DeadLetterFiles(directory, 10_000)
    await keep(DeadLetterWriter(files_of), numbered([1]))
    with (directory / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        taking = asyncio.create_task(files_of.take("00000001.jsonl"))
        done, _ = await asyncio.wait([taking], timeout=0.3)
        assert not done
        assert kept(directory) == [1]
    assert await taking


async def test_the_rest_that_cannot_be_written_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    directory = tmp_path / "letters"
    files_of = DeadLetterFiles(directory, 20_000)
    await keep(DeadLetterWriter(files_of), numbered(range(5), 100))
    taken = await files_of.take("00000001.jsonl")
    with no_file_larger_than(100), pytest.raises(OSError, match="too large"):
        await files_of.put_back("00000001.jsonl", taken[:500])
    assert kept(directory) == list(range(5))
    assert [file.name for file in (directory / "taken").iterdir()] == ["lock"]


# In the storage account


async def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(200):
        if condition():
            return
        await asyncio.sleep(0.1)
    raise TimeoutError


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
async def blob_letters(store: Azurite, directory: Path) -> AsyncIterator[DeadLetterWriter]:
    client = ContainerClient.from_connection_string(
        store.connection_string, CONTAINER, retry_total=0, read_timeout=1
    )
    async with client:
        with suppress(ResourceExistsError):
            await client.create_container()
        yield DeadLetterWriter(
            DeadLetterFiles(directory, 10_000), DeadLetterBlobs(client), retry=0.2
        )


async def test_letters_go_to_blobs_and_none_to_the_disk(store: Azurite, tmp_path: Path) -> None:
    async with (
        blob_letters(store, tmp_path / "one") as one,
        blob_letters(store, tmp_path / "two") as two,
    ):
        for number in range(0, 6, 2):
            await keep(one, numbered([number], 100))
            await keep(two, numbered([number + 1], 100))
    assert await in_blobs(store) == list(range(6))
    assert not files(tmp_path / "one") + files(tmp_path / "two")


async def test_letters_of_a_burst_share_blobs(store: Azurite, tmp_path: Path) -> None:
    async with blob_letters(store, tmp_path / "one") as letters:
        written = [await letters.add(numbered([n])) for n in range(200)]
        await asyncio.gather(*written)
    assert await in_blobs(store) == list(range(200))
    async with container(store) as client:
        assert len(await DeadLetterBlobs(client).sizes()) <= 3


async def test_a_batch_whose_answer_was_lost_is_there_once(store: Azurite, tmp_path: Path) -> None:
    async with blob_letters(store, tmp_path / "one"), container(store) as client:
        lines = b"".join(one.line() for one in numbered([1, 2]))
        await DeadLetterBlobs(client).put(lines)
        await DeadLetterBlobs(client).put(lines)
    assert await in_blobs(store) == [1, 2]


async def test_while_the_store_does_not_answer_letters_are_on_the_disk_and_moved_later(
    store: Azurite, tmp_path: Path
) -> None:
    directory = tmp_path / "letters"
    async with blob_letters(store, directory) as letters:
        store.pause()
        for number in range(3):
            assert await keep(letters, numbered([number])) == 0
        assert kept(directory) == [0, 1, 2]
        moving = asyncio.create_task(letters.run())
        away = directory / "taken" / files(directory)[0].name
        await eventually(away.exists)
        await eventually(lambda: not away.exists())
        assert kept(directory) == [0, 1, 2]
        store.resume()
        await eventually(lambda: not files(directory))
        assert await keep(letters, numbered([3])) == 0
        moving.cancel()
    assert sorted(set(await in_blobs(store))) == [0, 1, 2, 3]
    assert not files(directory)


async def test_letters_on_the_disk_are_moved_at_the_next_start(
    store: Azurite, tmp_path: Path
) -> None:
    """Those that were being moved when the process died too."""
    directory = tmp_path / "letters"
    await keep(DeadLetterWriter(DeadLetterFiles(directory, 10_000)), numbered([0, 1]))
    await DeadLetterFiles(directory, 10_000).take("00000001.jsonl")
    await keep(DeadLetterWriter(DeadLetterFiles(directory, 10_000)), numbered([2]))
    async with blob_letters(store, directory) as letters:
        moving = asyncio.create_task(letters.run())
        await eventually(lambda: not total(directory))
        moving.cancel()
    assert await in_blobs(store) == [0, 1, 2]


async def test_letters_that_a_replay_has_are_not_moved(store: Azurite, tmp_path: Path) -> None:
    directory = tmp_path / "letters"
    await keep(local(directory, 10_000), numbered([0]))
    async with blob_letters(store, directory) as letters:
        with DeadLetterFiles(directory, 10_000).taking():
            moving = asyncio.create_task(letters.run())
            await asyncio.wait([moving], timeout=1)
            assert kept(directory) == [0]
        await eventually(lambda: not files(directory))
        moving.cancel()
    assert await in_blobs(store) == [0]


async def test_a_letter_is_settled_only_when_disk_or_store_has_it(
    store: Azurite, tmp_path: Path
) -> None:
    directory = tmp_path / "letters"
    async with blob_letters(store, directory) as letters:
        store.pause()
        with no_file_larger_than(0):
            async with _held_up(letters, numbered([1])) as adding:
                await asyncio.sleep(2)
            assert letters.failure
            store.resume()
            assert await asyncio.wait_for(adding, 20) == 0
    assert set(await in_blobs(store)) == {1}
    assert not kept(directory)


async def test_a_replica_keeps_its_dead_letters_in_the_account(tmp_path: Path) -> None:
    async with azurite() as store, scene(tmp_path) as stage:
        async with stage.replica("one", store) as forwarder:
            stage.ledger.publish(200, refuse=10)
            await stage.webhook.until(lambda: len(stage.webhook.taken) == 180)
            for _ in range(300):
                if len(found := await events_in_blobs(store)) == 20:
                    break
                await asyncio.sleep(0.1)
            judge_sums(await forwarder.metrics())
            forwarder.kill()
            await forwarder.wait()
        assert not stage.ledger.dead()
        assert {key(one) for one in found} == stage.ledger.refused
        assert found == await events_in_blobs(store)


async def events_in_blobs(store: Azurite) -> list[bytes]:
    """Return the events of the letters in the container, if it is there yet."""
    async with container(store) as client:
        blobs = DeadLetterBlobs(client)
        data = [await blobs.read(name) for name in await blobs.sizes()]
    return [one.original for lines in data for _, one in letters_in(lines) if one]
