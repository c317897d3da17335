"""The store's part of the check: is it there, may it be used, whose checkpoints are in it."""

import asyncio
import json
import os
import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

from forwarder.commands.check.walk import BrokenError, Doubt, Skip, Step
from forwarder.config.settings import Settings
from forwarder.diagnosis import causes
from forwarder.diagnosis.causes import Diagnosis
from forwarder.errors import StateError
from forwarder.storage import open_container

_MOST_BLOBS: Final = 1000  # are looked at


class StoreCheck:
    """Steps to the store; `found` holds the checkpoints by partition when they are through."""

    def __init__(self, settings: Settings, credential: Any) -> None:
        self._settings = settings
        self._credential = credential
        self._blobs = bool(settings.blob_connection or settings.blob_account_url)
        self._container: Any = None
        self._there = False
        host = settings.hub_connection.host if settings.hub_connection else ""
        names = (host or settings.event_hub_namespace or "", settings.event_hub_name)
        self._prefix = "/".join((*names, settings.consumer_group, "")).lower()
        self.found: dict[str, int] = {}

    def steps(self) -> list[Step]:
        """Return the steps in order."""
        if self._blobs:
            return [
                Step("store login", self._login, 15),
                Step("container", self._exists),
                Step("checkpoints", self._list, 15),
            ]
        return [Step("state directory", self._directory), Step("checkpoints", self._read)]

    def explain(self, error: BaseException) -> Diagnosis:
        """Return the cause of an error."""
        return causes.of_store(error, self._settings)

    async def close(self) -> None:
        """Close the connection."""
        if self._container:
            await self._container.close()

    async def _login(self) -> str:
        from azure.core.exceptions import ResourceNotFoundError  # noqa: PLC0415 - costs 24 MB

        self._container = open_container(self._settings, self._credential)
        try:
            async for _ in self._container.list_blobs(results_per_page=1):
                break
            self._there = True
        except ResourceNotFoundError:
            pass
        host, port = causes.store_address(self._settings) or ("", 0)
        return f"{host}:{port} lets this login in"

    async def _exists(self) -> str | Doubt:
        name = self._settings.blob_container_name
        if self._there:
            return f"'{name}' is there"
        text = f"'{name}' is not there yet, the forwarder makes it"
        if (connection := self._settings.blob_connection) is None:
            do = "nothing if the identity has the role Storage Blob Data Contributor"
            return Doubt(text, do)
        if (rights := _rights(connection.text)) is not None and not {"c", "w"} <= rights:
            why = self.explain(ContainerMissingError("ContainerNotFound"))
            raise BrokenError(why)
        return text

    async def _list(self) -> str:
        if not self._there:
            return "none yet"
        owners: set[str] = set()
        others: set[str] = set()
        newest = datetime.min.replace(tzinfo=UTC)
        async for blob in self._container.list_blobs(self._prefix, include=["metadata"]):
            kind, _, partition = blob.name.removeprefix(self._prefix).partition("/")
            metadata = blob.metadata or {}
            if kind == "checkpoint":
                newest = max(newest, blob.last_modified)
                if number := metadata.get("sequencenumber"):
                    self.found[partition] = int(number)
            elif kind == "ownership" and (owner := metadata.get("ownerid")):
                owners.add(owner)
        count = 0
        async for blob in self._container.list_blobs():  # dead letters among them
            where, is_checkpoint, _ = blob.name.partition("/checkpoint/")
            if is_checkpoint and not blob.name.startswith(self._prefix):
                others.add(where)
            if (count := count + 1) >= _MOST_BLOBS:
                break
        return ", ".join(filter(None, (_told(self.found, newest), _owned(owners), _also(others))))

    async def _directory(self) -> str | Skip:
        path = self._settings.state_directory
        if not path.is_dir():
            return Skip(f"'{path}' is not here: this is not the forwarder's pod")
        if not os.access(path, os.W_OK | os.X_OK):
            raise StateError(f"'{path}' cannot be written by user {os.getuid()}")
        return (
            f"'{path}' is written by a running forwarder"
            if _held(path)
            else f"'{path}' may be written"
        )

    async def _read(self) -> str | Skip:
        path = self._settings.state_directory / "checkpoints.db"
        if not path.exists():
            return Skip("none here")
        found = await asyncio.to_thread(_rows, path)
        others = set()
        for key, value in found:
            if key.startswith(self._prefix):
                self.found[value["partition_id"]] = value["sequence_number"]
            else:
                others.add(key.rstrip("/").rpartition("/")[0])
        newest = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        return ", ".join(filter(None, (_told(self.found, newest), _also(others))))


class ContainerMissingError(Exception):
    """No container, and no right to make it."""


def _rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Read a store that another process may be writing; no lock is taken, nothing is written."""
    database = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
    try:
        rows = database.execute("SELECT key, value FROM checkpoint").fetchall()
    finally:
        database.close()
    return [(key, json.loads(value)) for key, value in rows]


def _held(path: Path) -> bool:
    """Tell whether a process holds the state directory's lock, without trying to take it."""
    try:
        inode = (path / "lock").stat().st_ino
        locks = Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        return False
    return any(
        line.split()[5].endswith(f":{inode}") for line in locks.splitlines() if "FLOCK" in line
    )


def _rights(text: str) -> set[str] | None:
    """Return the rights of a connection string's signature; None if it has an account key."""
    _, found, signature = text.partition("SharedAccessSignature=")
    return set(parse_qs(signature.split(";")[0].lstrip("?")).get("sp", [""])[0]) if found else None


def _told(found: Mapping[str, int], newest: datetime) -> str:
    if not found:
        return "none of this hub and consumer group"
    age = (datetime.now(UTC) - newest).total_seconds()
    return f"{len(found)} of this hub and consumer group, the newest {max(0, age):,.0f} s old"


def _owned(owners: set[str]) -> str:
    return f"partitions claimed by {len(owners)} forwarders" if len(owners - {""}) > 1 else ""


def _also(others: set[str]) -> str:
    return f"others of {', '.join(sorted(others)[:3])}" if others else ""
