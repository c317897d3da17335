"""The checkpoint store in a storage account, shared by all replicas."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final

from azure.core.exceptions import HttpResponseError, ResourceExistsError
from azure.eventhub.aio import CheckpointStore
from azure.eventhub.extensions.checkpointstoreblobaio import BlobCheckpointStore
from azure.storage.blob.aio import ContainerClient

from forwarder.settings import Settings

# Our own loops try again; the client must not sit on a dead store meanwhile.
_CLIENT: Final[dict[str, Any]] = {"retry_total": 1, "connection_timeout": 5, "read_timeout": 10}


@asynccontextmanager
async def open_blob_store(settings: Settings, credential: Any) -> AsyncIterator[CheckpointStore]:
    """Open the container, by connection string or by the account's URL and a credential."""
    name, connection = settings.blob_container_name, settings.blob_connection
    store: Any
    if connection:
        store = _BlobStore.from_connection_string(connection.text, name, **_CLIENT)
        container = ContainerClient.from_connection_string(connection.text, name, **_CLIENT)
    else:
        account = str(settings.blob_account_url)
        store = _BlobStore(account, name, credential=credential, **_CLIENT)
        container = ContainerClient(account, name, credential=credential, **_CLIENT)
    async with store, container:
        store.container = container
        yield store


class _BlobStore(BlobCheckpointStore):
    """Checkpoints as blobs, at the paths of all Event Hubs SDKs; makes its container if it may."""

    container: ContainerClient
    _made = False

    async def list_ownership(self, *where: Any, **options: Any) -> Iterable[dict[str, Any]]:
        """List owners; it is the first thing that a client asks of a store."""
        if not self._made:
            await self._make_container()
        return await super().list_ownership(*where, **options)

    async def _make_container(self) -> None:
        try:
            await self.container.create_container()
        except ResourceExistsError:
            pass
        except HttpResponseError as error:
            # A key that may not create is good enough for a container that exists.
            if error.status_code != HTTPStatus.FORBIDDEN or not await self.container.exists():
                raise
        self._made = True
