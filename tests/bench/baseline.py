"""A minimal forwarder for comparison: one event per POST, and one checkpoint per message."""

import asyncio
import json
import os
from pathlib import Path

import aiohttp
from azure.eventhub import EventData
from azure.eventhub.aio import EventHubConsumerClient, PartitionContext

from forwarder.checkpoints.sqlite import EmbeddedCheckpointStore

_HUB = "insights-logs-kube-audit"
_JSON = {"Content-Type": "application/json"}


async def forward(connection: str, url: str, store: EmbeddedCheckpointStore) -> None:
    """Forward all events of the hub, without end."""
    client = EventHubConsumerClient.from_connection_string(
        connection, "$Default", eventhub_name=_HUB
    )
    async with client, aiohttp.ClientSession() as http:

        async def receive(partition: PartitionContext, message: EventData | None) -> None:
            assert message
            for record in json.loads(message.body_as_str())["records"]:
                event = record["properties"]["log"].strip().encode()
                async with http.post(url, data=event, headers=_JSON) as response:
                    response.raise_for_status()
            await store.update_checkpoint(
                {
                    "fully_qualified_namespace": partition.fully_qualified_namespace,
                    "eventhub_name": partition.eventhub_name,
                    "consumer_group": partition.consumer_group,
                    "partition_id": partition.partition_id,
                    "offset": message.offset,
                    "sequence_number": message.sequence_number,
                }
            )

        await client.receive(receive, starting_position="-1")


if __name__ == "__main__":
    state = Path(os.environ["StateDirectory"])  # noqa: SIM112  as the forwarder's
    asyncio.run(
        forward(
            os.environ["EhubNamespaceConnectionString"],  # noqa: SIM112
            os.environ["WebSinkURL"],  # noqa: SIM112
            EmbeddedCheckpointStore(state / "checkpoints.db"),
        )
    )
