"""KEDA finds the checkpoints of a running forwarder where the chart's ScaledObject says.

KEDA's own code looks for them: tests/tools/keda is built from its module.
"""

import json
import subprocess
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest

from support import chart
from support.azurite import azurite
from support.environment import environment
from support.prometheus import tool

HUB = "Insights-Logs-Kube-Audit"  # the server takes it for the hub of the scene


def rendered(**values: str) -> dict[str, Any]:
    """Return what KEDA gets from ScaledObject, TriggerAuthentication and Secret."""
    arguments = [text for value in values.items() for text in ("--set", "=".join(value))]
    manifests = chart.render("--set", "keda.enabled=true", *arguments)
    (scaled,) = chart.of_kind(manifests, "ScaledObject")
    (authentication,) = chart.of_kind(manifests, "TriggerAuthentication")
    (secret,) = chart.of_kind(manifests, "Secret")
    given = {
        item["parameter"]: b64decode(secret["data"][item["key"]]).decode()
        for item in authentication["spec"]["secretTargetRef"]
    }
    return {"metadata": scaled["spec"]["triggers"][0]["metadata"], **given}


def found_by_keda(trigger: dict[str, Any]) -> str:
    """Return the sequence number of partition 0's checkpoint, or why KEDA finds none."""
    done = subprocess.run(
        [tool("keda")], input=json.dumps(trigger), check=False, capture_output=True, text=True
    )
    return (done.stdout or done.stderr).strip()


@pytest.mark.parametrize("where", ["name", "EntityPath"])
async def test_keda_finds_the_checkpoints_whatever_the_spelling(where: str, tmp_path: Path) -> None:
    async with azurite() as store, environment(tmp_path, partitions=1) as env:
        env.ledger.publish(30)
        connection = env.server.connection_string().replace("127.0.0.1", "LocalHost")
        named = {"EventHubName": HUB} if where == "name" else {}
        if where == "EntityPath":
            connection += f";EntityPath={HUB}"
        async with env.replica(
            "a", store, EhubNamespaceConnectionString=connection, **named
        ) as forwarder:
            await forwarder.until(lambda: env.webhook.total == 30)
            forwarder.terminate()
            assert await forwarder.wait() == 0
        values = {
            "eventHub.connectionString": connection,
            "blobStorage.connectionString": store.connection_string,
        }
        if named:
            values["eventHub.name"] = HUB
        trigger = rendered(**values)
        assert found_by_keda(trigger) == "2"
        assert "BlobNotFound" in found_by_keda(trigger | {"connection": connection})
