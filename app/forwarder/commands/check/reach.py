"""Reaching a host: DNS, TCP, TLS, one by one; the errors are those of the system."""

import asyncio
import socket
import ssl
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, Final, cast

import aiohttp
from yarl import URL

_DATE_TIMEOUT: Final = 4.0


async def resolved(host: str, port: int) -> str:
    """Describe the addresses that DNS, or the hosts file, has for a name."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    return f"{host} is {'an address' if addresses == [host] else ', '.join(addresses)}"


async def connect(
    host: str, port: int, tls: ssl.SSLContext | None = None, proxy: URL | None = None
) -> tuple[str, float]:
    """Connect and hang up; describe TLS, and return the days that its certificate is valid."""
    first = (proxy.host, proxy.port) if proxy else (host, port)
    reader, writer = await asyncio.open_connection(*first, ssl=None if proxy else tls)
    try:
        if proxy:
            await _open_tunnel(reader, writer, proxy, f"{host}:{port}")
            if tls:
                await writer.start_tls(tls, server_hostname=host)
        if not tls:
            return "", 0.0
        end = writer.get_extra_info("peercert")["notAfter"]
        days = (ssl.cert_time_to_seconds(end) - time.time()) / 86_400
        version = writer.get_extra_info("ssl_object").version()
        return f"{version}, certificate valid for {days:.0f} days", days
    finally:
        writer.transport.abort()


async def _open_tunnel(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, proxy: URL, to: str
) -> None:
    login = ""
    if proxy.user:
        basic = aiohttp.BasicAuth(proxy.user, proxy.password or "").encode()
        login = f"Proxy-Authorization: {basic}\r\n"
    writer.write(f"CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{login}\r\n".encode())
    status = int((await reader.readuntil(b"\r\n\r\n")).split()[1])
    if status not in range(200, 300):
        raise aiohttp.ClientHttpProxyError(cast("Any", None), (), status=status)


async def clock_ahead(url: str, tls: ssl.SSLContext, proxy: URL | None) -> float | None:
    """Return the seconds that this clock is ahead of that of a server; None if it sends none."""
    with suppress(aiohttp.ClientError, OSError, ValueError, TypeError):
        timeout = aiohttp.ClientTimeout(total=_DATE_TIMEOUT)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(url, ssl=tls, proxy=proxy, allow_redirects=False) as response,
        ):
            return time.time() - parsedate_to_datetime(response.headers["Date"]).timestamp()
    return None


async def forwarder_state(port: int) -> str:
    """Return the state that the forwarder in this pod reports; "" if none does."""
    with suppress(aiohttp.ClientError, OSError, ValueError):
        headers, timeout = {"Accept": "application/json"}, aiohttp.ClientTimeout(total=2)
        async with (
            aiohttp.ClientSession(headers=headers, timeout=timeout) as session,
            session.get(f"http://127.0.0.1:{port}/status") as response,
        ):
            return str((await response.json()).get("state", ""))
    return ""
