"""Both checkpoint stores fulfil one contract; the embedded store survives crashes and damage."""

import asyncio
import json
import math
import random
import signal
import sqlite3
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from forwarder import log
from forwarder.checkpoints.blob import BlobCheckpointStore
from forwarder.checkpoints.generation import CheckpointStore, GenerationStore
from forwarder.checkpoints.sqlite import EmbeddedCheckpointStore
from forwarder.config.settings import Settings
from forwarder.errors import StateError, SupersededError
from forwarder.storage import open_container
from support.azurite import Azurite, azurite
from support.stores import SCOPE, checkpoint

OTHER_SCOPES = [
    {**SCOPE, "fully_qualified_namespace": "demo2.servicebus.windows.net"},
    {**SCOPE, "eventhub_name": "insights-logs-kube-audit2"},
    {**SCOPE, "consumer_group": "$Default2"},
]


def ownership(partition: str = "0", owner: str = "me", **more: Any) -> dict[str, Any]:
    return {**SCOPE, "partition_id": partition, "owner_id": owner, **more}


def by_partition(entries: Any) -> list[dict[str, Any]]:
    return sorted(entries, key=lambda entry: str(entry["partition_id"]))


def unquoted(owned: dict[str, Any]) -> dict[str, Any]:
    """Return a claim as it is listed: its ETag without the quotes of HTTP, its time set to 0."""
    return {**owned, "etag": owned["etag"].strip('"'), "last_modified_time": 0}


def positions(checkpoints: Any) -> list[dict[str, Any]]:
    """Return checkpoints sorted by partition, without their metadata."""
    return [
        {k: v for k, v in one.items() if k not in {"etag", "hub_created", "written", "enqueued"}}
        for one in by_partition(checkpoints)
    ]


@pytest.fixture
def errors() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Return a function that returns the logged errors, the latest first."""
    log.configure(1, "json", ())
    yield log.recent_errors
    log.silence()


class Contract:
    """The behaviour that both stores have in common."""

    async def test_a_new_store_is_empty(self, store: CheckpointStore) -> None:
        assert await store.list_checkpoints(SCOPE) == []

    async def test_checkpoints_are_listed_as_written(self, store: CheckpointStore) -> None:
        written = [checkpoint(2**40, "0"), checkpoint(0, "1"), checkpoint(7, "10")]
        for one in written:
            await store.update_checkpoint(dict(one))
        assert positions(await store.list_checkpoints(SCOPE)) == written

    async def test_a_later_checkpoint_replaces_an_earlier_one(self, store: CheckpointStore) -> None:
        await store.update_checkpoint(checkpoint(5))
        await store.update_checkpoint(checkpoint(9))
        assert positions(await store.list_checkpoints(SCOPE)) == [checkpoint(9)]

    async def test_a_checkpoint_can_move_back_if_it_is_unchanged_since_it_was_listed(
        self, store: CheckpointStore
    ) -> None:
        """Sequence numbers start again when a hub is recreated."""
        await store.update_checkpoint(checkpoint(9))
        (found,) = await store.list_checkpoints(SCOPE)
        for number in 5, 3:
            found |= checkpoint(number)
            await store.update_checkpoint(found)
        assert positions(await store.list_checkpoints(SCOPE)) == [checkpoint(3)]

    async def test_checkpoints_of_hubs_and_consumer_groups_are_separate(
        self, store: CheckpointStore
    ) -> None:
        await store.update_checkpoint(checkpoint(1))
        for number, scope in enumerate(OTHER_SCOPES):
            assert await store.list_checkpoints(scope) == []
            await store.update_checkpoint(checkpoint(number, **scope))
        assert positions(await store.list_checkpoints(SCOPE)) == [checkpoint(1)]
        for number, scope in enumerate(OTHER_SCOPES):
            assert positions(await store.list_checkpoints(scope)) == [checkpoint(number, **scope)]

    async def test_names_of_hubs_are_case_insensitive(self, store: CheckpointStore) -> None:
        await store.update_checkpoint(checkpoint(3))
        upper = {name: value.upper() for name, value in SCOPE.items()}
        (found,) = await store.list_checkpoints(upper)
        assert (found["partition_id"], found["sequence_number"]) == ("0", 3)


class TestEmbedded(Contract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[CheckpointStore]:
        with closing(EmbeddedCheckpointStore(tmp_path / "checkpoints.db")) as store:
            yield store


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def storage() -> AsyncIterator[Azurite]:
    async with azurite() as storage:
        yield storage


class TestBlob(Contract):
    @pytest.fixture
    async def store(self, storage: Azurite) -> AsyncIterator[BlobCheckpointStore]:
        settings = Settings.from_env(
            {
                "EhubNamespaceConnectionString": "Endpoint=sb://demo.servicebus.windows.net/;"
                "SharedAccessKeyName=a;SharedAccessKey=a2V5",
                "BlobStorageConnectionString": storage.connection_string,
                "BlobContainerName": f"container-{uuid.uuid4()}",
            }
        )
        async with open_container(settings, None) as container:
            store = BlobCheckpointStore(container)
            await store.list_ownership(SCOPE)  # creates the container
            yield store

    async def test_a_granted_claim_has_an_etag_and_a_time_and_is_listed(
        self, store: BlobCheckpointStore
    ) -> None:
        claims = [ownership("0"), ownership("1")]
        granted = by_partition(await store.claim_ownership(claims))
        for one, claim in zip(granted, claims, strict=True):
            assert one.items() >= claim.items()
            assert one["etag"]
        found = by_partition(await store.list_ownership(SCOPE))
        for one, grant in zip(found, granted, strict=True):
            assert unquoted(one).items() <= unquoted(grant).items()
        assert all(abs(one["last_modified_time"] - time.time()) < 60 for one in found)

    async def test_claims_of_hubs_and_consumer_groups_are_separate(
        self, store: BlobCheckpointStore
    ) -> None:
        await store.claim_ownership([ownership()])
        for number, scope in enumerate(OTHER_SCOPES):
            assert await store.list_ownership(scope) == []
            await store.claim_ownership([ownership(owner=f"{number}", **scope)])
        for number, scope in enumerate(OTHER_SCOPES):
            (owned,) = await store.list_ownership(scope)
            assert owned["owner_id"] == f"{number}"

    async def test_the_age_of_a_claim_does_not_depend_on_the_local_clock(
        self, store: BlobCheckpointStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await store.claim_ownership([ownership()])
        now = time.time
        for jump in 3600, -3600:
            with monkeypatch.context() as clock:
                clock.setattr(time, "time", lambda jump=jump: now() + jump)
                (found,) = await store.list_ownership(SCOPE)
                assert abs(found["last_modified_time"] - time.time()) < 60

    async def test_a_claim_can_be_renewed_and_released(self, store: BlobCheckpointStore) -> None:
        (first,) = await store.claim_ownership([ownership()])
        (renewed,) = await store.claim_ownership([first])
        assert renewed["etag"] != first["etag"]
        (released,) = await store.claim_ownership([{**renewed, "owner_id": ""}])
        (found,) = await store.list_ownership(SCOPE)
        assert not found["owner_id"]
        assert unquoted(found)["etag"] == unquoted(released)["etag"]

    async def test_changing_a_returned_claim_does_not_change_the_store(
        self, store: BlobCheckpointStore
    ) -> None:
        claim = ownership()
        for one in (
            await store.claim_ownership([claim]),
            [claim],
            await store.list_ownership(SCOPE),
        ):
            next(iter(one))["owner_id"] = "another"
        assert [one["owner_id"] for one in await store.list_ownership(SCOPE)] == ["me"]

    async def test_a_claim_with_an_outdated_etag_is_not_granted(
        self, store: BlobCheckpointStore
    ) -> None:
        (first,) = await store.claim_ownership([ownership()])
        await store.claim_ownership([{**first, "owner_id": "another"}])
        assert await store.claim_ownership([first]) == []
        assert [one["owner_id"] for one in await store.list_ownership(SCOPE)] == ["another"]

    async def test_a_checkpoint_behind_that_of_another_process_is_not_written(
        self, store: BlobCheckpointStore
    ) -> None:
        """It is compared with the stored checkpoint, and is written once it is ahead of that."""
        await store.update_checkpoint(checkpoint(5))
        (ours,) = await store.list_checkpoints(SCOPE)
        (theirs,) = await store.list_checkpoints(SCOPE)
        await store.update_checkpoint(theirs | checkpoint(7))
        with pytest.raises(SupersededError):
            await store.update_checkpoint(ours | checkpoint(6))
        assert positions(await store.list_checkpoints(SCOPE)) == [checkpoint(7)]
        await store.update_checkpoint(ours | checkpoint(8))
        assert positions(await store.list_checkpoints(SCOPE)) == [checkpoint(8)]

    async def test_a_start_position_does_not_replace_a_checkpoint(
        self, store: BlobCheckpointStore
    ) -> None:
        """The stored checkpoint is kept, whether it is ahead of the start position or behind it."""
        await store.update_checkpoint(checkpoint(5), start=True)
        for number in 3, 9:
            with pytest.raises(SupersededError):
                await store.update_checkpoint(checkpoint(number), start=True)
        assert positions(await store.list_checkpoints(SCOPE)) == [checkpoint(5)]

    @pytest.mark.parametrize(
        "metadata",
        [
            {"offset": "100", "sequencenumber": "abc"},
            {"offset": "100", "sequencenumber": "-7"},
            {"offset": "100", "sequencenumber": "9" * 30},
            {"offset": "1' or '1", "sequencenumber": "7"},
            {"offset": "@latest", "sequencenumber": "7"},
            {"offset": "100", "sequencenumber": "7", "hubcreated": "abc"},
            {"offset": "100", "sequencenumber": "7", "hubcreated": "nan"},
            {"offset": "100", "sequencenumber": "7", "enqueued": "inf"},
            {},
        ],
    )
    async def test_a_malformed_checkpoint_blob_counts_as_missing_and_is_replaced(
        self, store: BlobCheckpointStore, metadata: dict[str, str]
    ) -> None:
        await store.update_checkpoint(checkpoint(5, "1"))
        name = "/".join([*SCOPE.values(), "checkpoint", "0"]).lower()
        await store.container.upload_blob(name, b"", metadata=metadata)
        generation = GenerationStore(store)
        assert positions(await generation.list_checkpoints(SCOPE)) == [checkpoint(5, "1")]
        beginning = checkpoint(-1) | {"offset": "-1"}
        await generation.update_checkpoint({**generation.listed["0"], **beginning}, start=True)
        assert positions(await store.list_checkpoints(SCOPE)) == [beginning, checkpoint(5, "1")]

    async def test_a_malformed_ownership_blob_has_no_owner(
        self, store: BlobCheckpointStore
    ) -> None:
        await store.claim_ownership([ownership("1")])
        name = "/".join([*SCOPE.values(), "ownership", "0"]).lower()
        await store.container.upload_blob(name, b"")
        found = by_partition(await store.list_ownership(SCOPE))
        assert [one["owner_id"] for one in found] == ["", "me"]

    async def test_checkpoints_of_the_sdk_for_go_are_found_and_the_higher_sequence_number_wins(
        self, store: BlobCheckpointStore, errors: Callable[[], list[dict[str, Any]]]
    ) -> None:
        """The SDK for Go keeps upper case in names; this store writes lower case."""
        hub = "/".join(SCOPE.values())
        assert hub != hub.lower()

        async def upload(partition: str, number: int, kind: str = "checkpoint") -> None:
            metadata = {"sequencenumber": f"{number}", "offset": f"{number}00", "ownerid": "go"}
            await store.container.upload_blob(f"{hub}/{kind}/{partition}", b"", metadata=metadata)

        await store.update_checkpoint(checkpoint(5, "0"))
        await store.update_checkpoint(checkpoint(9, "1"))
        for partition, number in {"0": 7, "1": 8, "2": 3}.items():
            await upload(partition, number)
        generation = GenerationStore(store)
        found = positions(await generation.list_checkpoints(SCOPE))
        assert found == [checkpoint(7, "0"), checkpoint(9, "1"), checkpoint(3, "2")]
        assert not errors()
        await upload("0", 0, "ownership")
        another = BlobCheckpointStore(store.container)  # searches for other programs when it starts
        await another.list_checkpoints(SCOPE)
        (entry,) = errors()
        assert entry["message"] == "consumer group is read by another program"
        assert entry["blob"] == f"{hub}/ownership/0"
        for number, partition in enumerate("012"):
            await generation.update_checkpoint(
                generation.listed[partition] | checkpoint(10 + number, partition)
            )
        found = positions(await generation.list_checkpoints(SCOPE))
        assert found == [checkpoint(10, "0"), checkpoint(11, "1"), checkpoint(12, "2")]
        names = [one async for one in store.container.list_blob_names(name_starts_with=hub.lower())]
        assert names == [f"{hub.lower()}/checkpoint/{partition}" for partition in "012"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints.db"


async def load(path: Path) -> list[dict[str, Any]]:
    with closing(EmbeddedCheckpointStore(path)) as store:
        return by_partition(await store.list_checkpoints(SCOPE))


def stored(path: Path) -> list[dict[str, Any]]:
    return asyncio.run(load(path))


def write(path: Path, *checkpoints: dict[str, Any]) -> None:
    async def write_all() -> None:
        with closing(EmbeddedCheckpointStore(path)) as store:
            for one in checkpoints:
                await store.update_checkpoint(one)

    asyncio.run(write_all())


async def test_concurrent_writes_are_all_stored(path: Path) -> None:
    with closing(EmbeddedCheckpointStore(path)) as store:
        written = [checkpoint(n, f"{n:02}") for n in range(50)]
        await asyncio.gather(*map(store.update_checkpoint, written))
        assert by_partition(await store.list_checkpoints(SCOPE)) == written


async def start_script(script: str, *arguments: str) -> asyncio.subprocess.Process:
    """Start a Python script that can import what tests import."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        script,
        *arguments,
        env={"PYTHONPATH": ":".join(sys.path)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


_CLOSER = """
import asyncio, sys
from pathlib import Path
from forwarder.checkpoints.sqlite import EmbeddedCheckpointStore
from support.stores import checkpoint

async def main():
    for number in range(100):
        store = EmbeddedCheckpointStore(Path(sys.argv[1]))
        writes = [store.update_checkpoint(checkpoint(number, partition)) for partition in "0123"]
        writing = [asyncio.create_task(one) for one in writes]
        await asyncio.sleep(number % 20 / 1000)
        for one in writing:
            one.cancel()
        store.close()

asyncio.run(main())
"""


async def test_a_file_that_is_deleted_while_open_is_created_again(path: Path) -> None:
    """With its checkpoints: otherwise SQLite would refuse each write until a restart."""
    with closing(EmbeddedCheckpointStore(path)) as store:
        await store.update_checkpoint(checkpoint(1, "1"))
        for file in path.parent.glob("checkpoints.db*"):
            file.unlink()
        await store.update_checkpoint(checkpoint(2, "2"))
        await store.update_checkpoint(checkpoint(3, "2"))
    assert await load(path) == [checkpoint(1, "1"), checkpoint(3, "2")]


async def test_close_waits_for_one_statement_only(path: Path) -> None:
    """While another process locks the file, each pending statement would wait for 5 s."""
    store = EmbeddedCheckpointStore(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        writes = asyncio.gather(
            *(store.update_checkpoint(checkpoint(n, f"{n}")) for n in range(6)),
            return_exceptions=True,
        )
        await asyncio.sleep(0.5)
        started = time.monotonic()
        await asyncio.to_thread(store.close)
        assert time.monotonic() - started < 15  # 30 for all of them
        results = await writes
    assert {type(one) for one in results} == {sqlite3.OperationalError}


async def test_close_waits_for_the_statement_of_a_cancelled_task(path: Path) -> None:
    """If SQLite is closed during a statement, SIGSEGV ends the process."""
    child = await start_script(_CLOSER, str(path))
    _, errors = await asyncio.wait_for(child.communicate(), 200)
    assert (child.returncode, errors) == (0, b"")


_WRITER = """
import asyncio, sys
from pathlib import Path
from forwarder.checkpoints.sqlite import EmbeddedCheckpointStore
from support.stores import checkpoint

async def main():
    store = EmbeddedCheckpointStore(Path(sys.argv[1]))
    number = int(sys.argv[2])
    while True:
        number += 1
        await store.update_checkpoint(checkpoint(number))
        print(number, flush=True)

asyncio.run(main())
"""


async def test_a_kill_during_writes_loses_no_written_checkpoint(path: Path) -> None:
    number = 0
    for kill in range(4):
        child = await start_script(_WRITER, str(path), str(number))
        assert child.stdout
        for _ in range(1 + 37 * kill):
            assert await asyncio.wait_for(child.stdout.readline(), 90)
        child.send_signal(signal.SIGKILL)
        printed = (await child.stdout.read()).split()
        assert await child.wait() == -signal.SIGKILL
        (found,) = await load(path)
        assert found == checkpoint(found["sequence_number"])
        # The last one may have been written but not yet printed.
        if printed:
            assert found["sequence_number"] - int(printed[-1]) in (0, 1)
        assert found["sequence_number"] > number
        number = found["sequence_number"]
    assert not list(path.parent.glob("*damaged*"))


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


DAMAGE = {
    "text": lambda data: b"checkpoints? " * (len(data) // 13),
    "zeros": lambda data: bytes(len(data)),
    "head": lambda data: _flip(data, 0),
    "truncated": lambda data: data[: len(data) // 2],
    "a page": lambda data: data[:4096] + b"\x55" * 4096 + data[8192:],
    "the index": lambda data: data[:8192] + data[8192:].replace(b"/3/", b"/x/"),
    "a value": lambda data: _flip(data, data.rindex(b'"sequence_number"')),
    "a digit": lambda data: data.replace(b'"sequence_number": 3', b'"sequence_number": 7'),
    "a value's JSON": lambda data: data.replace(b'"sequence_number"', b'"sequence_number '),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_reported_and_only_intact_checkpoints_are_read(
    path: Path, damage: Any, errors: Callable[[], list[dict[str, Any]]]
) -> None:
    written = [checkpoint(n, f"{n}") for n in range(9)]
    write(path, *written)
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    found = stored(path)
    assert all(one in written for one in found)
    for entry in errors():
        if "file" in entry:
            assert entry["message"].startswith("checkpoints damaged")
            assert entry["kept"] == len(found)
            assert Path(entry["file"]).read_bytes() == damaged
            assert Path(entry["file"]).parent == path.parent
        else:
            assert entry["message"] == "checkpoint unusable, it is ignored"
    assert errors()
    write(path, checkpoint(77))
    assert checkpoint(77) in stored(path)


def test_a_flipped_byte_damages_at_most_its_own_checkpoint(
    path: Path, errors: Callable[[], list[dict[str, Any]]]
) -> None:
    """No damaged checkpoint is read with another sequence number or partition."""
    written = [checkpoint(n + 1, f"{n}") for n in range(4)]
    write(path, *(checkpoint(0, one["partition_id"]) for one in written), *written)
    intact = path.read_bytes()
    used = [at for at, byte in enumerate(intact) if byte]
    rng = random.Random(len(used))
    for at in rng.sample(used, 250):
        path.write_bytes(_flip(intact, at))
        found = stored(path)  # has another field if the name of the checksum is damaged
        assert len(found) >= 3, at
        assert all(any(one.items() >= own.items() for own in written) for one in found), at
        assert len(found) == 4 or errors(), at
        for leftover in path.parent.glob("checkpoints.db*"):
            leftover.unlink()


@pytest.mark.parametrize("space", range(1, 6))
def test_a_table_with_a_third_column_is_set_aside(
    path: Path, errors: Callable[[], list[dict[str, Any]]], space: int
) -> None:
    """A comma replaces a space of its definition, so the table can be read but not written."""
    write(path, checkpoint(6))
    data = path.read_bytes()
    at = data.index(b"key TEXT PRIMARY KEY, value TEXT")
    for _ in range(space):
        at = data.index(b" ", at + 1)
    path.write_bytes(data[:at] + b"," + data[at + 1 :])
    assert stored(path) == [checkpoint(6)]
    write(path, checkpoint(77))
    assert stored(path) == [checkpoint(77)]
    assert errors()


def test_a_file_of_version_0_1_0_is_read(path: Path) -> None:
    """Its rows have no checksum; malformed ones are ignored."""
    write(path)
    bad: tuple[dict[str, Any], ...]
    bad = {"sequence_number": "6"}, {"sequence_number": 10**30}, {"offset": "a b"}
    bad += {"hub_created": []}, {"enqueued": "soon"}, {"enqueued": math.inf}, {"written": -1}
    rows = [checkpoint(5, "0"), *(checkpoint(6, f"{n}") | one for n, one in enumerate(bad, 1))]
    texts = [*map(json.dumps, rows), '{"offset":1}', "[" * 100_000]
    with closing(sqlite3.connect(path)) as database, database:
        for number, text in enumerate(texts):
            key = "/".join([*SCOPE.values(), f"{number}", ""]).lower()
            database.execute("INSERT INTO checkpoint VALUES (?, ?)", (key, text))
    assert stored(path) == [checkpoint(5, "0")]


def test_a_damaged_file_of_a_killed_process_is_not_restored_from_its_journal(
    path: Path,
) -> None:
    """SQLite keeps the previous content of changed pages in a rollback journal."""
    write(path, checkpoint(6))
    journal = path.with_name(path.name + "-journal")
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA cache_size=1")  # otherwise it writes nothing before the commit
        database.execute("BEGIN")
        database.execute("DELETE FROM checkpoint")
        rows = [(f"{n}", "x" * 4000) for n in range(100)]
        database.executemany("INSERT INTO checkpoint VALUES (?, ?)", rows)
        saved = journal.read_bytes()
    assert saved.startswith(bytes.fromhex("d9d505f920a163d7"))
    assert b'"sequence_number": 6' in saved
    path.write_bytes(b"damaged " * 1000)
    journal.write_bytes(saved)
    assert stored(path) in ([], [checkpoint(6)])
    write(path, checkpoint(77))
    assert stored(path) == [checkpoint(77)]


def test_a_file_that_another_process_locks_is_not_treated_as_damaged(path: Path) -> None:
    write(path, checkpoint(5))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StateError, match=r"is on \w+: .* locked; use a disk"):
            EmbeddedCheckpointStore(path)
    assert stored(path) == [checkpoint(5)]


def test_a_file_that_cannot_be_opened_is_reported_with_its_path(path: Path) -> None:
    path.mkdir()
    with pytest.raises(StateError, match=str(path)):
        EmbeddedCheckpointStore(path)


def test_the_file_contains_readable_json(path: Path) -> None:
    write(path, checkpoint(5, "3"))
    with closing(sqlite3.connect(path)) as database:
        ((value,),) = database.execute("SELECT value FROM checkpoint").fetchall()
    assert json.loads(value).items() > checkpoint(5, "3").items()
