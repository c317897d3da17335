"""A cluster whose pods leave through an HTTP proxy, and whose TLS a company inspects."""

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


class Place:
    """A hub that is reached only through a proxy, with a certificate of a company's CA."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.host = f"127.7.{random.randrange(256)}.{random.randrange(1, 255)}"
        self.proxy = Proxy()
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server: Server
        self.webhook: Webhook

    def settings(self, **more: str) -> dict[str, str]:
        name, key = next(iter(self.server.keys.items()))
        found = {
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
        return {variable: text for variable, text in found.items() if text}


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    place, ca = Place(tmp_path), trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    ca.issue_cert(place.host).configure_cert(place.tls)
    async with (
        Server({HUB: 1}, tls=place.tls) as place.server,
        Webhook() as place.webhook,
        place.proxy,
    ):
        place.proxy.routes[f"{place.host}:443"] = ("127.0.0.1", place.server.port)
        place.server.hubs[HUB].publish(0, events.envelope(events.real_events()[:3]))
        yield place


async def report(settings: dict[str, str]) -> list[str]:
    """Run `check`; the lines of what failed, each with its remedy."""
    async with Forwarder(settings, "check") as check:
        await check.wait(90)
    assert LOGIN.partition(":")[2] not in "".join([*check.lines, check.stderr])
    return [
        line + "\n" + (check.lines[number + 1 : number + 2] or [""])[0]
        for number, line in enumerate(check.lines)
        if line.startswith("FAIL")
    ]


@pytest.mark.parametrize("spelling", ["upper", "lower", "login"])
async def test_hub_and_store_are_reached_through_the_proxy_and_the_sink_is_not(
    place: Place, spelling: str
) -> None:
    url = place.proxy.url
    if spelling == "login":
        place.proxy.login = LOGIN
        url = url.replace("//", f"//{LOGIN}@")
    variables = {"HTTPS_PROXY": url, "HTTP_PROXY": url}
    if spelling == "lower":
        variables |= {"https_proxy": url, "http_proxy": url, "HTTPS_PROXY": "http://unused.invalid"}
    async with azurite() as store:
        place.proxy.routes[f"127.0.0.1:{store.port}"] = ("127.0.0.1", store.port)
        text = store.connection_string
        settings = place.settings(BlobStorageConnectionString=text, VerboseLevel="4", **variables)
        async with Forwarder(settings) as forwarder:
            await place.webhook.until(lambda: place.webhook.total == 3)
            forwarder.terminate()
            assert await forwarder.wait() == 0
        assert await stores.shared(store) == {"0": 0}
        assert {*place.proxy.asked} == {f"{place.host}:443", f"127.0.0.1:{store.port}"}
        assert await report(settings) == []
    assert LOGIN.partition(":")[2] not in "".join([*forwarder.lines, forwarder.stderr])


async def test_a_renewed_login_of_the_proxy_is_used_without_a_restart(place: Place) -> None:
    """For the hub at the next connection, for the other services of Azure at the next request."""
    file, first, second = place.path / "proxy", "someone:first-password", "someone:next-password"
    host = f"127.0.0.1:{place.proxy.port}"
    place.proxy.login = first
    file.write_text(f"http://{first}@{host}")
    environment = place.settings(HTTPS_PROXY="", HTTP_PROXY="", HTTPS_PROXY_FILE=str(file))
    url = URL(f"https://{place.host}:443/")
    transport = azure_options(Settings.from_env(environment), url)["transport"]

    async def status() -> int:
        answer = await transport.send(HttpRequest("GET", str(url), headers={"Connection": "close"}))
        return int(answer.status_code)

    async with Forwarder(environment) as forwarder, transport:
        await place.webhook.until(lambda: place.webhook.total == 3)
        assert await status() == 404  # of the hub's own HTTP server
        place.proxy.login = second
        place.server.faults.drop()
        reason = (await forwarder.wait_for("hub does not answer"))["reason"]
        assert "asks for a login" in reason
        file.write_text(f"http://{second}@{host}")
        place.server.hubs[HUB].publish(0, events.envelope(events.real_events()[3:5]))
        await place.webhook.until(lambda: place.webhook.total == 5)
        assert await status() == 404


@pytest.mark.parametrize(
    "no_proxy", ["{}", "10.0.0.0/8,127.0.0.0/8", "x.example, {}:443", "*", "{} .svc"]
)
async def test_no_proxy_makes_the_connection_direct(place: Place, no_proxy: str) -> None:
    async with Server({HUB: 1}, tls=place.tls, host=place.host, port=443) as direct:
        direct.keys = place.server.keys
        direct.hubs[HUB].publish(0, events.envelope(events.real_events()[:5]))
        async with Forwarder(place.settings(NO_PROXY=no_proxy.format(place.host))):
            await place.webhook.until(lambda: place.webhook.total == 5)
    assert place.proxy.asked == []


@pytest.mark.parametrize("no_proxy", ["example.org", "127.7.0.0/33", "{}:5671"])
async def test_no_proxy_of_others_does_not(place: Place, no_proxy: str) -> None:
    async with Forwarder(place.settings(NO_PROXY=no_proxy.format(place.host))):
        await place.webhook.until(lambda: place.webhook.total == 3)


# How each refusal is set up, and words of its cause and remedy.
REFUSALS = {
    "login": (407, "asks for a login on the way to ", "put user:password@ before the host"),
    "forbidden": (403, "does not connect to ", "allow "),
    "away": (503, "it answers 503", "NO_PROXY"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_proxy_that_refuses_is_named(place: Place, refusal: str) -> None:
    place.proxy.status, what, remedy = REFUSALS[refusal]
    settings = place.settings()
    async with Forwarder(settings) as forwarder:
        entry = await forwarder.wait_for("hub does not answer")
        status, body = await forwarder.get("/readyz")
    (line,) = await report(settings)
    assert line.startswith("FAIL    hub login")
    assert status == 503
    for text in (entry["reason"], line):
        assert f"the proxy 127.0.0.1:{place.proxy.port}" in text
        assert what in text
        assert remedy in text
    assert what in body


async def test_a_proxy_that_is_away_is_named_by_its_own_address(place: Place) -> None:
    port = free_port()
    settings = place.settings(HTTPS_PROXY=f"http://127.0.0.1:{port}")
    async with Forwarder(settings) as forwarder:
        entry = await forwarder.wait_for("hub does not answer")
    (line,) = await report(settings)
    assert line.startswith("FAIL    hub login")
    for text in (entry["reason"], line):
        assert f"127.0.0.1:{port} refuses connections" in text
        assert "check HTTPS_PROXY (httpsProxy)" in text


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
async def test_a_proxy_that_ends_the_connection_is_named(place: Place, answer: bytes) -> None:
    """At once, for it is none; or once it sees where the connection goes to."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as proxy:
        at = f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        settings = place.settings(HTTPS_PROXY=f"http://{at}")
        async with Forwarder(settings) as forwarder:
            entry = await forwarder.wait_for("hub does not answer")
        account = "AccountName=a;AccountKey=a2V5;DefaultEndpointsProtocol=https"
        line, store = await report(settings | {"BlobStorageConnectionString": account})
    for text in (entry["reason"], line):
        assert f"{place.host}:443 cannot be reached through the proxy {at}: " in text
        assert f"allow {place.host}:443 in the proxy" in text
    assert f"a.blob.core.windows.net:443 cannot be reached through the proxy {at}: " in store
    assert "allow a.blob.core.windows.net:443 in the proxy" in store


async def test_the_certificate_of_a_proxy_is_not_taken_for_that_of_the_hub(place: Place) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=tls) as proxy:
        at = f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        settings = place.settings(HTTPS_PROXY=f"https://{at}")
        async with Forwarder(settings) as forwarder:
            entry = await forwarder.wait_for("hub does not answer")
        (line,) = await report(settings)
    for text in (entry["reason"], line):
        assert f"the certificate of {at} is signed by an unknown CA" in text
        assert "set TrustedCAFile" in text


async def test_with_amqp_the_proxy_is_named_as_what_amqp_cannot_pass(place: Place) -> None:
    settings = place.settings(HubTransport="amqp")
    async with Forwarder(settings) as forwarder:
        entry = await forwarder.wait_for("hub does not answer")
    (line,) = await report(settings)
    for text in (entry["reason"], line):
        assert "AMQP cannot pass the HTTP proxy in HTTPS_PROXY: set HubTransport=websocket" in text
    remedied = settings | {"HubTransport": "websockets"}
    async with Forwarder(remedied):
        await place.webhook.until(lambda: place.webhook.total == 3)


@pytest.mark.parametrize("transport", ["amqp", "websockets"])
async def test_inspected_tls_is_named_and_the_remedy_repairs_it(
    place: Place, transport: str
) -> None:
    port = 443 if transport == "websockets" else 5671
    async with Server({HUB: 1}, tls=place.tls, host=place.host, port=port) as direct:
        direct.keys = place.server.keys
        direct.hubs[HUB].publish(0, events.envelope(events.real_events()[:5]))
        settings = place.settings(HTTPS_PROXY="", HTTP_PROXY="", HubTransport=transport)
        without = settings.copy()
        del without["TrustedCAFile"]
        async with Forwarder(without) as forwarder:
            entry = await forwarder.wait_for("hub does not answer")
        (line,) = await report(without)
        for text in (entry["reason"], line):
            assert f"the certificate of {place.host}:{port} is signed by an unknown CA" in text
            assert "set TrustedCAFile" in text
        async with Forwarder(settings):
            await place.webhook.until(lambda: place.webhook.total == 5)


@pytest.mark.parametrize("status", [401, 403, 407, 502])
async def test_a_gateway_that_answers_the_upgrade_is_named(place: Place, status: int) -> None:
    async def refuse(_: web.BaseRequest) -> web.Response:
        return web.Response(status=status)

    runner = web.ServerRunner(web.Server(refuse))
    await runner.setup()
    await web.TCPSite(runner, place.host, 443, ssl_context=place.tls).start()
    settings = place.settings(HTTPS_PROXY="", HTTP_PROXY="")
    async with Forwarder(settings) as forwarder:
        entry = await forwarder.wait_for("hub does not answer")
    (line,) = await report(settings)
    await runner.cleanup()
    for text in (entry["reason"], line):
        assert str(status) in text or "asks for a login" in text
        assert "proxy" in text
