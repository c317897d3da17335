"""Dead letters are kept as they were, within their bounds, and all are accounted for."""

import asyncio
import base64
import itertools
import json
import random
import resource
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events import real_events
from forwarder.deadletters import DeadLetters, Letter
from forwarder.envelope import Refused

BODIES = [
    real_events()[0],
    '{"é":"漢\u2028😀"}\r\n\t '.encode(),
    b"",
    b"\0",
    b'"\\',
    b"\xff\xfe{\0",
    "\ud800".encode(errors="surrogatepass"),
]


def letter(body: bytes, number: int = 7, reason: str = "because") -> Letter:
    return Letter("3", number, Refused(body, reason))


def numbered(numbers: Iterable[int], size: int = 0) -> list[Letter]:
    return [letter(b"x" * size, number) for number in numbers]


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
    return sum(file.stat().st_size for file in directory.iterdir())


@pytest.mark.parametrize("original", BODIES)
async def test_a_letter_is_a_line_of_json_with_the_bytes_as_they_were(
    tmp_path: Path, original: bytes
) -> None:
    letters = DeadLetters(tmp_path / "letters", 10_000)
    assert await letters.add([letter(original, 12, 'no "stage"\n')]) == 0
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
    letters = DeadLetters(directory, most)
    rng = random.Random(most)
    numbers, dropped, written = itertools.count(), 0, 0
    for _ in range(300):
        batch = numbered(
            itertools.islice(numbers, rng.randrange(1, 4)),
            min(rng.choice([0, 10, 200, 700, most]), 5000),
        )
        written += len(batch)
        dropped += await letters.add(batch)
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
        dropped += await letters.add(numbered(itertools.islice(numbers, 1)))
        written += 1
    assert written - dropped == len(kept(directory))


async def test_the_debt_is_never_more_than_the_letters_of_a_file_and_is_paid_at_once(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "letters"
    letters = DeadLetters(directory, 20_000)
    added = dropped = 0
    debts = []
    while added < 300:
        dropped += await letters.add(numbered([added], 100))
        added += 1
        debts.append(added - dropped - len(kept(directory)))
    assert min(debts) == debts[-1 - debts[::-1].index(0)] == 0
    per_file = max(file.read_bytes().count(b"\n") for file in files(directory))
    assert 0 < max(debts) < per_file
    # Each letter added while there is a debt pays one off.
    assert all(later == debt - 1 for debt, later in itertools.pairwise(debts) if later and debt)


async def test_the_oldest_file_goes_and_costs_about_a_tenth(tmp_path: Path) -> None:
    directory = tmp_path / "letters"
    letters = DeadLetters(directory, 20_000)
    for number in range(400):
        await letters.add(numbered([number], 100))
        found = kept(directory)
        assert found == list(range(number + 1 - len(found), number + 1))
    assert 20_000 * 0.8 < total(directory) <= 20_000
    assert 9 <= len(files(directory)) <= 11


async def test_letters_go_on_after_those_of_an_earlier_process(tmp_path: Path) -> None:
    directory = tmp_path / "letters"
    for number in range(50):
        await DeadLetters(directory, 100_000).add(numbered([number], 1000))
    assert kept(directory) == list(range(50))
    assert len(files(directory)) > 1


async def test_a_letter_larger_than_the_limit_is_counted_dropped_and_costs_no_other(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "letters"
    letters = DeadLetters(directory, 5000)
    await letters.add(numbered([1, 2]))
    assert await letters.add(numbered([3], 5000)) == 1
    assert await letters.add(numbered([4])) == 0
    assert kept(directory) == [1, 2, 4]


async def test_a_strange_file_in_the_directory_is_left_alone(tmp_path: Path) -> None:
    directory = tmp_path / "letters"
    directory.mkdir()
    strange = directory / "00000001-copy.jsonl"
    strange.write_bytes(b"x" * 4000)
    letters = DeadLetters(directory, 5000)
    await letters.add(numbered([1], 1000))
    assert strange.read_bytes() == b"x" * 4000
    strange.unlink()
    assert kept(directory) == [1]


async def test_half_a_line_of_a_killed_process_does_not_spoil_the_next_letter(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "letters"
    await DeadLetters(directory, 10_000).add(numbered([1, 2]))
    (file,) = files(directory)
    file.write_bytes(file.read_bytes() + letter(b"", 3).line()[:-20])
    await DeadLetters(directory, 10_000).add(numbered([3]))
    assert kept(directory) == [1, 2, 3]
    assert file.read_bytes().count(b"\n") == 3


async def test_letters_of_all_partitions_at_once_are_whole(tmp_path: Path) -> None:
    letters = DeadLetters(tmp_path / "letters", 10**6)
    await asyncio.gather(*(letters.add(numbered([n], 200)) for n in range(100)))
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
    return no_file_larger_than(50 + max(file.stat().st_size for file in directory.iterdir()))


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@asynccontextmanager
async def _held_up(letters: DeadLetters, batch: list[Letter]) -> AsyncIterator[asyncio.Task[int]]:
    adding = asyncio.create_task(letters.add(batch))
    yield adding
    done, _ = await asyncio.wait([adding], timeout=0.5)
    assert not done


@pytest.mark.parametrize("trouble", [no_directory, full_disk])
async def test_no_letter_is_lost_or_doubled_while_none_can_be_written(
    tmp_path: Path, trouble: Any
) -> None:
    directory = tmp_path / "letters"
    letters = DeadLetters(directory, 100_000)
    await letters.add(numbered([1]))
    with trouble(directory):
        async with _held_up(letters, numbered([2, 3, 4], 300)) as adding:
            second = asyncio.create_task(letters.add(numbered([5])))
    assert await asyncio.wait_for(adding, 20) == 0
    assert await asyncio.wait_for(second, 20) == 0
    assert kept(directory) == [1, 2, 3, 4, 5]
    assert b"".join(file.read_bytes() for file in files(directory)).count(b"\n") == 5


async def test_letters_dropped_for_one_that_could_not_be_written_at_once_are_counted(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "letters"
    letters = DeadLetters(directory, 3000)
    for number in range(12):
        await letters.add(numbered([number], 100))
    assert len(kept(directory)) == 12
    with no_file_larger_than(500):
        async with _held_up(letters, numbered([12], 1500)) as adding:
            pass
    dropped = await asyncio.wait_for(adding, 20)
    for number in range(13, 30):
        dropped += await letters.add(numbered([number]))
    gone = 30 - len(kept(directory))
    assert gone > 0
    assert dropped == gone
