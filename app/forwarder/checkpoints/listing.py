"""The blobs of a checkpoint store: their names, and what other SDKs write there.

A checkpoint is an empty blob `NAMESPACE/HUB/GROUP/checkpoint/PARTITION` with its place as metadata,
an ownership one under `ownership`. The SDKs for Python, .NET and Java write names in lower case, as
is done here. The SDK for Go (azeventhubs 1.4 and 2.0) keeps the capitals that it was given
(`$Default`), so neither program sees the other's blobs. Its checkpoints are therefore read as well,
and its owners reported.

Metadata that no SDK writes counts as missing, so that a damaged blob affects its partition only.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from forwarder import log
from forwarder.checkpoints.generation import validate

if TYPE_CHECKING:
    from azure.storage.blob import BlobProperties
    from azure.storage.blob.aio import ContainerClient

_NO_OFFSET: Final = (None, "", "no offset")
PARTS: Final = ("fully_qualified_namespace", "eventhub_name", "consumer_group")
_ACTIVE: Final = 60.0  # seconds after which any SDK has renewed its claims
ELSEWHERE: Final = (
    "it uses the Azure SDK for Go, which does not see this forwarder: both take the same "
    "partitions again and again; stop it, or set ConsumerGroup to a group of its own"
)


async def read_checkpoints(
    container: "ContainerClient", place: Mapping[str, str], others: Iterable[str]
) -> list[dict[str, Any]]:
    """Return the checkpoints of a hub and consumer group, ours before those of other prefixes."""
    checkpoints: list[dict[str, Any]] = []
    ours = path(place, "")
    for prefix in (ours, *(f"{other}checkpoint/" for other in others)):
        async for blob in container.list_blobs(prefix, include=["metadata"]):
            partition = blob.name.removeprefix(prefix)
            tag = {} if prefix == ours else {"etag": None}
            checkpoints.append({**place, "partition_id": partition, **entry(blob), **tag})
    return checkpoints


async def other_prefixes(container: "ContainerClient", place: Mapping[str, str]) -> list[str]:
    """Return the prefixes of this hub and consumer group with other capitals than ours."""
    prefixes = [""]
    for part in PARTS:
        prefixes = [
            folder.name
            for prefix in prefixes
            async for folder in container.walk_blobs(prefix, delimiter="/")
            if folder.name.lower() == f"{prefix}{place[part]}/".lower()
        ]
    return [prefix for prefix in prefixes if prefix != prefix.lower()]


async def active_owner(container: "ContainerClient", prefixes: Iterable[str]) -> str:
    """Return the name of an ownership with one of these prefixes that is in force, or ""."""
    for prefix in prefixes:
        async for blob in container.list_blobs(f"{prefix}ownership/", include=["metadata"]):
            age = (datetime.now(UTC) - blob.last_modified).total_seconds()
            if age < _ACTIVE and (blob.metadata or {}).get("ownerid"):
                return blob.name
    return ""


def path(place: Mapping[str, str], name: str, kind: str = "checkpoint") -> str:
    """Return the path of a blob of this name; of "" the prefix of all."""
    return "/".join((*(place[part] for part in PARTS), kind, name)).lower()


def entry(blob: "BlobProperties") -> dict[str, Any]:
    """Return a checkpoint's place, its tag, and when it was written, in Unix seconds."""
    try:
        place = _place(blob.metadata or {})
    except ValueError as error:
        log.error("checkpoint unusable, it is ignored", blob=blob.name, reason=log.describe(error))
        place = {"offset": None, "sequence_number": None}
    return {**place, "etag": blob.etag, "written": blob.last_modified.timestamp()}


def _place(metadata: Mapping[str, str | None]) -> dict[str, Any]:
    """Return a place in the hub; ValueError if it is damaged.

    Azure.Messaging.EventHubs.Processor 5.11 (.NET) writes the offset "" or "no offset", the SDK for
    Java none. Some versions of that for .NET write no number.
    """
    number, offset = metadata.get("sequencenumber"), metadata.get("offset")
    # No other SDK writes these.
    created, enqueued = metadata.get("hubcreated"), metadata.get("enqueued")
    place = {
        "offset": None if offset in _NO_OFFSET else offset,
        "sequence_number": int(number) if number else None,
        "hub_created": float(created) if created else None,
        "enqueued": float(enqueued) if enqueued else None,
    }
    validate(place)
    return place
