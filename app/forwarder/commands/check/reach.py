"""Reaching a host: DNS, TCP, TLS, one by one; the errors are the system's own."""

import asyncio
import socket
import ssl
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Final

import aiohttp

_DATE_TIMEOUT: Final = 4.0


async def resolved(host: str, port: int) -> str:
    """Say which addresses DNS, or the hosts file, has for a name."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    return f"{host} is {'an address' if addresses == [host] else ', '.join(addresses)}"


async def connect(host: str, port: int, tls: ssl.SSLContext | None = None) -> tuple[str, float]:
    """Connect and hang up; return TLS's version and the seconds its certificate is valid yet."""
    _, writer = await asyncio.open_connection(host, port, ssl=tls)
    try:
        certificate = writer.get_extra_info("peercert") or {}
        version = writer.get_extra_info("ssl_object").version() if tls else ""
    finally:
        writer.transport.abort()
    end = certificate.get("notAfter")
    return version, ssl.cert_time_to_seconds(end) - time.time() if end else 0.0


async def clock_ahead(url: str, tls: ssl.SSLContext) -> float | None:
    """Return the seconds that this clock is ahead of a server's; None if it does not tell."""
    with suppress(aiohttp.ClientError, OSError, ValueError, TypeError):
        timeout = aiohttp.ClientTimeout(total=_DATE_TIMEOUT)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(url, ssl=tls, allow_redirects=False) as response,
        ):
            return time.time() - parsedate_to_datetime(response.headers["Date"]).timestamp()
    return None
