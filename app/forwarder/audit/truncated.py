"""What can be saved of an audit event whose JSON was cut off: pure, text in, text out."""

import json
import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

import msgspec

from forwarder.errors import UnusableError

ANNOTATION: Final = '"audit.aks/truncated":"true"'
# Required by audit.k8s.io/v1, and what a rule of any sensor looks at first.
_REQUIRED = ("auditID", "stage", "verb", "user")
_TIMESTAMPS = ("requestReceivedTimestamp", "stageTimestamp")
_SPACE = re.compile(r"[ \t\n\r]*")
_decode = json.JSONDecoder(parse_int=str).raw_decode  # int() takes no more than 4,300 digits
_raw = msgspec.json.Decoder(msgspec.Raw)


def salvage(text: str, time: str | None) -> str:
    """Rebuild an event from the top-level fields that are whole, marked as truncated.

    The timestamps, which the API server writes last, come from the record's `time` (RFC 3339).
    Raises UnusableError if a field is lost without which no sink can use the event.
    """
    fields, rest = _whole_fields(text)
    if rest:
        raise UnusableError("JSON followed by other text")
    if missing := [name for name in _REQUIRED if name not in fields]:
        raise UnusableError(f"cut off: {', '.join(missing)} lost")
    for name in _TIMESTAMPS:
        if name not in fields:
            fields[name] = f'"{_micro_time(time)}"'
    annotations = fields.get("annotations", "{}")
    others = annotations[1:-1].strip() if annotations.startswith("{") else ""
    fields["annotations"] = "{" + others + ("," if others else "") + ANNOTATION + "}"
    return "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in fields.items()) + "}"


def _whole_fields(text: str) -> tuple[dict[str, str], str]:
    """Return the fields that end before the cut, their values as written, and text after the end.

    A number before the cut is not whole: its next digit may be lost.
    """
    fields: dict[str, str] = {}
    at = _skip(text, 0)
    if text[at : at + 1] != "{":
        return fields, ""
    try:
        while text[at : at + 1] in ("{", ","):
            name, at = _decode(text, _skip(text, at + 1))
            start = _skip(text, _skip(text, at) + 1)
            if text[start - 1 : start] not in ": \t\n\r" or not isinstance(name, str):
                break
            _, at = _decode(text, start)
            end, at = at, _skip(text, at)
            if text[end - 1].isdigit() and text[at : at + 1] not in (",", "}"):
                break
            with suppress(msgspec.DecodeError):  # NaN or half a surrogate, no JSON to a sink
                _raw.decode(text[start:end])
                fields[name] = text[start:end]
    except (ValueError, RecursionError):
        return fields, ""
    return fields, text[at + 1 :].strip() if text[at : at + 1] == "}" else ""


def _skip(text: str, at: int) -> int:
    """Return the index of the next character that is no white space."""
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _micro_time(time: str | None) -> str:
    """Return the time as Kubernetes' MicroTime, which takes exactly six digits of a second."""
    try:
        instant = datetime.fromisoformat(time or "")
        instant = instant.astimezone(UTC) if instant.tzinfo else instant.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise UnusableError("cut off: timestamps lost, and the record has no time") from None
    return instant.isoformat(timespec="microseconds").replace("+00:00", "Z")
