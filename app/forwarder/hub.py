"""The event hub: how to reach it, where to start in it, and how far it has come."""

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import certifi
from azure.eventhub import TransportType
from azure.eventhub.aio import EventHubConsumerClient

from forwarder import log
from forwarder.settings import Settings

_TIMEOUT: Final = 20.0  # seconds for one look
_ENDS: Final = {"-1": datetime.min.replace(tzinfo=UTC), "@latest": datetime.max.replace(tzinfo=UTC)}


def connect(settings: Settings, credential: Any, **options: Any) -> EventHubConsumerClient:
    """Return a client of the hub, logged in as the settings say."""
    trusted = ssl.create_default_context()
    trusted.load_verify_locations(certifi.where())  # slim images have no store of their own
    options |= {
        "eventhub_name": settings.event_hub_name,
        "transport_type": (
            TransportType.AmqpOverWebsocket
            if settings.hub_transport == "websockets"
            else TransportType.Amqp
        ),
        "ssl_context": trusted,
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
        self._repeated = log.Repeated()
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
        try:
            async with asyncio.timeout(_TIMEOUT):
                partitions = await self._client.get_partition_ids()
                await asyncio.gather(*(self._look_at(partition) for partition in partitions))
        except Exception as error:  # noqa: BLE001 - whatever the client raises, and time-outs
            self.trouble = log.describe(error)
            self._repeated.error("hub does not answer", reason=self.trouble)
        else:
            if self.trouble:
                log.info("hub answers", partitions=len(self.last))
                self._repeated.forget()
            self.trouble = None

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    async def _look_at(self, partition: str) -> None:
        found = await self._client.get_partition_properties(partition)
        last = self.last[partition] = found["last_enqueued_sequence_number"]
        behind = found["last_enqueued_time_utc"] > self._start
        self.first[partition] = found["beginning_sequence_number"] if behind else last + 1
