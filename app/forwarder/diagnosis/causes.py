"""Causes: what an error of a client library means here, and what to do about it. Pure."""

import re
import socket
import ssl
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from azure.core.exceptions import ClientAuthenticationError

from forwarder import log
from forwarder.config.settings import Settings
from forwarder.errors import ForwarderError

_TEXTS: Final[dict[str, Any]] = tomllib.loads(Path(__file__).with_name("causes.toml").read_text())
_EXPIRED: Final = {10}  # codes of OpenSSL's verification
_MISNAMED: Final = {62, 64}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is wrong and what to do about it, a line each; `kind` is a word or two."""

    kind: str
    what: str
    do: str = ""

    def __str__(self) -> str:
        return f"{self.what}; {self.do}" if self.do else self.what


def of_hub(error: BaseException, settings: Settings) -> Diagnosis:
    """Return the cause of an error of the Event Hubs client."""
    address, connection = hub_address(settings), settings.hub_connection
    names = {
        "namespace": address[0],
        "name": address[0].partition(".")[0],
        "hub": settings.event_hub_name,
        "group": settings.consumer_group,
        "policy": connection.policy if connection else "",
    }
    own = connection and connection.entity_path
    names["level"] = "eventhub" if own else "namespace"
    names["which"] = f" --eventhub-name {names['hub']}" if own else ""
    names["who"] = f"policy '{names['policy']}'" if connection else "the identity"
    texts = {name: text.format_map(names) for name, text in _TEXTS["rights"].items()}
    names["rights"], names["keys"] = texts["policy" if connection else "identity"], texts["keys"]
    return of_network(error, "hub", *address) or _look_up(error, "hub", names)


def of_store(error: BaseException, settings: Settings) -> Diagnosis:
    """Return the cause of an error of the storage client, or of the embedded store."""
    if (address := store_address(settings)) is None:
        what = str(error) if isinstance(error, ForwarderError) else log.describe(error)
        return Diagnosis("file", what, "see StateDirectory (persistence), and its owner and mode")
    account = settings.blob_connection.account if settings.blob_connection else ""
    names = {
        "account": address[0],
        "name": account or address[0].partition(".")[0],
        "container": settings.blob_container_name,
    }
    return of_network(error, "store", *address) or _look_up(error, "store", names)


def of_sink(error: BaseException, settings: Settings) -> Diagnosis:
    """Return the cause why no answer of the sink came."""
    url = settings.web_sink_url
    found = of_network(error, "sink", url.host or "", url.port or 0)
    return found or Diagnosis("other", log.describe(error), "see WebSinkURL (webhook.url)")


def of_silence(newest: datetime, hub: str) -> Diagnosis:
    """Return the probable cause of a hub without messages since then; year 1 is never."""
    text = _TEXTS["silence"]["since" if newest.year > 1 else "never"]
    return Diagnosis(
        "silence", text.format(hub=hub, since=f"{newest:%FT%TZ}"), _TEXTS["silence"]["do"]
    )


def of_network(error: BaseException, part: str, host: str, port: int) -> Diagnosis | None:
    """Return the cause if it is on the way to a part's host; None if it is further in."""
    kinds = [(kind, found) for found in _chain(error) if (kind := _network_kind(found))]
    if not kinds:
        return None
    kind, found = min(kinds, key=lambda one: one[0] == "cut")  # libraries wrap what they met in it
    shown = getattr(found, "reason", None) or getattr(found, "strerror", None) or found
    text = _TEXTS["network"][kind]
    what = text["what"].format(host=host, address=f"{host}:{port}", error=shown)
    return Diagnosis(kind, what, text[part])


def hub_address(settings: Settings) -> tuple[str, int]:
    """Return the host and port that the Event Hubs client goes to."""
    connection = settings.hub_connection
    host, _, port = (
        connection.host if connection else settings.event_hub_namespace or ""
    ).partition(":")
    if settings.hub_transport == "websockets":
        return host, 443
    return host, int(port or 5672) if connection and connection.emulator else 5671


def store_address(settings: Settings) -> tuple[str, int] | None:
    """Return the storage account's host and port; None if checkpoints are in a file."""
    connection, url = settings.blob_connection, settings.blob_account_url
    url = connection.url if connection else url
    return (url.host or "", url.port or 443) if url else None


def _network_kind(error: BaseException) -> str | None:  # noqa: PLR0911 - a table
    match error:
        case socket.gaierror():
            return "unknown_name"
        case ssl.SSLCertVerificationError() if not hasattr(error, "verify_code"):
            return None  # aiohttp's, with the real one behind it
        case ssl.SSLCertVerificationError() if error.verify_code in _EXPIRED:
            return "expired"
        case ssl.SSLCertVerificationError() if error.verify_code in _MISNAMED:
            return "misnamed"
        case ssl.SSLCertVerificationError():
            return "untrusted"
        case ssl.SSLError():
            return "no_tls"
        case ConnectionRefusedError():
            return "refused"
        case TimeoutError():
            return "silent"
        case OSError() if error.errno:
            return "cut"
    return None


def _look_up(error: BaseException, part: str, names: dict[str, str]) -> Diagnosis:
    errors = list(_chain(error))
    text = "\n".join(map(_signature, errors))
    for rule in _TEXTS[part]:
        if re.search(rule["seen"], text):
            texts = (rule[field].format_map(names) for field in ("what", "do"))
            return Diagnosis(rule["kind"], *texts)
    # Without a response nobody refuses the login: there is none.
    if any(isinstance(one, ClientAuthenticationError) and not one.response for one in errors):
        return Diagnosis("identity", **_TEXTS["identity"])
    return Diagnosis("other", log.describe(error))


def _signature(error: BaseException) -> str:
    """Return what rules look at: type, condition or code, status, text."""
    condition = getattr(error, "condition", None) or getattr(error, "error_code", None) or ""
    if isinstance(condition, bytes):
        condition = condition.decode(errors="replace")
    status = getattr(error, "status_code", None) or ""
    return f"{type(error).__name__} {condition} {status} {' '.join(str(error).split())}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those behind it; libraries hide theirs by `from None`."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        one = todo.pop(0)
        if one and id(one) not in seen:
            seen.add(id(one))
            yield one
            if isinstance(one, BaseExceptionGroup):
                todo += one.exceptions
            todo += [one.__cause__, one.__context__]
