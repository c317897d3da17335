"""The state of the hub: how far each partition has come; receivers are silent when it is away."""

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from azure.eventhub._pyamqp.error import AMQPLinkError

from forwarder import log
from forwarder.config.settings import Settings
from forwarder.diagnosis import causes
from forwarder.hub.client import SHARED, attach, connect

_TIMEOUT: Final = 20.0  # seconds for one look
QUIET: Final = timedelta(hours=1)  # without a message: AKS writes some every minute


def _starting_position(settings: Settings) -> str | datetime:
    start = settings.start_position
    if isinstance(start, str):
        return {"earliest": "-1", "latest": "@latest"}[start]  # guard: earliest
    instant = start if isinstance(start, datetime) else datetime.now(UTC) - start
    return instant - timedelta(milliseconds=1)  # the hub's clock ticks so; the instant is included


class HubMonitor:
    """Asks the hub how far each partition has come: receivers are silent when it is away."""

    def __init__(self, settings: Settings, credential: Any) -> None:
        # Without retries of its own: its errors are what the operator is told.
        self._client = connect(settings, credential, retry_total=0)
        self._settings = settings
        self._repeated = log.RateLimited()
        self._quiet = log.RateLimited(QUIET.total_seconds())
        self._turn = asyncio.Lock()
        self.start: str | datetime | dict[str, int] = _starting_position(settings)
        """What a partition without a checkpoint is read after, in the client's terms.

        `latest` becomes the numbers of the partitions' ends at the first look, for each receiver
        that is opened anew would start at an end of its own.
        """
        self.failure: str | None = "it has not answered yet"
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
        probe = asyncio.create_task(self._attach()) if self.failure else None
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
            if not self.failure:
                self._down_since = time.monotonic()
            self.failure = str(causes.of_hub(error, self._settings))
            self._repeated.error("hub does not answer", reason=self.failure)
            if probe:
                probe.cancel()
                await asyncio.gather(probe, return_exceptions=True)
        else:
            if self.failure:
                self._repeated.forget()
                self.up_since = time.monotonic()
                down = round(self.up_since - self._down_since, 1)
                log.info("hub answers", partitions=len(self.last), downSeconds=down)
            elif datetime.now(UTC) - newest > QUIET:
                why = causes.of_silence(newest, self._settings.event_hub_name)
                self._quiet.error("hub is quiet", reason=str(why))
            else:
                self._quiet.forget()
            self.failure = None

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
