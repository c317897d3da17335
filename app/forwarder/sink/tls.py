"""The sink's credentials in files: CA, client certificate and key, bearer token.

cert-manager and the kubelet renew them while the process runs, by swapping a symbolic link. The
files are looked at before each POST and read again when one was replaced. A new TLS context makes
new connections: aiohttp (3.14) pools connections by context, so those with the old one finish
what they do and are closed once they have been idle for 15 s.
"""

import ssl
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from prometheus_client import Gauge

from forwarder import log
from forwarder.config.settings import Settings

_SOON: Final = 7 * 86_400  # seconds: a client certificate that expires before is logged
_LOG_AFTER: Final = 3_600.0
_RETRY_AFTER: Final = 1.0


class WatchedFiles:
    """Tells when one of the files was replaced."""

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._versions: list[tuple[int, int]] = []

    def replaced(self) -> bool:
        """Return whether a file is another one than before; OSError if one cannot be read."""
        stats = [path.stat() for path in self._paths]
        versions = [(stat.st_mtime_ns, stat.st_ino) for stat in stats]
        before, self._versions = self._versions, versions
        return versions != before

    def forget(self) -> None:
        """Report the files as replaced once more."""
        self._versions = []


class BearerToken:
    """A token in a file; without a file there is none."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file = WatchedFiles(*[path] if path else [])
        self._header: dict[str, str] = {}
        self._limited = log.RateLimited()

    def header(self) -> Mapping[str, str]:
        """Return the Authorization header; the last one while the file cannot be read."""
        try:
            if self._path and self._file.replaced():  # guard: token-reread
                token = self._path.read_text(encoding="ascii").strip()
                self._header = {"Authorization": f"Bearer {token}"} if token else {}
        except (OSError, ValueError) as error:
            self._limited.error("token file cannot be read", reason=log.describe(error))
        return self._header


class SinkTls:
    """The TLS context of the sink, renewed with its files."""

    def __init__(
        self,
        ca: Path | None,
        certificate: Path | None,
        key: Path | None,
        trusted_ca: Path | None,
        expiry: Gauge | None = None,
    ) -> None:
        """`ca` replaces the public CAs, `trusted_ca` is added to them."""
        self._ca, self._certificate, self._key, self._trusted_ca = ca, certificate, key, trusted_ca
        self._files = WatchedFiles(*filter(None, (ca, certificate, key, trusted_ca)))
        self._gauge = expiry
        self._expires = float("inf")
        self._limited = log.RateLimited(_LOG_AFTER)
        self._retry_at = 0.0
        self._files.replaced()
        self._context = self._build()

    @classmethod
    def of(cls, settings: Settings, expiry: Gauge | None = None) -> Self | None:
        """Return the TLS of these settings; None if the sink has none."""
        if settings.web_sink_url.scheme != "https":
            return None
        own = settings.web_sink_cert_file, settings.web_sink_key_file
        return cls(settings.web_sink_ca_file, *own, settings.trusted_ca_file, expiry)

    def context(self) -> ssl.SSLContext:
        """Return the context of the files as they are; the last one while they do not fit."""
        try:
            if time.monotonic() >= self._retry_at and self._files.replaced():
                self._context = self._build()
                self._limited.forget()
                log.info("sink certificates read again")
        except (OSError, ValueError) as error:  # certificate and key are replaced one by one
            self._files.forget()
            self._retry_at = time.monotonic() + _RETRY_AFTER
            self._limited.error("sink certificates cannot be read", reason=log.describe(error))
        if self._expires < time.time() + _SOON:
            self._limited.error("client certificate expires", reason=self.expired(soon=True))
        return self._context

    def expired(self, *, soon: bool = False) -> str:
        """Return when the client certificate expired, or expires; empty if that is far away."""
        if self._expires > time.time() + soon * _SOON:
            return ""
        verb = "expires" if self._expires > time.time() else "has expired"
        date = f"{datetime.fromtimestamp(self._expires, UTC):%FT%TZ}"
        return f"the client certificate in {self._certificate} {verb} on {date}"

    def _build(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self._ca)
        if self._trusted_ca:
            context.load_verify_locations(self._trusted_ca)
        if self._certificate:
            context.load_cert_chain(self._certificate, self._key)
            self._expires = min(_expiries(self._certificate))
        if self._gauge:
            for path in filter(None, (self._ca, self._trusted_ca)):
                # A bundle holds the next CA beside the one that expires.
                self._gauge.labels(str(path)).set(max(_expiries(path)))
            if self._certificate:
                self._gauge.labels(str(self._certificate)).set(self._expires)
        return context


def _expiries(path: Path) -> list[float]:
    """Return when each certificate of a PEM file expires, in Unix seconds."""
    from cryptography import x509  # noqa: PLC0415 - costs 5 MB, and few have such files

    found = x509.load_pem_x509_certificates(path.read_bytes())
    return [one.not_valid_after_utc.timestamp() for one in found]
