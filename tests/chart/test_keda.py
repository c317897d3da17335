"""KEDA finds the checkpoints of a running forwarder where the chart's ScaledObject says."""

from pathlib import Path

from support import chart
from support.azurite import azurite
from support.environment import environment
from support.stores import container


async def test_keda_is_told_where_the_checkpoints_are_whatever_the_hub_is_called(
    tmp_path: Path,
) -> None:
    """With blobMetadata it reads NAMESPACE/HUB/GROUP/checkpoint/PARTITION, just GROUP lowered."""
    hub = "Insights-Logs-Kube-Audit"  # the server takes it for the hub of the scene
    values = {
        "eventHub.connectionString": "Endpoint=sb://a.servicebus.windows.net/;SharedAccessKey=b",
        "eventHub.name": hub,
        "blobStorage.connectionString": "AccountName=a;AccountKey=b",
        "keda.enabled": "true",
    }
    arguments = [text for value in values.items() for text in ("--set", "=".join(value))]
    (scaled,) = chart.of_kind(chart.render(*arguments), "ScaledObject")
    (trigger,) = scaled["spec"]["triggers"]
    told = trigger["metadata"]
    assert told["checkpointStrategy"] == "blobMetadata"
    async with azurite() as store, environment(tmp_path, partitions=1) as stage:
        stage.ledger.publish(30)
        async with stage.replica("a", store, EventHubName=hub) as forwarder:
            await forwarder.until(lambda: stage.webhook.total == 30)
            forwarder.terminate()
            assert await forwarder.wait() == 0
        namespace = f"127.0.0.1:{stage.server.port}"
        group = told["consumerGroup"].lower()
        name = f"{namespace}/{told['eventHubName']}/{group}/checkpoint/0"
        async with container(store) as client:
            assert client.container_name == told["blobContainer"]
            properties = await client.get_blob_client(name).get_blob_properties()
        assert int(properties.metadata["sequencenumber"]) == 2
