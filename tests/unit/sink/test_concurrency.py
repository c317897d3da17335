"""The limit of concurrent POSTs, by itself: no sink is needed to fail."""

import asyncio

import uvloop
from prometheus_client import CollectorRegistry, Gauge

from forwarder.sink.concurrency import AdaptiveConcurrency


def test_the_end_of_a_back_off_is_never_missed() -> None:
    """Uvloop's timers fire up to a millisecond early; whoever waits is woken all the same."""

    async def rounds() -> None:
        concurrency = AdaptiveConcurrency(10, Gauge("g", "", registry=CollectorRegistry()))
        for _ in range(5):
            slot = await concurrency.acquire(1)
            waiting = asyncio.create_task(concurrency.acquire(1))
            await asyncio.sleep(0)
            concurrency.failed(slot)
            concurrency.succeeded(await waiting)

    async def many() -> None:
        async with asyncio.timeout(90):
            await asyncio.gather(*(rounds() for _ in range(50)))

    uvloop.run(many())
