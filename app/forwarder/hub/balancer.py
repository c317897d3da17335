"""Shares the partitions evenly between replicas, by the ownership entries in their store.

The SDK's balancer (azure-eventhub 5.15.1) steals one partition per interval, and only while a
replica has fewer than floor(partitions / replicas): 8 partitions on 3 replicas stay 4, 2, 2. It
steals from whoever is reading, so messages are delivered twice. Here every replica computes the
same shares from the same entries, and a replica with too many drains, writes its checkpoints and
releases the rest. A replica without a partition announces itself, because it has no entry. The
entries are the SDK's own, so that other readers of the consumer group see them.
"""

import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from forwarder.checkpoints.generation import GenerationStore

_RANDOM: Final = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Shares:
    """What this replica owns after a round."""

    owned: Collection[str]
    excess: Collection[str]
    """Those of the owned ones that it is to release."""
    waiting: bool
    """Whether others are to release some for it."""


class Balancer:
    """The part of one replica, this one, in the sharing."""

    def __init__(
        self, store: GenerationStore, place: Mapping[str, str], patience: float, expiry: float
    ) -> None:
        """`place` names namespace, hub and consumer group; the others are in seconds.

        `patience` is how long others have to release; readers of another kind do not. `expiry` is
        that of an ownership.
        """
        self._store = store
        self._place = place
        self._patience = patience
        self._expiry = expiry
        self._id = str(uuid.uuid4())
        self._entries: dict[str, dict[str, Any]] = {}
        self._waiting_since: float | None = None
        self._announced = False

    async def balance(
        self, partitions: Collection[str], lag: Callable[[str], int], *, readable: bool
    ) -> Shares:
        """Renew what this replica owns, and claim what is free up to its share.

        Its share is nothing while the hub is not `readable` from here. Raises the store's errors.
        """
        listed = await self._store.list_ownership(*self._place.values())
        entries = {str(entry["partition_id"]): entry for entry in listed}
        oldest = time.time() - self._expiry
        owners = {
            number: str(entry["owner_id"])
            for number, entry in entries.items()
            if entry["owner_id"] and entry["last_modified_time"] >= oldest
        }
        owned = [number for number in partitions if owners.get(number) == self._id]
        free = [number for number in partitions if number not in owners]
        share, passed = 0, 0
        if readable:
            share, passed = await self._share(len(partitions), Counter(owners.values()))
        wanted = free[passed:][: max(0, share - len(owned))]
        if self._waiting_since and time.monotonic() - self._waiting_since > self._patience:
            others = {number: owner for number, owner in owners.items() if owner != self._id}
            wanted += _to_steal(others)
        claims = [
            {**self._place, "partition_id": number, **entries.get(number, {}), "owner_id": self._id}
            for number in (*owned, *wanted)
        ]
        granted = await self._store.claim_ownership(claims) if claims else []
        self._entries = {str(entry["partition_id"]): entry for entry in granted}
        if owned:  # a round after the first claim: who listed the owners before it counts this one
            await self.withdraw()
        waiting = len(self._entries) < share
        self._waiting_since = (self._waiting_since or time.monotonic()) if waiting else None
        kept = [number for number in owned if number in self._entries]
        excess = sorted(kept, key=lag)[: max(0, len(kept) - share)]
        return Shares(self._entries.keys(), excess, waiting)

    async def release(self, number: str) -> None:
        """Give up the ownership of a partition, if this replica has it."""
        if entry := self._entries.pop(number, None):
            await self._store.claim_ownership([{**entry, "owner_id": ""}])

    async def withdraw(self) -> None:
        """Take the announcement back: this replica owns something, or stops."""
        if self._announced:
            self._announced = False
            await self._store.withdraw(self._place, self._id)

    async def _share(self, partitions: int, owned: Counter[str]) -> tuple[int, int]:
        """Return how many partitions are this replica's, and how many free ones to pass over.

        Where they do not divide evenly, one more is for those that have it, so that nothing moves
        without need, and then by ID. How many more they have does not matter, so that no share
        changes while others release and claim theirs. The free ones that it passes over are the
        shares of others.
        """
        replicas = {self._id, *owned}
        if self._store.shared:
            if not owned[self._id] and owned:
                self._announced = True
                await self._store.announce(self._place, self._id)
            replicas |= await self._store.list_replicas(self._place, self._expiry)
        least, more = divmod(partitions, len(replicas))
        passed = 0
        order = sorted(replicas, key=lambda name: (owned[name] <= least, name))
        for rank, replica in enumerate(order):
            share = least + (rank < more)
            if replica == self._id:
                break
            passed += max(0, share - owned[replica])
        return share, passed


def _to_steal(owners: Mapping[str, str]) -> list[str]:
    """Return a partition of the replica that owns most, if any is owned."""
    if not owners:
        return []
    most = Counter(owners.values()).most_common(1)[0][0]
    return [_RANDOM.choice([number for number, owner in owners.items() if owner == most])]
