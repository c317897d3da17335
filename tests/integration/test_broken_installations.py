"""Installations broken in many ways: check, log, probe, metric and the documentation agree."""

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme

from support import events
from support.azurite import azurite
from support.documents import page
from support.eventhubs import Server
from support.harness import Samples, free_port
from support.process import Forwarder
from support.webhook import Webhook

HUB = "insights-logs-kube-audit"
TROUBLESHOOTING = page("operations.md")
_QUICK = {"LoadBalancingInterval": "1", "ShutdownGrace": "0.2", "VerboseLevel": "1"}


class Place(NamedTuple):
    """What is there, and what is whole until a case breaks it."""

    server: Server
    webhook: Webhook
    stack: AsyncExitStack


class Broken(NamedTuple):
    """A way to break an installation, and what is to be seen of it."""

    settings: dict[str, str]
    step: str  # of check
    says: str  # in check, log, probe and operations.md
    do: str  # the variable or command that mends it
    message: str  # of the log
    metric: Callable[[Samples], bool]
    ready: bool = False
    state: str = "FAIL"


async def wrong_key(place: Place) -> Broken:
    """Renew the key."""
    text = place.server.connection_string()
    place.server.keys["RootManageSharedAccessKey"] = "cmVuZXdlZA=="
    return _refused_key({"EhubNamespaceConnectionString": text})


async def other_namespace(place: Place) -> Broken:
    """Take policy and key from another namespace."""
    other = Server({}, keys={"reader": "b3RoZXI="})
    text = other.connection_string().replace(":0;", f":{place.server.port};")
    return _refused_key({"EhubNamespaceConnectionString": text})


def _refused_key(settings: dict[str, str]) -> Broken:
    return Broken(
        settings,
        "hub login",
        "refuses the key of policy",
        "az eventhubs namespace authorization-rule keys list",
        "hub does not answer",
        _nothing_owned,
    )


async def hub_misspelt(_: Place) -> Broken:
    return Broken(
        {"EventHubName": "insight-logs-kube-audit"},
        "hub",
        "has no hub",
        "az eventhubs eventhub list",
        "hub does not answer",
        _nothing_owned,
    )


async def no_consumer_group(_: Place) -> Broken:
    return Broken(
        {"ConsumerGroup": "audit"},
        "consumer group",
        "has no consumer group",
        "az eventhubs eventhub consumer-group create",
        "hub does not answer",
        lambda samples: samples.total("aks_audit_lag_messages") == 2,
    )


async def no_consumer_group_at_an_age(place: Place) -> Broken:
    """Ask the hub for the place to start at."""
    broken = await no_consumer_group(place)
    return broken._replace(
        settings={**broken.settings, "StartPosition": "6h"},
        metric=lambda samples: samples.total("aks_audit_partitions_owned") == 1,  # the empty one
    )


async def port_closed(place: Place) -> Broken:
    place.server.stop_listening()
    return Broken(
        {},
        "hub TCP",
        "refuses connections",
        "HubTransport=websockets (eventHub.transport)",
        "hub does not answer",
        _nothing_owned,
    )


async def storage_key(place: Place) -> Broken:
    store = await place.stack.enter_async_context(azurite())
    head, _, tail = store.connection_string.partition("AccountKey=")
    return Broken(
        {"BlobStorageConnectionString": f"{head}AccountKey=AAAA{tail[4:]}"},
        "store login",
        "refuses the login: the key was renewed",
        "az storage account show-connection-string",
        "checkpoints cannot be read",
        _nothing_owned,
        ready=True,
    )


async def no_such_service(_: Place) -> Broken:
    return _sink(
        {"WebSinkURL": "http://sysdig-agent.invalid:7765/k8s_audit"},
        "sink DNS",
        "DNS knows no host",
        "kubectl get services",
    )


async def no_endpoints(_: Place) -> Broken:
    """Post where nobody listens: an IP of a Service without endpoints refuses too."""
    return _sink(
        {"WebSinkURL": f"http://127.0.0.1:{free_port()}/k8s_audit"},
        "sink TCP",
        "refuses connections",
        "kubectl get endpointslices",
    )


async def sink_path(place: Place) -> Broken:
    place.webhook.rule = lambda post: None if post.path == "/k8s_audit" else 404
    return _sink(
        {"WebSinkURL": f"{place.webhook.url}s"},
        "sink POST",
        "there is nothing at this path",
        "WebSinkURL (webhook.url)",
        status="404",
    )


async def unknown_ca(place: Place) -> Broken:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    sink = await place.stack.enter_async_context(Webhook(tls=tls))
    return _sink(
        {"WebSinkURL": sink.url}, "sink TLS", "is signed by an unknown CA", "WebSinkCAFile"
    )


async def unknown_client(place: Place) -> Broken:
    """Present a certificate of a CA that the sink does not know."""
    ca, tls = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(tls)
    ca.configure_trust(tls)
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.maximum_version = ssl.TLSVersion.TLSv1_2  # later ones tell it after the handshake
    listener = place.stack.enter_context(socket.create_server(("127.0.0.1", 0)))

    def refuse() -> None:
        """Send the alert, which asyncio drops."""
        with suppress(OSError):  # the listener is closed
            while True:
                wrapped = tls.wrap_socket(
                    listener.accept()[0], server_side=True, do_handshake_on_connect=False
                )
                with wrapped, suppress(ssl.SSLError):
                    wrapped.do_handshake()

    threading.Thread(target=refuse, daemon=True).start()
    place.stack.callback(listener.shutdown, socket.SHUT_RDWR)
    own = trustme.CA().issue_cert("forwarder").private_key_and_cert_chain_pem
    pem = place.stack.enter_context(own.tempfile())
    settings = {
        "WebSinkURL": f"https://127.0.0.1:{listener.getsockname()[1]}/k8s_audit",
        "WebSinkCAFile": place.stack.enter_context(ca.cert_pem.tempfile()),
        "WebSinkCertFile": pem,
        "WebSinkKeyFile": pem,
    }
    return _sink(settings, "sink TLS", "does not accept the client certificate", "WebSinkCertFile")


async def tls_closed(place: Place) -> Broken:
    """Close each connection at its first TLS message, as a firewall that filters by name does."""

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    server = await asyncio.start_server(close, "127.0.0.1", 0)
    place.stack.callback(server.close)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/k8s_audit"
    return _sink({"WebSinkURL": url}, "sink TLS", "cannot be reached: ", "WebSinkURL")


def _sink(settings: dict[str, str], step: str, says: str, do: str, status: str = "error") -> Broken:
    def metric(samples: Samples) -> bool:
        failed = samples.total("aks_audit_posts_total", status=status)
        return failed > 0 and samples.total("aks_audit_sink_up") == 0

    return Broken(settings, step, says, do, "sink down", metric)


async def diagnostic_setting_off(place: Place) -> Broken:
    place.server.hubs[HUB] = place.server.recreate(HUB)
    return Broken(
        {},
        "messages",
        "no message has ever come to hub",
        "az monitor diagnostic-settings list",
        "hub is quiet",
        lambda samples: (
            samples.total("aks_audit_partitions_owned") == 2
            and samples.total("aks_audit_hub_messages_total") == 0
        ),
        ready=True,
        state="warn",
    )


def _nothing_owned(samples: Samples) -> bool:
    return samples.total("aks_audit_partitions_owned") == 0


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    async with Server({HUB: 2}) as server, Webhook() as webhook, AsyncExitStack() as stack:
        for message in events.messages(20, per_message=10):
            server.hubs[HUB].publish(0, message.body)
        yield Place(server, webhook, stack)


@pytest.mark.parametrize(
    "break_it",
    [
        wrong_key,
        other_namespace,
        hub_misspelt,
        no_consumer_group,
        no_consumer_group_at_an_age,
        port_closed,
        storage_key,
        no_such_service,
        no_endpoints,
        sink_path,
        unknown_ca,
        unknown_client,
        tls_closed,
        diagnostic_setting_off,
    ],
)
async def test_the_cause_is_named_in_a_line_everywhere(
    place: Place, tmp_path: Path, break_it: Callable[[Place], "asyncio.Future[Broken]"]
) -> None:
    settings: Mapping[str, str] = {
        "EhubNamespaceConnectionString": place.server.connection_string(),
        "WebSinkURL": place.webhook.url,
        "StateDirectory": str(tmp_path),
        **_QUICK,
    }
    broken = await break_it(place)
    settings = {**settings, **broken.settings}
    async with Forwarder(settings) as forwarder, Forwarder(settings, "check") as check:
        entry = await forwarder.wait_for(broken.message)
        status = await check.wait()
        await _until(forwarder, broken.metric)
        probes = {path: await forwarder.get(path) for path in ("/readyz", "/livez")}
        forwarder.terminate()
        await forwarder.wait()

    (line,) = [one for one in check.lines if one.startswith(("FAIL", "warn"))]
    state, step, found = line[:7].strip(), line[8:23].strip(), line[24:]
    assert (state, step) == (broken.state, broken.step)
    assert broken.says in found
    assert broken.do in check.lines[check.lines.index(line) + 1]
    assert status == (1 if broken.state == "FAIL" else 0)

    assert broken.says in entry["reason"]
    stopping = "stopping with messages undelivered"
    said = [one for one in forwarder.log if not one["message"].startswith(stopping)]
    assert said == [entry], "one line, although it failed again and again"

    assert probes["/livez"][0] == 200
    assert probes["/readyz"][0] == (200 if broken.ready else 503)
    assert broken.ready or broken.says in probes["/readyz"][1]

    assert "Traceback" not in "".join([*forwarder.lines, forwarder.stderr, *check.lines])
    assert check.stderr == ""
    assert broken.says in TROUBLESHOOTING


async def _until(forwarder: Forwarder, condition: Callable[[Samples], bool]) -> None:
    async with asyncio.timeout(90):
        while True:
            if condition(await forwarder.metrics()):
                return
            await asyncio.sleep(0.1)
