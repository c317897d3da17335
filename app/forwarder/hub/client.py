"""A client of the event hub: connects, logs in, and peeks at a partition without owning it."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from datetime import datetime
from typing import Any, Final, cast

from azure.core.credentials import AccessToken
from azure.eventhub import TransportType
from azure.eventhub._pyamqp.error import AMQPLinkError, ErrorCondition
from azure.eventhub.aio import EventHubConsumerClient, EventHubSharedKeyCredential
from azure.eventhub.aio._consumer_async import EventHubConsumer

from forwarder.config.network import proxy_for, trusted
from forwarder.config.settings import Settings
from forwarder.delivery.buffer import ReceiveBuffer
from forwarder.hub.transport import Link, Transport, close_client

Position = str | int | datetime
"""An offset, a sequence number, or the time when the hub received a message."""
IN_USE: Final = {ErrorCondition.LinkStolen, ErrorCondition.ResourceLimitExceeded}
"""Conditions of a partition that has an owner, or five readers: hub and consumer group exist."""
_SIGNATURE_SECONDS: Final = 600  # after which a SharedAccessSignature is read again


class _SharedAccess:
    """A credential that reads the connection string, if it is in a file, for each connection."""

    token_type: Final = b"servicebus.windows.net:sastoken"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        """Return a token. The expiry of a signature is left to the hub, which refuses it then."""
        login: Any = self._settings.current("hub_connection")
        if moved_to(self._settings):  # the key in the file is of another hub
            login = self._settings.hub_connection
        if login.signature:
            return AccessToken(login.signature, int(time.time()) + _SIGNATURE_SECONDS)
        return await EventHubSharedKeyCredential(login.policy, login.key).get_token(*scopes)


def moved_to(settings: Settings) -> str:
    """Return the hub that the file of the connection string names now, "" if it is the same."""
    connection, name = settings.current("hub_connection"), settings.event_hub_name
    if not connection:
        return ""
    hub = f"{connection.host}/{connection.entity_path or name}"
    return "" if hub.lower() == f"{settings.hub_host}/{name}".lower() else hub


class _Proxy(Mapping[str, Any]):
    """The proxy as the SDK takes it, which reads it for each connection; it may be in a file."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def _current(self) -> dict[str, Any]:
        proxy = proxy_for(self._settings, self._settings.hub_host.partition(":")[0], 443)
        if not proxy:
            return {}
        return {
            "proxy_hostname": f"{proxy.scheme}://{proxy.host}",
            "proxy_port": proxy.port,
            "username": proxy.user,
            "password": proxy.password or "",
        }

    def __getitem__(self, name: str) -> Any:
        return self._current()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._current())

    def __len__(self) -> int:
        return len(self._current())


def connect(settings: Settings, credential: Any, **options: Any) -> EventHubConsumerClient:
    """Return a client of the hub, with the login, transport and proxy of the settings.

    azure-eventhub 5.15.1 reads no HTTPS_PROXY; a proxy makes it use WebSockets.
    """
    connection, websockets = settings.hub_connection, settings.hub_transport == "websockets"
    if websockets and (proxy := _Proxy(settings)):
        options["http_proxy"] = proxy
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


async def open_link(  # noqa: PLR0913 - options of a link
    client: EventHubConsumerClient,
    partition: str,
    position: Position = "@latest",
    *,
    inclusive: bool = False,
    owner: bool = False,
    group: str = "",
    buffer: ReceiveBuffer | None = None,
) -> Link:
    """Open a link after a position, in the client's consumer group unless `group` is given.

    An `owner` takes the partition from its present owner. Without it, the hub refuses a partition
    that has an owner with AMQPLinkError `amqp:link:stolen`.
    """
    receiver: EventHubConsumer = client._create_consumer(  # noqa: SLF001 - no public equivalent
        group or client._consumer_group,  # noqa: SLF001 - the same
        partition,
        position,
        cast("Any", None),
        event_position_inclusive=inclusive,
        owner_level=0 if owner else None,
    )
    receiver._keep_alive = None  # noqa: SLF001 - a task that takes a second to stop
    try:
        await receiver._open()  # noqa: SLF001 - the same
    except BaseException:
        if amqp := receiver._handler:  # noqa: SLF001 - the same
            await close_client(amqp)
        raise
    return Link(receiver, buffer)


async def has_owner(client: EventHubConsumerClient, partition: str) -> bool:
    """Return whether somebody is reading a partition; AMQPLinkError if it cannot be read."""
    try:
        async with aclosing(await open_link(client, partition)):
            return False
    except AMQPLinkError as error:
        if error.condition not in IN_USE:
            raise
    return True


async def peek(
    client: EventHubConsumerClient, partition: Mapping[str, Any], count: int, seconds: float
) -> list[bytes] | None:
    """Return the bodies of up to `count` newest messages of a partition, given its properties.

    Reads for at most `seconds`, and takes the partition from nobody: None if it has an owner.
    """
    last, bodies = partition["last_enqueued_sequence_number"], list[bytes]()
    number = max(partition["beginning_sequence_number"], last - count + 1)
    try:
        async with (
            asyncio.timeout(seconds),
            aclosing(await open_link(client, partition["id"], number, inclusive=True)) as link,
        ):
            while len(bodies) < count and number <= last:
                await link.read(seconds)
                for message in link.take():
                    bodies.append(message.body)
                    number = (message.sequence_number or number) + 1
    except TimeoutError:
        pass
    except AMQPLinkError as error:
        if error.condition not in IN_USE:
            raise
        return bodies or None
    return bodies
