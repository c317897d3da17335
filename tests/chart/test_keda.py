"""KEDA scales by what a forwarder has left to do, with the chart's ScaledObject as it is rendered.

KEDA's own scaler asks the hub and finds the checkpoints: tests/tools/keda is built from its module.
"""

import asyncio
import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest

from support import chart
from support.azurite import Azurite, azurite
from support.environment import Environment, environment
from support.prometheus import tool

HUB = "Insights-Logs-Kube-Audit"  # the server takes it for the hub of the scene
DOMAINS = ["windows.net", "usgovcloudapi.net", "chinacloudapi.cn"]


def rendered(**values: str) -> dict[str, Any]:
    """Return what KEDA gets from ScaledObject, TriggerAuthentication and Secret."""
    arguments = [text for value in values.items() for text in ("--set", "=".join(value))]
    manifests = chart.render("--set", "keda.enabled=true", *arguments)
    (scaled,) = chart.of_kind(manifests, "ScaledObject")
    (authentication,) = chart.of_kind(manifests, "TriggerAuthentication")
    secrets = chart.of_kind(manifests, "Secret")
    given = {
        item["parameter"]: b64decode(secrets[0]["data"][item["key"]]).decode()
        for item in authentication["spec"].get("secretTargetRef", ())
    }
    given["provider"] = authentication["spec"].get("podIdentity", {}).get("provider", "")
    return {"metadata": scaled["spec"]["triggers"][0]["metadata"], **given}


async def keda(trigger: dict[str, Any]) -> str:
    """Return the messages that wait and whether KEDA activates, or why KEDA fails."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(tool("keda"), stdin=pipe, stdout=pipe)
    output, _ = await process.communicate(json.dumps(trigger).encode())
    return output.decode().strip()


async def forward(env: Environment, total: int, store: Azurite, **settings: str) -> None:
    """Run a forwarder until the sink has so many events, and stop it."""
    async with env.replica("a", store, **settings) as forwarder:
        await forwarder.until(lambda: env.webhook.total == total)
        forwarder.terminate()
        assert await forwarder.wait() == 0


@pytest.mark.parametrize("where", ["name", "EntityPath"])
async def test_the_lag_is_what_is_left_to_do_whatever_the_spelling(
    where: str, tmp_path: Path
) -> None:
    async with azurite() as store, environment(tmp_path, partitions=2) as env:
        connection = env.server.connection_string().replace("127.0.0.1", "LocalHost")
        values = {"blobStorage.connectionString": store.connection_string}
        settings = {}
        if where == "name":
            settings["EventHubName"] = values["eventHub.name"] = HUB
        else:
            connection += f";EntityPath={HUB}"
        settings["EhubNamespaceConnectionString"] = connection
        trigger = rendered(**values, **{"eventHub.connectionString": connection})
        env.ledger.publish(70)
        assert await keda(trigger) == "7 true"
        await forward(env, 70, store, **settings)
        assert await keda(trigger) == "0 false"
        # The connection string as it was given leads to no checkpoint.
        assert await keda(trigger | {"connection": connection}) == "7 true"
        env.ledger.publish(30)
        assert await keda(trigger) == "3 true"
        await forward(env, 100, store, **settings)
        assert await keda(trigger) == "0 false"


@pytest.mark.parametrize("domain", DOMAINS)
async def test_keda_asks_the_hosts_of_the_cloud(domain: str) -> None:
    hub, account = f"example.servicebus.{domain}", f"account.blob.core.{domain}"
    values = {"eventHub.namespace": hub, "blobStorage.accountUrl": f"https://{account}"}
    assert await keda(rendered(**values)) == f"{hub} {account}"
