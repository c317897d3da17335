"""The event hub: how to reach it, where to start in it, and how far it has come."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

import certifi
from azure.eventhub import EventData, TransportType
from azure.eventhub._pyamqp.error import AMQPLinkError, ErrorCondition
from azure.eventhub.aio import EventHubConsumerClient
from azure.eventhub.aio._consumer_async import EventHubConsumer

from forwarder import cause, log
from forwarder.settings import Settings

_TIMEOUT: Final = 20.0  # seconds for one look
QUIET: Final = timedelta(hours=1)  # without a message: AKS writes some every minute
# Somebody owns the partition, or five read it: all is well with hub and consumer group.
SHARED: Final = {ErrorCondition.LinkStolen, ErrorCondition.ResourceLimitExceeded}
_ENDS: Final = {"-1": datetime.min.replace(tzinfo=UTC), "@latest": datetime.max.replace(tzinfo=UTC)}


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
    try:
        await receiver._open()  # noqa: SLF001 - the same
    except BaseException:
        await receiver.close()
        raise
    return receiver


def starting_position(settings: Settings) -> str | datetime:
    """Return what a partition without a checkpoint is read after, in the client's terms."""
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
        start = starting_position(settings)
        self._start = _ENDS[start] if isinstance(start, str) else start
        self.trouble: str | None = "it has not answered yet"
        """Why the hub does not answer, in a line; None while it does."""
        self.first: dict[str, int] = {}
        """The first sequence number that is read of each partition if it has no checkpoint.

        With `latest` only a message that has come tells: until then, the next one.
        """
        self.last: dict[str, int] = {}
        """The last sequence number in each partition, -1 if there was none."""

    async def look(self) -> None:
        """Ask once; a hub that does not answer is said, and never raised."""
        probe = asyncio.create_task(self._attach()) if self.trouble else None
        try:
            async with asyncio.timeout(_TIMEOUT):
                partitions = await self._client.get_partition_ids()
                newest = max(await asyncio.gather(*map(self._look_at, partitions)))
                if probe:
                    await probe
        except Exception as error:  # noqa: BLE001 - whatever the client raises, and time-outs
            self.trouble = str(cause.of_hub(error, self._settings))
            self._repeated.error("hub does not answer", reason=self.trouble)
            if probe:
                probe.cancel()
                await asyncio.gather(probe, return_exceptions=True)
        else:
            if self.trouble:
                log.info("hub answers", partitions=len(self.last))
                self._repeated.forget()
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

    async def _look_at(self, partition: str) -> datetime:
        """Return when the partition's newest message came; year 1 if none ever did."""
        found = await self._client.get_partition_properties(partition)
        last = self.last[partition] = found["last_enqueued_sequence_number"]
        newest: datetime = found["last_enqueued_time_utc"]
        behind = newest > self._start
        self.first[partition] = found["beginning_sequence_number"] if behind else last + 1
        return newest
