"""The receive buffer says the truth about its room: who is told so must not have to wait."""

import asyncio

from forwarder.delivery.buffer import ReceiveBuffer


async def test_there_is_no_room_while_another_has_been_given_its_turn() -> None:
    """Who is told that there is room posts nothing first, and would hold what others wait for."""
    buffer = ReceiveBuffer(100)
    await buffer.take(60)
    seen = []

    async def take_and_look(size: int) -> None:
        await buffer.take(size)
        seen.append(buffer.has_room(10))

    takers = [asyncio.create_task(take_and_look(size)) for size in (50, 30)]
    await asyncio.sleep(0)
    buffer.release(60)
    await asyncio.gather(*takers)
    assert seen == [False, True]
    assert buffer.used == 80
