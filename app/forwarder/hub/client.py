"""A client of the event hub: how to connect, log in, and look at a partition without owning it."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, cast

import certifi
from azure.eventhub import EventData, TransportType
from azure.eventhub._pyamqp.error import AMQPLinkError, ErrorCondition
from azure.eventhub.aio import EventHubConsumerClient
from azure.eventhub.aio._consumer_async import EventHubConsumer

from forwarder.config.settings import Settings
from forwarder.hub.transport import Transport

# Somebody owns the partition, or five read it: all is well with hub and consumer group.
SHARED: Final = {ErrorCondition.LinkStolen, ErrorCondition.ResourceLimitExceeded}


def connect(settings: Settings, credential: Any, **options: Any) -> EventHubConsumerClient:
    """Return a client of the hub, logged in as the settings say."""
    options |= {
        "eventhub_name": settings.event_hub_name,
        "transport_type": (
            TransportType.AmqpOverWebsocket
            if settings.hub_transport == "websockets"
            else TransportType.Amqp
        ),
        "ssl_context": trusted(),
    }
    if settings.hub_connection:
        client = EventHubConsumerClient.from_connection_string(
            settings.hub_connection.text, settings.consumer_group, **options
        )
    else:
        client = EventHubConsumerClient(
            settings.event_hub_namespace or "",
            consumer_group=settings.consumer_group,
            credential=credential,
            **options,
        )
    client._amqp_transport = Transport  # noqa: SLF001 - the SDK has no option for it
    return client


def trusted() -> ssl.SSLContext:
    """Return what the service's certificates are verified by."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())  # slim images have no store of their own
    return context


async def attach(
    client: EventHubConsumerClient,
    settings: Settings,
    partition: str,
    position: str | int = "@latest",
    on_batch: Callable[[list[EventData]], Awaitable[None]] | None = None,
) -> EventHubConsumer:
    """Open a receiver that takes the partition from nobody; the caller closes it.

    Raises AMQPLinkError `amqp:link:stolen` while somebody else owns the partition. The client's
    own receivers meet the service's refusals, such as of an unknown consumer group, in silence.
    """
    receiver: EventHubConsumer = client._create_consumer(  # noqa: SLF001 - nothing public tells
        settings.consumer_group,
        partition,
        position,
        cast("Any", on_batch),
        event_position_inclusive=isinstance(position, int),
    )
    receiver._keep_alive = None  # noqa: SLF001 - its end takes a second
    try:
        await receiver._open()  # noqa: SLF001 - the same
    except BaseException:
        await receiver.close()
        raise
    return receiver


async def peek(
    client: EventHubConsumerClient,
    settings: Settings,
    partition: Mapping[str, Any],
    count: int,
    seconds: float,
) -> list[bytes] | None:
    """Return the newest messages of a partition, described by its properties; it moves nothing.

    Those that came within so many seconds; None if somebody owns the partition.
    """
    last = partition["last_enqueued_sequence_number"]
    first = max(partition["beginning_sequence_number"], last - count + 1)
    bodies: list[bytes] = []
    whole = asyncio.Event()

    async def take(received: Sequence[EventData]) -> None:
        for data in received:
            bodies.append(data.body_as_str().encode())
            if (data.sequence_number or 0) >= last:
                whole.set()

    try:
        receiver = await attach(client, settings, partition["id"], first, take)
    except AMQPLinkError as error:
        if error.condition not in SHARED:
            raise
        return None
    reading = asyncio.create_task(receiver.receive(batch=True, max_batch_size=count))
    waiting = asyncio.create_task(whole.wait())
    await asyncio.wait({reading, waiting}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await receiver.close()
    return bodies
