"""Dead letters in the storage account: a batch is a blob `deadletters/NAME`.

They outlive the pod, and all replicas write to the same place. A replay changes a blob on the
condition of its ETag, so that of two replays at once one notices the other.
"""

from typing import TYPE_CHECKING, Any, Final

from azure.core import MatchConditions
from azure.core.exceptions import (
    HttpResponseError,
    ResourceModifiedError,
    ResourceNotFoundError,
)

from forwarder.errors import ForwarderError

if TYPE_CHECKING:
    from azure.storage.blob.aio import ContainerClient

_PREFIX: Final = "deadletters/"


class DeadLetterBlobs:
    """A DeadLetterStore in a container that checkpoints have made, or will."""

    max_batch = 1_048_576

    def __init__(self, container: "ContainerClient") -> None:
        self._container = container
        self._etags: dict[str, str] = {}

    async def put(self, name: str, lines: list[bytes]) -> int:
        """Write a blob."""
        await self._container.upload_blob(_PREFIX + name, b"".join(lines), overwrite=True)
        return 0

    async def sizes(self) -> dict[str, int]:
        """Return the blobs' names, the oldest first, with their bytes."""
        try:
            found = self._container.list_blobs(name_starts_with=_PREFIX)
            return {blob.name.removeprefix(_PREFIX): blob.size async for blob in found}
        except ResourceNotFoundError:  # no forwarder has made the container
            return {}

    async def read(self, name: str) -> bytes:
        """Return a blob's content, or nothing if it is gone."""
        try:
            blob = await self._container.download_blob(_PREFIX + name)
            self._etags[name] = blob.properties.etag
            return await blob.readall()
        except ResourceNotFoundError:
            return b""

    async def replace(self, name: str, rest: bytes) -> None:
        """Write what is left of a blob, or delete it."""
        blob = self._container.get_blob_client(_PREFIX + name)
        same: Any = {"etag": self._etags[name], "match_condition": MatchConditions.IfNotModified}
        try:
            if rest:
                await blob.upload_blob(rest, overwrite=True, **same)
            else:
                await blob.delete_blob(**same)
        except (ResourceModifiedError, ResourceNotFoundError):
            raise ForwarderError(f"{name} was changed by another replay") from None
        except HttpResponseError as error:
            raise ForwarderError(f"{name} cannot be changed: {error.reason}") from None
