"""Dead letters in the storage account: a batch is a blob `deadletters/NAME`.

They outlive the pod, and all replicas write to the same place. A replay changes a blob only if it
still has the ETag that was read, so the slower one of two concurrent replays fails.
"""

from typing import TYPE_CHECKING, Any, Final

from azure.core import MatchConditions
from azure.core.exceptions import ResourceModifiedError, ResourceNotFoundError

from forwarder.errors import ForwarderError

if TYPE_CHECKING:
    from azure.storage.blob.aio import ContainerClient

_PREFIX: Final = "deadletters/"


class DeadLetterBlobs:
    """A store in the container of the checkpoint store, which creates the container."""

    max_batch = 1_048_576

    def __init__(self, container: "ContainerClient") -> None:
        self._container = container
        self._etags: dict[str, str] = {}

    async def put(self, name: str, data: bytes) -> int:
        """Write a blob; returns 0, because no older records are dropped for it."""
        await self._container.upload_blob(_PREFIX + name, data, overwrite=True)
        return 0

    async def sizes(self) -> dict[str, int]:
        """Return the sizes of the blobs in bytes, by name, oldest first."""
        try:
            blobs = self._container.list_blobs(name_starts_with=_PREFIX)
            return {blob.name.removeprefix(_PREFIX): blob.size async for blob in blobs}
        except ResourceNotFoundError:  # no forwarder has created the container
            return {}

    async def read(self, name: str) -> bytes:
        """Return a blob's content; nothing if it is gone."""
        try:
            blob = await self._container.download_blob(_PREFIX + name)
            self._etags[name] = blob.properties.etag
            return await blob.readall()
        except ResourceNotFoundError:
            return b""

    async def replace(self, name: str, rest: bytes) -> None:
        """Write what is left of a blob, or delete it; ForwarderError if it has changed since."""
        blob = self._container.get_blob_client(_PREFIX + name)
        same: Any = {"etag": self._etags[name], "match_condition": MatchConditions.IfNotModified}
        try:
            if rest:
                await blob.upload_blob(rest, overwrite=True, **same)
            else:
                await blob.delete_blob(**same)
        except (ResourceModifiedError, ResourceNotFoundError):
            raise ForwarderError(f"{name} was changed by another replay") from None
