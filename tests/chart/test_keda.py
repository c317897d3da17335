"""KEDA scales by the backlog of a forwarder, with the ScaledObject that the chart renders.

tests/tools/keda is built from KEDA's own scaler, which queries the hub and reads the checkpoints.
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

HUB = "Insights-Logs-Kube-Audit"  # the same hub: names are case-insensitive
DOMAINS = ["windows.net", "usgovcloudapi.net", "chinacloudapi.cn"]


def rendered(**values: str) -> dict[str, Any]:
    """Return what KEDA reads from ScaledObject, TriggerAuthentication and Secret."""
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
    """Return the number of waiting messages and whether KEDA activates, or KEDA's error."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(tool("keda"), stdin=pipe, stdout=pipe)
    output, _ = await process.communicate(json.dumps(trigger).encode())
    return output.decode().strip()


async def forward(env: Environment, total: int, store: Azurite, **settings: str) -> None:
    """Run a forwarder until the sink has this many events, and stop it."""
    async with env.replica("a", store, **settings) as forwarder:
        await forwarder.until(lambda: env.webhook.total == total)
        forwarder.terminate()
        assert await forwarder.wait() == 0


@pytest.mark.parametrize("where", ["name", "EntityPath"])
async def test_the_lag_is_the_backlog_for_any_spelling_of_the_hub(
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
        # With the original connection string, KEDA finds no checkpoint.
        assert await keda(trigger | {"connection": connection}) == "7 true"
        env.ledger.publish(30)
        assert await keda(trigger) == "3 true"
        await forward(env, 100, store, **settings)
        assert await keda(trigger) == "0 false"


@pytest.mark.parametrize("domain", DOMAINS)
async def test_keda_queries_the_hosts_of_the_cloud(domain: str) -> None:
    hub, account = f"example.servicebus.{domain}", f"account.blob.core.{domain}"
    values = {"eventHub.namespace": hub, "blobStorage.accountUrl": f"https://{account}"}
    assert await keda(rendered(**values)) == f"{hub} {account}"
