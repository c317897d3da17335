"""Faults of the hub. Each lasts for the given seconds and has ended when it returns."""

import asyncio
import time

from azure.eventhub.aio import EventHubConsumerClient

from faults.environment import FaultEnvironment
from support.harness import HUB

_HIGHER = 9  # than a forwarder's owner level


async def unavailable(env: FaultEnvironment, seconds: float) -> None:
    """Connections drop, and new ones are refused."""
    env.server.faults.refuse_connections()
    env.server.faults.drop()
    await asyncio.sleep(seconds)
    await env.server.faults.accept_connections()


async def drops(env: FaultEnvironment, seconds: float) -> None:
    """All connections drop every second."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(min(1, seconds))
        env.server.faults.drop()


async def drops_mid_message(env: FaultEnvironment, seconds: float) -> None:
    """Connections drop in the middle of messages that have several frames."""
    faults = env.server.faults
    for _ in range(3):
        faults.drop_mid_message = True
        env.ledger.publish(200, per_message=200)
        end = time.monotonic() + seconds
        while faults.drop_mid_message and time.monotonic() < end:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.05)
    faults.drop_mid_message = False


async def delivers_twice(env: FaultEnvironment, seconds: float) -> None:
    """Messages are delivered twice."""
    env.server.faults.duplicates = 20
    await asyncio.sleep(seconds)
    env.server.faults.duplicates = 0


async def delays(env: FaultEnvironment, seconds: float) -> None:
    """Messages are delivered late."""
    env.server.faults.delay = 0.3
    await asyncio.sleep(seconds)
    env.server.faults.delay = 0


async def is_silent(env: FaultEnvironment, seconds: float) -> None:
    """The hub does not read, respond or deliver; connections stay open."""
    env.server.faults.silence()
    await asyncio.sleep(seconds)
    env.server.faults.resume()


async def detaches(env: FaultEnvironment, seconds: float) -> None:
    """Receivers are detached, with each error except that of a stolen link."""
    for condition in ("amqp:internal-error", "com.microsoft:timeout", "amqp:link:detach-forced"):
        env.server.faults.detach(condition)
        await asyncio.sleep(seconds / 3)


async def _refuses(env: FaultEnvironment, seconds: float, condition: str) -> None:
    env.server.faults.refuse("attach", condition)
    env.server.faults.drop()
    await asyncio.sleep(seconds)
    env.server.faults.accept()


async def is_busy(env: FaultEnvironment, seconds: float) -> None:
    """Receivers are refused: the throughput limit is reached."""
    await _refuses(env, seconds, "com.microsoft:server-busy")


async def is_full(env: FaultEnvironment, seconds: float) -> None:
    """Receivers are refused: a quota is reached, such as five receivers per group."""
    await _refuses(env, seconds, "amqp:resource-limit-exceeded")


async def revokes_the_key(env: FaultEnvironment, seconds: float) -> None:
    """The key is rejected for a while: put-token returns 401."""
    env.server.faults.refuse("put-token", 401)
    env.server.faults.drop()
    await asyncio.sleep(seconds)
    env.server.faults.accept()


async def recreates_the_group(env: FaultEnvironment, seconds: float) -> None:
    """The consumer group is deleted and recreated."""
    env.hub.groups.remove("$Default")
    env.server.faults.drop()
    await asyncio.sleep(seconds)
    env.hub.groups.add("$Default")


async def partitions_stolen(env: FaultEnvironment, seconds: float) -> None:
    """Another client takes two partitions with a higher owner level, then disconnects."""
    async with env.owners_change():
        client = EventHubConsumerClient.from_connection_string(
            env.server.connection_string(HUB), "$Default"
        )
        async with client:
            receivers = [asyncio.create_task(_receive(client, number)) for number in ("0", "1")]
            end = time.monotonic() + 90  # the hub may be unavailable
            while not _both_stolen(env) and time.monotonic() < end:  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.05)
            await asyncio.sleep(seconds)
            for receiver in receivers:
                receiver.cancel()
            await asyncio.wait(receivers)
        await asyncio.sleep(1)  # until they are claimed again


def _both_stolen(env: FaultEnvironment) -> bool:
    return sum(receiver.epoch == _HIGHER for receiver in env.server.receivers) == 2


async def _receive(client: EventHubConsumerClient, partition: str) -> None:
    async def ignore(*_: object) -> None:
        pass

    await client.receive(ignore, partition_id=partition, owner_level=_HIGHER)


async def adds_partitions(env: FaultEnvironment, _: float) -> None:
    """The number of partitions is doubled."""
    async with env.owners_change():
        env.hub.add_partitions(len(env.hub.partitions))
        await env.owned(one=len(env.hub.partitions))


async def is_recreated(env: FaultEnvironment, seconds: float) -> None:
    """The hub is recreated; sequence numbers and offsets soon reach the old ones."""
    env.recreated_at = time.time() - 0.1
    env.server.recreate(HUB)
    unsettled = env.ledger.hub_recreated()
    env.ledger.publish(600, per_message=2)  # there are messages after the old offset
    await asyncio.sleep(seconds)
    env.ledger.drop_undelivered(unsettled)
    env.ledger.reader_restarted({})  # receivers may have resumed in it before this was noticed


async def is_recreated_while_stopped(env: FaultEnvironment, seconds: float) -> None:
    """The hub is recreated while no forwarder is running."""
    await env.stop()
    await asyncio.sleep(2)  # the timestamps of blobs have a resolution of a second
    await is_recreated(env, seconds)
    await env.start()


async def mutes(env: FaultEnvironment, seconds: float) -> None:
    """A receiver gets no more messages; the second time, its replacement gets none either."""
    async with env.owners_change():
        for more in (0, 1):
            env.server.faults.mute(1, more=more)
            await asyncio.sleep(seconds)


async def expires_messages(env: FaultEnvironment, seconds: float) -> None:
    """Messages expire while no forwarder is running."""
    await env.stop()
    env.ledger.publish(400)
    await asyncio.sleep(seconds)
    for log in env.hub.partitions:
        log.expire(log.last - 1)
    env.ledger.messages_expired()
    await env.start()
