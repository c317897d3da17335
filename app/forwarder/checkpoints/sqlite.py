"""The embedded checkpoint store: SQLite in the state directory, for an installation of one replica.

A row has a key, made of namespace, hub, consumer group and partition, and a checkpoint as JSON with
a checksum of both. SQLite detects damaged pages, but not damaged content: a flipped bit may change
a number, or assign a checkpoint to another partition. A row with a wrong checksum is ignored. The
intact rows of a damaged file are copied to a new one. Version 0.1.0 wrote no checksums.
"""

import asyncio
import json
import re
import sqlite3
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, Final

from forwarder import log
from forwarder.checkpoints.listing import SCOPE, validate
from forwarder.diagnosis import causes
from forwarder.errors import StateError

_TABLE: Final = "CREATE TABLE checkpoint (key TEXT PRIMARY KEY, value TEXT)"
UNUSABLE: Final = (ValueError, KeyError, TypeError, RecursionError)  # raised by `decode`
_JSON: Final = re.compile(rb'\{"[^{}]*"checksum": \d+\}')
_WRITE: Final = "INSERT OR REPLACE INTO checkpoint VALUES (?, ?)"


class EmbeddedCheckpointStore:
    """Checkpoints in a file, which is created if it is missing."""

    shared = False  # with other replicas, because the state directory is locked

    def __init__(self, path: Path) -> None:
        self._lock = Lock()  # several threads use the one connection
        self._path = path
        self._closing = False
        try:
            self._database = _open(path)
        except (sqlite3.DatabaseError, UnicodeError) as error:
            # Of operational errors, such as a full disk, only a table that does not fit is damage.
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if isinstance(error, sqlite3.OperationalError) and code != sqlite3.SQLITE_ERROR:
                what = f"'{path}' cannot be opened: {causes.of_file(error, path)}"
                raise StateError(what) from None
            entries = intact(path)
            aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
            path.rename(aside)
            text = "checkpoints damaged, partitions without one start at StartPosition"
            log.error(text, file=str(aside), kept=len(entries), reason=log.describe(error))
            self._database = _open(path)
            for entry in entries:
                self._execute(_WRITE, *_encode(entry))

    def close(self) -> None:
        """Close the file once no thread executes a statement, or SQLite would crash.

        Threads that wait for their turn give up; each could wait 5 s for a lock of the file.
        """
        self._closing = True
        # guard: close-after-statement
        with self._lock:
            self._database.close()

    async def list_checkpoints(self, scope: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the checkpoints of a hub and consumer group."""
        statement = "SELECT key, value FROM checkpoint WHERE substr(key, 1, length(?1)) = ?1"
        checkpoints = []
        for key, value in await asyncio.to_thread(self._execute, statement, _prefix(scope)):
            try:
                checkpoints.append(decode(key, value))
            except UNUSABLE as error:
                reason = log.describe(error)
                log.error("checkpoint unusable, it is ignored", key=key, reason=reason)
        return checkpoints

    async def update_checkpoint(self, checkpoint: dict[str, Any], **_: Any) -> None:
        """Write a checkpoint durably."""
        # guard: checkpoints-on-disk
        await asyncio.to_thread(self._execute, _WRITE, *_encode(checkpoint))

    def _execute(self, statement: str, *values: str) -> list[tuple[str, ...]]:
        with self._lock:
            if self._closing:
                raise sqlite3.OperationalError("the file is being closed")
            try:
                return self._run(statement, *values)
            except sqlite3.OperationalError as error:
                if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_READONLY_DBMOVED:
                    raise
            self._replace()
            return self._run(statement, *values)

    def _run(self, statement: str, *values: str) -> list[tuple[str, ...]]:
        with self._database:
            return self._database.execute(statement, values).fetchall()

    def _replace(self) -> None:
        """Recreate the file, which was deleted or replaced while it was open."""
        log.error("checkpoints were deleted or moved, they are written again", file=str(self._path))
        rows = self._run("SELECT key, value FROM checkpoint")
        database = _open(self._path)
        with database:
            database.executemany(_WRITE, rows)
        self._database.close()
        self._database = database


def _prefix(scope: Mapping[str, str]) -> str:
    return "".join(f"{scope[part]}/" for part in SCOPE).lower()


def _key(entry: Mapping[str, Any]) -> str:
    return f"{_prefix(entry)}{entry['partition_id']}/".lower()


def _encode(checkpoint: dict[str, Any]) -> tuple[str, str]:
    key = _key(checkpoint)
    return key, json.dumps({**checkpoint, "checksum": _checksum(key, checkpoint)})


def decode(key: str, value: str) -> dict[str, Any]:
    """Return a row's checkpoint; an UNUSABLE error if it is damaged."""
    entry = json.loads(value)
    if not isinstance(entry, dict):
        raise TypeError("it is not an object")
    checksum = entry.pop("checksum", None)
    # guard: checksum
    if checksum not in {None, _checksum(key, entry)} or key != _key(entry):
        raise ValueError("its checksum is wrong")
    if entry["sequence_number"] is None or (checksum is None and entry["offset"] is None):
        raise ValueError("it has no position")
    validate(entry)
    return entry


def _checksum(key: str, checkpoint: dict[str, Any]) -> int:
    return zlib.crc32(f"{key}{json.dumps(checkpoint, sort_keys=True)}".encode())


def _open(path: Path) -> sqlite3.Connection:
    """Open the file, and read all of it once to detect damage."""
    database = sqlite3.connect(path, check_same_thread=False, timeout=5)
    try:
        database.text_factory = lambda value: value.decode(errors="replace")
        # The journal keeps its size, so that checkpoints can be written on a full disk.
        database.execute("PRAGMA journal_mode=PERSIST")
        problem = database.execute("PRAGMA integrity_check").fetchone()[0]
        if problem != "ok":
            raise sqlite3.DatabaseError(problem)
        tables = database.execute("SELECT sql FROM sqlite_schema WHERE type = 'table'").fetchall()
        if not tables:
            database.execute(_TABLE)
        elif tables != [(_TABLE,)]:
            raise sqlite3.DatabaseError("its table has another definition")
    except BaseException:
        database.close()
        raise
    return database


def intact(path: Path) -> list[dict[str, Any]]:
    """Return the checkpoints that have a correct checksum, of a damaged file or one in use.

    Their JSON is looked for in the bytes of the file, because one damaged byte can keep SQLite from
    reading any row. Of a partition's former checkpoints, which may still be there, the last counts.
    """
    found: dict[str, dict[str, Any]] = {}
    for text in _JSON.findall(path.read_bytes() if path.is_file() else b""):
        with suppress(*UNUSABLE):
            key = _key(json.loads(text))
            entry = decode(key, text.decode())
            found[key] = max(found.get(key, entry), entry, key=_order)
    return list(found.values())


def _order(entry: dict[str, Any]) -> tuple[float, int]:
    return entry.get("hub_created") or 0.0, entry["sequence_number"]
