"""The way to a host: DNS, TCP and TLS, one by one; the errors are those of the system."""

import asyncio
import socket
import ssl
import time
from collections.abc import Callable

from forwarder.commands.check.walk import Steps


def way(part: str, host: str, port: int, tls: Callable[[], ssl.SSLContext] | None) -> Steps:
    """Return the steps to the host of a part; without `tls` it is reached without TLS."""

    async def resolve() -> str:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = dict.fromkeys(str(entry[4][0]) for entry in found)
        return f"{host} is {', '.join(addresses)}"

    async def connect() -> str:
        _, writer = await asyncio.open_connection(host, port)
        writer.transport.abort()
        return f"port {port} is open"

    async def handshake() -> str:
        _, writer = await asyncio.open_connection(host, port, ssl=tls and tls())
        end = writer.get_extra_info("peercert")["notAfter"]
        version = writer.get_extra_info("ssl_object").version()
        writer.transport.abort()
        days = (ssl.cert_time_to_seconds(end) - time.time()) / 86_400
        return f"{version}, certificate valid for {days:.0f} days"

    steps: Steps = {f"{part} DNS": resolve, f"{part} TCP": connect}
    return {**steps, f"{part} TLS": handshake} if tls else steps
