"""The checkpoint store in a storage account, shared by all replicas; `listing` describes its blobs.

Every write is conditional on the blob's ETag, so no replica overwrites what it has not seen. After
a conflict a checkpoint is written only if the one in the store is not ahead of it. The age of an
ownership is measured by the store's clock, because the clocks of replicas may differ.
"""

import time
from asyncio import gather
from collections.abc import Iterable, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

from azure.core import MatchConditions
from azure.core.exceptions import (
    AzureError,
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
)

from forwarder import log
from forwarder.checkpoints import listing
from forwarder.checkpoints.listing import path
from forwarder.errors import SupersededError

if TYPE_CHECKING:
    from azure.storage.blob.aio import BlobClient, ContainerClient

_SEARCH_INTERVAL: Final = 600.0  # seconds between two searches for blobs of the SDK for Go
_CHANGED = (ResourceExistsError, ResourceModifiedError, ResourceNotFoundError)


class BlobCheckpointStore:
    """Checkpoints and ownerships as blobs; creates its container if it is missing."""

    shared = True  # with other replicas

    def __init__(self, container: "ContainerClient") -> None:
        self.container = container
        self._ahead = 0.0  # seconds by which the local clock is ahead of the store's
        self._others: list[str] = []  # prefixes of the SDK for Go
        self._search_at = 0.0

    async def list_ownership(self, scope: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the ownerships, in local time. It is called first, so it creates the container."""
        prefix = path(scope, "", "ownership")
        dates: list[str] = []
        blobs = self.container.list_blobs(
            prefix,
            include=["metadata"],
            raw_response_hook=lambda response: dates.append(response.http_response.headers["Date"]),
        )
        found = []
        try:
            found = [blob async for blob in blobs]
        except ResourceNotFoundError:
            with suppress(ResourceExistsError):  # another replica was faster
                await self.container.create_container()
        # guard: ownership-age-by-store-clock
        ahead = self._ahead = time.time() - parsedate_to_datetime(dates[-1]).timestamp()
        return [
            {
                **scope,
                "partition_id": blob.name.removeprefix(prefix),
                "owner_id": (blob.metadata or {}).get("ownerid", ""),
                "etag": blob.etag,
                "last_modified_time": blob.last_modified.timestamp() + ahead,
            }
            for blob in found
        ]

    async def claim_ownership(self, wanted: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Write ownerships, with owner "" to release a partition; return the granted entries.

        An entry is not granted if another replica has changed it. If it cannot be written, it is
        granted with the `error`, so that delivery continues.
        """
        return [entry for entry in await gather(*map(self._claim, wanted)) if entry]

    async def _claim(self, wanted: dict[str, Any]) -> dict[str, Any] | None:
        blob = self.container.get_blob_client(path(wanted, wanted["partition_id"], "ownership"))
        try:
            etag = await _put(blob, {"ownerid": wanted["owner_id"]}, wanted.get("etag"))
        except _CHANGED:
            return None
        except Exception as error:  # noqa: BLE001 - whatever the client raises
            return {**wanted, "error": error}
        return {**wanted, "etag": etag, "last_modified_time": time.time()}

    async def list_checkpoints(self, scope: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the checkpoints of any SDK, ours first."""
        if time.monotonic() >= self._search_at:
            self._search_at = time.monotonic() + _SEARCH_INTERVAL
            self._others = await listing.other_prefixes(self.container, scope)
            if owner := await listing.active_owner(self.container, self._others):
                reason = listing.GO_READER
                log.error("consumer group is read by another program", blob=owner, reason=reason)
        return await listing.read_checkpoints(self.container, scope, self._others)

    async def announce(self, scope: Mapping[str, str], replica: str) -> None:
        """Announce a replica that owns no partition."""
        await self.container.upload_blob(path(scope, replica, "replica"), b"", overwrite=True)

    async def withdraw(self, scope: Mapping[str, str], replica: str) -> None:
        """Remove an announcement, or leave it to expire."""
        with suppress(AzureError):
            await self.container.delete_blob(path(scope, replica, "replica"))

    async def list_replicas(self, scope: Mapping[str, str], expiry: float) -> set[str]:
        """Return the replicas announced within `expiry` seconds by the store's clock.

        Older announcements are deleted: they belong to replicas that were killed.
        """
        replicas: set[str] = set()
        prefix = path(scope, "", "replica")
        async for blob in self.container.list_blobs(name_starts_with=prefix):
            replica = blob.name.removeprefix(prefix)
            if time.time() - self._ahead - blob.last_modified.timestamp() > expiry:
                await self.withdraw(scope, replica)
            else:
                replicas.add(replica)
        return replicas

    async def update_checkpoint(self, checkpoint: dict[str, Any], *, start: bool = False) -> None:
        """Write a checkpoint and update its ETag in place.

        SupersededError if another process has written one that is ahead; with `start`, if it has
        written any since the listing.
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
                number = listing.entry(found)["sequence_number"]
                # guard: never-behind-another-process
                if number is not None and number > checkpoint["sequence_number"]:
                    raise SupersededError from None
                checkpoint["etag"] = found.etag
            await _write(blob, checkpoint)


async def _write(blob: "BlobClient", checkpoint: dict[str, Any]) -> None:
    """Write the checkpoint if the blob still has its ETag, and update the ETag."""
    metadata = {
        name.replace("_", ""): str(checkpoint[name])
        for name in ("offset", "sequence_number", "hub_created", "enqueued")
        if checkpoint.get(name) is not None
    }
    checkpoint["etag"] = await _put(blob, metadata, checkpoint.get("etag"))


async def _put(blob: "BlobClient", metadata: dict[str, str], etag: str | None) -> str:
    """Write an empty blob with this metadata; return its new ETag.

    Raises one of `_CHANGED` if the blob has another ETag, or if it exists and none is given.
    """
    written = await (
        # guard: conditional-write
        blob.set_blob_metadata(metadata, etag=etag, match_condition=MatchConditions.IfNotModified)
        if etag
        else blob.upload_blob(b"", metadata=metadata)
    )
    return str(written["etag"])
