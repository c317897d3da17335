"""Shares the partitions evenly between replicas, by means of ownership entries in the store.

The SDK's balancer (azure-eventhub 5.15.1) steals one partition per interval, and only while a
replica has fewer than floor(partitions / replicas): 8 partitions on 3 replicas stay 4, 2, 2. It
steals partitions that are being read, so messages are delivered twice. Here every replica computes
the same shares from the same entries. A replica that owns more than its share drains the excess
partitions, writes their checkpoints and releases them. A replica that owns nothing has no entry, so
it announces itself. Entries have the SDK's format, so other readers of the consumer group see them.
"""

import secrets
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from forwarder.checkpoints.generation import GenerationStore


@dataclass(frozen=True, slots=True)
class Shares:
    """The partitions of this replica after a round."""

    owned: Collection[str]
    excess: Collection[str]
    """Owned partitions that this replica has to release."""
    waiting: bool
    """Whether this replica waits for others to release partitions."""
    unwritten: Mapping[str, Exception] = field(default_factory=dict)
    """Owned partitions whose entries could not be written: others may own them as well."""


@dataclass(eq=False)
class Balancer:
    """Claims and releases partitions for this replica."""

    _store: GenerationStore
    _scope: Mapping[str, str]  # as in `listing.SCOPE`
    _patience: float
    """Seconds below its share after which the replica steals: the SDK's balancer releases none."""
    _expiry: float  # seconds after which an ownership expires
    _id: str = field(default_factory=lambda: str(uuid.uuid4()))
    _entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    _waiting_since: float | None = None
    _announced: bool = False

    async def balance(
        self, partitions: Collection[str], lag: Callable[[str], int], *, readable: bool
    ) -> Shares:
        """Renew the ownerships of this replica, and claim free partitions up to its share.

        The share is 0 while the hub is not `readable` from here. A store that is not shared has no
        ownerships: its replica is the only one. Raises the store's errors.
        """
        if not self._store.shared:
            return Shares(partitions, (), waiting=False)
        listed = await self._store.list_ownership(self._scope)
        entries = {entry["partition_id"]: entry for entry in listed}
        oldest = time.time() - self._expiry
        owners = {
            number: entry["owner_id"]
            for number, entry in entries.items()
            if entry["owner_id"] and entry["last_modified_time"] >= oldest
        }
        owned = [number for number in partitions if owners.get(number) == self._id]
        free = [number for number in partitions if number not in owners]
        share, for_others = 0, 0
        if readable:
            share, for_others = await self._share(len(partitions), Counter(owners.values()))
        missing = max(0, share - len(owned))
        wanted = free[for_others : for_others + missing]
        if self._waiting_since and time.monotonic() - self._waiting_since > self._patience:
            others = {number: owner for number, owner in owners.items() if owner != self._id}
            wanted += _to_steal(others)
        claims = [
            {**self._scope, "partition_id": number, **entries.get(number, {}), "owner_id": self._id}
            for number in (*owned, *wanted)
        ]
        granted = await self._store.claim_ownership(claims)
        self._entries = {entry["partition_id"]: entry for entry in granted}
        # Not in the round of the first claim: a replica that listed the ownerships before that
        # claim still counts this one by its announcement.
        if owned:
            await self.withdraw()
        waiting = len(self._entries) < share
        self._waiting_since = (self._waiting_since or time.monotonic()) if waiting else None
        kept = [number for number in owned if number in self._entries]
        excess = sorted(kept, key=lag)[: max(0, len(kept) - share)]
        unwritten = {n: e["error"] for n, e in self._entries.items() if "error" in e}
        return Shares(self._entries.keys(), excess, waiting, unwritten)

    async def release(self, number: str) -> None:
        """Give up the ownership of a partition, if this replica has it."""
        if entry := self._entries.pop(number, None):
            await self._store.claim_ownership([{**entry, "owner_id": ""}])

    async def withdraw(self) -> None:
        """Remove the announcement: this replica owns a partition, or stops."""
        if self._announced:
            self._announced = False
            await self._store.withdraw(self._scope, self._id)

    async def _share(self, partitions: int, owned: Counter[str]) -> tuple[int, int]:
        """Return this replica's share, and how many of the free partitions are for others.

        All replicas compute the same order. If the partitions do not divide evenly, the first ones
        get one more: those that own more than the minimum, so that nothing moves without need, then
        by ID. How much more they own does not count, or shares would change while some are moved.
        """
        replicas = {self._id, *owned}
        if not owned[self._id] and owned:
            self._announced = True
            await self._store.announce(self._scope, self._id)
        replicas |= await self._store.list_replicas(self._scope, self._expiry)
        minimum, remainder = divmod(partitions, len(replicas))
        order = sorted(replicas, key=lambda name: (owned[name] <= minimum, name))
        shares = {name: minimum + (rank < remainder) for rank, name in enumerate(order)}
        earlier = order[: order.index(self._id)]
        return shares[self._id], sum(max(0, shares[name] - owned[name]) for name in earlier)


def _to_steal(owners: Mapping[str, str]) -> list[str]:
    """Return a random partition of the replica that owns most; nothing if there is none."""
    if not owners:
        return []
    most = Counter(owners.values()).most_common(1)[0][0]
    return [secrets.choice([number for number, owner in owners.items() if owner == most])]
