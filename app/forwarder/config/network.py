"""How connections leave the pod: the CAs that are trusted, and the HTTP proxy.

The Event Hubs client reads no proxy variables. aiohttp, which the other Azure clients use, does
(`trust_env`), but not HTTPS_PROXY_FILE and not every form of NO_PROXY. The sink never uses a proxy.
"""

import functools
import ssl
from contextlib import suppress
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Final
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

import aiohttp
import certifi
from yarl import URL

from forwarder.config.settings import Settings

_MIN_PUBLIC: Final = 50  # CAs; a store with fewer lacks public ones


def client_context(ca_file: Path | None = None) -> ssl.SSLContext:
    """Return a context that trusts the CAs of a file, or else the public ones.

    From Python 3.13 on VERIFY_X509_STRICT is set by default. It refuses the CAs of many companies,
    for example if their basic constraints are not marked critical. OpenSSL, Go and curl take them.
    """
    context = ssl.create_default_context(cafile=ca_file)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def trusted(ca_file: Path | None) -> ssl.SSLContext:
    """Return a context that trusts the public CAs, and those of a file."""
    if not ca_file:
        return _context(None, 0)
    reloading = _ReloadingContext(ssl.PROTOCOL_TLS_CLIENT)
    reloading.ca_file = ca_file
    return reloading


class _ReloadingContext(ssl.SSLContext):
    """Trusts, for each new connection, the CAs that are in the file at that time."""

    ca_file: Path
    _latest: ssl.SSLContext | None = None

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """Wrap a connection of asyncio."""
        with suppress(OSError, ssl.SSLError):  # the file is being replaced
            self._latest = _context(self.ca_file, self.ca_file.stat().st_mtime_ns)
        return (self._latest or _context(None, 0)).wrap_bio(*args, **options)


@functools.lru_cache(1)
def _context(ca_file: Path | None, _modified: int) -> ssl.SSLContext:
    context = client_context()
    if context.cert_store_stats()["x509_ca"] < _MIN_PUBLIC:  # an image without CAs, SSL_CERT_FILE
        context.load_verify_locations(certifi.where())
    if ca_file:
        context.load_verify_locations(ca_file)
    return context


def azure_options(settings: Settings, url: URL, *, proxied: bool = True) -> dict[str, Any]:
    """Return options for the client of an Azure service at this URL, except Event Hubs.

    The client does not retry: callers have their own delays, and must see an outage at once.
    """
    # Not imported with connection strings and the embedded store.
    from azure.core.pipeline.transport import AioHttpTransport  # noqa: PLC0415

    https = url.scheme == "https"

    class Transport(AioHttpTransport):  # type: ignore[misc]  # its module is imported late
        """Reads the proxy for each request, because its password may be renewed in a file."""

        async def send(self, request: Any, **config: Any) -> Any:
            if proxied and https:
                config["proxy"] = proxy_for(settings, url.host or "", url.port or 443)
            return await super().send(request, **config)

    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=trusted(settings.trusted_ca_file)),
        trust_env=proxied and not https,  # HTTP_PROXY
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    )
    # Of a client's own options these are for the transport that it would make itself.
    transport = Transport(session=session, connection_timeout=5, read_timeout=10)
    return {"transport": transport, "retry_total": 0}


def proxy_for(settings: Settings, host: str, port: int) -> URL | None:
    """Return the proxy for connections to a host, according to HTTPS_PROXY and NO_PROXY.

    NO_PROXY may have what Python accepts, and also `*.DOMAIN`, CIDRs, and `*` as one of several.
    """
    entries = settings.no_proxy.replace(" ", ",").replace("*.", ".").split(",")
    if "*" in entries or any(_covers(entry, host) for entry in entries):
        return None
    direct = proxy_bypass_environment(f"{host}:{port}", {"no": ",".join(entries)})
    proxy: URL | None = None if direct else settings.current("https_proxy")
    return proxy


def _covers(network: str, host: str) -> bool:
    with suppress(ValueError):  # one of them is a name
        return ip_address(host) in ip_network(network, strict=False)
    return False
