"""What can befall the hub. Each lasts for so many seconds and is over when it returns."""

import asyncio
import time

from azure.eventhub.aio import EventHubConsumerClient

from faults.play import Play
from support.harness import HUB

_HIGHER = 9  # than a forwarder's owner level


async def away(play: Play, seconds: float) -> None:
    """Connections drop, and nobody listens."""
    play.server.faults.refuse_connections()
    play.server.faults.drop()
    await asyncio.sleep(seconds)
    await play.server.faults.accept_connections()


async def drops(play: Play, seconds: float) -> None:
    """Every connection drops, again and again."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(min(1, seconds))
        play.server.faults.drop()


async def drops_mid_message(play: Play, seconds: float) -> None:
    """Connections drop in the middle of messages of several frames."""
    faults = play.server.faults
    for _ in range(3):
        faults.drop_mid_message = True
        play.ledger.publish(200, per_message=200)
        end = time.monotonic() + seconds
        while faults.drop_mid_message and time.monotonic() < end:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.05)
    faults.drop_mid_message = False


async def delivers_twice(play: Play, seconds: float) -> None:
    """Messages come twice."""
    play.server.faults.duplicates = 20
    await asyncio.sleep(seconds)
    play.server.faults.duplicates = 0


async def delays(play: Play, seconds: float) -> None:
    """Messages come late."""
    play.server.faults.delay = 0.3
    await asyncio.sleep(seconds)
    play.server.faults.delay = 0


async def is_silent(play: Play, seconds: float) -> None:
    """Nothing is read, answered or delivered; connections stay."""
    play.server.faults.silence()
    await asyncio.sleep(seconds)
    play.server.faults.wake()


async def detaches(play: Play, seconds: float) -> None:
    """Receivers are detached, for every reason that is no theft."""
    for condition in ("amqp:internal-error", "com.microsoft:timeout", "amqp:link:detach-forced"):
        play.server.faults.detach(condition)
        await asyncio.sleep(seconds / 3)


async def _refuses(play: Play, seconds: float, condition: str) -> None:
    play.server.faults.refuse("attach", condition)
    play.server.faults.drop()
    await asyncio.sleep(seconds)
    play.server.faults.accept()


async def is_busy(play: Play, seconds: float) -> None:
    """Receivers are refused: the throughput is used up."""
    await _refuses(play, seconds, "com.microsoft:server-busy")


async def is_full(play: Play, seconds: float) -> None:
    """Receivers are refused: a quota is reached, such as five of them on one group."""
    await _refuses(play, seconds, "amqp:resource-limit-exceeded")


async def revokes_the_key(play: Play, seconds: float) -> None:
    """The key is not accepted for a while: put-token answers 401."""
    play.server.faults.refuse("put-token", 401)
    play.server.faults.drop()
    await asyncio.sleep(seconds)
    play.server.faults.accept()


async def lacks_the_group(play: Play, seconds: float) -> None:
    """The consumer group is deleted, and made again."""
    play.hub.groups.remove("$Default")
    play.server.faults.drop()
    await asyncio.sleep(seconds)
    play.hub.groups.add("$Default")


async def lets_steal(play: Play, seconds: float) -> None:
    """Another reader, with a higher owner level, takes two partitions, and leaves."""
    async with play.moving():
        thief = EventHubConsumerClient.from_connection_string(
            play.server.connection_string(HUB), "$Default"
        )
        async with thief:
            thefts = [asyncio.create_task(_steal(thief, number)) for number in ("0", "1")]
            end = time.monotonic() + 30  # for the hub may be away
            while not _stolen(play) and time.monotonic() < end:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.05)
            await asyncio.sleep(seconds)
            for theft in thefts:
                theft.cancel()
            await asyncio.wait(thefts)
        await asyncio.sleep(1)  # until they are claimed again


def _stolen(play: Play) -> bool:
    return sum(receiver.epoch == _HIGHER for receiver in play.server.receivers) == 2


async def _steal(thief: EventHubConsumerClient, partition: str) -> None:
    async def forget(*_: object) -> None:
        pass

    await thief.receive(forget, partition_id=partition, owner_level=_HIGHER)


async def grows(play: Play, _: float) -> None:
    """The hub gets as many partitions again."""
    async with play.moving():
        play.hub.add_partitions(len(play.hub.partitions))
        await play.owned(one=len(play.hub.partitions))


async def is_made_anew(play: Play, seconds: float) -> None:
    """The hub is deleted and made again, with numbers that soon are where the old ones were."""
    play.remade = time.time() - 0.1
    play.server.recreate(HUB)
    gone = play.ledger.remade()
    play.ledger.publish(600, per_message=2)  # where the old offset points, others stand behind
    await asyncio.sleep(seconds)
    play.ledger.arrived(gone)
    play.ledger.restarted({})  # receivers may have gone on in it before that was noticed


async def is_made_anew_unseen(play: Play, seconds: float) -> None:
    """The same while nobody reads."""
    await play.stop()
    await asyncio.sleep(2)  # a blob's time is told in whole seconds
    await is_made_anew(play, seconds)
    await play.start()


async def mutes(play: Play, seconds: float) -> None:
    """A receiver gets nothing more, then neither does the one that follows it."""
    async with play.moving():
        for more in (0, 1):
            play.server.faults.mute(1, more=more)
            await asyncio.sleep(seconds)


async def forgets(play: Play, seconds: float) -> None:
    """Messages expire while nobody reads them."""
    await play.stop()
    play.ledger.publish(400)
    await asyncio.sleep(seconds)
    for log in play.hub.partitions:
        log.expire(log.last - 1)
    play.ledger.forgotten()
    await play.start()
