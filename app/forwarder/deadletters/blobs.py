"""Dead letters in the storage account, which outlive the pod: blobs beside the checkpoints."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from azure.core import MatchConditions
from azure.core.exceptions import (
    HttpResponseError,
    ResourceModifiedError,
    ResourceNotFoundError,
)

from forwarder.config.settings import Settings
from forwarder.deadletters.record import letters
from forwarder.errors import ForwarderError

if TYPE_CHECKING:
    from azure.storage.blob.aio import ContainerClient

_PREFIX: Final = "deadletters/"


class DeadLetterBlobs:
    """A batch is a blob, `deadletters/TIME-DIGEST.jsonl`: the names order them by time.

    The digest is of what it holds: replicas never collide, and a batch that is written again, for
    the answer was lost, is there once.
    """

    def __init__(self, container: "ContainerClient") -> None:
        self._container = container
        self._etags: dict[str, str] = {}

    async def put(self, lines: bytes) -> None:
        """Write a batch; it is durable when this returns."""
        times = [letter.time for _, letter in letters(lines) if letter]
        time = f"{times[0]:%Y%m%dT%H%M%S.%fZ}" if times else "unreadable"
        digest = hashlib.sha256(lines).hexdigest()[:16]
        await self._container.upload_blob(f"{_PREFIX}{time}-{digest}.jsonl", lines, overwrite=True)

    async def sizes(self) -> dict[str, int]:
        """Return the blobs by name, the oldest first, with their bytes."""
        try:
            found = self._container.list_blobs(name_starts_with=_PREFIX)
            return {blob.name: blob.size async for blob in found}
        except ResourceNotFoundError:  # no forwarder has made the container
            return {}

    async def read(self, name: str) -> bytes:
        """Return what a blob holds, nothing if it is gone."""
        try:
            blob = await self._container.download_blob(name)
            self._etags[name] = blob.properties.etag
            return await blob.readall()
        except ResourceNotFoundError:
            return b""

    take = read

    async def put_back(self, name: str, rest: bytes | None) -> None:
        """Leave what is left of the blob that was read: `None` is all; one of nothing goes."""
        if rest is None or name not in self._etags:
            return
        same: Any = {"etag": self._etags[name], "match_condition": MatchConditions.IfNotModified}
        try:
            if rest:
                await self._container.upload_blob(name, rest, overwrite=True, **same)
            else:
                await self._container.delete_blob(name, **same)
        except (ResourceModifiedError, ResourceNotFoundError):
            raise ForwarderError(f"another replay has changed {name} meanwhile") from None
        except HttpResponseError as error:
            raise ForwarderError(f"{name} cannot be changed: {error.reason}") from None


@asynccontextmanager
async def open_dead_letter_blobs(
    settings: Settings, credential: Any
) -> AsyncIterator[DeadLetterBlobs | None]:
    """Open the checkpoints' container; None if checkpoints are not in a storage account."""
    if not settings.blob_connection and not settings.blob_account_url:
        yield None
        return
    from forwarder.checkpoints.blob import open_container  # noqa: PLC0415 - costs 24 MB

    async with open_container(settings, credential) as container:
        yield DeadLetterBlobs(container)
