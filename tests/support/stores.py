"""Reads checkpoint stores from outside the forwarder."""

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from azure.core.exceptions import ResourceNotFoundError
from azure.storage.blob.aio import ContainerClient

from support.azurite import Azurite

CONTAINER = "kubeauditlogcontainer"

Stored = dict[str, int]
"""Checkpoints by partition ID: the sequence number up to which everything is settled."""

SCOPE = {
    "fully_qualified_namespace": "Demo.servicebus.windows.net",
    "eventhub_name": "insights-logs-kube-audit",
    "consumer_group": "$Default",
}


def embedded(state: Path, since: float = 0) -> Stored:
    """Return the checkpoints in a state directory, of a forwarder that is running or was killed.

    Checkpoints of a hub created before `since`, in Unix seconds, are ignored.
    """
    path = state / "checkpoints.db"
    if not path.exists():
        return {}
    with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=10)) as database:
        try:
            rows = database.execute("SELECT value FROM checkpoint").fetchall()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
                raise
            return {}  # killed before it created the table
    found = [json.loads(value) for (value,) in rows]
    return {
        entry["partition_id"]: int(entry["sequence_number"])
        for entry in found
        if entry.get("hub_created", since) >= since
    }


async def blobs(azurite: Azurite, kind: str = "checkpoint") -> dict[str, dict[str, str]]:
    """Return the metadata of a storage account's checkpoint or ownership blobs by partition."""
    async with container(azurite) as client:
        try:
            return {
                blob.name.rpartition("/")[2]: dict(blob.metadata)
                async for blob in client.list_blobs(include=["metadata"])
                if blob.name.split("/")[-2] == kind
            }
        except ResourceNotFoundError:
            return {}


async def shared(azurite: Azurite, since: float = 0) -> Stored:
    """Return the checkpoints in a storage account; those of an older hub are ignored."""
    found = await blobs(azurite)
    return {
        number: int(one["sequencenumber"])
        for number, one in found.items()
        if one["sequencenumber"] and float(one.get("hubcreated", since)) >= since
    }


async def dead_letters(azurite: Azurite, known: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the dead-letter blobs; `known` ones are not downloaded again."""
    async with container(azurite) as client:
        try:
            names = [blob.name async for blob in client.list_blobs("deadletters/")]
            return {
                name: known.get(name) or await (await client.download_blob(name)).readall()
                for name in names
            }
        except ResourceNotFoundError:
            return {}


def container(azurite: Azurite) -> ContainerClient:
    """Return a client for the checkpoint container."""
    return ContainerClient.from_connection_string(azurite.connection_string, CONTAINER)


def checkpoint(number: int, partition: str = "0", **scope: str) -> dict[str, Any]:
    return {
        **SCOPE,
        "partition_id": partition,
        "offset": f"{number}00",
        "sequence_number": number,
        **scope,
    }
