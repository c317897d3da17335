"""Hosts that bypass HTTPS_PROXY because of NO_PROXY, and the timeout of storage requests."""

import asyncio

import pytest
from azure.core.exceptions import ServiceResponseError

from forwarder.config.network import proxy_for
from forwarder.config.settings import Settings
from forwarder.storage import open_container

HOST = "name.servicebus.windows.net"


@pytest.mark.parametrize(
    ("no_proxy", "host", "direct"),
    [
        ("*.servicebus.windows.net", HOST, True),
        (".servicebus.windows.net", HOST, True),
        ("SERVICEBUS.windows.net", HOST, True),
        (f"localhost, {HOST}:443", HOST, True),
        (f"{HOST}:5671", HOST, False),
        ("localhost,*", HOST, True),
        ("bus.windows.net", HOST, False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        (" , ", HOST, False),
    ],
)
def test_no_proxy(no_proxy: str, host: str, *, direct: bool) -> None:
    environment = {
        "EventHubNamespace": HOST,
        "HTTPS_PROXY": "http://proxy:3128",
        "NO_PROXY": no_proxy,
    }
    assert (proxy_for(Settings.from_env(environment), host, 443) is None) == direct


async def test_a_request_to_a_silent_storage_account_times_out() -> None:
    """By default azure-core waits for 300 s, which would block every partition."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the client disconnects
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        account = f"BlobEndpoint=http://127.0.0.1:{port}/a;AccountName=a;AccountKey=a2V5"
        environment = {"EventHubNamespace": HOST, "BlobStorageConnectionString": account}
        async with open_container(Settings.from_env(environment), None) as container:
            with pytest.raises(ServiceResponseError):
                async with asyncio.timeout(60):
                    await container.exists()
