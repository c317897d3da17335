"""The receive buffer limits bytes, and serves callers in order."""

import asyncio

import pytest

from forwarder.delivery.buffer import ReceiveBuffer


async def test_there_is_no_room_while_another_caller_waits() -> None:
    """Otherwise a caller would wait without first posting the events that it holds."""
    buffer = ReceiveBuffer(100)
    await buffer.acquire(60)
    results = []

    async def acquire_and_check(size: int) -> None:
        await buffer.acquire(size)
        results.append(buffer.has_room(10))

    waiters = [asyncio.create_task(acquire_and_check(size)) for size in (50, 30)]
    await asyncio.sleep(0)
    buffer.release(60)
    await asyncio.gather(*waiters)
    assert results == [False, True]
    assert buffer.used == 80


async def _until_blocked() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_message_larger_than_the_buffer_is_admitted_alone() -> None:
    buffer = ReceiveBuffer(100)
    await buffer.acquire(60)
    giant = asyncio.create_task(buffer.acquire(1000))
    await _until_blocked()
    assert not giant.done()
    buffer.release(60)
    await asyncio.wait_for(giant, 60)
    assert not buffer.has_room(1)
    other = asyncio.create_task(buffer.acquire(1))
    await _until_blocked()
    assert not other.done()
    buffer.release(1000)
    await asyncio.wait_for(other, 60)
    assert buffer.used == 1


@pytest.mark.parametrize(("size", "fits"), [(40, True), (41, False)])
async def test_the_buffer_fills_exactly_to_its_limit(size: int, fits: bool) -> None:  # noqa: FBT001 - a column of the table
    buffer = ReceiveBuffer(100)
    await buffer.acquire(60)
    assert buffer.has_room(size) is fits
    waiting = asyncio.create_task(buffer.acquire(size))
    await _until_blocked()
    assert waiting.done() is fits
    buffer.release(60)
    await asyncio.wait_for(waiting, 60)


async def test_every_waiter_is_served_and_the_limit_holds() -> None:
    buffer = ReceiveBuffer(100)
    peak = 0

    async def hold(size: int) -> None:
        nonlocal peak
        await buffer.acquire(size)
        peak = max(peak, buffer.used)
        await asyncio.sleep(0)
        buffer.release(size)

    sizes = [1 + n * 37 % 90 for n in range(200)]
    await asyncio.wait_for(asyncio.gather(*map(hold, sizes)), 60)
    assert buffer.used == 0
    assert 80 < peak <= 100


async def test_a_large_message_is_not_overtaken_by_small_ones() -> None:
    buffer = ReceiveBuffer(100)
    await buffer.acquire(50)
    await buffer.acquire(40)
    large = asyncio.create_task(buffer.acquire(90))
    await _until_blocked()
    assert not buffer.has_room(10)
    small = asyncio.create_task(buffer.acquire(10))
    buffer.release(40)
    await _until_blocked()
    assert not large.done()
    assert not small.done()
    buffer.release(50)
    await asyncio.wait_for(asyncio.gather(large, small), 60)
    assert buffer.used == 100


async def test_a_cancelled_waiter_acquires_nothing() -> None:
    buffer = ReceiveBuffer(100)
    await buffer.acquire(100)
    waiting = asyncio.create_task(buffer.acquire(1))
    await _until_blocked()
    waiting.cancel()
    await asyncio.wait([waiting])
    buffer.release(100)
    assert buffer.used == 0
    assert buffer.has_room(100)
