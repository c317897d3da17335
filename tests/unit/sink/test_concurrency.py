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
            concurrency.release(slot)
            slot = await waiting
            concurrency.succeeded(slot)
            concurrency.release(slot)

    async def many() -> None:
        async with asyncio.timeout(90):
            await asyncio.gather(*(rounds() for _ in range(50)))

    uvloop.run(many())


async def test_lists_of_different_lengths_do_not_make_a_serial_sink_look_parallel() -> None:
    """A short list beside a long one is answered sooner than the long one was alone."""
    concurrency = AdaptiveConcurrency(3, Gauge("g", "", registry=CollectorRegistry()))
    sink, late = asyncio.Lock(), 0

    async def post(events: int) -> None:
        nonlocal late
        slot = await concurrency.acquire(events)

        async def serve() -> None:  # also for a client that has gone
            async with sink:
                await asyncio.sleep(events / 50)

        served = asyncio.create_task(serve())
        try:
            await asyncio.wait_for(asyncio.shield(served), 3)
        except TimeoutError:
            late += 1
            concurrency.failed(slot, timed_out=True)
        else:
            concurrency.succeeded(slot)
        concurrency.release(slot)
        await served

    await asyncio.gather(*map(post, [22, 100, 22, 66, 100, 22, 100, 22, 66, 22, 22, 100]))
    assert late < 3
