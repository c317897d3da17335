"""The embedded checkpoint store: a file in the state directory, so that none else is needed."""

import asyncio
import json
import math
import sqlite3
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from threading import Lock
from typing import Any, Final

from azure.eventhub.aio import CheckpointStore

from forwarder import log
from forwarder.errors import StateError

_TABLE: Final = "CREATE TABLE IF NOT EXISTS checkpoint (key TEXT PRIMARY KEY, value TEXT)"
# A full disk or a lock of somebody else's says nothing about the file.
_UNDAMAGED: Final = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}


class EmbeddedCheckpointStore(CheckpointStore):
    """Checkpoints in SQLite, for the one process that holds the state directory.

    Ownership is kept in memory: no other process can have any.
    """

    def __init__(self, path: Path) -> None:
        self._ownership: dict[str, dict[str, Any]] = {}
        self._lock = Lock()  # statements come from several threads, the connection is one
        try:
            self._database = _open(path)
        except (sqlite3.DatabaseError, ValueError) as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _UNDAMAGED:
                raise StateError(f"'{path}' cannot be opened: {log.describe(error)}") from None
            aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
            path.rename(aside)
            log.error(
                "checkpoints damaged, reading starts at StartPosition",
                file=str(aside),
                reason=log.describe(error),
            )
            self._database = _open(path)

    def close(self) -> None:
        """Close the file, after a statement that nobody waits for any more: it is in a thread."""
        # guard: close-after-statement
        with self._lock:  # SQLite would crash
            self._database.close()

    async def list_ownership(
        self, fully_qualified_namespace: str, eventhub_name: str, consumer_group: str, **_: Any
    ) -> Iterable[dict[str, Any]]:
        """Return this process's claims on partitions, of an age that no set clock changes."""
        prefix = _key(fully_qualified_namespace, eventhub_name, consumer_group)
        ahead = time.time() - time.monotonic()
        return [
            {**one, "last_modified_time": one["last_modified_time"] + ahead}
            for key, one in self._ownership.items()
            if key.startswith(prefix)
        ]

    async def claim_ownership(
        self, ownership_list: Iterable[dict[str, Any]], **_: Any
    ) -> Iterable[dict[str, Any]]:
        """Grant every claim."""
        claimed = [
            {**wanted, "etag": str(uuid.uuid4()), "last_modified_time": time.monotonic()}
            for wanted in ownership_list
        ]
        self._ownership |= {_key_of(one): one for one in claimed}
        return [{**one, "last_modified_time": math.inf} for one in claimed]

    async def list_checkpoints(
        self, fully_qualified_namespace: str, eventhub_name: str, consumer_group: str, **_: Any
    ) -> Iterable[dict[str, Any]]:
        """Return the checkpoints of a consumer group."""
        statement = "SELECT value FROM checkpoint WHERE substr(key, 1, length(?1)) = ?1"
        prefix = _key(fully_qualified_namespace, eventhub_name, consumer_group)
        rows = await asyncio.to_thread(self._execute, statement, prefix)
        return [json.loads(value) for (value,) in rows]

    async def update_checkpoint(self, checkpoint: dict[str, Any], **_: Any) -> None:
        """Write a checkpoint; it is on the disk, or an error, when this returns."""
        statement = "INSERT OR REPLACE INTO checkpoint VALUES (?, ?)"
        await asyncio.to_thread(
            self._execute, statement, _key_of(checkpoint), json.dumps(checkpoint)
        )

    def _execute(self, statement: str, *values: str) -> list[tuple[str, ...]]:
        with self._lock, self._database:
            return self._database.execute(statement, values).fetchall()


def _key(*parts: str) -> str:
    return "".join(f"{part}/" for part in parts).lower()


def _key_of(entry: dict[str, Any]) -> str:
    names = ("fully_qualified_namespace", "eventhub_name", "consumer_group", "partition_id")
    return _key(*(entry[name] for name in names))


def _open(path: Path) -> sqlite3.Connection:
    """Open the file and read all of it once, so that damage shows now."""
    # guard: checkpoints-on-disk
    database = sqlite3.connect(path, check_same_thread=False, timeout=5)
    try:
        # The journal stays as large as it is: a disk that is full takes checkpoints all the same.
        database.execute("PRAGMA journal_mode=PERSIST")
        verdict = database.execute("PRAGMA integrity_check").fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        database.execute(_TABLE)
        for (value,) in database.execute("SELECT value FROM checkpoint"):
            json.loads(value)
    except BaseException:
        database.close()
        raise
    return database
