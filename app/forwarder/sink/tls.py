"""The sink's credentials in files: bearer token, CAs, client certificate and key.

cert-manager and the kubelet renew them while the process runs, by replacing a symbolic link. Before
each POST the modification times are compared, and a replaced file is read again. A new TLS context
leads to new connections: aiohttp (3.14) pools connections by context, so those with the old one
finish their request and are closed after 15 idle seconds.
"""

import math
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, Generic, TypeVar

from prometheus_client import Gauge

from forwarder import log
from forwarder.config.network import client_context
from forwarder.config.settings import Settings
from forwarder.redaction import protect

_Value = TypeVar("_Value")
_RETRY_AFTER: Final = 1.0  # seconds
_SOON: Final = 7 * 86_400  # seconds before its expiry from which on a client certificate is logged
_LOG_AFTER: Final = 3_600.0  # seconds between two such entries


class Renewed(Generic[_Value]):
    """A value that is read from files, and read again when one of them is replaced."""

    def __init__(
        self, what: str, read: Callable[[], _Value], value: _Value, *paths: Path | None
    ) -> None:
        """`value` is used until the files can be read. `what` names them in the log."""
        self._what, self._read, self._value = what, read, value
        self._paths = [path for path in paths if path]
        self._versions: list[tuple[int, int]] = []
        self._retry_at = 0.0
        self._limited = log.RateLimited()

    def get(self) -> _Value:
        """Return the current value, or the last one while the files cannot be read."""
        try:
            stats = [path.stat() for path in self._paths]
            versions = [(stat.st_mtime_ns, stat.st_ino) for stat in stats]
            replaced = versions != self._versions and time.monotonic() >= self._retry_at
            if replaced:  # guard: token-reread
                self._value, self._versions = self._read(), versions
        except (OSError, ValueError) as error:  # ssl.SSLError: the key is not replaced yet
            self._retry_at = time.monotonic() + _RETRY_AFTER
            self._limited.error(f"{self._what} cannot be read", reason=log.describe(error))
        return self._value


def authorization(token_file: Path | None) -> Renewed[dict[str, str]]:
    """Return the Authorization header with the token in this file; no header without a file."""

    def read() -> dict[str, str]:
        token = token_file.read_text(encoding="ascii").strip() if token_file else ""
        protect(token)
        return {"Authorization": f"Bearer {token}"} if token else {}

    return Renewed("token file", read, {}, token_file)


class SinkTls:
    """The TLS context of the sink, and when the certificates given in settings expire."""

    def __init__(self, settings: Settings, expiry: Gauge | None = None) -> None:
        self._ca, self._trusted_ca = settings.web_sink_ca_file, settings.trusted_ca_file
        self._certificate, self._key = settings.web_sink_cert_file, settings.web_sink_key_file
        self._expiries: dict[Path, float] = {}
        files = self._ca, self._trusted_ca, self._certificate, self._key
        self._context = Renewed("sink certificate files", self._build, self._build(), *files)
        self._limited = log.RateLimited(_LOG_AFTER)
        if expiry:
            for path in self._expiries:
                expiry.labels(str(path)).set_function(partial(self._expiry, path))

    def context(self) -> ssl.SSLContext:
        """Return the context for a new connection."""
        context = self._context.get()
        if reason := self.expired(_SOON):
            self._limited.error("client certificate expires", reason=reason)
        return context

    def expired(self, within: float = 0.0) -> str:
        """Return a sentence if the client certificate expires `within` seconds, or has; else ""."""
        expiry, now = self._expiries.get(self._certificate or Path(), math.inf), time.time()
        if expiry > now + within:
            return ""
        verb = "expires" if expiry > now else "has expired"
        date = f"{datetime.fromtimestamp(expiry, UTC):%FT%TZ}"
        return f"the client certificate in {self._certificate} {verb} on {date}"

    def _expiry(self, path: Path) -> float:
        self._context.get()
        return self._expiries[path]

    def _build(self) -> ssl.SSLContext:
        context = client_context(self._ca)  # instead of the public CAs
        if self._trusted_ca:
            context.load_verify_locations(self._trusted_ca)  # in addition to them
        if self._certificate:
            context.load_cert_chain(self._certificate, self._key, password="")  # never prompt
            self._expiries[self._certificate] = min(_expiries(self._certificate))
        for bundle in filter(None, (self._ca, self._trusted_ca)):
            self._expiries[bundle] = max(_expiries(bundle))  # it may hold the next CA as well
        return context


def _expiries(path: Path) -> list[float]:
    """Return when each certificate of a PEM file expires, in Unix seconds."""
    from cryptography import x509  # noqa: PLC0415 - takes 8 MB, and is rarely needed

    certificates = x509.load_pem_x509_certificates(path.read_bytes())
    return [certificate.not_valid_after_utc.timestamp() for certificate in certificates]
