"""Types and parsers of settings: text in, value out; ValueError tells what is accepted.

`config/settings.py` redacts the error, because the text may be a secret in the wrong variable.
"""

import re
import ssl
import string
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, get_args

import msgspec
from msgspec import Meta
from yarl import URL

from forwarder.redaction import redact

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)  # earlier instants have the same effect
_OLDEST = timedelta(days=3650)  # no hub keeps messages for longer than 90 days
# Set by the forwarder: a second value would make the request ambiguous.
_OWN_HEADERS = {"content-type", "content-length", "host", "transfer-encoding"}
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token of RFC 9110
_PROXY = re.compile(r"[\w.:-]+/")  # host and an empty path
# Long words that may be keys or tokens: mixed kinds of characters, or hexadecimal.
_KEY = re.compile(r"(?=\S*[a-z])(?=\S*[A-Z])(?=\S*\d)[\w+/=~.-]{16,}|\b[0-9a-f]{24,}\b")
_BLANKS = f"{string.whitespace}\xa0\ufeff\u200b"  # editors begin files with a byte order mark
_OTHER_SERVICES = re.compile(r"\.(dfs|file|queue|table|web)\.")  # of a storage account


def whole(lowest: int, highest: int | None = None) -> Meta:
    """Return the constraint for a whole number within these bounds."""
    bounds = f"from {lowest} to {highest}" if highest is not None else f"of at least {lowest}"
    return Meta(ge=lowest, le=highest, description=f"a whole number {bounds}")


def text(pattern: str, description: str) -> Meta:
    """Return the constraint for a text that fully matches a pattern."""
    return Meta(pattern=rf"^(?:{pattern})$", description=description)


# https://learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules
Hub = Annotated[str, text(r"\w[\w.-]{0,255}", "the name of an event hub")]
Group = Annotated[str, text(r"\$Default|\w[\w.-]{0,49}", "the name of a consumer group")]
Host = Annotated[str, text(r"[\w.-]+(:\d+)?", "a host name such as NAME.servicebus.windows.net")]
# https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata
Container = Annotated[
    str,
    text(
        r"(?=.{3,63}$)[a-z0-9]+(-[a-z0-9]+)*",
        "the name of a container: 3 to 63 lower-case letters, digits and single hyphens between",
    ),
]
Seconds = Annotated[
    float, Meta(gt=0, le=86_400, description="a number of seconds above 0 and up to 86400")
]
Truth = Annotated[bool, Meta(description="true or false")]


def accepted(kind: Any) -> str:
    """Describe what a field of this type accepts."""
    for item in (kind, *get_args(kind)):  # in an optional type, the first argument
        if metas := getattr(item, "__metadata__", None):
            return str(metas[0].description)
    return f"one of {', '.join(get_args(kind))}"


def redacted(problem: str) -> str:
    """Return a problem on one line, without what may be a key."""
    return _KEY.sub("***", redact(" ".join(problem.split())))


def variable(environ: Mapping[str, str], name: str) -> tuple[str, Path | None]:
    """Return the text of a variable, and the path in NAME_FILE if it was read from there.

    HTTPS_PROXY and NO_PROXY may be in lower case, which takes precedence, as in curl.
    """
    text = (name.isupper() and environ.get(name.lower())) or environ.get(name, "")
    text, path = text.strip(_BLANKS), environ.get(f"{name}_FILE", "").strip()
    if text and path:
        raise ValueError(f"given both as {name} and as {name}_FILE, leave one out")
    if not path:
        return text, None
    try:
        # A pipe, such as a shell's <(command), cannot be read again later.
        return text_of(Path(path)), Path(path) if Path(path).is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        shown = f", '{path}'," if Path(path).is_absolute() else ""  # it may be the secret itself
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ValueError(f"{name}_FILE{shown} cannot be read: {reason}") from None


def text_of(path: Path) -> str:
    """Read a variable from its file."""
    return path.read_text(encoding="utf-8-sig").strip()


def names(text: str) -> frozenset[str]:
    """Parse a list of names separated by commas."""
    if found := frozenset(filter(None, (name.strip() for name in text.split(",")))):
        return found
    raise ValueError(f"'{text}' has no name in it; expected names joined by commas")


def web_url(text: str) -> URL:
    """Parse the URL of the sink."""
    return _url(text, "http://sysdig-agent:7765/k8s_audit", lambda _: True)


def account_url(text: str) -> URL:
    """Parse the URL of a storage account; a SAS token in it belongs in a connection string."""
    example = "https://ACCOUNT.blob.core.windows.net"

    def fits(url: URL) -> bool:
        host, path = url.host or "", url.path.strip("/")
        other = _OTHER_SERVICES.search(host) or (path and ".blob." in host)
        return not (url.user or url.query_string or other)

    return _url(text, example, fits)


def proxy_url(text: str) -> URL:
    """Parse the URL of an HTTP proxy, whose scheme may be missing, as in curl."""
    given = text if "://" in text else f"http://{text}"
    return _url(given, "http://proxy:3128", lambda url: _PROXY.fullmatch(f"{url.host}{url.path}"))


def start_position(text: str) -> str | datetime | timedelta:
    """Parse `earliest`, `latest`, an ISO 8601 instant (by default in UTC) or an age like 6h."""
    if text in ("earliest", "latest"):
        return text
    if match := re.fullmatch(r"([0-9]{1,8})([smhdw])", text):
        age = timedelta(**{_UNITS[match[2]]: int(match[1])})
        if age > _OLDEST:
            raise ValueError(f"'{text}' is more than {_OLDEST.days} days; set earliest for all")
        return age
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"'{text}' is none of earliest, latest, an ISO 8601 instant such as "
            "2026-01-31T12:00:00Z, an age such as 30m, 6h or 2d"
        ) from None
    return max(instant if instant.tzinfo else instant.replace(tzinfo=UTC), _EPOCH)


def headers(text: str) -> tuple[tuple[str, str], ...]:
    """Parse a JSON object of request headers; the error does not repeat a value."""
    try:
        found = msgspec.json.decode(text, type=dict[str, str])
    except (msgspec.DecodeError, UnicodeError):
        raise ValueError('is not a JSON object of strings such as {"X-Cluster": "prod"}') from None
    for name, value in found.items():
        if not _HEADER_NAME.fullmatch(name) or not value.isprintable():
            raise ValueError(f"'{name}' is not the name of a header, or its value cannot be sent")
        if name.lower() in _OWN_HEADERS:
            raise ValueError(f"'{name}' is set by the forwarder, leave it out")
    return tuple(found.items())


def readable(text: str) -> Path:
    """Parse the path of a file that can be read."""
    path = Path(text)
    try:
        path.read_bytes()
    except OSError as error:
        shown = f"'{text}'" if path.is_absolute() else "this path"  # it may be the secret itself
        raise ValueError(f"{shown} cannot be read: {error.strerror}") from None
    return path


def certificates(text: str) -> Path:
    """Parse the path of a file with CA certificates."""
    path = readable(text)
    try:
        ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        raise ValueError(f"'{text}' has no certificate in PEM format") from None
    return path


def shown_url(url: URL) -> URL:
    """Return the URL without its user, password and query, which may be secret."""
    return url.with_user(None).with_query(None).with_fragment(None)


def _url(text: str, example: str, fits: Callable[[URL], object]) -> URL:
    """Parse a URL; the error does not repeat it, because it may contain a password."""
    with suppress(ValueError):
        url = URL(text)
        if url.scheme in ("http", "https") and url.host and url.port and fits(url):
            return url
    login = "; in user and password, percent-encode all but letters and digits (%40 for @)"
    raise ValueError(f"is not a URL such as {example}{login if '@' in text else ''}")
