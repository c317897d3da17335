"""The store: is it there, may it be used, which checkpoints does it have of this hub."""

import asyncio
import os
import sqlite3
from collections import Counter
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

import stamina

from forwarder.checkpoints.sqlite import UNUSABLE, decode
from forwarder.commands.check.walk import SECONDS, BrokenError, Doubt, Found, Part, Skip
from forwarder.config.settings import Settings
from forwarder.config.state_directory import WITHOUT_LOCKS, file_system
from forwarder.deadletters.files import DeadLetterFiles
from forwarder.deadletters.record import parse
from forwarder.deadletters.store import DIRECTORY, DeadLetterStore
from forwarder.diagnosis import causes
from forwarder.errors import StateError
from forwarder.storage import has_account, open_container

_MOST_BYTES: Final = 20_000_000  # of dead letters are read
_REASON: Final = 80  # characters
_ELSEWHERE: Final = (
    "'{}' is not in this pod, ask the forwarder: "
    "kubectl exec deployment/{} -- python -m forwarder check"
)


class StoreCheck(Part):
    """Steps to the store; `found` has the checkpoints by partition, None if none can be seen."""

    def __init__(self, settings: Settings, credential: Any) -> None:
        super().__init__(settings, causes.of_store)
        self._credential = credential
        self._container: Any = None
        self._there = False
        self._place = {
            "fully_qualified_namespace": settings.hub_host,
            "eventhub_name": settings.event_hub_name,
            "consumer_group": settings.consumer_group,
        }
        self._prefix = "/".join((*self._place.values(), "")).lower()
        self.found: dict[str, int] | None = None
        dead_letters = {"dead letters": (self._dead_letters, SECONDS)}
        self.steps = {
            "state directory": (self._directory, SECONDS),
            "checkpoints": (self._read, SECONDS),
        } | dead_letters
        if has_account(settings):
            self.steps = {
                "store login": (self._login, 15),
                "container": (self._exists, SECONDS),
                "checkpoints": (self._list, 15),
            } | dead_letters

    async def _login(self) -> str:
        from azure.core.exceptions import ResourceNotFoundError  # noqa: PLC0415 - costs 24 MB

        self._container = open_container(self.settings, self._credential)
        self.resources.append(self._container)
        try:
            async for _ in self._container.list_blobs(results_per_page=1):
                break
            self._there = True
        except ResourceNotFoundError:
            pass
        host, port = causes.store_address(self.settings) or ("", 0)
        return f"{host}:{port} lets this login in"

    async def _exists(self) -> Found:
        name, connection = self.settings.blob_container_name, self.settings.blob_connection
        if self._there:
            return f"'{name}' is there"
        text = f"'{name}' is not there yet, the forwarder creates it"
        if connection is None:
            remedy = "none if the identity has the role Storage Blob Data Contributor"
            return Doubt(text, remedy)
        permissions = parse_qs(connection.signature.lstrip("?")).get("sp", ["cw"])[0]
        if not {"c", "w"} <= set(permissions):
            why = causes.of_store(StateError("ContainerNotFound"), self.settings)
            raise BrokenError(why.kind, why.what, why.remedy)
        return text

    async def _list(self) -> Found:
        from forwarder.checkpoints import listing  # noqa: PLC0415 - costs 24 MB

        self.found = {}
        newest = datetime.min.replace(tzinfo=UTC)
        if self._there:
            others = await listing.other_prefixes(self._container, self._place)
            for entry in await listing.read_checkpoints(self._container, self._place, others):
                newest = max(newest, datetime.fromtimestamp(entry["written"], UTC))
                if (number := entry["sequence_number"]) is not None:
                    held = self.found.get(entry["partition_id"], number)
                    self.found[entry["partition_id"]] = max(held, number)
            if owner := await listing.active_owner(self._container, others):
                text = f"consumer group is read by another program: '{owner}'"
                return Doubt(text, listing.ELSEWHERE)
        return _described(self.found, newest)

    async def _directory(self) -> Found:
        path = self.settings.state_directory
        if not path.is_dir():
            name, check, _ = os.uname().nodename.rpartition("-check")  # the pod of helm test
            return Skip(_ELSEWHERE.format(path, name if check else "aks-audit"))
        if not os.access(path, os.W_OK | os.X_OK):
            raise StateError(f"'{path}' cannot be written by user {os.getuid()}")
        kind = file_system(path)
        if kind in WITHOUT_LOCKS:
            text = causes.TEXTS["file"]
            return Doubt(text["what"].format(kind=kind, error=f"'{path}'"), text["remedy"])
        return f"'{path}' may be written, on {kind}"

    async def _read(self) -> Found:
        path = self.settings.state_directory / "checkpoints.db"
        if not path.exists():
            if path.parent.is_dir():
                self.found = {}
            return Skip("none here")
        again = stamina.AsyncRetryingCaller(attempts=6, wait_jitter=0).on(sqlite3.DatabaseError)
        rows = await again(asyncio.to_thread, _rows, path, self._prefix)  # may be half written
        self.found = {row["partition_id"]: row["sequence_number"] for row in rows}
        return _described(self.found, datetime.fromtimestamp(path.stat().st_mtime, UTC))

    async def _dead_letters(self) -> Found:
        """Count dead letters by reason, of the newest files or blobs."""
        store: DeadLetterStore
        directory = self.settings.state_directory / DIRECTORY
        if self._there:
            from forwarder.deadletters.blobs import DeadLetterBlobs  # noqa: PLC0415 - see _login

            store = DeadLetterBlobs(self._container)
        elif directory.is_dir():
            store = DeadLetterFiles(directory, self.settings.dead_letter_max_bytes)
        else:
            return Skip("none here")
        counts, read = Counter[str](), 0
        for name, size in reversed((await store.sizes()).items()):
            if counts and (read := read + size) > _MOST_BYTES:
                break
            for _, record in parse(await store.read(name)):
                reason = record.reason if record else "not a dead letter"
                counts[": ".join(reason.split(": ")[:2])[:_REASON]] += 1
        if not counts:
            return "none"
        more = "at least " if read > _MOST_BYTES else ""
        return Doubt(
            f"{more}{counts.total():,}: "
            + ", ".join(f"{number:,} {reason}" for reason, number in counts.most_common(5)),
            "when the cause is repaired post them again: python -m forwarder replay; --show prints "
            "them, --discard --reason TEXT removes those that can never be accepted",
        )


def _rows(path: Path, prefix: str) -> list[dict[str, Any]]:
    """Read a store that another process may be writing, without a lock."""
    found = []
    with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as database:
        if not database.execute("SELECT 1 FROM sqlite_schema").fetchone():
            return []  # it was created just now
        for key, value in database.execute("SELECT key, value FROM checkpoint"):
            with suppress(*UNUSABLE):  # the forwarder logs and ignores it
                if key.startswith(prefix):
                    found.append(decode(key, value)[0])
    return found


def _described(found: dict[str, int], newest: datetime) -> str:
    if not found:
        return "none of this hub and consumer group"
    age = (datetime.now(UTC) - newest).total_seconds()
    return f"{len(found)} of this hub and consumer group, the newest {max(0, age):,.0f} s old"
