"""The checkpoint store in a storage account, shared by all replicas."""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from azure.core.exceptions import ResourceExistsError, ResourceNotFoundError
from azure.eventhub.aio import CheckpointStore
from azure.eventhub.extensions.checkpointstoreblobaio import BlobCheckpointStore
from azure.storage.blob.aio import ContainerClient

from forwarder.settings import Settings

# Our own loops try again; the client must not sit on a dead store meanwhile.
_CLIENT: Final[dict[str, Any]] = {"retry_total": 0, "connection_timeout": 5, "read_timeout": 10}
_NO_OFFSET: Final = (None, "", "no offset")


def open_container(settings: Settings, credential: Any) -> ContainerClient:
    """Open the container, by connection string or by the account's URL and a credential."""
    container: ContainerClient = _open(ContainerClient, settings, credential)
    return container


def _open(client: Any, settings: Settings, credential: Any) -> Any:
    name, connection = settings.blob_container_name, settings.blob_connection
    if connection:
        return client.from_connection_string(connection.text, name, **_CLIENT)
    return client(str(settings.blob_account_url), name, credential=credential, **_CLIENT)


@asynccontextmanager
async def open_blob_store(settings: Settings, credential: Any) -> AsyncIterator[CheckpointStore]:
    """Open the store of checkpoints."""
    store = _open(_BlobStore, settings, credential)
    async with store, open_container(settings, credential) as container:
        store.container = container
        yield store


class _BlobStore(BlobCheckpointStore):
    """Checkpoints as blobs, at the paths of all Event Hubs SDKs; makes its container if it may."""

    container: ContainerClient

    async def list_ownership(self, *where: Any, **options: Any) -> Iterable[dict[str, Any]]:
        """List owners; it is the first thing that a client asks of a store."""
        try:
            return await super().list_ownership(*where, **options)
        except ResourceNotFoundError:
            with suppress(ResourceExistsError):  # another replica was faster
                await self.container.create_container()
            return await super().list_ownership(*where, **options)

    async def list_checkpoints(
        self, fully_qualified_namespace: str, eventhub_name: str, consumer_group: str, **_: Any
    ) -> Iterable[dict[str, Any]]:
        """List checkpoints as any SDK writes them: .NET leaves out the offset, or the number."""
        where = {
            "fully_qualified_namespace": fully_qualified_namespace,
            "eventhub_name": eventhub_name,
            "consumer_group": consumer_group,
        }
        prefix = "/".join((*where.values(), "checkpoint", "")).lower()
        blobs = self.container.list_blobs(name_starts_with=prefix, include=["metadata"])
        return [
            {**where, "partition_id": blob.name.removeprefix(prefix), **_place(blob.metadata)}
            async for blob in blobs
        ]


def _place(metadata: Mapping[str, str | None] | None) -> dict[str, Any]:
    """Return a checkpoint's place; a number as its offset makes the client go on behind that.

    Azure.Messaging.EventHubs.Processor 5.11 writes "" or "no offset", and reads such a checkpoint
    by its number; without either it is none.
    """
    found = metadata or {}
    number = found.get("sequencenumber")
    offset: str | int | None = found.get("offset")
    sequence_number = int(number) if number else None
    if offset in _NO_OFFSET:
        offset = "-1" if number == "0" else sequence_number  # the client takes 0 for nothing
    return {"offset": offset, "sequence_number": sequence_number}
