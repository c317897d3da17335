"""Reads new events from a real hub: one line per audit event, nothing is written to Azure."""

import asyncio
import sys
from collections import Counter
from contextlib import suppress
from typing import Any

from azure.eventhub import EventData
from azure.eventhub.aio import EventHubConsumerClient

from forwarder import log
from forwarder.audit.envelope import Event, unpack
from forwarder.audit.summary import summary
from forwarder.config.settings import Settings
from forwarder.errors import SettingsError
from forwarder.hub.client import connect

# https://learn.microsoft.com/azure/event-hubs/event-hubs-features#consumer-groups
STOLEN = (
    "Consumer group {group} has another reader, most likely a running forwarder; "
    "it is not affected. Create a consumer group for this demo (az eventhubs eventhub "
    "consumer-group create) and set its name: ConsumerGroup=NAME make demo"
)


async def show() -> int:
    """Print one line per event until cancelled; return the exit status if it ends before."""
    try:
        settings = Settings.from_env()
    except SettingsError as error:
        _print(*error.problems)
        return 2
    where = f"{settings.event_hub_name}, consumer group {settings.consumer_group}"
    try:
        async with connect(settings, None, retry_total=0) as client:
            partitions = await client.get_partition_ids()
    except Exception as error:  # noqa: BLE001 - print any error of the client in one line
        _print(f"The hub {where} does not respond: {log.describe(error)}")
        return 1
    _print(f"Reading new events from {where}, {len(partitions)} partitions. Stop with Ctrl-C.")
    _print("Nothing is written to Azure. Any use of the cluster causes events: kubectl get pods")
    # No owner level and no checkpoint store: this does not affect a reader with an owner level.
    return await _Reader(settings, connect(settings, None, load_balancing_interval=5)).run(where)


class _Reader:
    def __init__(self, settings: Settings, client: EventHubConsumerClient) -> None:
        self._settings = settings
        self._client = client
        self._stolen = asyncio.Event()
        self._counts: Counter[str] = Counter()

    async def run(self, where: str) -> int:
        reading = asyncio.create_task(
            self._client.receive_batch(
                self._receive, on_error=self._on_error, starting_position="@latest"
            )
        )
        try:
            await self._stolen.wait()
            _print(STOLEN.format(group=self._settings.consumer_group))
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading
            await self._client.close()
            counts = ", ".join(f"{count:,} {what}" for what, count in self._counts.items())
            _print(f"Read from {where}: {counts or 'nothing'}.")
        return 1

    async def _receive(self, _: Any, messages: list[EventData]) -> None:
        for message in messages:
            body: Any = message.body  # the type includes bodies that only senders create
            unpacked = unpack(b"".join(body), self._settings.categories)
            self._counts["messages"] += 1
            self._counts["events"] += len(unpacked.events)
            self._counts["records of other categories"] += unpacked.skipped
            self._counts["dead letters"] += len(unpacked.unusable)
            _print(*map(line, unpacked.events))

    async def _on_error(self, partition: Any, error: Exception) -> None:
        if "amqp:link:stolen" in str(error):
            self._stolen.set()
        else:
            what = f"partition {partition.partition_id}" if partition else "the hub"
            _print(f"{what}: {log.describe(error)}; retrying")


def line(event: Event) -> str:
    """Return an event's summary as one line without control characters."""
    found = summary(event.body)
    target = "/".join(filter(None, (found["namespace"], found["name"]))) or "-"
    texts = (found["verb"], found["user"] or "-", found["resource"] or "-", target, found["code"])
    text = " ".join([event.stage_timestamp or "-", *map(str, texts)])
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )


def _print(*lines: str) -> None:
    sys.stdout.writelines(f"{one}\n" for one in lines)
    sys.stdout.flush()
