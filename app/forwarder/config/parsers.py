"""Parsers of single settings: text in, value out, ValueError says what is accepted."""

import json
import re
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from yarl import URL

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DAY = 86_400
_OLDEST = timedelta(days=3650)  # no hub keeps messages for longer than 90 days
# The sender's own: a second value would make the request ambiguous.
_OWN_HEADERS = {"content-type", "content-length", "host", "transfer-encoding"}
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata
_CONTAINER = re.compile(r"(?=.{3,63}$)[a-z0-9]+(-[a-z0-9]+)*")


def whole(lowest: int, highest: int | None = None) -> Callable[[str], int]:
    """Return a parser of whole numbers within these bounds."""
    accepted = f"from {lowest} to {highest}" if highest is not None else f"of at least {lowest}"

    def parser(text: str) -> int:
        number = int(text) if re.fullmatch(r"[0-9]{1,15}", text) else -1
        if number < lowest or (highest is not None and number > highest):
            raise ValueError(f"'{text}' is not a whole number {accepted}")
        return number

    return parser


def seconds(text: str) -> float:
    """Parse a duration in seconds, above 0 and at most a day."""
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0 < number <= _DAY:
        raise ValueError(f"'{text}' is not a number of seconds above 0 and up to {_DAY}")
    return number


def one_of(*accepted: str) -> Callable[[str], str]:
    """Return a parser that takes just these words."""

    def parser(text: str) -> str:
        if text not in accepted:
            raise ValueError(f"'{text}' is none of {', '.join(accepted)}")
        return text

    return parser


def truth(text: str) -> bool:
    """Parse true or false."""
    return one_of("true", "false")(text) == "true"


def globs(text: str) -> tuple[str, ...]:
    """Parse a list of patterns joined by commas."""
    return tuple(sorted(names(text)))


def names(text: str) -> frozenset[str]:
    """Parse a list of names joined by commas."""
    found = frozenset(filter(None, (name.strip() for name in text.split(","))))
    if not found:
        raise ValueError(f"'{text}' names nothing; expected names joined by commas")
    return found


def container_name(text: str) -> str:
    """Parse the name of a blob container."""
    if not _CONTAINER.fullmatch(text):
        raise ValueError(
            f"'{text}' is not a container's name: 3 to 63 lower-case letters, digits and single "
            "hyphens between them"
        )
    return text


def host(text: str) -> str:
    """Parse the host name of an Event Hubs namespace."""
    if "=" in text or "/" in text or not re.fullmatch(r"[\w.-]+(:\d+)?", text):
        raise ValueError("is not a host name such as NAME.servicebus.windows.net")
    return text


def web_url(text: str) -> URL:
    """Parse the sink's URL; what it may hold (a password) is not repeated in the error."""
    if (url := _url(text)) is None:
        raise ValueError("is not an URL such as http://sysdig-agent:7765/k8s_audit")
    return url


def account_url(text: str) -> URL:
    """Parse the URL of a storage account; a SAS token in it belongs in a connection string."""
    url = _url(text)
    if url is None or url.user or url.query_string:
        raise ValueError("is not an URL such as https://ACCOUNT.blob.core.windows.net")
    return url


def start_position(text: str) -> str | datetime | timedelta:
    """Parse `earliest`, `latest`, an ISO 8601 instant (UTC if it says none) or an age like 6h."""
    if text in ("earliest", "latest"):
        return text
    if match := re.fullmatch(r"([0-9]{1,8})([smhdw])", text):
        age = timedelta(**{_UNITS[match[2]]: int(match[1])})
        if age > _OLDEST:
            raise ValueError(f"'{text}' is more than {_OLDEST.days} days; earliest is everything")
        return age
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"'{text}' is none of earliest, latest, an ISO 8601 instant such as "
            "2026-01-31T12:00:00Z, an age such as 30m, 6h or 2d"
        ) from None
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def headers(text: str) -> tuple[tuple[str, str], ...]:
    """Parse a JSON object of request headers; no value is repeated in the error."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError('is not a JSON object of texts such as {"X-Cluster": "prod"}')
    for name, value in found.items():
        if not _TOKEN.fullmatch(name) or not value.isprintable():
            raise ValueError(f"'{name}' is not a header's name, or its value cannot be sent")
        if name.lower() in _OWN_HEADERS:
            raise ValueError(f"'{name}' is set by the forwarder itself, leave it out")
    return tuple(found.items())


def readable(text: str) -> Path:
    """Parse the path of a file that can be read now."""
    path = Path(text)
    try:
        path.read_bytes()
    except OSError as error:
        shown = f"'{text}'" if path.is_absolute() else "this path"  # it may be the secret itself
        raise ValueError(f"{shown} cannot be read: {error.strerror}") from None
    return path


def certificates(text: str) -> Path:
    """Parse the path of a file of certificates to trust."""
    path = readable(text)
    try:
        ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        raise ValueError(f"'{text}' holds no certificate in PEM form") from None
    return path


def _url(text: str) -> URL | None:
    try:
        url = URL(text)
        return url if url.scheme in ("http", "https") and url.host and url.port else None
    except ValueError:
        return None
