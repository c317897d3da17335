"""The checkpoint store as far as it speaks of the hub that is read now."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from azure.eventhub.aio import CheckpointStore

from forwarder import log

_RESOLUTION: Final = 1.0  # seconds: a blob's time is told in whole ones

_OF_THE_HUB: Final = {"sequence_number", "offset"}


class GenerationStore(CheckpointStore):
    """Keeps back checkpoints of another hub: of an earlier one with the same name, for instance.

    A client that was given one would read from the middle of the new hub, or wait for its number.
    """

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        self._said = 0.0
        self.created = 0.0
        """When the hub that is read was made, in Unix seconds."""
        self.foreign: dict[str, int | None] = {}
        """Checkpoints, by partition, that are known to be another hub's."""
        self.listed: dict[str, dict[str, Any]] = {}
        """What was listed last, by partition; another hub's checkpoint without its place there."""

    def say(self, created: float) -> None:
        """Say that the hub is another one than that of the checkpoints, once for each hub."""
        if self._said != created:
            self._said = created
            when = datetime.fromtimestamp(created, UTC).isoformat(timespec="seconds")
            log.error("hub was made anew, reading starts at StartPosition", created=when)

    async def list_checkpoints(self, *where: Any, **options: Any) -> Iterable[dict[str, Any]]:
        """Return the checkpoints of this hub.

        An entry tells by `hub_created` which hub it is of, or by `written` when it was written.
        """
        found = list(await self._store.list_checkpoints(*where, **options))
        own = [one for one in found if self._is_own(one)]
        self.listed = {one["partition_id"]: one for one in own}
        for one in found:
            place = {name: value for name, value in one.items() if name not in _OF_THE_HUB}
            self.listed.setdefault(one["partition_id"], place)
        return own

    def _is_own(self, entry: Mapping[str, Any]) -> bool:
        written, created = entry.get("written", self.created), entry.get("hub_created")
        # guard: checkpoint-of-this-hub
        if written < self.created - _RESOLUTION or created not in {None, self.created}:
            self.say(self.created)
            return False
        is_foreign: bool = self.foreign.get(entry["partition_id"], -1) == entry["sequence_number"]
        return not is_foreign

    async def update_checkpoint(self, checkpoint: dict[str, Any], **options: Any) -> None:
        """Write a checkpoint, with the hub that it is of."""
        checkpoint["hub_created"] = self.created
        await self._store.update_checkpoint(checkpoint, **options)
        self.foreign.pop(checkpoint["partition_id"], None)

    async def list_ownership(self, *where: Any, **options: Any) -> Iterable[dict[str, Any]]:
        """Pass it on."""
        return await self._store.list_ownership(*where, **options)

    @property
    def shared(self) -> bool:
        """Whether other replicas use the store as well."""
        return hasattr(self._store, "list_replicas")

    async def list_replicas(self, *what: Any) -> set[str]:
        """Pass it on."""
        found: set[str] = await self._shared.list_replicas(*what)
        return found

    async def announce(self, *what: Any) -> None:
        """Pass it on."""
        await self._shared.announce(*what)

    async def withdraw(self, *what: Any) -> None:
        """Pass it on."""
        await self._shared.withdraw(*what)

    @property
    def _shared(self) -> Any:
        return self._store

    async def claim_ownership(self, *what: Any, **options: Any) -> Iterable[dict[str, Any]]:
        """Pass it on."""
        return await self._store.claim_ownership(*what, **options)
