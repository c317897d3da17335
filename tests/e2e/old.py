"""A stand-in for the previous deployment: the same environment, library and checkpoints.

One event per POST, one checkpoint per message, no draining on shutdown.
"""

import asyncio
import json
import os

import aiohttp
from azure.eventhub import EventData
from azure.eventhub.aio import EventHubConsumerClient, PartitionContext
from azure.eventhub.extensions.checkpointstoreblobaio import BlobCheckpointStore
from azure.storage.blob.aio import ContainerClient


async def _forward() -> None:
    storage = os.environ["BlobStorageConnectionString"], os.environ["BlobContainerName"]
    async with ContainerClient.from_connection_string(*storage) as container:
        if not await container.exists():
            await container.create_container()
    client = EventHubConsumerClient.from_connection_string(
        os.environ["EhubNamespaceConnectionString"],
        "$Default",
        eventhub_name=os.environ["EventHubName"],
        checkpoint_store=BlobCheckpointStore.from_connection_string(*storage),
    )
    async with aiohttp.ClientSession() as session, client:

        async def forward(context: PartitionContext, message: EventData | None) -> None:
            if message is None:
                return
            for record in json.loads(message.body_as_str())["records"]:
                async with session.post(
                    os.environ["WebSinkURL"],
                    data=record["properties"]["log"].strip(),
                    headers={"Content-Type": "application/json"},
                ) as response:
                    response.raise_for_status()
            await context.update_checkpoint(message)

        await client.receive(forward, starting_position="-1", max_wait_time=1)


if __name__ == "__main__":
    asyncio.run(_forward())
