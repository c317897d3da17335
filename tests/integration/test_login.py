"""Login with Microsoft Entra ID: check, log and probe report the cause of each failure."""

import asyncio
import base64
import json
import random
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web

from support import events
from support.eventhubs import Server
from support.harness import free_port
from support.process import Forwarder
from support.proxy import Proxy
from support.webhook import Webhook

HUB = "insights-logs-kube-audit"
CLIENT, TENANT = "c11e0000-0000-0000-0000-000000000000", "7e0a0000-0000-0000-0000-000000000000"
ISSUER, SUBJECT = "https://oidc.example/1/", "system:serviceaccount:falco:aks-audit"
TRAIL = " Trace ID: 0 Correlation ID: 0 Timestamp: 2026-01-01 00:00:00Z"
Response = tuple[int, dict[str, Any]]


def refusal(code: int, text: str = "Refused.", error: str = "invalid_request") -> Response:
    """Return the response of Entra ID to a login that it refuses."""
    return 401, {"error": error, "error_description": f"AADSTS{code}: {text}{TRAIL}"}


def granted(seconds: int) -> Response:
    """Return the token response of Entra ID and of the managed-identity endpoint."""
    times = {"expires_in": seconds, "expires_on": int(time.time()) + seconds}
    return 200, {"access_token": "t0k3n", "token_type": "Bearer", "resource": "x", **times}


def token(claims: dict[str, Any]) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{body}.c2ln"


class Entra:
    """Responds to token requests, as Entra ID and as the managed-identity endpoint."""

    def __init__(self) -> None:
        self.response: Response = granted(3600)
        self.requests = 0

    async def handle(self, _: web.BaseRequest) -> web.Response:
        self.requests += 1
        return web.json_response(self.response[1], status=self.response[0])


class World:
    """A hub and an Entra ID, both with certificates of a private CA."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.host = f"127.6.{random.randrange(256)}.{random.randrange(1, 255)}"  # with port 5671
        self.entra = Entra()
        self.server: Server
        self.webhook: Webhook
        self.ports: dict[str, int] = {}

    def settings(self, **more: str) -> dict[str, str]:
        """Return the variables of a pod with workload identity; an empty value removes one."""
        (self.path / "token").write_text(
            token({"iss": ISSUER, "sub": SUBJECT, "aud": ["api://AzureADTokenExchange"]})
        )
        found = {
            "EventHubNamespace": self.host,
            "WebSinkURL": self.webhook.url,
            "StateDirectory": str(self.path / "state"),
            "TrustedCAFile": str(self.path / "ca.pem"),
            "LoadBalancingInterval": "1",
            "AZURE_CLIENT_ID": CLIENT,
            "AZURE_TENANT_ID": TENANT,
            "AZURE_FEDERATED_TOKEN_FILE": str(self.path / "token"),
            "AZURE_AUTHORITY_HOST": f"https://127.0.0.1:{self.ports['https']}/",
            "AZURE_POD_IDENTITY_AUTHORITY_HOST": f"http://127.0.0.1:{self.ports['http']}",
            **more,
        }
        return {name: text for name, text in found.items() if text}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world, ca = World(tmp_path), trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(world.host, "127.0.0.1").configure_cert(tls)
    runner = web.ServerRunner(web.Server(world.entra.handle))
    await runner.setup()
    for scheme, context in (("https", tls), ("http", None)):
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        world.ports[scheme] = runner.addresses[-1][1]
    async with (
        Server({HUB: 1}, tls=tls, host=world.host, port=5671) as world.server,
        Webhook() as world.webhook,
    ):
        world.server.hubs[HUB].publish(0, events.envelope(events.real_events()[:3]))
        yield world
    await runner.cleanup()


async def test_workload_identity_works_and_all_connections_trust_the_private_ca(
    world: World,
) -> None:
    async with Forwarder(world.settings()) as forwarder:
        await world.webhook.until(lambda: world.webhook.total == 3)
        forwarder.terminate()
        await forwarder.wait()
    assert world.entra.requests == 1  # all connections share a token


async def test_without_workload_identity_the_managed_identity_of_the_node_is_used(
    world: World,
) -> None:
    proxy = f"http://127.0.0.1:{free_port()}"  # must not be used for the node's own endpoint
    settings = world.settings(
        AZURE_FEDERATED_TOKEN_FILE="", AZURE_TENANT_ID="", HTTP_PROXY=proxy, NO_PROXY=world.host
    )
    async with Forwarder(settings):
        await world.webhook.until(lambda: world.webhook.total == 3)


NO_MATCH = "No matching federated identity record found for presented assertion"
MANAGED = {"AZURE_FEDERATED_TOKEN_FILE": "", "AZURE_TENANT_ID": ""}
CREATE = (
    "az identity federated-credential create --resource-group GROUP --identity-name IDENTITY "
    f"--name NEW_NAME --issuer '{ISSUER}' --subject '{SUBJECT}' "
    "--audiences 'api://AzureADTokenExchange'"
)
ISSUER_OF = "az aks show --resource-group GROUP --name CLUSTER --query oidcIssuerProfile.issuerUrl"
# Each failure: settings, the response of Entra ID or the endpoint, parts of cause and remedy.
FAILURES: dict[str, tuple[dict[str, str], Response | None, str, str]] = {
    "subject": ({}, refusal(700213, f"{NO_MATCH} subject."), f"subject '{SUBJECT}'", CREATE),
    "issuer": ({}, refusal(700211, f"{NO_MATCH} issuer."), "(AADSTS700211)", CREATE),
    "neither": ({}, refusal(70021, f"{NO_MATCH}."), f"issuer '{ISSUER}'", CREATE),
    "application": (
        {},
        refusal(700016, "Application was not found.", "unauthorized_client"),
        f"has no application '{CLIENT}' (AADSTS700016); tried workload identity",
        "az identity show",
    ),
    "disabled": (
        {},
        refusal(7000112, "Application is disabled.", "unauthorized_client"),
        f"application '{CLIENT}' is disabled in tenant",
        "az ad sp update",
    ),
    "tenant": ({}, refusal(90002), f"knows no tenant '{TENANT}'", "az account show"),
    "clock": ({}, refusal(700024), "not valid at this time (AADSTS700024)", "NTP"),
    "signature": ({}, refusal(700027), "cannot verify the token", ISSUER_OF),
    "unknown key": (
        {},
        refusal(50013, "Assertion failed signature validation. [Reason - The key was not found.]"),
        "cannot verify the token of this pod (AADSTS50013)",
        ISSUER_OF,
    ),
    "secret": ({}, refusal(7000215), "AADSTS7000215", "workloadIdentity.enabled"),
    "secret expired": ({}, refusal(7000222), "has expired", "workloadIdentity.enabled"),
    "second factor": ({}, refusal(50076), "Conditional Access", "sign-in log"),
    "conditional access": ({}, refusal(53003), "Conditional Access", "sign-in log"),
    "resource": ({}, refusal(500011), "does not know the service", "AZURE_AUTHORITY_HOST"),
    "another": (
        {},
        refusal(123456, "Something new."),
        "AADSTS123456): ",
        "https://login.microsoftonline.com/error",
    ),
    "unavailable": ({}, (503, {"error": "x"}), "cannot issue a token now (503)", "it is retried"),
    "page of a firewall": (
        {},
        (403, {"blocked": "by policy"}),
        "answers as Microsoft Entra ID does not: ",
        "exempt it from TLS inspection",
    ),
    "code without its text": (
        {},
        (400, {"error": "invalid_request", "error_codes": [700213], "error_description": ""}),
        "no federated credential for the token of this pod (AADSTS700213)",
        CREATE,
    ),
    "redirect": ({}, (302, {}), "answers as Microsoft Entra ID does not: ", "proxy or firewall"),
    "no tenant": ({"AZURE_TENANT_ID": ""}, None, "AZURE_TENANT_ID is not set", "restart the pod"),
    "no client": ({"AZURE_CLIENT_ID": ""}, None, "AZURE_CLIENT_ID is not set", "clientId"),
    "no file": (
        {"AZURE_FEDERATED_TOKEN_FILE": "/nowhere/token"},
        None,
        "cannot be read from /nowhere/token: No such file",
        "workloadIdentity.enabled",
    ),
    "closed": (
        {"AZURE_AUTHORITY_HOST": "https://127.0.0.1:9"},
        None,
        "127.0.0.1:9 refuses connections",
        "HTTPS_PROXY",
    ),
    "inspected": (
        {"AZURE_AUTHORITY_HOST": "https://localhost:{https}"},
        None,
        "the certificate of localhost:",
        "firewall inspects TLS",
    ),
    "unknown host": (
        {"AZURE_AUTHORITY_HOST": "https://login.invalid"},
        None,
        "DNS knows no host 'login.invalid'",
        "AZURE_AUTHORITY_HOST",
    ),
    "node": (
        MANAGED,
        (400, {"error": "invalid_request", "error_description": "Identity not found"}),
        f"; tried the managed identity of the node {CLIENT}",
        "federated-credential create",
    ),
    "several": (
        MANAGED | {"AZURE_CLIENT_ID": ""},
        (400, {"error": "invalid_request", "error_description": "Multiple user assigned ..."}),
        "",
        "",
    ),
    "node's endpoint": (MANAGED, (500, {"error": "x"}), "now (500)", "it is retried"),
    "node's endpoint refuses": (MANAGED, (403, {}), "no token (403)", "workloadIdentity.enabled"),
    "no endpoint": (
        MANAGED | {"AZURE_POD_IDENTITY_AUTHORITY_HOST": "http://127.0.0.1:9"},
        None,
        "endpoint 127.0.0.1 does not answer, and this pod has no workload identity",
        "workloadIdentity.enabled",
    ),
}
FAILURES["several"][1][1]["error_description"] = (  # type: ignore[index]  # it has a response
    "Multiple user assigned identities exist, please specify the clientId / resourceId"
)
FAILURES["several"] = (*FAILURES["several"][:2], "several managed identities", "AZURE_CLIENT_ID")


@pytest.mark.parametrize("failure", FAILURES)
async def test_check_log_and_probe_report_the_cause_of_a_failure(
    world: World, failure: str
) -> None:
    extra, response, cause, remedy = FAILURES[failure]
    if response:
        world.entra.response = response
    settings = world.settings(
        **{name: text.format_map(world.ports) for name, text in extra.items()}
    )
    async with Forwarder(settings) as forwarder, Forwarder(settings, "check") as check:
        reason = (await forwarder.wait_for("hub does not answer"))["reason"]
        status, body = await forwarder.get("/readyz")
        assert await check.wait() == 1
    (line,) = [number for number, one in enumerate(check.lines) if one.startswith("FAIL")]
    assert check.lines[line].startswith("FAIL    hub login")
    assert status == 503
    for text in (reason, json.loads(body)["reasons"][0] if "reasons" in body else body):
        assert cause in text
    assert cause in check.lines[line]
    assert remedy in reason
    assert remedy in check.lines[line + 1]


async def test_the_subject_is_taken_from_the_refusal_if_the_token_has_none(
    world: World,
) -> None:
    world.entra.response = refusal(700213, f"{NO_MATCH} subject '{SUBJECT}'.")
    settings = world.settings()
    (world.path / "token").write_text("e30.e30.c2ln")
    async with Forwarder(settings) as forwarder:
        reason = (await forwarder.wait_for("hub does not answer"))["reason"]
    assert f"--subject '{SUBJECT}'" in reason


async def test_logins_are_retried_with_backoff_and_recover(world: World) -> None:
    world.entra.response = refusal(700016)
    async with Forwarder(world.settings()) as forwarder:
        await forwarder.wait_for("hub does not answer")
        await asyncio.sleep(8)
        assert world.entra.requests <= 6  # after 0, 1, 3, 7 seconds; 12 without backoff
        world.entra.response = Entra().response
        await world.webhook.until(lambda: world.webhook.total == 3)
        assert forwarder.entries("hub answers")


async def test_a_proxy_that_requires_a_login_is_not_reported_as_entra(world: World) -> None:
    async with Proxy(credentials="someone:correct-horse-battery") as proxy:
        settings = world.settings(HTTPS_PROXY=proxy.url, NO_PROXY=world.host)
        async with Forwarder(settings) as forwarder:
            reason = (await forwarder.wait_for("hub does not answer"))["reason"]
    assert f"the proxy 127.0.0.1:{proxy.port} asks for a login on the way to 127.0.0.1:" in reason


async def test_token_requests_use_a_proxy_whose_url_is_in_a_file(world: World) -> None:
    """URL and NO_PROXY may have any form that is valid for the hub."""
    async with Proxy(credentials="someone:correct-horse-battery") as proxy:
        (world.path / "proxy").write_text(f"{proxy.credentials}@127.0.0.1:{proxy.port}\n")
        entra = f"127.0.0.1:{world.ports['https']}"
        proxy.routes[entra] = ("127.0.0.1", world.ports["https"])
        file = str(world.path / "proxy")
        async with Forwarder(world.settings(HTTPS_PROXY_FILE=file, NO_PROXY=world.host)):
            await world.webhook.until(lambda: world.webhook.total == 3)
        assert {*proxy.requested} == {entra}
        before, direct = world.entra.requests, f"{world.host} {entra}"
        proxy.requested.clear()
        async with Forwarder(world.settings(HTTPS_PROXY_FILE=file, NO_PROXY=direct)) as forwarder:
            await forwarder.wait_for("partition claimed")
        assert world.entra.requests > before
        assert proxy.requested == []


async def test_a_missing_role_is_reported_with_the_identity(world: World) -> None:
    world.server.faults.refuse("put-token", 401)
    async with Forwarder(world.settings(), "check") as check:
        assert await check.wait() == 1
    (line,) = [number for number, one in enumerate(check.lines) if one.startswith("FAIL")]
    assert f"the identity {CLIENT} may not read hub '{HUB}'" in check.lines[line]
    assert f"--role 'Azure Event Hubs Data Receiver' --assignee {CLIENT}" in check.lines[line + 1]


async def test_a_failed_token_renewal_is_reported(world: World) -> None:
    """Tokens expire after seconds, and the client renews them on open connections."""
    world.entra.response = granted(5)
    async with Forwarder(world.settings()) as forwarder:
        await world.webhook.until(lambda: world.webhook.total == 3)
        world.entra.response = refusal(700016, "Application was not found.", "unauthorized_client")
        world.server.faults.drop()
        entry = await forwarder.wait_for("hub does not answer")
    assert f"has no application '{CLIENT}'" in entry["reason"]
