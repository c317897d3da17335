"""Where dead letters are kept: in the storage account if there is one, else on disk.

The store is chosen at the start, and there is no second one to fall back to. Checkpoints are in
the same place: while it cannot be written, no checkpoint passes a message with a dead letter, and
the message is read again after a restart.
"""

from typing import Any, Protocol

from forwarder.config.settings import Settings
from forwarder.deadletters.files import DeadLetterFiles

DIRECTORY = "deadletters"


class DeadLetterStore(Protocol):
    """Batches of records by name; a batch is written once, and changed by a replay only."""

    max_batch: int
    """The most bytes that a batch should have."""

    async def put(self, name: str, lines: list[bytes]) -> int:
        """Write a batch; it is durable when this returns. Returns how many records it cost."""

    async def sizes(self) -> dict[str, int]:
        """Return the batches' names, the oldest first, with their bytes."""

    async def read(self, name: str) -> bytes:
        """Return a batch, or nothing if it is gone."""

    async def replace(self, name: str, rest: bytes) -> None:
        """Put this in the place of what was read, or remove the batch if it is nothing.

        ForwarderError if the batch is not as it was read.
        """


def dead_letter_store(settings: Settings, container: Any) -> DeadLetterStore:
    """Return the store that the forwarder writes to; `container` is None without an account."""
    if container:
        from forwarder.deadletters.blobs import DeadLetterBlobs  # noqa: PLC0415 - takes 5 MiB

        return DeadLetterBlobs(container)
    return DeadLetterFiles(settings.state_directory / DIRECTORY, settings.dead_letter_max_bytes)
