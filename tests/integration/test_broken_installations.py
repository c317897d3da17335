"""Broken installations: check, log, probes, metrics and documentation report the same cause."""

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


class Installation(NamedTuple):
    """An installation that works until a case breaks it."""

    server: Server
    webhook: Webhook
    stack: AsyncExitStack


class Broken(NamedTuple):
    """A broken installation and its expected symptoms."""

    settings: dict[str, str]
    step: str  # of check
    reason: str  # in check, log, probe and operations.md
    remedy: str  # the variable or command that fixes it
    message: str  # of the log entry
    metric: Callable[[Samples], bool]
    ready: bool = False
    state: str = "FAIL"


async def wrong_key(installation: Installation) -> Broken:
    """Renew the key."""
    text = installation.server.connection_string()
    installation.server.keys["RootManageSharedAccessKey"] = "cmVuZXdlZA=="
    return _refused_key({"EhubNamespaceConnectionString": text})


async def other_namespace(installation: Installation) -> Broken:
    """Use policy and key of another namespace."""
    other = Server({}, keys={"reader": "b3RoZXI="})
    text = other.connection_string().replace(":0;", f":{installation.server.port};")
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


async def hub_misspelt(_: Installation) -> Broken:
    return Broken(
        {"EventHubName": "insight-logs-kube-audit"},
        "hub",
        "has no hub",
        "az eventhubs eventhub list",
        "hub does not answer",
        _nothing_owned,
    )


async def no_consumer_group(_: Installation) -> Broken:
    return Broken(
        {"ConsumerGroup": "audit"},
        "consumer group",
        "has no consumer group",
        "az eventhubs eventhub consumer-group create",
        "hub does not answer",
        lambda samples: samples.total("aks_audit_lag_messages") == 2,
    )


async def no_consumer_group_and_start_by_age(installation: Installation) -> Broken:
    """Start by age, so that the position is requested from the hub."""
    broken = await no_consumer_group(installation)
    return broken._replace(
        settings={**broken.settings, "StartPosition": "6h"},
        metric=lambda samples: samples.total("aks_audit_partitions_owned") == 1,  # the empty one
    )


async def port_closed(installation: Installation) -> Broken:
    installation.server.stop_listening()
    return Broken(
        {},
        "hub TCP",
        "refuses connections",
        "HubTransport=websockets (eventHub.transport)",
        "hub does not answer",
        _nothing_owned,
    )


async def storage_key(installation: Installation) -> Broken:
    store = await installation.stack.enter_async_context(azurite())
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


async def no_such_service(_: Installation) -> Broken:
    return _sink(
        {"WebSinkURL": "http://sysdig-agent.invalid:7765/k8s_audit"},
        "sink DNS",
        "DNS knows no host",
        "kubectl get services",
    )


async def no_endpoints(_: Installation) -> Broken:
    """Post to a closed port: the IP of a Service without endpoints refuses connections too."""
    return _sink(
        {"WebSinkURL": f"http://127.0.0.1:{free_port()}/k8s_audit"},
        "sink TCP",
        "refuses connections",
        "kubectl get endpointslices",
    )


async def sink_path(installation: Installation) -> Broken:
    installation.webhook.rule = lambda post: None if post.path == "/k8s_audit" else 404
    return _sink(
        {"WebSinkURL": f"{installation.webhook.url}s"},
        "sink POST",
        "there is nothing at this path",
        "WebSinkURL (webhook.url)",
        status="404",
    )


async def unknown_ca(installation: Installation) -> Broken:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    sink = await installation.stack.enter_async_context(Webhook(tls=tls))
    return _sink(
        {"WebSinkURL": sink.url}, "sink TLS", "is signed by an unknown CA", "WebSinkCAFile"
    )


async def unknown_client(installation: Installation) -> Broken:
    """Present a certificate of a CA that the sink does not know."""
    ca, tls = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(tls)
    ca.configure_trust(tls)
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.maximum_version = ssl.TLSVersion.TLSv1_2  # TLS 1.3 reports it after the handshake
    listener = installation.stack.enter_context(socket.create_server(("127.0.0.1", 0)))

    def refuse() -> None:
        """Send the TLS alert, which asyncio servers drop."""
        with suppress(OSError):  # the listener is closed
            while True:
                wrapped = tls.wrap_socket(
                    listener.accept()[0], server_side=True, do_handshake_on_connect=False
                )
                with wrapped, suppress(ssl.SSLError):
                    wrapped.do_handshake()

    threading.Thread(target=refuse, daemon=True).start()
    installation.stack.callback(listener.shutdown, socket.SHUT_RDWR)
    own = trustme.CA().issue_cert("forwarder").private_key_and_cert_chain_pem
    pem = installation.stack.enter_context(own.tempfile())
    settings = {
        "WebSinkURL": f"https://127.0.0.1:{listener.getsockname()[1]}/k8s_audit",
        "WebSinkCAFile": installation.stack.enter_context(ca.cert_pem.tempfile()),
        "WebSinkCertFile": pem,
        "WebSinkKeyFile": pem,
    }
    return _sink(settings, "sink TLS", "does not accept the client certificate", "WebSinkCertFile")


async def tls_closed(installation: Installation) -> Broken:
    """Close each connection at its first TLS message, as a firewall that filters by name does."""

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    server = await asyncio.start_server(close, "127.0.0.1", 0)
    installation.stack.callback(server.close)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/k8s_audit"
    return _sink({"WebSinkURL": url}, "sink TLS", "cannot be reached: ", "WebSinkURL")


def _sink(
    settings: dict[str, str], step: str, reason: str, remedy: str, status: str = "error"
) -> Broken:
    def metric(samples: Samples) -> bool:
        failed = samples.total("aks_audit_posts_total", status=status)
        return failed > 0 and samples.total("aks_audit_sink_up") == 0

    return Broken(settings, step, reason, remedy, "sink down", metric)


async def diagnostic_setting_off(installation: Installation) -> Broken:
    installation.server.hubs[HUB] = installation.server.recreate(HUB)
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
async def installation() -> AsyncIterator[Installation]:
    async with Server({HUB: 2}) as server, Webhook() as webhook, AsyncExitStack() as stack:
        for message in events.messages(20, per_message=10):
            server.hubs[HUB].publish(0, message.body)
        yield Installation(server, webhook, stack)


@pytest.mark.parametrize(
    "break_it",
    [
        wrong_key,
        other_namespace,
        hub_misspelt,
        no_consumer_group,
        no_consumer_group_and_start_by_age,
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
async def test_check_log_probes_and_documentation_report_the_same_cause(
    installation: Installation,
    tmp_path: Path,
    break_it: Callable[[Installation], "asyncio.Future[Broken]"],
) -> None:
    settings: Mapping[str, str] = {
        "EhubNamespaceConnectionString": installation.server.connection_string(),
        "WebSinkURL": installation.webhook.url,
        "StateDirectory": str(tmp_path),
        **_QUICK,
    }
    broken = await break_it(installation)
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
    assert broken.reason in found
    assert broken.remedy in check.lines[check.lines.index(line) + 1]
    assert status == (1 if broken.state == "FAIL" else 0)

    assert broken.reason in entry["reason"]
    stopping = "stopping with messages undelivered"
    logged = [one for one in forwarder.log if not one["message"].startswith(stopping)]
    assert logged == [entry], "one log entry, although the failure is repeated"

    assert probes["/livez"][0] == 200
    assert probes["/readyz"][0] == (200 if broken.ready else 503)
    assert broken.ready or broken.reason in probes["/readyz"][1]

    assert "Traceback" not in "".join([*forwarder.lines, forwarder.stderr, *check.lines])
    assert check.stderr == ""
    assert broken.reason in TROUBLESHOOTING


async def _until(forwarder: Forwarder, condition: Callable[[Samples], bool]) -> None:
    async with asyncio.timeout(90):
        while True:
            if condition(await forwarder.metrics()):
                return
            await asyncio.sleep(0.1)
