"""The limit of concurrent POSTs, tested without a sink."""

import asyncio

import uvloop
from prometheus_client import CollectorRegistry, Gauge

from forwarder.sink.concurrency import AdaptiveConcurrency


def test_a_waiter_never_misses_the_end_of_a_back_off() -> None:
    """Timers of uvloop fire up to a millisecond early; a waiter must be woken nevertheless."""

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
    """A short list beside a long one gets its response sooner than the long one did alone."""
    concurrency = AdaptiveConcurrency(3, Gauge("g", "", registry=CollectorRegistry()))
    sink, timeouts = asyncio.Lock(), 0

    async def post(events: int) -> None:
        nonlocal timeouts
        slot = await concurrency.acquire(events)

        async def serve() -> None:  # even if the client has disconnected
            async with sink:
                await asyncio.sleep(events / 50)

        served = asyncio.create_task(serve())
        try:
            await asyncio.wait_for(asyncio.shield(served), 3)
        except TimeoutError:
            timeouts += 1
            concurrency.failed(slot, timed_out=True)
        else:
            concurrency.succeeded(slot)
        concurrency.release(slot)
        await served

    await asyncio.gather(*map(post, [22, 100, 22, 66, 100, 22, 100, 22, 66, 22, 22, 100]))
    assert timeouts < 3
