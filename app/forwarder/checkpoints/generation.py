"""Hides stale checkpoints: those of an earlier hub with the same name.

A hub that was deleted and recreated numbers its messages from 0 again. With a checkpoint of the old
hub a client would start in the middle of the new one, or wait for a number that never comes.
Checkpoints written here have `hub_created`, the creation time of their hub, and are stale if it is
another one. Checkpoints of SDKs are stale if they were written before the hub was created. The
consumer marks others in `stale`, when they are ahead of the hub.

A stale checkpoint is not deleted. Reading starts at StartPosition, and the next checkpoint replaces
the stale one, unless another process has replaced it in the meantime.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from forwarder import log
from forwarder.checkpoints.blob import BlobCheckpointStore
from forwarder.checkpoints.sqlite import EmbeddedCheckpointStore

_RESOLUTION: Final = 1.0  # seconds: a blob's time has no fractions
_POSITION: Final = {"sequence_number", "offset"}

CheckpointStore = BlobCheckpointStore | EmbeddedCheckpointStore
"""Lists checkpoints of a scope as dicts with the SDK's names, and writes one at a time."""


class GenerationStore:
    """Another checkpoint store as it applies to the present hub."""

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        self._logged = 0.0
        self.created = 0.0
        """When the hub that is read was created, in Unix seconds."""
        self.stale: dict[str, int | None] = {}
        """Sequence numbers of checkpoints of another hub, by partition."""
        self.listed: dict[str, dict[str, Any]] = {}
        """The checkpoints at the last listing, by partition; stale ones without their position."""

    def log_recreated(self, created: float) -> None:
        """Log that the hub was recreated, once for each creation time."""
        if self._logged != created:
            self._logged = created
            when = datetime.fromtimestamp(created, UTC).isoformat(timespec="seconds")
            log.error("hub was recreated, reading starts at StartPosition", created=when)

    async def list_checkpoints(self, scope: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the checkpoints of this hub; if a partition has two, the one that is ahead.

        An entry has `hub_created` or `written`, the time when it was written, in Unix seconds.
        """
        entries = await self._store.list_checkpoints(scope)
        own = {one["partition_id"]: one for one in sorted(entries, key=_rank) if self._is_own(one)}
        self.listed = dict(own)
        for entry in entries:
            # guard: stale-checkpoint-has-no-position
            rest = {name: value for name, value in entry.items() if name not in _POSITION}
            self.listed.setdefault(entry["partition_id"], rest)
        return list(own.values())

    def _is_own(self, entry: Mapping[str, Any]) -> bool:
        """Return whether a checkpoint has a position, and in this hub."""
        if entry["sequence_number"] is None and entry["offset"] is None:
            return False
        written, created = entry.get("written", self.created), entry.get("hub_created")
        # guard: checkpoint-of-this-hub
        if written < self.created - _RESOLUTION or created not in {None, self.created}:
            self.log_recreated(self.created)
            return False
        number = entry["partition_id"]
        # guard: stale-checkpoint
        return number not in self.stale or self.stale[number] != entry["sequence_number"]

    async def update_checkpoint(self, checkpoint: dict[str, Any], *, start: bool = False) -> None:
        """Write a checkpoint, with the creation time of the hub."""
        checkpoint["hub_created"] = self.created  # guard: checkpoint-names-its-hub
        await self._store.update_checkpoint(checkpoint, start=start)
        self.stale.pop(checkpoint["partition_id"], None)

    def __getattr__(self, name: str) -> Any:
        """Return what the balancer needs of the other store; ownerships are never stale."""
        return getattr(self._store, name)


def _rank(entry: Mapping[str, Any]) -> int:
    """Return the sequence number, or a lower one than any if an entry has only an offset."""
    number: int | None = entry["sequence_number"]
    return -2 if number is None else number
