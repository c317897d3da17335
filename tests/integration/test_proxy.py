"""Egress through an HTTP proxy, and TLS inspection with a private CA."""

import asyncio
import random
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from aiohttp import web
from azure.core.rest import HttpRequest
from yarl import URL

from forwarder.config.network import azure_options
from forwarder.config.settings import Settings
from support import events, stores
from support.azurite import azurite
from support.eventhubs import Server
from support.harness import free_port
from support.process import Forwarder
from support.proxy import Proxy
from support.webhook import Webhook

HUB = "insights-logs-kube-audit"
LOGIN = "someone:correct-horse-battery"


class Network:
    """A network whose hub is reachable only through a proxy, with a certificate of a private CA."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.host = f"127.7.{random.randrange(256)}.{random.randrange(1, 255)}"
        self.proxy = Proxy()
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server: Server
        self.webhook: Webhook

    def settings(self, **more: str) -> dict[str, str]:
        name, key = next(iter(self.server.keys.items()))
        variables = {
            "EhubNamespaceConnectionString": f"Endpoint=sb://{self.host};SharedAccessKeyName={name}"
            f";SharedAccessKey={key}",
            "HubTransport": "websockets",
            "WebSinkURL": self.webhook.url,
            "StateDirectory": str(self.path / "state"),
            "TrustedCAFile": str(self.path / "ca.pem"),
            "HTTPS_PROXY": self.proxy.url,
            "HTTP_PROXY": self.proxy.url,
            "LoadBalancingInterval": "1",
            **more,
        }
        return {variable: text for variable, text in variables.items() if text}


@pytest.fixture
async def network(tmp_path: Path) -> AsyncIterator[Network]:
    network, ca = Network(tmp_path), trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    ca.issue_cert(network.host).configure_cert(network.tls)
    async with (
        Server({HUB: 1}, tls=network.tls) as network.server,
        Webhook() as network.webhook,
        network.proxy,
    ):
        network.proxy.routes[f"{network.host}:443"] = ("127.0.0.1", network.server.port)
        network.server.hubs[HUB].publish(0, events.envelope(events.real_events()[:3]))
        yield network


async def failed_checks(settings: dict[str, str]) -> list[str]:
    """Run `check`; return the lines of failed components, each with its remedy."""
    async with Forwarder(settings, "check") as check:
        await check.wait(90)
    assert LOGIN.partition(":")[2] not in "".join([*check.lines, check.stderr])
    return [
        line + "\n" + (check.lines[number + 1 : number + 2] or [""])[0]
        for number, line in enumerate(check.lines)
        if line.startswith("FAIL")
    ]


@pytest.mark.parametrize("spelling", ["upper", "lower", "login"])
async def test_hub_and_store_use_the_proxy_and_the_sink_does_not(
    network: Network, spelling: str
) -> None:
    url = network.proxy.url
    if spelling == "login":
        network.proxy.credentials = LOGIN
        url = url.replace("//", f"//{LOGIN}@")
    variables = {"HTTPS_PROXY": url, "HTTP_PROXY": url}
    if spelling == "lower":
        variables |= {"https_proxy": url, "http_proxy": url, "HTTPS_PROXY": "http://unused.invalid"}
    async with azurite() as store:
        network.proxy.routes[f"127.0.0.1:{store.port}"] = ("127.0.0.1", store.port)
        text = store.connection_string
        settings = network.settings(BlobStorageConnectionString=text, VerboseLevel="4", **variables)
        async with Forwarder(settings) as forwarder:
            await network.webhook.until(lambda: network.webhook.total == 3)
            forwarder.terminate()
            assert await forwarder.wait() == 0
        assert await stores.shared(store) == {"0": 0}
        assert {*network.proxy.requested} == {f"{network.host}:443", f"127.0.0.1:{store.port}"}
        assert await failed_checks(settings) == []
    assert LOGIN.partition(":")[2] not in "".join([*forwarder.lines, forwarder.stderr])


async def test_a_renewed_login_of_the_proxy_is_used_without_a_restart(network: Network) -> None:
    """The hub uses it for the next connection, other Azure services for the next request."""
    file, first, second = network.path / "proxy", "someone:first-password", "someone:next-password"
    host = f"127.0.0.1:{network.proxy.port}"
    network.proxy.credentials = first
    file.write_text(f"http://{first}@{host}")
    environment = network.settings(HTTPS_PROXY="", HTTP_PROXY="", HTTPS_PROXY_FILE=str(file))
    url = URL(f"https://{network.host}:443/")
    transport = azure_options(Settings.from_env(environment), url)["transport"]

    async def status() -> int:
        response = await transport.send(
            HttpRequest("GET", str(url), headers={"Connection": "close"})
        )
        return int(response.status_code)

    async with Forwarder(environment) as forwarder, transport:
        await network.webhook.until(lambda: network.webhook.total == 3)
        assert await status() == 404  # from the HTTP server of the hub
        network.proxy.credentials = second
        network.server.faults.drop()
        reason = (await forwarder.wait_for("hub does not answer"))["reason"]
        assert "asks for a login" in reason
        file.write_text(f"http://{second}@{host}")
        network.server.hubs[HUB].publish(0, events.envelope(events.real_events()[3:5]))
        await network.webhook.until(lambda: network.webhook.total == 5)
        assert await status() == 404


@pytest.mark.parametrize(
    "no_proxy", ["{}", "10.0.0.0/8,127.0.0.0/8", "x.example, {}:443", "*", "{} .svc"]
)
async def test_a_host_in_no_proxy_is_connected_to_directly(network: Network, no_proxy: str) -> None:
    async with Server({HUB: 1}, tls=network.tls, host=network.host, port=443) as direct:
        direct.keys = network.server.keys
        direct.hubs[HUB].publish(0, events.envelope(events.real_events()[:5]))
        async with Forwarder(network.settings(NO_PROXY=no_proxy.format(network.host))):
            await network.webhook.until(lambda: network.webhook.total == 5)
    assert network.proxy.requested == []


@pytest.mark.parametrize("no_proxy", ["example.org", "127.7.0.0/33", "{}:5671"])
async def test_no_proxy_for_other_hosts_has_no_effect(network: Network, no_proxy: str) -> None:
    async with Forwarder(network.settings(NO_PROXY=no_proxy.format(network.host))):
        await network.webhook.until(lambda: network.webhook.total == 3)


# The proxy's status, and words of the expected reason and remedy.
REFUSALS = {
    "login": (407, "asks for a login on the way to ", "put user:password@ before the host"),
    "forbidden": (403, "does not connect to ", "allow "),
    "unavailable": (503, "it answers 503", "NO_PROXY"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_refusal_by_the_proxy_is_reported(network: Network, refusal: str) -> None:
    network.proxy.status, reason, remedy = REFUSALS[refusal]
    settings = network.settings()
    async with Forwarder(settings) as forwarder:
        entry = await forwarder.wait_for("hub does not answer")
        status, body = await forwarder.get("/readyz")
    (line,) = await failed_checks(settings)
    assert line.startswith("FAIL    hub login")
    assert status == 503
    for text in (entry["reason"], line):
        assert f"the proxy 127.0.0.1:{network.proxy.port}" in text
        assert reason in text
        assert remedy in text
    assert reason in body


async def test_an_unreachable_proxy_is_reported_with_its_address(network: Network) -> None:
    port = free_port()
    settings = network.settings(HTTPS_PROXY=f"http://127.0.0.1:{port}")
    async with Forwarder(settings) as forwarder:
        entry = await forwarder.wait_for("hub does not answer")
    (line,) = await failed_checks(settings)
    assert line.startswith("FAIL    hub login")
    for text in (entry["reason"], line):
        assert f"127.0.0.1:{port} refuses connections" in text
        assert "check HTTPS_PROXY (httpsProxy)" in text


@pytest.mark.parametrize("response", [b"", b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
async def test_a_proxy_that_closes_the_connection_is_reported(
    network: Network, response: bytes
) -> None:
    """It is not a proxy, or it closes the connection once it knows the destination."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as proxy:
        address = f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        settings = network.settings(HTTPS_PROXY=f"http://{address}")
        async with Forwarder(settings) as forwarder:
            entry = await forwarder.wait_for("hub does not answer")
        account = "AccountName=a;AccountKey=a2V5;DefaultEndpointsProtocol=https"
        line, store = await failed_checks(settings | {"BlobStorageConnectionString": account})
    for text in (entry["reason"], line):
        assert f"{network.host}:443 cannot be reached through the proxy {address}: " in text
        assert f"allow {network.host}:443 in the proxy" in text
    assert f"a.blob.core.windows.net:443 cannot be reached through the proxy {address}: " in store
    assert "allow a.blob.core.windows.net:443 in the proxy" in store


async def test_an_untrusted_proxy_certificate_is_attributed_to_the_proxy(network: Network) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=tls) as proxy:
        address = f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        settings = network.settings(HTTPS_PROXY=f"https://{address}")
        async with Forwarder(settings) as forwarder:
            entry = await forwarder.wait_for("hub does not answer")
        (line,) = await failed_checks(settings)
    for text in (entry["reason"], line):
        assert f"the certificate of {address} is signed by an unknown CA" in text
        assert "set TrustedCAFile" in text


async def test_amqp_behind_a_proxy_is_reported_with_websockets_as_the_remedy(
    network: Network,
) -> None:
    settings = network.settings(HubTransport="amqp")
    async with Forwarder(settings) as forwarder:
        entry = await forwarder.wait_for("hub does not answer")
    (line,) = await failed_checks(settings)
    for text in (entry["reason"], line):
        assert "AMQP cannot pass the HTTP proxy in HTTPS_PROXY: set HubTransport=websocket" in text
    remedied = settings | {"HubTransport": "websockets"}
    async with Forwarder(remedied):
        await network.webhook.until(lambda: network.webhook.total == 3)


@pytest.mark.parametrize("transport", ["amqp", "websockets"])
async def test_inspected_tls_is_reported_and_the_remedy_works(
    network: Network, transport: str
) -> None:
    port = 443 if transport == "websockets" else 5671
    async with Server({HUB: 1}, tls=network.tls, host=network.host, port=port) as direct:
        direct.keys = network.server.keys
        direct.hubs[HUB].publish(0, events.envelope(events.real_events()[:5]))
        settings = network.settings(HTTPS_PROXY="", HTTP_PROXY="", HubTransport=transport)
        without = settings.copy()
        del without["TrustedCAFile"]
        async with Forwarder(without) as forwarder:
            entry = await forwarder.wait_for("hub does not answer")
        (line,) = await failed_checks(without)
        for text in (entry["reason"], line):
            assert f"the certificate of {network.host}:{port} is signed by an unknown CA" in text
            assert "set TrustedCAFile" in text
        async with Forwarder(settings):
            await network.webhook.until(lambda: network.webhook.total == 5)


@pytest.mark.parametrize("status", [401, 403, 407, 502])
async def test_a_gateway_that_rejects_the_websocket_upgrade_is_reported(
    network: Network, status: int
) -> None:
    async def refuse(_: web.BaseRequest) -> web.Response:
        return web.Response(status=status)

    runner = web.ServerRunner(web.Server(refuse))
    await runner.setup()
    await web.TCPSite(runner, network.host, 443, ssl_context=network.tls).start()
    settings = network.settings(HTTPS_PROXY="", HTTP_PROXY="")
    async with Forwarder(settings) as forwarder:
        entry = await forwarder.wait_for("hub does not answer")
    (line,) = await failed_checks(settings)
    await runner.cleanup()
    for text in (entry["reason"], line):
        assert str(status) in text or "asks for a login" in text
        assert "proxy" in text
