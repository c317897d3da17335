"""Faults of the hub. Each lasts for the given seconds and is over when it returns."""

import asyncio
import time

from azure.eventhub.aio import EventHubConsumerClient

from faults.environment import FaultEnvironment
from support.harness import HUB

_HIGHER = 9  # than a forwarder's owner level


async def away(env: FaultEnvironment, seconds: float) -> None:
    """Connections drop, and nobody listens."""
    env.server.faults.refuse_connections()
    env.server.faults.drop()
    await asyncio.sleep(seconds)
    await env.server.faults.accept_connections()


async def drops(env: FaultEnvironment, seconds: float) -> None:
    """Every connection drops, again and again."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(min(1, seconds))
        env.server.faults.drop()


async def drops_mid_message(env: FaultEnvironment, seconds: float) -> None:
    """Connections drop in the middle of messages of several frames."""
    faults = env.server.faults
    for _ in range(3):
        faults.drop_mid_message = True
        env.ledger.publish(200, per_message=200)
        end = time.monotonic() + seconds
        while faults.drop_mid_message and time.monotonic() < end:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.05)
    faults.drop_mid_message = False


async def delivers_twice(env: FaultEnvironment, seconds: float) -> None:
    """Messages come twice."""
    env.server.faults.duplicates = 20
    await asyncio.sleep(seconds)
    env.server.faults.duplicates = 0


async def delays(env: FaultEnvironment, seconds: float) -> None:
    """Messages come late."""
    env.server.faults.delay = 0.3
    await asyncio.sleep(seconds)
    env.server.faults.delay = 0


async def is_silent(env: FaultEnvironment, seconds: float) -> None:
    """Nothing is read, answered or delivered; connections stay."""
    env.server.faults.silence()
    await asyncio.sleep(seconds)
    env.server.faults.wake()


async def detaches(env: FaultEnvironment, seconds: float) -> None:
    """Receivers are detached, for every reason that is no theft."""
    for condition in ("amqp:internal-error", "com.microsoft:timeout", "amqp:link:detach-forced"):
        env.server.faults.detach(condition)
        await asyncio.sleep(seconds / 3)


async def _refuses(env: FaultEnvironment, seconds: float, condition: str) -> None:
    env.server.faults.refuse("attach", condition)
    env.server.faults.drop()
    await asyncio.sleep(seconds)
    env.server.faults.accept()


async def is_busy(env: FaultEnvironment, seconds: float) -> None:
    """Receivers are refused: the throughput is used up."""
    await _refuses(env, seconds, "com.microsoft:server-busy")


async def is_full(env: FaultEnvironment, seconds: float) -> None:
    """Receivers are refused: a quota is reached, such as five of them on one group."""
    await _refuses(env, seconds, "amqp:resource-limit-exceeded")


async def revokes_the_key(env: FaultEnvironment, seconds: float) -> None:
    """The key is not accepted for a while: put-token answers 401."""
    env.server.faults.refuse("put-token", 401)
    env.server.faults.drop()
    await asyncio.sleep(seconds)
    env.server.faults.accept()


async def lacks_the_group(env: FaultEnvironment, seconds: float) -> None:
    """The consumer group is deleted, and made again."""
    env.hub.groups.remove("$Default")
    env.server.faults.drop()
    await asyncio.sleep(seconds)
    env.hub.groups.add("$Default")


async def lets_steal(env: FaultEnvironment, seconds: float) -> None:
    """Another reader, with a higher owner level, takes two partitions, and leaves."""
    async with env.moving():
        thief = EventHubConsumerClient.from_connection_string(
            env.server.connection_string(HUB), "$Default"
        )
        async with thief:
            thefts = [asyncio.create_task(_steal(thief, number)) for number in ("0", "1")]
            end = time.monotonic() + 90  # for the hub may be away
            while not _stolen(env) and time.monotonic() < end:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.05)
            await asyncio.sleep(seconds)
            for theft in thefts:
                theft.cancel()
            await asyncio.wait(thefts)
        await asyncio.sleep(1)  # until they are claimed again


def _stolen(env: FaultEnvironment) -> bool:
    return sum(receiver.epoch == _HIGHER for receiver in env.server.receivers) == 2


async def _steal(thief: EventHubConsumerClient, partition: str) -> None:
    async def forget(*_: object) -> None:
        pass

    await thief.receive(forget, partition_id=partition, owner_level=_HIGHER)


async def grows(env: FaultEnvironment, _: float) -> None:
    """The hub gets as many partitions again."""
    async with env.moving():
        env.hub.add_partitions(len(env.hub.partitions))
        await env.owned(one=len(env.hub.partitions))


async def is_recreated(env: FaultEnvironment, seconds: float) -> None:
    """The hub is deleted and made again, with numbers that soon are where the old ones were."""
    env.remade = time.time() - 0.1
    env.server.recreate(HUB)
    gone = env.ledger.hub_recreated()
    env.ledger.publish(600, per_message=2)  # where the old offset points, others stand behind
    await asyncio.sleep(seconds)
    env.ledger.drop_undelivered(gone)
    env.ledger.restarted({})  # receivers may have gone on in it before that was noticed


async def is_recreated_unseen(env: FaultEnvironment, seconds: float) -> None:
    """The same while nobody reads."""
    await env.stop()
    await asyncio.sleep(2)  # a blob's time is told in whole seconds
    await is_recreated(env, seconds)
    await env.start()


async def mutes(env: FaultEnvironment, seconds: float) -> None:
    """A receiver gets nothing more, then neither does the one that follows it."""
    async with env.moving():
        for more in (0, 1):
            env.server.faults.mute(1, more=more)
            await asyncio.sleep(seconds)


async def forgets(env: FaultEnvironment, seconds: float) -> None:
    """Messages expire while nobody reads them."""
    await env.stop()
    env.ledger.publish(400)
    await asyncio.sleep(seconds)
    for log in env.hub.partitions:
        log.expire(log.last - 1)
    env.ledger.messages_expired()
    await env.start()
