"""The checkpoint store in a storage account, shared by all replicas; see `listing` for its blobs.

Every write is conditional on the blob's ETag, and a checkpoint never replaces one that is ahead.
The age of an owner is told by the store's clock.
"""

import time
from asyncio import gather
from collections.abc import Iterable, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

from azure.core import MatchConditions
from azure.core.exceptions import (
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
)
from azure.eventhub.aio import CheckpointStore

from forwarder import log
from forwarder.checkpoints.listing import (
    ELSEWHERE,
    PARTS,
    active_owner,
    entry,
    other_prefixes,
    path,
    read_checkpoints,
)
from forwarder.errors import SupersededError

if TYPE_CHECKING:
    from azure.storage.blob.aio import BlobClient, ContainerClient

_LOOK: Final = 600.0  # seconds between two looks for blobs of the SDK for Go
_CHANGED = (ResourceExistsError, ResourceModifiedError, ResourceNotFoundError)


class BlobCheckpointStore(CheckpointStore):
    """Checkpoints and owners as blobs; creates its container if it may."""

    def __init__(self, container: "ContainerClient") -> None:
        self.container = container
        self._ahead = 0.0  # seconds of this machine's clock before the store's
        self._others: list[str] = []
        self._look_again = 0.0

    async def list_ownership(self, *where: str, **names: Any) -> Iterable[dict[str, Any]]:
        """List owners, with the time of their last claim in terms of this machine's clock.

        It is the first thing that is asked of a store.
        """
        place = names or dict(zip(PARTS, where, strict=True))
        try:
            return await self._owners(place)
        except ResourceNotFoundError:
            with suppress(ResourceExistsError):  # another replica was faster
                await self.container.create_container()
            return await self._owners(place)

    async def _owners(self, place: Mapping[str, str]) -> list[dict[str, Any]]:
        responses: list[str] = []
        prefix = path(place, "", "ownership")
        blobs = self.container.list_blobs(
            name_starts_with=prefix,
            include=["metadata"],
            raw_response_hook=lambda one: responses.append(one.http_response.headers["Date"]),
        )
        found = [blob async for blob in blobs]
        # guard: ownership-age-by-store-clock
        ahead = self._ahead = time.time() - parsedate_to_datetime(responses[-1]).timestamp()
        return [
            {
                **place,
                "partition_id": blob.name.removeprefix(prefix),
                "owner_id": (blob.metadata or {}).get("ownerid", ""),
                "etag": blob.etag,
                "last_modified_time": blob.last_modified.timestamp() + ahead,
            }
            for blob in found
        ]

    async def claim_ownership(
        self, ownership_list: Iterable[dict[str, Any]], **_: Any
    ) -> Iterable[dict[str, Any]]:
        """Claim partitions, or release those without an owner, and return what was granted.

        A claim is granted if nobody has changed the entry, or kept if the store does not answer.
        """
        granted = await gather(*map(self._claim, ownership_list))
        return [one for one in granted if one]

    async def _claim(self, wanted: dict[str, Any]) -> dict[str, Any] | None:
        blob = self.container.get_blob_client(path(wanted, wanted["partition_id"], "ownership"))
        try:
            etag = await _put(blob, {"ownerid": wanted["owner_id"]}, wanted.get("etag"))
        except _CHANGED:
            return None
        except Exception:  # noqa: BLE001 - whatever the client raises
            return wanted
        return {**wanted, "etag": etag, "last_modified_time": time.time()}

    async def list_checkpoints(
        self, fully_qualified_namespace: str, eventhub_name: str, consumer_group: str, **_: Any
    ) -> Iterable[dict[str, Any]]:
        """List checkpoints as any SDK writes them, ours before those with other capitals."""
        names = (fully_qualified_namespace, eventhub_name, consumer_group)
        place = dict(zip(PARTS, names, strict=True))
        if time.monotonic() >= self._look_again:
            self._look_again = time.monotonic() + _LOOK
            self._others = await other_prefixes(self.container, place)
            if owner := await active_owner(self.container, self._others):
                log.error("consumer group is read by another program", blob=owner, reason=ELSEWHERE)
        return await read_checkpoints(self.container, place, self._others)

    async def announce(self, place: Mapping[str, str], replica: str) -> None:
        """Announce a replica that owns no partition."""
        await self.container.upload_blob(path(place, replica, "replica"), b"", overwrite=True)

    async def withdraw(self, place: Mapping[str, str], replica: str) -> None:
        """Take an announcement back."""
        with suppress(ResourceNotFoundError):
            await self.container.delete_blob(path(place, replica, "replica"))

    async def list_replicas(self, place: Mapping[str, str], expiry: float) -> set[str]:
        """Return the replicas announced within `expiry` seconds by the store's clock.

        An older announcement is of a replica that was killed: it is deleted.
        """
        found: set[str] = set()
        prefix = path(place, "", "replica")
        async for blob in self.container.list_blobs(name_starts_with=prefix):
            replica = blob.name.removeprefix(prefix)
            if time.time() - self._ahead - blob.last_modified.timestamp() > expiry:
                await self.withdraw(place, replica)
            else:
                found.add(replica)
        return found

    async def update_checkpoint(
        self, checkpoint: dict[str, Any], *, start: bool = False, **_: Any
    ) -> None:
        """Write a checkpoint if its blob is as it was; else read it, and write if it is not ahead.

        SupersededError if it is: another process writes it. With `start` it is also raised if
        somebody has written any since the listing. The entry's ETag is renewed in place.
        """
        blob = self.container.get_blob_client(path(checkpoint, checkpoint["partition_id"]))
        try:
            await _write(blob, checkpoint)
        except _CHANGED:
            if start:  # guard: start-replaces-nothing
                raise SupersededError from None
            checkpoint["etag"] = None
            with suppress(ResourceNotFoundError):
                found = await blob.get_blob_properties()
                number = entry(found)["sequence_number"]
                # guard: never-behind-another-process
                if number is not None and number > checkpoint["sequence_number"]:
                    raise SupersededError from None
                checkpoint["etag"] = found.etag
            await _write(blob, checkpoint)


async def _write(blob: "BlobClient", checkpoint: dict[str, Any]) -> None:
    """Write it, if the blob still has the checkpoint's ETag, and renew that."""
    metadata = {
        "offset": str(checkpoint["offset"]),
        "sequencenumber": str(checkpoint["sequence_number"]),
        **{
            name.replace("_", ""): repr(checkpoint[name])
            for name in ("hub_created", "enqueued")
            if checkpoint.get(name)
        },
    }
    checkpoint["etag"] = await _put(blob, metadata, checkpoint.get("etag"))


async def _put(blob: "BlobClient", metadata: dict[str, str], etag: str | None) -> str:
    """Write an empty blob with this metadata, if it has this ETag, or without one does not exist.

    Returns its new ETag; one of `_CHANGED` is raised if it is not so.
    """
    written = await (
        # guard: conditional-write
        blob.set_blob_metadata(metadata, etag=etag, match_condition=MatchConditions.IfNotModified)
        if etag
        else blob.upload_blob(b"", metadata=metadata)
    )
    return str(written["etag"])
