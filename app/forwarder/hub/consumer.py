"""Receives the partitions that this process owns, each message once and in order.

It does what the SDK's EventProcessor does (azure-eventhub 5.15.1), which hides what an operator
must know: a receiver that is refused is opened again in silence, one that stalls can be reopened
only by giving up the partition, a partition is given up without waiting for messages in flight, and
an exception in the handler repeats the same messages for ever.

    claim:   Balancer.balance -> Checkpoints.claim -> Reader
    receive: Reader -> MessageHandler.handle -> Order.accept -> Partition.submit
    release: stop, or above the share -> drain -> last checkpoint -> Balancer.release
"""

import asyncio
import random
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from forwarder import log
from forwarder.checkpoints.generation import GenerationStore
from forwarder.checkpoints.listing import scope_of
from forwarder.checkpoints.writer import Checkpoints
from forwarder.delivery.partition import DeliveryContext, Partition
from forwarder.diagnosis import causes
from forwarder.errors import ForwarderError, SupersededError
from forwarder.hub.balancer import Balancer
from forwarder.hub.client import connect
from forwarder.hub.handler import MessageHandler
from forwarder.hub.monitor import HubMonitor
from forwarder.hub.order import Order
from forwarder.hub.owned import OwnedPartitions

_CLOSING: Final = 5.0  # seconds to close everything
_DRAIN: Final = 10.0  # seconds to deliver messages in flight before a partition is released
_DRAIN_PART: Final = 0.25  # of OwnershipExpiry at most: no ownership is renewed during a drain
_PATIENCE: Final = 3  # intervals until a replica steals, and longer than another one drains
_WAITING: Final = 5  # rounds per interval while other replicas have to release partitions
_JITTER: Final = random.SystemRandom()


@dataclass(eq=False)
class Consumer:
    """Owns this replica's share of the partitions, and opens a reader for each."""

    _delivery: DeliveryContext
    _hub: HubMonitor
    _store: GenerationStore
    _checkpoints: Checkpoints
    _credential: Any
    stopping: bool = False
    """Whether no more messages are received."""

    def __post_init__(self) -> None:
        delivery, hub, checkpoints = self._delivery, self._hub, self._checkpoints
        settings = self._settings = delivery.settings
        self._client = connect(settings, self._credential)
        self._scope = scope_of(settings)
        self._interval = settings.load_balancing_interval
        self._drain = min(_DRAIN, _DRAIN_PART * settings.ownership_expiry)
        patience = max(_PATIENCE * self._interval, 2 * _DRAIN)
        self._balancer = Balancer(self._store, self._scope, patience, settings.ownership_expiry)
        self._ended: dict[str, str] = {}  # partitions to close in the next round, and why
        self._lock = asyncio.Lock()  # a round and the last closing do not overlap
        self._wake = asyncio.Event()
        self._repeated = log.RateLimited()
        self._reopening = True
        self._order = Order(hub, self._store, self._on_recreated, self._on_end)
        self._handler = MessageHandler(delivery, checkpoints.quarantine, self._order)
        self.owned = OwnedPartitions(delivery, hub, checkpoints, self._handler.handle, self._on_end)
        self.partitions = self.owned.partitions
        """The partitions that this process owns."""
        delivery.metrics.owned.set_function(lambda: len(self.partitions))

    async def run(self) -> None:
        """Receive until stopped."""
        await self._hub.answered.wait()
        self._handler.begin()
        while not self.stopping:
            async with self._lock:
                while self._ended:
                    await self.owned.close(*self._ended.popitem())
                if self._reopening:
                    await self._connect()
                waiting = await self._balance()
            pause = self._interval * _JITTER.uniform(0.9, 1.0) / (_WAITING if waiting else 1)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            self._wake.clear()

    def reopen(self) -> None:
        """Close everything and open it again with a new client, in the next round."""
        self._reopening = True
        self._wake.set()

    def check(self) -> None:
        """Compare the hub, just polled, with what is being read."""
        if not self._reopening:
            self._order.check(self.partitions)

    def stop(self) -> None:
        """Receive no more messages."""
        self.stopping = True
        self._wake.set()
        self.owned.stop()

    async def close(self) -> None:
        """Write last checkpoints, give up ownership and close the connections."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING), self._lock:
                await asyncio.gather(*(self._give_up(n, "SHUTDOWN") for n in self.partitions))
                await self._balancer.withdraw()
                await self._client.close()

    async def _connect(self) -> None:
        """Close everything, and begin again with a new client."""
        await asyncio.gather(*(self.owned.close(n, "REOPENED", _CLOSING) for n in self.partitions))
        await self._client.close()
        self._client = connect(self._settings, self._credential)
        self._order.begin()
        self._reopening = False

    async def _balance(self) -> bool:
        """Own this replica's share; return whether others have to release a part of it."""
        away = self._is_away()
        try:
            shares = await self._balancer.balance(
                self._hub.last, self.owned.unread, readable=not away
            )
            lost = [number for number in self.partitions if number not in shares.owned]
            await asyncio.gather(*(self.owned.close(n, "OWNERSHIP_LOST") for n in lost))
            added = await self.owned.to_open(shares, self._client)
            if added and not self.stopping:
                await self._store.list_checkpoints(self._scope)
                await asyncio.gather(*map(self._open, sorted(added)))
            reason = "HUB_AWAY" if away else "BALANCED"
            await asyncio.gather(*(self._give_up(n, reason, self._drain) for n in shares.excess))
        except Exception as error:  # noqa: BLE001 - whatever a store raises
            reason = str(causes.of_store(error, self._settings))
            self._repeated.error("checkpoints cannot be read", reason=reason)
            return False
        return shares.waiting

    def _is_away(self) -> bool:
        """Return whether others should read: the hub has been out of reach for OwnershipExpiry."""
        since, expiry = self._hub.outage.since, self._settings.ownership_expiry
        if since is None or not self._store.shared:
            return False
        heard = max([since, *(partition.progress for partition in self.partitions.values())])
        return time.monotonic() - heard > expiry  # guard: away-from-hub

    async def _open(self, number: str) -> None:
        """Begin to receive a partition after its checkpoint, which was just listed."""
        try:
            partition = Partition(number, self._delivery)
            claim = await self._checkpoints.claim(partition, self._hub.starting_position)
        except SupersededError:
            self._wake.set()  # to list the checkpoints again
        except ForwarderError as error:  # StartPosition cannot be read from the hub, or stored
            self._hub.outage.note("receiving failed", partition=number, reason=str(error))
        else:
            if not self.stopping:
                self.owned.open(claim, self._client)

    async def _give_up(self, number: str, reason: str, drain: float = 0) -> None:
        await self.owned.close(number, reason, drain)
        await self._balancer.release(number)

    def _on_recreated(self) -> None:
        """Open everything again, without checkpoints for what was received from the old hub."""
        claims = self._checkpoints.claims
        self._store.stale |= {number: claim.stored for number, claim in claims.items()}
        claims.clear()
        self.reopen()

    def _on_end(self, number: str, reason: str) -> None:
        """Have a partition closed that another reader took, or that has to start elsewhere."""
        self._ended[number] = reason
        if reason != "OWNERSHIP_LOST":  # or both readers would take it from each other at once
            self._wake.set()
