"""The blobs of a checkpoint store: their names, and what other SDKs write there.

A checkpoint is an empty blob `NAMESPACE/HUB/GROUP/checkpoint/PARTITION` whose metadata has the
position, an ownership is one under `ownership`. Names are in lower case, as the SDKs for Python,
.NET and Java write them. The SDK for Go (azeventhubs 1.4 and 2.0) keeps upper case (`$Default`), so
neither program sees the blobs of the other. Its checkpoints are therefore read as well, and its
owners are reported.

Metadata that no SDK writes counts as missing, so that a damaged blob affects its partition only.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from forwarder import log
from forwarder.config.settings import Settings

if TYPE_CHECKING:
    from azure.storage.blob import BlobProperties
    from azure.storage.blob.aio import ContainerClient

_NO_OFFSET: Final = (None, "", "no offset")
SCOPE: Final = ("fully_qualified_namespace", "eventhub_name", "consumer_group")
"""What a set of checkpoints and ownerships belongs to; the SDK's names."""
# "-1" is before the first message; geo-replicated hubs have offsets such as "1:42:9216".
OFFSET: Final = re.compile(r"-1|[\w:.-]{1,100}", re.ASCII)
_TIMES: Final = ("hub_created", "enqueued", "written")
LATEST: Final = 1e11  # in Unix seconds
_ACTIVE: Final = 60.0  # seconds after which any SDK has renewed its claims
GO_READER: Final = (
    "it uses the Azure SDK for Go, which does not see this forwarder: both take the same "
    "partitions again and again; stop it, or set ConsumerGroup to a group of its own"
)


def validate(entry: Mapping[str, Any]) -> None:
    """Raise ValueError or TypeError for a checkpoint that no SDK would write."""
    number, offset = entry["sequence_number"], entry["offset"]
    if number is not None and not (type(number) is int and -1 <= number < 2**63):
        raise ValueError(f"sequence number {number}")
    if offset is not None and not OFFSET.fullmatch(str(offset)):
        raise ValueError(f"offset '{offset}'")
    if not all(0 <= entry[name] < LATEST for name in _TIMES if entry.get(name) is not None):
        raise ValueError("a time is out of range")


def scope_of(settings: Settings) -> dict[str, str]:
    """Return the values of SCOPE, by name."""
    values = settings.hub_host, settings.event_hub_name, settings.consumer_group
    return dict(zip(SCOPE, values, strict=True))


async def read_checkpoints(
    container: "ContainerClient", scope: Mapping[str, str], others: Iterable[str]
) -> list[dict[str, Any]]:
    """Return the checkpoints of a hub and consumer group, ours before those of other prefixes."""
    checkpoints: list[dict[str, Any]] = []
    ours = path(scope, "")
    for prefix in (ours, *(f"{other}checkpoint/" for other in others)):
        async for blob in container.list_blobs(prefix, include=["metadata"]):
            found = {**scope, "partition_id": blob.name.removeprefix(prefix), **entry(blob)}
            if prefix != ours:
                found["etag"] = None  # the next checkpoint creates a blob of ours
            checkpoints.append(found)
    return checkpoints


async def other_prefixes(container: "ContainerClient", scope: Mapping[str, str]) -> list[str]:
    """Return the prefixes of this hub and consumer group that differ from ours in case."""
    prefixes = [""]
    for part in SCOPE:
        prefixes = [
            folder.name
            for prefix in prefixes
            async for folder in container.walk_blobs(prefix, delimiter="/")
            if folder.name.lower() == f"{prefix}{scope[part]}/".lower()
        ]
    return [prefix for prefix in prefixes if prefix != prefix.lower()]


async def active_owner(container: "ContainerClient", prefixes: Iterable[str]) -> str:
    """Return the name of an ownership under one of these prefixes that is in force, or ""."""
    for prefix in prefixes:
        async for blob in container.list_blobs(f"{prefix}ownership/", include=["metadata"]):
            age = (datetime.now(UTC) - blob.last_modified).total_seconds()
            if age < _ACTIVE and (blob.metadata or {}).get("ownerid"):
                return blob.name
    return ""


def path(scope: Mapping[str, str], name: str, kind: str = "checkpoint") -> str:
    """Return the path of a blob; with the name "" the prefix of all blobs of the kind."""
    return "/".join((*(scope[part] for part in SCOPE), kind, name)).lower()


def entry(blob: "BlobProperties") -> dict[str, Any]:
    """Return a checkpoint's position and ETag, and when it was written, in Unix seconds."""
    try:
        position = _position(blob.metadata or {})
    except ValueError as error:
        log.error("checkpoint unusable, it is ignored", blob=blob.name, reason=log.describe(error))
        position = {"offset": None, "sequence_number": None}
    return {**position, "etag": blob.etag, "written": blob.last_modified.timestamp()}


def _position(metadata: Mapping[str, str | None]) -> dict[str, Any]:
    """Return a position in the partition; ValueError if it is damaged.

    Azure.Messaging.EventHubs.Processor 5.11 (.NET) writes the offset "" or "no offset", the SDK for
    Java may leave it out. Some versions of the .NET SDK write no sequence number.
    """
    number, offset = metadata.get("sequencenumber"), metadata.get("offset")
    # Only this forwarder writes these.
    created, enqueued = metadata.get("hubcreated"), metadata.get("enqueued")
    position = {
        "offset": None if offset in _NO_OFFSET else offset,
        "sequence_number": int(number) if number else None,
        "hub_created": float(created) if created else None,
        "enqueued": float(enqueued) if enqueued else None,
    }
    validate(position)
    return position
