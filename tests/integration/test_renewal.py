"""Secrets renewed in their files are used without a restart."""

import asyncio
import ssl
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from azure.storage.blob import ContainerSasPermissions, generate_container_sas

from forwarder.config.network import trusted
from support import events, stores
from support.azurite import Azurite, azurite
from support.eventhubs import Server
from support.process import Forwarder
from support.webhook import Webhook

HUB = "insights-logs-kube-audit"
VALID_SECONDS = 6


def settings(connection: Path, webhook: Webhook, **more: str) -> dict[str, str]:
    """Return the environment of a forwarder that reads its connection string from a file."""
    return {
        "EhubNamespaceConnectionString_FILE": str(connection),
        "WebSinkURL": webhook.url,
        "StateDirectory": str(connection.with_name("state")),
        **more,
    }


def publish(server: Server, count: int) -> None:
    for message in events.messages(count, per_message=count):
        server.hubs[HUB].publish(0, message.body)


async def test_a_renewed_hub_key_is_used_for_the_next_connection(
    webhook: Webhook, tmp_path: Path
) -> None:
    async with Server({HUB: 1}) as server:
        file = tmp_path / "connection"
        file.write_text(server.connection_string())
        environment = settings(file, webhook, LoadBalancingInterval="1")
        async with Forwarder(environment) as forwarder:
            publish(server, 3)
            await webhook.until(lambda: webhook.total == 3)
            old = server.keys["RootManageSharedAccessKey"]
            server.keys["RootManageSharedAccessKey"] = "cmVuZXdlZCBrZXkgb2YgdGhlIGh1Yg=="
            server.faults.drop()
            await forwarder.wait_for("hub does not answer")
            file.write_text(server.connection_string(HUB.upper()))  # names are case-insensitive
            publish(server, 4)
            await webhook.until(lambda: webhook.total == 7)
            await forwarder.wait_for("hub answers")
        output = "".join([*forwarder.lines, forwarder.stderr])
        assert not [key for key in (old, *server.keys.values()) if key in output]


async def test_a_connection_string_of_another_hub_needs_a_restart(
    webhook: Webhook, tmp_path: Path
) -> None:
    """Until then the original connection string is used."""
    async with Server({HUB: 1}) as server:
        file = tmp_path / "connection"
        file.write_text(server.connection_string())
        environment = settings(file, webhook, StallTimeout="6")
        async with Forwarder(environment) as forwarder:
            publish(server, 3)
            await webhook.until(lambda: webhook.total == 3)
            other = server.connection_string().replace("127.0.0.1", "other.example")
            file.write_text(f"{other};EntityPath=audit".replace(";;", ";"))
            entry = await forwarder.wait_for("connection string is of another hub")
            assert entry["hub"].startswith("other.example")
            assert entry["hub"].endswith("/audit")
            server.faults.drop()
            publish(server, 4)
            await webhook.until(lambda: webhook.total == 7)
            assert len(forwarder.entries("connection string is of another hub")) == 1
            assert (await forwarder.get("/readyz"))[0] == 200


def signed(store: Azurite, seconds: float, *, writes: bool = True) -> str:
    """Return a connection string with a signature that expires after `seconds`."""
    sas = generate_container_sas(
        "devstoreaccount1",
        stores.CONTAINER,
        account_key=store.connection_string.split("AccountKey=")[1].split(";")[0],
        permission=ContainerSasPermissions(
            read=True, write=writes, list=True, create=writes, delete=writes, add=writes
        ),
        expiry=datetime.now(UTC) + timedelta(seconds=seconds),
    )
    return f"BlobEndpoint={store.account_url};SharedAccessSignature={sas}"


async def test_a_renewed_storage_signature_is_used_for_the_next_checkpoint(
    webhook: Webhook, tmp_path: Path
) -> None:
    async with Server({HUB: 1}) as server, azurite() as store:
        async with stores.container(store) as container:
            await container.create_container()
        file = tmp_path / "connection"
        file.write_text(signed(store, VALID_SECONDS))
        settings = {
            "EhubNamespaceConnectionString": server.connection_string(),
            "BlobStorageConnectionString_FILE": str(file),
            "WebSinkURL": webhook.url,
            "StateDirectory": str(tmp_path / "state"),
            "LoadBalancingInterval": "1",
            "CheckpointInterval": "0.2",
        }
        async with Forwarder(settings) as forwarder:
            publish(server, 3)
            await webhook.until(lambda: webhook.total == 3)
            await forwarder.until(lambda: forwarder.entries("partition claimed"))
            entry = await forwarder.wait_for("checkpoints cannot be")
            assert "refuses the login" in entry["reason"]
            file.write_text(signed(store, 600))
            publish(server, 4)
            await webhook.until(lambda: webhook.total == 7)
            for _ in range(100):
                if (await stores.shared(store)).get("0") == 1:
                    break
                await forwarder.metrics()
            else:
                raise AssertionError(await stores.shared(store))


async def test_a_read_only_storage_signature_fails_the_check(
    webhook: Webhook,
) -> None:
    async with Server({HUB: 1}) as server, azurite() as store:
        publish(server, 3)
        async with stores.container(store) as container:
            await container.create_container()
            environment = {
                "EhubNamespaceConnectionString": server.connection_string(),
                "BlobStorageConnectionString": signed(store, 600, writes=False),
                "WebSinkURL": webhook.url,
            }
            async with Forwarder(environment, "check") as check:
                assert await check.wait() == 1
            (line,) = [number for number, one in enumerate(check.lines) if one.startswith("FAIL")]
            assert "FAIL    store login" in check.lines[line]
            assert "does not let it read, write and create" in check.lines[line]
            assert "create a SharedAccessSignature" in check.lines[line + 1]
            environment["BlobStorageConnectionString"] = signed(store, 600)
            async with Forwarder(environment, "check") as check:
                assert await check.wait() == 0
            assert [blob.name async for blob in container.list_blobs()] == []


async def test_renewed_sink_headers_and_passwords_are_sent_with_the_next_post(
    webhook: Webhook, tmp_path: Path
) -> None:
    headers, url = tmp_path / "headers", tmp_path / "url"
    headers.write_text('{"X-Key": "first-key-of-the-sink"}')
    url.write_text(webhook.url.replace("//", "//me:first-password@"))
    async with Server({HUB: 1}) as server:
        settings = {
            "EhubNamespaceConnectionString": server.connection_string(),
            "WebSinkURL_FILE": str(url),
            "WebSinkHeaders_FILE": str(headers),
            "StateDirectory": str(tmp_path / "state"),
            "LoadBalancingInterval": "1",
        }
        async with Forwarder(settings):
            publish(server, 3)
            await webhook.until(lambda: webhook.total == 3)
            headers.write_text('{"X-Key": "second-key-of-the-sink"}')
            url.write_text(webhook.url.replace("//", "//me:second-password@"))
            publish(server, 4)
            await webhook.until(lambda: webhook.total == 7)
    sent = [(post.headers["X-Key"], post.headers["Authorization"]) for post in webhook.posts]
    basic = b64encode(b"me:second-password").decode()
    assert sent[0][0] == "first-key-of-the-sink"
    assert sent[-1] == ("second-key-of-the-sink", f"Basic {basic}")


async def test_only_the_current_cas_in_the_file_are_trusted(tmp_path: Path) -> None:
    """The SDK and aiohttp use one context for all connections."""
    file, tls = tmp_path / "ca.pem", ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    old, new = trustme.CA(), trustme.CA()
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=tls)
    address = server.sockets[0].getsockname()
    context = trusted(file)

    async def connect(issuer: trustme.CA) -> None:
        issuer.issue_cert("127.0.0.1").configure_cert(tls)
        _, writer = await asyncio.open_connection(*address, ssl=context)
        writer.transport.abort()

    async with server:
        old.cert_pem.write_to_path(file)
        await connect(old)
        new.cert_pem.write_to_path(file)
        await connect(new)
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect(old)
        file.unlink()
        await connect(new)
