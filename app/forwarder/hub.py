"""The event hub: how to reach it, where to start in it, and how far it has come."""

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

import azure.eventhub
import certifi
from azure.eventhub import EventData, TransportType
from azure.eventhub._pyamqp.error import AMQPLinkError, ErrorCondition
from azure.eventhub.aio import EventHubConsumerClient
from azure.eventhub.aio._consumer_async import EventHubConsumer

from forwarder import cause, log
from forwarder.receiving import mend_receiving
from forwarder.settings import Settings

_LEAKY: Final = "5.15.1"  # the version of the client whose inside is known
_TIMEOUT: Final = 20.0  # seconds for one look
QUIET: Final = timedelta(hours=1)  # without a message: AKS writes some every minute
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
        return EventHubConsumerClient.from_connection_string(
            settings.hub_connection.text, settings.consumer_group, **options
        )
    return EventHubConsumerClient(
        settings.event_hub_namespace or "",
        consumer_group=settings.consumer_group,
        credential=credential,
        **options,
    )


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


def mend_client() -> None:
    """Stop the client from keeping every message's delivery tag for ever, and from dawdling.

    It looks a tag, 78 bytes, up only to settle a message, which nobody does with those of an event
    hub. Without effect, and said, with a version of the client that is not known.
    """
    if azure.eventhub.__version__ != _LEAKY:
        log.error("client library is another one, memory may grow, delivery dawdle", known=_LEAKY)
        return
    from azure.eventhub._pyamqp.aio import _receiver_async as inside  # noqa: PLC0415 - known

    link: Any = inside.ReceiverLink
    link._received_delivery_tags = property(lambda _: set(), lambda *_: None)  # noqa: SLF001
    mend_receiving()


def _starting_position(settings: Settings) -> str | datetime:
    start = settings.start_position
    if isinstance(start, str):
        return {"earliest": "-1", "latest": "@latest"}[start]
    instant = start if isinstance(start, datetime) else datetime.now(UTC) - start
    return instant - timedelta(milliseconds=1)  # the hub's clock ticks so; the instant is included


class HubMonitor:
    """Asks the hub how far each partition has come: receivers are silent when it is away."""

    def __init__(self, settings: Settings, credential: Any) -> None:
        # Without retries of its own: its errors are what the operator is told.
        self._client = connect(settings, credential, retry_total=0)
        self._settings = settings
        self._repeated = log.Repeated()
        self._quiet = log.Repeated(QUIET.total_seconds())
        self._turn = asyncio.Lock()
        self.start: str | datetime | dict[str, int] = _starting_position(settings)
        """What a partition without a checkpoint is read after, in the client's terms.

        `latest` becomes the numbers of the partitions' ends at the first look, for each receiver
        that is opened anew would start at an end of its own.
        """
        self.trouble: str | None = "it has not answered yet"
        """Why the hub does not answer, in a line; None while it does."""
        self._down_since = time.monotonic()
        self.up_since = 0.0
        """Since when it answers, by the monotonic clock."""
        self.answered = asyncio.Event()
        """Set when it has first told of its partitions."""
        self.created = 0.0
        """When the hub was made, in Unix seconds."""
        self.first: dict[str, int] = {}
        """The first sequence number that is read of each partition if it has no checkpoint."""
        self.last: dict[str, int] = {}
        """The last sequence number in each partition, -1 if there was none."""

    async def look(self) -> None:
        """Ask once; a hub that does not answer is said, and never raised."""
        probe = asyncio.create_task(self._attach()) if self.trouble else None
        try:
            async with self._turn, asyncio.timeout(_TIMEOUT):
                hub = await self._client.get_eventhub_properties()
                ask = self._client.get_partition_properties
                found = await asyncio.gather(*map(ask, hub["partition_ids"]))
                newest = max(one["last_enqueued_time_utc"] for one in found)
                self._note(hub["created_at"].timestamp(), found)
                self.answered.set()
                if probe:
                    await probe
        except Exception as error:  # noqa: BLE001 - whatever the client raises, and time-outs
            if not self.trouble:
                self._down_since = time.monotonic()
            self.trouble = str(cause.of_hub(error, self._settings))
            self._repeated.error("hub does not answer", reason=self.trouble)
            if probe:
                probe.cancel()
                await asyncio.gather(probe, return_exceptions=True)
        else:
            if self.trouble:
                self._repeated.forget()
                self.up_since = time.monotonic()
                down = round(self.up_since - self._down_since, 1)
                log.info("hub answers", partitions=len(self.last), downSeconds=down)
            elif datetime.now(UTC) - newest > QUIET:
                why = cause.of_silence(newest, self._settings.event_hub_name)
                self._quiet.error("hub is quiet", reason=str(why))
            else:
                self._quiet.forget()
            self.trouble = None

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    async def _attach(self) -> None:
        """Find out whether the consumer group is there and may be read."""
        try:
            receiver = await attach(self._client, self._settings, "0")
        except AMQPLinkError as error:
            if error.condition not in SHARED:
                raise
        else:
            await receiver.close()

    def _note(self, created: float, partitions: Sequence[dict[str, Any]]) -> None:
        self.last = {one["id"]: one["last_enqueued_sequence_number"] for one in partitions}
        if self.start == "@latest":
            self.start = self.last
        elif isinstance(self.start, dict) and created != self.created:
            self.start = {}  # all that is in a new hub came after the start
        self.created = created
        self.first = {one["id"]: self._first(one) for one in partitions}

    def _first(self, partition: dict[str, Any]) -> int:
        begin: int = partition["beginning_sequence_number"]
        last: int = partition["last_enqueued_sequence_number"]
        if isinstance(self.start, dict):
            return max(begin, self.start.get(partition["id"], -1) + 1)
        if isinstance(self.start, datetime) and partition["last_enqueued_time_utc"] <= self.start:
            return last + 1
        return begin
