"""What can be saved of an audit event whose JSON was cut off: pure, text in, text out."""

import json
import re
from datetime import UTC, datetime
from typing import Final

from forwarder.errors import UnusableError

ANNOTATION: Final = '"audit.aks/truncated":"true"'
# Required by audit.k8s.io/v1, and what a rule of any sensor looks at first.
_REQUIRED = ("auditID", "stage", "verb", "user")
_TIMESTAMPS = ("requestReceivedTimestamp", "stageTimestamp")
_SPACE = re.compile(r"[ \t\n\r]*")
_decode = json.JSONDecoder().raw_decode


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
    others = annotations[1:].lstrip()
    comma = "" if others.startswith("}") else ","
    fields["annotations"] = "{" + ANNOTATION + comma + others
    return "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in fields.items()) + "}"


def _whole_fields(text: str) -> tuple[dict[str, str], str]:
    """Return the fields that end before the cut, their values as written, and text after the end.

    A number at the very end is not whole: its next digit may be lost.
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
            if at == len(text) and text[end - 1].isdigit():
                break
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
    except ValueError:
        raise UnusableError("cut off: timestamps lost, and the record has no time") from None
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
