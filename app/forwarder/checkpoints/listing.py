"""The blobs of a checkpoint store: their names, and what other SDKs write there.

A checkpoint is an empty blob `NAMESPACE/HUB/GROUP/checkpoint/PARTITION` with its place as metadata,
an owner one under `ownership`. The SDKs for Python, .NET and Java write the name in lower case, and
so does this. The one for Go keeps the capitals that it was given (`$Default`), so that neither sees
the other: its checkpoints are read as well, and its owners reported (azeventhubs 1.4 and 2.0).

Metadata that no SDK would write counts as missing, so that one damaged blob does not stop the
partitions of the others.
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
    container: "ContainerClient", place: Mapping[str, str], others: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """Return the checkpoints of a hub and consumer group, ours before those of other prefixes."""
    found: list[dict[str, Any]] = []
    ours = path(place, "")
    for prefix in (ours, *[f"{one}checkpoint/" for one in others]):
        async for blob in container.list_blobs(prefix, include=["metadata"]):
            partition = blob.name.removeprefix(prefix)
            one = {**place, "partition_id": partition, **entry(blob)}
            found.append(one if prefix == ours else {**one, "etag": None})
    return found


async def other_prefixes(container: "ContainerClient", place: Mapping[str, str]) -> list[str]:
    """Return the prefixes of this hub and consumer group with other capitals than ours."""
    found = [""]
    for part in PARTS:
        found = [
            one.name
            for prefix in found
            async for one in container.walk_blobs(prefix, delimiter="/")
            if one.name.lower() == f"{prefix}{place[part]}/".lower()
        ]
    return [one for one in found if one != one.lower()]


async def active_owner(container: "ContainerClient", prefixes: Iterable[str]) -> str:
    """Return an ownership blob with one of these prefixes that was renewed just now, or ""."""
    for prefix in prefixes:
        async for blob in container.list_blobs(f"{prefix}ownership/", include=["metadata"]):
            age = (datetime.now(UTC) - blob.last_modified).total_seconds()
            if age < _ACTIVE and (blob.metadata or {}).get("ownerid"):
                return blob.name
    return ""


def path(place: Mapping[str, str], name: str, kind: str = "checkpoint") -> str:
    """Return the name of a blob, in lower case; without a name of its own what all begin with."""
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
    """Return a place in the hub, without an offset if there is none; ValueError if it is damaged.

    Azure.Messaging.EventHubs.Processor 5.11 (.NET) writes the offset "" or "no offset", Java none.
    Some versions of the one for .NET leave out the number.
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
