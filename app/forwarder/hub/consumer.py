"""Receives the partitions that this process owns, each message once and in order.

It does what the SDK's EventProcessor does (azure-eventhub 5.15.1), which hides what an operator
must know: a receiver that is refused is tried again in silence, one that stalls cannot be opened
again without giving up the partition, a partition is left without waiting for what is under way,
and a handler that raises repeats the same messages for ever.

    balance -> Checkpoints.claim -> Reader -> Order.accept -> Intake.take -> Partition.submit
    stop, or another replica's share -> drain -> last checkpoint -> release
"""

import asyncio
import random
import time
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from typing import Any, Final

from forwarder import log
from forwarder.checkpoints.generation import GenerationStore
from forwarder.checkpoints.writer import Checkpoints, Owned
from forwarder.delivery.partition import DeliveryContext, Partition
from forwarder.diagnosis import causes
from forwarder.errors import SupersededError
from forwarder.hub.balancer import Balancer
from forwarder.hub.client import connect
from forwarder.hub.intake import Intake
from forwarder.hub.message import Received
from forwarder.hub.monitor import HubMonitor
from forwarder.hub.order import Order
from forwarder.hub.owned import OwnedPartitions

_CLOSING: Final = 5.0  # seconds to close everything
_DRAINING: Final = 10.0  # seconds to deliver what is under way before a partition is released
_WAITING: Final = 5  # rounds per interval while other replicas are to release partitions
_JITTER: Final = random.SystemRandom()


class Consumer:
    """Owns a share of the partitions and has them read."""

    def __init__(
        self,
        delivery: DeliveryContext,
        hub: HubMonitor,
        store: GenerationStore,
        checkpoints: Checkpoints,
        credential: Any,
    ) -> None:
        settings = self._settings = delivery.settings
        self._delivery = delivery
        self._intake = Intake(delivery, checkpoints.quarantine)
        self._hub = hub
        self._store = store
        self._checkpoints = checkpoints
        self._credential = credential
        self._client = connect(settings, credential)
        self._place = {
            "fully_qualified_namespace": settings.hub_host,
            "eventhub_name": settings.event_hub_name,
            "consumer_group": settings.consumer_group,
        }
        self._interval = settings.load_balancing_interval
        self._balancer = Balancer(store, self._place, self._interval, settings.ownership_expiry)
        self._background: set[asyncio.Task[None]] = set()
        self._known: set[str] = set()
        self._turn = asyncio.Lock()  # of rounds and of closing
        self._wake = asyncio.Event()
        self._stale_owned: list[Owned] = []
        self._repeated = log.RateLimited()
        self._reopening = True
        self.stopping = False
        """Whether no more messages are received."""
        self.owned = OwnedPartitions(delivery, hub, checkpoints, self._take, self._on_end)
        self.partitions = self.owned.partitions
        """The partitions that this process owns."""
        self._order = Order(hub, store, self.partitions, self._on_recreated, self._on_stale)

    async def run(self) -> None:
        """Receive until stopped."""
        await self._hub.answered.wait()
        if self._checkpoints.quarantine.one_by_one:
            self._spawn(self._intake.take_one_by_one())
        while not self.stopping:
            async with self._turn:
                if self._reopening:
                    await self._connect()
                waiting = await self._balance()
            pause = self._interval * _JITTER.uniform(0.9, 1.0) / (_WAITING if waiting else 1)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            self._wake.clear()

    def reopen(self, number: str | None = None) -> None:
        """Open a partition's link again behind what was received, or everything."""
        if number is None:
            self._reopening = True
            self._wake.set()
        else:
            self._spawn(self.owned.restart(number))

    def check(self) -> None:
        """Compare the hub as it was just polled with what is read."""
        if self._reopening:
            return
        self._order.check()
        if self._known < self._hub.last.keys():  # guard: added-partitions
            log.info("partitions added", partitions=len(self._hub.last))
            self._wake.set()
        self._known = set(self._hub.last)

    def stop(self) -> None:
        """Receive no more messages."""
        self.stopping = True
        self._wake.set()
        self.owned.stop()

    async def close(self) -> None:
        """Write last checkpoints, give up ownership and close the connections."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING), self._turn:
                await asyncio.gather(*(self._give_up(n, "SHUTDOWN") for n in list(self.partitions)))
                await self._balancer.withdraw()
                await self._client.close()

    async def _connect(self) -> None:
        """Close everything, if anything is open, and begin again with a client of its own."""
        await asyncio.gather(
            *(self.owned.close(n, "REOPENED", drain=_CLOSING) for n in list(self.partitions))
        )
        await self._client.close()
        self._client = connect(self._settings, self._credential)
        self._order.begin()
        self._store.stale |= {one.partition.number: one.stored for one in self._stale_owned}
        self._stale_owned.clear()
        self._known = set(self._hub.last)
        self._reopening = False

    async def _balance(self) -> bool:
        """Own this replica's share; return whether others are to release a part of it."""
        away = self._is_away()
        try:
            shares = await self._balancer.balance(self._hub.last, self._lag, readable=not away)
            lost = [number for number in self.partitions if number not in shares.owned]
            await asyncio.gather(*(self._lose(number) for number in lost))
            opened = {*shares.owned} - {*self.partitions, *shares.excess}
            if opened and not self.stopping:
                await self._open(sorted(opened))
            reason = "HUB_AWAY" if away else "BALANCED"
            released = (self._give_up(number, reason, _DRAINING) for number in shares.excess)
            await asyncio.gather(*released)
        except Exception as error:  # noqa: BLE001 - whatever a store raises
            reason = str(causes.of_store(error, self._settings))
            self._repeated.error("checkpoints cannot be read", reason=reason)
            return False
        return shares.waiting

    def _is_away(self) -> bool:
        """Tell whether others should read: this replica has not reached the hub for too long."""
        since, expiry = self._hub.outage.since, self._settings.ownership_expiry
        if since is None or not self._store.shared:
            return False
        heard = max([since, *(partition.progress for partition in self.partitions.values())])
        return time.monotonic() - heard > expiry  # guard: away-from-hub

    def _lag(self, number: str) -> int:
        partition = self.partitions.get(number)
        received = (partition.last if partition else None) or 0
        return self._hub.last.get(number, -1) - received

    async def _open(self, numbers: Iterable[str]) -> None:
        """Read the checkpoints of partitions, and begin to receive behind them."""
        await self._store.list_checkpoints(*self._place.values())
        for number in numbers:
            try:
                owned = await self.owned.claim(number, self._place)
            except SupersededError:
                self._wake.set()  # to list the checkpoints again
                continue
            if self.stopping:
                return
            self.owned.open(owned, self._client, self._settings)

    def _on_end(self, number: str, reason: str) -> None:
        self._spawn(self._reclaim(number, reason))

    async def _reclaim(self, number: str, reason: str) -> None:
        """Close a partition whose link was taken, or which is to be read from elsewhere."""
        async with self._turn:
            if reason == "OWNERSHIP_LOST":
                await self._lose(number)
            else:
                await self.owned.close(number, reason)
                self._wake.set()

    async def _lose(self, number: str) -> None:
        self._delivery.metrics.losses.labels(number).inc()
        await self.owned.close(number, "OWNERSHIP_LOST")

    async def _give_up(self, number: str, reason: str, drain: float = 0) -> None:
        await self.owned.close(number, reason, drain=drain)
        await self._balancer.release(number)

    async def _take(self, partition: Partition, received: Received) -> None:
        """Wait for room for a message, if it is to be taken."""
        if message := await self._order.accept(partition, received):
            await self._intake.take(partition, message, received)

    def _on_recreated(self) -> None:
        """Open everything again: what was received of the old hub gets no checkpoint."""
        self._stale_owned = list(self._checkpoints.owned.values())
        self._checkpoints.owned.clear()
        self.reopen()

    def _on_stale(self, number: str) -> None:
        self._on_end(number, "STALE_CHECKPOINT")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
