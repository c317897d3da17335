"""The way to a host: DNS, TCP and TLS, one by one; the errors are those of the system."""

import asyncio
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Final

import aiohttp
from yarl import URL

from forwarder.commands.check.walk import Steps

_DATE_TIMEOUT: Final = aiohttp.ClientTimeout(total=5)


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


async def clock_ahead(url: str, tls: ssl.SSLContext, proxy: URL | None) -> float:
    """Return the seconds that this clock is ahead of a server's; 0 if the server tells no time."""
    with suppress(aiohttp.ClientError, OSError, ValueError, KeyError):
        async with (
            aiohttp.ClientSession(timeout=_DATE_TIMEOUT) as session,
            session.get(url, ssl=tls, proxy=proxy, allow_redirects=False) as response,
        ):
            return time.time() - parsedate_to_datetime(response.headers["Date"]).timestamp()
    return 0.0
