"""The store: is it there, may it be used, which checkpoints does it have of this hub."""

import asyncio
import json
import os
import sqlite3
from contextlib import closing
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

_ELSEWHERE: Final = (
    "'{}' is not in this pod, ask the forwarder: "
    "kubectl exec deployment/aks-audit -- python -m forwarder check"
)


class StoreCheck:
    """Steps to the store; `found` has the checkpoints by partition, None if none can be seen."""

    def __init__(self, settings: Settings, credential: Any) -> None:
        self._settings = settings
        self._credential = credential
        self._container: Any = None
        self._there = False
        host = settings.hub_connection.host if settings.hub_connection else ""
        names = (host or settings.event_hub_namespace or "", settings.event_hub_name)
        self._prefix = "/".join((*names, settings.consumer_group, "")).lower()
        self.found: dict[str, int] | None = None

    def steps(self) -> list[Step]:
        """Return the steps in order."""
        if self._settings.blob_connection or self._settings.blob_account_url:
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
        name, connection = self._settings.blob_container_name, self._settings.blob_connection
        if self._there:
            return f"'{name}' is there"
        text = f"'{name}' is not there yet, the forwarder creates it"
        if connection is None:
            remedy = "none if the identity has the role Storage Blob Data Contributor"
            return Doubt(text, remedy)
        permissions = parse_qs(connection.signature.lstrip("?")).get("sp", ["cw"])[0]
        if not {"c", "w"} <= set(permissions):
            why = self.explain(StateError("ContainerNotFound"))
            raise BrokenError(why.kind, why.what, why.remedy)
        return text

    async def _list(self) -> str:
        self.found = {}
        newest = datetime.min.replace(tzinfo=UTC)
        if self._there:
            prefix = f"{self._prefix}checkpoint/"
            async for blob in self._container.list_blobs(prefix, include=["metadata"]):
                newest = max(newest, blob.last_modified)
                if number := (blob.metadata or {}).get("sequencenumber"):
                    self.found[blob.name.removeprefix(prefix)] = int(number)
        return _described(self.found, newest)

    async def _directory(self) -> str | Skip:
        path = self._settings.state_directory
        if not path.is_dir():
            return Skip(_ELSEWHERE.format(path))
        if not os.access(path, os.W_OK | os.X_OK):
            raise StateError(f"'{path}' cannot be written by user {os.getuid()}")
        return f"'{path}' may be written"

    async def _read(self) -> str | Skip:
        path = self._settings.state_directory / "checkpoints.db"
        if not path.exists():
            if path.parent.is_dir():
                self.found = {}
            return Skip("none here")
        rows = [json.loads(value) for value in await asyncio.to_thread(_rows, path, self._prefix)]
        self.found = {row["partition_id"]: row["sequence_number"] for row in rows}
        return _described(self.found, datetime.fromtimestamp(path.stat().st_mtime, UTC))


def _rows(path: Path, prefix: str) -> list[str]:
    """Read a store that another process may be writing, without a lock."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as database:
        found = database.execute("SELECT key, value FROM checkpoint").fetchall()
    return [value for key, value in found if key.startswith(prefix)]


def _described(found: dict[str, int], newest: datetime) -> str:
    if not found:
        return "none of this hub and consumer group"
    age = (datetime.now(UTC) - newest).total_seconds()
    return f"{len(found)} of this hub and consumer group, the newest {max(0, age):,.0f} s old"
