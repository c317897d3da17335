"""A client of the event hub: how to connect, log in, and look at a partition without owning it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, cast

from azure.core.credentials import AccessToken
from azure.eventhub import EventData, TransportType
from azure.eventhub._pyamqp.error import AMQPLinkError, ErrorCondition
from azure.eventhub.aio import EventHubConsumerClient, EventHubSharedKeyCredential
from azure.eventhub.aio._consumer_async import EventHubConsumer
from azure.eventhub.exceptions import EventHubError

from forwarder.config.network import hub_proxy, trusted
from forwarder.config.settings import Settings
from forwarder.hub.transport import Transport

# Somebody owns the partition, or five read it: all is well with hub and consumer group.
SHARED: Final = {ErrorCondition.LinkStolen, ErrorCondition.ResourceLimitExceeded}
_SIGNATURE_SECONDS: Final = 600  # after which a SharedAccessSignature is read again


class _SharedAccess:
    """The login by a connection string, as its file has it when a connection is opened."""

    token_type: Final = b"servicebus.windows.net:sastoken"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        """Return a token; of a signature that expires it is still the server that refuses it."""
        found = self._settings.current("hub_connection")
        if found.signature:
            return AccessToken(found.signature, int(time.time()) + _SIGNATURE_SECONDS)
        return await EventHubSharedKeyCredential(found.policy, found.key).get_token(*scopes)


def connect(settings: Settings, credential: Any, **options: Any) -> EventHubConsumerClient:
    """Return a client of the hub, logged in and routed as the settings say.

    azure-eventhub 5.15.1 reads no HTTPS_PROXY; a proxy makes it use WebSockets.
    """
    connection, websockets = settings.hub_connection, settings.hub_transport == "websockets"
    proxy = hub_proxy(settings, settings.hub_host.partition(":")[0], 443)
    if websockets and proxy:
        options["http_proxy"] = {
            "proxy_hostname": f"{proxy.scheme}://{proxy.host}",
            "proxy_port": proxy.port,
            "username": proxy.user,
            "password": proxy.password or "",
        }
    client = EventHubConsumerClient(
        settings.hub_host,
        eventhub_name=settings.event_hub_name,
        consumer_group=settings.consumer_group,
        credential=cast("Any", _SharedAccess(settings)) if connection else credential,
        transport_type=TransportType.AmqpOverWebsocket if websockets else TransportType.Amqp,
        ssl_context=trusted(settings.trusted_ca_file),
        use_tls=not (connection and connection.emulator),
        **options,
    )
    client._amqp_transport = Transport  # noqa: SLF001 - the SDK has no option for it
    return client


async def attach(  # noqa: PLR0913 - what the SDK wants
    client: EventHubConsumerClient,
    settings: Settings,
    partition: str,
    position: str | int | datetime = "@latest",
    on_batch: Callable[[list[EventData]], Awaitable[None]] | None = None,
    *,
    inclusive: bool = False,
    owner: bool = False,
) -> EventHubConsumer:
    """Open a receiver behind a position; the caller closes it.

    As an owner it takes the partition from its owner. Otherwise it takes it from nobody, and
    raises AMQPLinkError `amqp:link:stolen` while somebody owns the partition.
    """
    receiver: EventHubConsumer = client._create_consumer(  # noqa: SLF001 - nothing public tells
        settings.consumer_group,
        partition,
        position,
        cast("Any", on_batch),
        event_position_inclusive=inclusive,
        owner_level=0 if owner else None,
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

    Those that came within `seconds`; None if somebody owns the partition.
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
        receiver = await attach(client, settings, partition["id"], first, take, inclusive=True)
    except AMQPLinkError as error:
        if error.condition not in SHARED:
            raise
        return None
    reading = asyncio.create_task(receiver.receive(batch=True, max_batch_size=count))
    waiting = asyncio.create_task(whole.wait())
    await asyncio.wait({reading, waiting}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    reading.cancel()
    (end,) = await asyncio.gather(reading, return_exceptions=True)
    await receiver.close()
    return None if isinstance(end, EventHubError) and not bodies else bodies  # was taken over
