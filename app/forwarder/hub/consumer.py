"""Receives the partitions that this process owns, each message once and in order.

It does what the SDK's EventProcessor does (azure-eventhub 5.15.1), which hides what an operator
must know: a receiver that is refused is tried again in silence, one that stalls cannot be opened
again without giving up the partition, a partition is left without waiting for what is under way,
and a handler that raises repeats the same messages for ever.

    balance -> Checkpoints.claim -> Reader -> Intake.take -> Order.accept -> Partition.submit
    stop, or another replica's share -> drain -> last checkpoint -> release
"""

import asyncio
import random
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

from forwarder import log
from forwarder.checkpoints.generation import GenerationStore
from forwarder.checkpoints.writer import Checkpoints
from forwarder.delivery.partition import DeliveryContext
from forwarder.diagnosis import causes
from forwarder.errors import ForwarderError, SupersededError
from forwarder.hub.balancer import Balancer
from forwarder.hub.client import connect
from forwarder.hub.intake import Intake
from forwarder.hub.monitor import HubMonitor
from forwarder.hub.order import Order
from forwarder.hub.owned import OwnedPartitions

_CLOSING: Final = 5.0  # seconds to close everything
_DRAINING: Final = 10.0  # seconds to deliver what is under way before a partition is released
_UNRENEWED: Final = 0.25  # of OwnershipExpiry, at most: nothing is renewed while one is drained
_PATIENCE: Final = 3  # intervals until a replica steals, and longer than another one drains
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
        self._drain = min(_DRAINING, _UNRENEWED * settings.ownership_expiry)
        patience = max(_PATIENCE * self._interval, 2 * _DRAINING)
        self._balancer = Balancer(store, self._place, patience, settings.ownership_expiry)
        self._ending: set[asyncio.Task[None]] = set()
        self._known: set[str] = set()
        self._turn = asyncio.Lock()  # of rounds and of closing
        self._wake = asyncio.Event()
        self._repeated = log.RateLimited()
        self._reopening = True
        self.stopping = False
        """Whether no more messages are received."""
        self._order = Order(hub, store, self._on_recreated, self._on_end)
        self._intake = Intake(delivery, checkpoints.quarantine, self._order)
        self.owned = OwnedPartitions(delivery, hub, checkpoints, self._intake.take, self._on_end)
        self.partitions = self.owned.partitions
        """The partitions that this process owns."""
        delivery.metrics.owned.set_function(lambda: len(self.partitions))

    async def run(self) -> None:
        """Receive until stopped."""
        await self._hub.answered.wait()
        self._intake.begin()
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

    def reopen(self) -> None:
        """Open everything again, with a client of its own."""
        self._reopening = True
        self._wake.set()

    def check(self) -> None:
        """Compare the hub as it was just polled with what is read."""
        if self._reopening:
            return
        self._order.check(self.partitions)
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
                await asyncio.gather(*(self._give_up(n, "SHUTDOWN") for n in self.partitions))
                await self._balancer.withdraw()
                await self._client.close()

    async def _connect(self) -> None:
        """Close everything, if anything is open, and begin again with a client of its own."""
        await asyncio.gather(*(self.owned.close(n, "REOPENED", _CLOSING) for n in self.partitions))
        await self._client.close()
        self._client = connect(self._settings, self._credential)
        self._order.begin()
        self._known = set(self._hub.last)
        self._reopening = False

    async def _balance(self) -> bool:
        """Own this replica's share; return whether others are to release a part of it."""
        away = self._is_away()
        try:
            shares = await self._balancer.balance(self._hub.last, self.owned.lag, readable=not away)
            lost = [number for number in self.partitions if number not in shares.owned]
            await asyncio.gather(*(self.owned.close(n, "OWNERSHIP_LOST") for n in lost))
            opened = {*shares.owned} - {*self.partitions, *shares.excess}
            if opened and not self.stopping:
                await self._open(sorted(opened))
            reason = "HUB_AWAY" if away else "BALANCED"
            await asyncio.gather(*(self._give_up(n, reason, self._drain) for n in shares.excess))
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

    async def _open(self, numbers: Iterable[str]) -> None:
        """Read the checkpoints of partitions, and begin to receive behind them."""
        await self._store.list_checkpoints(*self._place.values())
        for number in numbers:
            try:
                owned = await self.owned.claim(number, self._place)
            except SupersededError:
                self._wake.set()  # to list the checkpoints again
                continue
            except ForwarderError as error:  # of the hub, which is asked for StartPosition
                self._hub.outage.note("receiving failed", partition=number, reason=str(error))
                continue
            if self.stopping:
                return
            self.owned.open(owned, self._client)

    async def _give_up(self, number: str, reason: str, drain: float = 0) -> None:
        await self.owned.close(number, reason, drain)
        await self._balancer.release(number)

    def _on_recreated(self) -> None:
        """Open everything again: what was received of the old hub gets no checkpoint."""
        owned = self._checkpoints.owned
        self._store.stale |= {number: one.stored for number, one in owned.items()}
        owned.clear()
        self.reopen()

    def _on_end(self, number: str, reason: str) -> None:
        """Close a partition whose link was taken, or which is to be read from elsewhere."""

        async def end() -> None:
            async with self._turn:
                await self.owned.close(number, reason)
                if reason != "OWNERSHIP_LOST":  # then the next round claims it again
                    self._wake.set()

        task = asyncio.create_task(end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
