"""Causes: what an error of a client library means here, and how to repair it. Pure.

Clients wrap the errors of other libraries, some `from None`, so the whole chain of exceptions is
searched: first for an error that has its own diagnosis (the login), then for a network error, then
by the patterns in `causes.toml`.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import aiohttp
from yarl import URL

from forwarder import log
from forwarder.config.network import proxy_for
from forwarder.config.settings import Settings
from forwarder.config.state_directory import WITHOUT_LOCKS, file_system
from forwarder.diagnosis.kinds import kind_of
from forwarder.errors import ForwarderError

TEXTS: Final[dict[str, Any]] = tomllib.loads(Path(__file__).with_name("causes.toml").read_text())
_REASONS: Final = "verify_message", "reason", "strerror"
_UNSPECIFIC: Final = {"no_tls": 1, "cut": 2}  # any other kind in a chain tells more
# Names that users chose, which patterns could match: quoted, in an address, or for tracing.
_NAMES: Final = re.compile(r"'[^'\s]*'|(?:TrackingId|SystemTracker|Reference):\S*|\w+://\S+")
_BEFORE_TLS: Final = {"unknown_name", "refused", "silent", "cut"}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is wrong and how to repair it, on one line each; `kind` identifies the rule."""

    kind: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}" if self.remedy else self.what


def of_hub(error: BaseException, settings: Settings) -> Diagnosis:
    """Return the cause of an error of the Event Hubs client."""
    (host, port), connection = hub_address(settings), settings.hub_connection
    websockets, proxy = settings.hub_transport == "websockets", proxy_for(settings, host, port)
    if found := of_connection(error, "hub", host, port, proxy if websockets else None):
        if proxy and not websockets and found.kind in _BEFORE_TLS:
            return replace(found, remedy=TEXTS["http"]["amqp"]["remedy"])
        return found
    login, policy, hub_option = "identity", "", ""
    if connection:
        login, policy = "policy" if connection.policy else "signature", connection.policy
        if connection.entity_path:
            hub_option = f" --eventhub-name {settings.event_hub_name}"
    names = {
        "namespace": host,
        "name": host.partition(".")[0],
        "hub": settings.event_hub_name,
        "group": settings.consumer_group,
        "policy": policy,
        "identity": f"the identity {settings.client_id}".rstrip(),
        "client": settings.client_id or "CLIENT_ID",
        "level": "eventhub" if hub_option else "namespace",
        "hub_option": hub_option,
        "error": log.describe(error),
    }
    names["keys"] = TEXTS["texts"]["keys"].format_map(names)
    found = _look_up(error, "hub", names, login)
    cut = _by_proxy(error, host, port, proxy) if proxy and websockets else None
    return cut if cut and found.kind in {"other", "interrupted"} else found


def of_store(error: BaseException, settings: Settings) -> Diagnosis:
    """Return the cause of an error of the storage client, or of the embedded store."""
    connection = settings.blob_connection
    url = connection.url if connection else settings.blob_account_url
    if not url:
        return of_file(error, settings.state_directory)
    host, port = url.host or "", url.port or 443
    proxy = proxy_for(settings, host, port) if url.scheme == "https" else None
    if found := of_connection(error, "store", host, port, proxy):
        return found
    names = {
        "account": host,
        "name": (connection and connection.account) or host.partition(".")[0],
        "container": settings.blob_container_name,
        "client": settings.client_id or "CLIENT_ID",
    }
    return _look_up(error, "store", names, "store_key" if connection else "store_identity")


def of_file(error: BaseException, path: Path) -> Diagnosis:
    """Return the cause of an error in the state directory; SQLite needs locks for its file."""
    what, text, kind = log.describe(error), TEXTS["file"], file_system(path)
    if kind in WITHOUT_LOCKS or "locked" in what or "no such table" in what:
        return Diagnosis("file system", text["what"].format(kind=kind, error=what), text["remedy"])
    return Diagnosis("file", what, text["other"])


def of_sink(error: BaseException, settings: Settings) -> Diagnosis:
    """Return the cause of a POST without a response."""
    url = settings.web_sink_url
    found = of_network(error, "sink", url.host or "", url.port or 0)
    found = found or Diagnosis("other", log.describe(error), "see WebSinkURL (webhook.url)")
    # With TLS 1.3 the sink looks for a client certificate after the handshake of the client.
    asked = url.scheme == "https" and not settings.web_sink_cert_file
    connected = not any(isinstance(one, aiohttp.ClientConnectorError) for one in chain(error))
    if asked and connected and found.kind in ("other", "cut"):
        return replace(found, remedy=f"{found.remedy}; {TEXTS['texts']['certificate']}")
    return found


def of_silence(newest: datetime, hub: str) -> Diagnosis:
    """Return the probable cause if no message is newer; in year 1 if there has never been one."""
    texts = TEXTS["silence"]
    what = texts["since" if newest.year > 1 else "never"]
    return Diagnosis("silence", what.format(hub=hub, since=f"{newest:%FT%TZ}"), texts["remedy"])


def of_network(error: BaseException, part: str, host: str, port: int) -> Diagnosis | None:
    """Return the cause if the host of a part was not reached; None for any other error."""
    found = [(kind, cause) for cause in chain(error) if (kind := kind_of(cause))]
    if not found:
        return None
    kind, cause = min(found, key=lambda pair: _UNSPECIFIC.get(pair[0], 0))
    reason = next(filter(None, (getattr(cause, name, None) for name in _REASONS)), None)
    text: dict[str, str] = TEXTS["network"][kind]
    names = {"host": host, "address": f"{host}:{port}", "error": reason or log.describe(cause)}
    what = text["what"].format_map(names)
    return Diagnosis(kind, what, text[part if part in text else "azure"])


def of_http(error: BaseException, host: str, port: int, proxy: str) -> Diagnosis | None:
    """Return the cause if a proxy cannot be reached, or a proxy or gateway refuses."""
    for cause in chain(error):
        match cause:
            case aiohttp.ClientConnectorError() | aiohttp.ClientConnectorCertificateError():
                host_of_proxy = isinstance(cause, aiohttp.ClientProxyConnectionError)
                if host_of_proxy or f"{cause.host}:{cause.port}" == proxy:
                    return of_network(error, "proxy", cause.host, cause.port or 0)
            case aiohttp.ClientHttpProxyError() | aiohttp.WSServerHandshakeError():
                kind = "proxy" if isinstance(cause, aiohttp.ClientHttpProxyError) else "upgrade"
                kind = "407" if cause.status == 407 else kind  # noqa: PLR2004 - of HTTP
                return _http(kind, host, port, proxy, status=cause.status)
    return None


def _by_proxy(error: BaseException, host: str, port: int, proxy: URL) -> Diagnosis | None:
    """Return the cause if a proxy closes the connection, speaks no HTTP, or is silent."""
    if not (found := [e for e in chain(error) if isinstance(e, aiohttp.ClientError | OSError)]):
        return None
    silent = any(isinstance(one, TimeoutError) for one in found)
    why = "no answer in time" if silent else log.describe(found[-1])
    return _http("through", host, port, f"{proxy.host}:{proxy.port}", error=why)


def hub_address(settings: Settings) -> tuple[str, int]:
    """Return the host and port that the Event Hubs client connects to."""
    connection = settings.hub_connection
    host, _, port = settings.hub_host.partition(":")
    if settings.hub_transport == "websockets":
        return host, 443
    return host, int(port or 5672) if connection and connection.emulator else 5671


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all errors that led to it, including those that `from None` hides."""
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        current = queue.pop(0)
        if current and id(current) not in seen:
            seen.add(id(current))
            yield current
            if isinstance(current, BaseExceptionGroup):
                queue += current.exceptions
            queue += [current.__cause__, current.__context__]


def searchable(error: BaseException) -> str:
    """Return the text that patterns are searched in: a line for each error of its chain."""
    return "\n".join(map(_line, chain(error)))


def without_names(error: BaseException) -> str:
    """Return the searchable text without names of hubs, groups and namespaces."""
    return _NAMES.sub("", searchable(error))


def first_match(
    rules: list[dict[str, str]], text: str, names: Mapping[str, object]
) -> Diagnosis | None:
    """Return the diagnosis by the first rule whose pattern is found in the text."""
    for rule in rules:
        if re.search(rule["pattern"], text):
            return Diagnosis(rule["kind"], *(rule[f].format_map(names) for f in ("what", "remedy")))
    return None


def _line(error: BaseException) -> str:
    """Return the type of an error, its condition or code, its HTTP status, and its text."""
    condition = getattr(error, "condition", None) or getattr(error, "error_code", None) or ""
    if isinstance(condition, bytes):
        condition = condition.decode(errors="replace")
    status = getattr(error, "status_code", None) or ""
    return f"{type(error).__name__} {condition} {status} {' '.join(str(error).split())}"


def of_connection(
    error: BaseException, part: str, host: str, port: int, proxy: URL | None
) -> Diagnosis | None:
    """Return the diagnosis that an error has, or why a part was not reached, also by a proxy."""
    for cause in chain(error):
        if isinstance(cause, ForwarderError):
            own: Diagnosis = getattr(cause, "diagnosis", Diagnosis("other", log.describe(cause)))
            return own
    shown = f"{proxy.host}:{proxy.port}" if proxy else "of HTTP_PROXY"
    if found := of_http(error, host, port, shown):
        return found
    found = of_network(error, part, host, port)
    # An error of the hub may come later, and then has a cause of its own.
    if proxy and (found.kind in _BEFORE_TLS if found else part != "hub"):
        return _by_proxy(error, host, port, proxy) or found
    return found


def _http(kind: str, host: str, port: int, proxy: str, **more: object) -> Diagnosis:
    names = {"address": f"{host}:{port}", "host": host, "proxy": proxy, **more}
    text = TEXTS["http"][kind]
    return Diagnosis(kind, text["what"].format(**names), text["remedy"].format(**names))


def _look_up(error: BaseException, part: str, names: Mapping[str, str], login: str) -> Diagnosis:
    """Return the diagnosis by the patterns of a part.

    The first line that they search is the kind of login, and `$Default` if that is the group.
    """
    texts = {name: text.format_map(names) for name, text in TEXTS["texts"][login].items()}
    kind = f"{login} $Default" if names.get("group", "").lower() == "$default" else login
    found = first_match(TEXTS[part], f"{kind}\n{without_names(error)}", {**names, **texts})
    return found or Diagnosis("other", log.describe(error))
