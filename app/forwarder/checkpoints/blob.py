"""The checkpoint store in a storage account, shared by all replicas."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import Any, Final

from azure.core import MatchConditions
from azure.core.exceptions import (
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
)
from azure.eventhub.aio import CheckpointStore
from azure.eventhub.extensions.checkpointstoreblobaio import BlobCheckpointStore
from azure.storage.blob import BlobProperties
from azure.storage.blob.aio import BlobClient, ContainerClient

from forwarder.config.settings import Settings
from forwarder.errors import SupersededError
from forwarder.storage import open_client, open_container

_NO_OFFSET: Final = (None, "", "no offset")


@asynccontextmanager
async def open_blob_store(settings: Settings, credential: Any) -> AsyncIterator[CheckpointStore]:
    """Open the store of checkpoints."""
    store = open_client(_BlobStore, settings, credential)
    async with store, open_container(settings, credential) as container:
        store.container = container
        yield store


class _BlobStore(BlobCheckpointStore):
    """Checkpoints as blobs, at the paths of all Event Hubs SDKs; makes its container if it may."""

    container: ContainerClient

    def __init__(self, *where: Any, **options: Any) -> None:
        super().__init__(*where, **options)
        self._turn = asyncio.Lock()
        self._tags: dict[tuple[str, str], str] = {}
        self._ahead = 0.0  # seconds of this machine's clock before the store's

    async def list_ownership(self, *where: Any, **options: Any) -> Iterable[dict[str, Any]]:
        """List owners; it is the first thing that a client asks of a store.

        The client judges by this machine's clock when an owner was seen last. The age is told by
        the store's clock, so that it holds whatever the time is here.
        """
        asked: list[str] = []

        def note(response: Any) -> None:
            asked.append(response.http_response.headers["Date"])

        try:
            found = await super().list_ownership(*where, raw_response_hook=note, **options)
        except ResourceNotFoundError:
            with suppress(ResourceExistsError):  # another replica was faster
                await self.container.create_container()
            found = await super().list_ownership(*where, raw_response_hook=note, **options)
        ahead = self._ahead = time.time() - parsedate_to_datetime(asked[-1]).timestamp()
        # guard: ownership-age-by-store-clock
        return [{**one, "last_modified_time": one["last_modified_time"] + ahead} for one in found]

    async def claim_ownership(
        self, ownership_list: Iterable[dict[str, Any]], **options: Any
    ) -> Iterable[dict[str, Any]]:
        """Claim partitions, or give up those without an owner; a tag tells whether they are ours.

        It is that of the last renewal, which may be under way: by an older one a partition would
        not be given up, and nobody would read it until it expires.
        """
        async with self._turn:
            latest = [
                # guard: release-by-latest-etag
                one if one["owner_id"] else {**one, "etag": self._tags[_holding(one)]}
                for one in ownership_list
            ]
            granted = [
                # guard: own-claim-never-expires
                {**one, "holder": one["owner_id"], "last_modified_time": math.inf}
                for one in await super().claim_ownership(latest, **options)
            ]
            self._tags |= {_holding(one): one["etag"] for one in granted}
        return granted

    async def list_checkpoints(
        self, fully_qualified_namespace: str, eventhub_name: str, consumer_group: str, **_: Any
    ) -> Iterable[dict[str, Any]]:
        """List checkpoints as any SDK writes them: .NET leaves out the offset, or the number."""
        where = {
            "fully_qualified_namespace": fully_qualified_namespace,
            "eventhub_name": eventhub_name,
            "consumer_group": consumer_group,
        }
        prefix = _path(where, "")
        blobs = self.container.list_blobs(name_starts_with=prefix, include=["metadata"])
        return [
            {**where, "partition_id": blob.name.removeprefix(prefix), **_place(blob)}
            async for blob in blobs
        ]

    async def announce(self, where: Mapping[str, str], replica: str) -> None:
        """Make known a replica that owns no partition."""
        await self.container.upload_blob(_path(where, replica, "replica"), b"", overwrite=True)

    async def withdraw(self, where: Mapping[str, str], replica: str) -> None:
        """Take an announcement back."""
        with suppress(ResourceNotFoundError):
            await self.container.delete_blob(_path(where, replica, "replica"))

    async def list_replicas(self, where: Mapping[str, str], expiry: float) -> set[str]:
        """Return the replicas announced within `expiry` seconds by the store's clock.

        An older announcement is of a replica that was killed: it is deleted.
        """
        found: set[str] = set()
        prefix = _path(where, "", "replica")
        async for blob in self.container.list_blobs(name_starts_with=prefix):
            replica = blob.name.removeprefix(prefix)
            if time.time() - self._ahead - blob.last_modified.timestamp() > expiry:
                await self.withdraw(where, replica)
            else:
                found.add(replica)
        return found

    async def update_checkpoint(self, checkpoint: dict[str, Any], **_: Any) -> None:
        """Write a checkpoint if its blob is as it was; else look, and write if it is not ahead.

        SupersededError if it is: another process writes it. The entry's ETag is renewed in place.
        """
        blob = self.container.get_blob_client(_path(checkpoint, checkpoint["partition_id"]))
        try:
            await _write(blob, checkpoint)
        except (ResourceExistsError, ResourceModifiedError, ResourceNotFoundError):
            checkpoint["etag"] = None
            with suppress(ResourceNotFoundError):
                found = await blob.get_blob_properties()
                number = _place(found)["sequence_number"]
                # guard: never-behind-another-process
                if number is not None and number > checkpoint["sequence_number"]:
                    raise SupersededError from None
                checkpoint["etag"] = found.etag
            await _write(blob, checkpoint)


def _holding(ownership: Mapping[str, Any]) -> tuple[str, str]:
    """Return a partition and who got it: the client blots out the owner to give it up."""
    return ownership["partition_id"], ownership["holder"]


async def _write(blob: BlobClient, checkpoint: dict[str, Any]) -> None:
    """Write it, if the blob still has this ETag, or without one if there is none, and renew it."""
    metadata = {
        "offset": str(checkpoint["offset"]),
        "sequencenumber": str(checkpoint["sequence_number"]),
        **({"hubcreated": repr(made)} if (made := checkpoint.get("hub_created")) else {}),
    }
    etag = checkpoint.get("etag")
    written = await (
        # guard: conditional-write
        blob.set_blob_metadata(metadata, etag=etag, match_condition=MatchConditions.IfNotModified)
        if etag
        else blob.upload_blob(b"", metadata=metadata)
    )
    checkpoint["etag"] = written["etag"]


def _path(where: Mapping[str, str], name: str, kind: str = "checkpoint") -> str:
    names = ("fully_qualified_namespace", "eventhub_name", "consumer_group")
    return "/".join((*(where[part] for part in names), kind, name)).lower()


def _place(blob: BlobProperties) -> dict[str, Any]:
    """Return a checkpoint's place, its tag, and when it was written, in Unix seconds.

    A number as its offset makes the client go on behind that.

    Azure.Messaging.EventHubs.Processor 5.11 writes "" or "no offset", and reads such a checkpoint
    by its number; without either it is none.
    """
    found: Mapping[str, str | None] = blob.metadata or {}
    number = found.get("sequencenumber")
    offset: str | int | None = found.get("offset")
    sequence_number = int(number) if number else None
    if offset in _NO_OFFSET:
        offset = "-1" if number == "0" else sequence_number  # the client takes 0 for nothing
    made = found.get("hubcreated")  # no other SDK writes it
    return {
        "offset": offset,
        "sequence_number": sequence_number,
        "hub_created": float(made) if made else None,
        "etag": blob.etag,
        "written": blob.last_modified.timestamp(),
    }
