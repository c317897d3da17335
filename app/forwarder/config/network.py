"""How connections leave the pod: the CAs that are trusted, and the HTTP proxy.

The Event Hubs client reads no proxy variables, and aiohttp (`trust_env`), which the other Azure
clients use, neither HTTPS_PROXY_FILE nor each form of NO_PROXY. The sink is connected to directly.
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

_PUBLIC: Final = 50  # CAs; a store with fewer lacks some of the public ones


def trusted(ca_file: Path | None) -> ssl.SSLContext:
    """Return a context that trusts the public CAs, and those of a file."""
    if not ca_file:
        return _context(None, 0)
    renewed = _Renewed(ssl.PROTOCOL_TLS_CLIENT)
    renewed.ca_file = ca_file
    return renewed


class _Renewed(ssl.SSLContext):
    """Each new connection trusts the CAs that the file has then."""

    ca_file: Path
    _now: ssl.SSLContext | None = None

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """Wrap a connection of asyncio."""
        with suppress(OSError, ssl.SSLError):  # the file is being replaced
            self._now = _context(self.ca_file, self.ca_file.stat().st_mtime_ns)
        return (self._now or _context(None, 0)).wrap_bio(*args, **options)


@functools.lru_cache(1)
def _context(ca_file: Path | None, _: int) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if context.cert_store_stats()["x509_ca"] < _PUBLIC:  # of an image, or of SSL_CERT_FILE
        context.load_verify_locations(certifi.where())
    if ca_file:
        context.load_verify_locations(ca_file)
    return context


def azure_options(settings: Settings, url: URL, *, proxied: bool = True) -> dict[str, Any]:
    """Return the options of a client of this service of Azure, which is not Event Hubs.

    It makes a single attempt: callers retry at their own pace, and must see an outage at once.
    """
    # Not needed with connection strings and the embedded store.
    from azure.core.pipeline.transport import AioHttpTransport  # noqa: PLC0415

    https = url.scheme == "https"
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=trusted(settings.trusted_ca_file)),
        proxy=proxy_for(settings, url.host or "", url.port or 443) if proxied and https else None,
        trust_env=proxied and not https,  # HTTP_PROXY
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    )
    options = {"retry_total": 0, "connection_timeout": 5, "read_timeout": 10}
    return {"transport": AioHttpTransport(session=session), **options}


def proxy_for(settings: Settings, host: str, port: int) -> URL | None:
    """Return the proxy that HTTPS_PROXY and NO_PROXY ask for on the way to a host.

    NO_PROXY has names and domains as for Python, and as for Go `*.x`, CIDRs, and `*` among others.
    """
    entries = settings.no_proxy.replace(" ", ",").replace("*.", ".").split(",")
    if "*" in entries or any(_covers(entry, host) for entry in entries):
        return None
    direct = proxy_bypass_environment(f"{host}:{port}", {"no": ",".join(entries)})
    return None if direct else settings.https_proxy


def _covers(network: str, host: str) -> bool:
    with suppress(ValueError):  # one is a name
        return ip_address(host) in ip_network(network, strict=False)
    return False
