"""Completes an audit event whose JSON was cut off, or that lacks what a sensor looks at first.

AKS keeps 16 KiB of a log entry. kube-apiserver writes the fields of an event in a fixed order:
auditID, stage, requestURI, verb, user, …, objectRef, the objects, both timestamps, annotations. The
top-level fields before the cut are whole, and stay as they were written. The timestamps are taken
from the record's `time`, and an annotation marks the event as completed.

A client can move the cut by the length of its query or User-Agent, and could so hide a request.
Events without verb or user are therefore completed too, with `unknown` for both. A lost objectRef
is derived from the path.
"""

import json
import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec

from forwarder.audit import records
from forwarder.audit.requestinfo import object_reference
from forwarder.errors import UnusableError

_TRUNCATED: Final = '"audit.aks/truncated":"true"'
_MISSING: Final = '"audit.aks/missing":"%s"'
_UNKNOWN: Final = {"verb": '"unknown"', "user": '{"username":"unknown"}'}
_TIMESTAMPS: Final = ("requestReceivedTimestamp", "stageTimestamp")
_RFC3339: Final = re.compile(
    r"\d{4}-\d\d-\d\dT([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?(Z|[+-]\d\d:[0-5]\d)", re.ASCII
)
_parse: Final = datetime.fromisoformat
_SPACE: Final = re.compile(r"[ \t\n\r]*")
# A string without its closing quote, up to the last whole character or escape.
_OPEN_STRING: Final = re.compile(r'"(?:[^"\\\0-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*+')
_ESCAPED: Final = len(r"\ud83d")
_decode_raw: Final = msgspec.json.Decoder(msgspec.Raw).decode


class _Parsed(NamedTuple):
    """The top-level fields of an event that precede the cut, with their values as written.

    `uri` is the JSON of the requestURI up to the cut if that is where the cut is.
    """

    fields: dict[str, str]
    whole: bool = False
    uri: str = ""


def is_rfc3339(stamp: str | None) -> bool:
    """Return whether Go's parser, and so a sensor, accepts this timestamp."""
    try:
        # What kube-apiserver writes, 2026-01-02T03:04:05.678901Z, is recognized by its separators,
        # because that is faster than the regular expression.
        common = stamp[7:20:3] == "-T::." and stamp[26:] == "Z"  # type: ignore[index]
        return bool((common or _RFC3339.fullmatch(stamp)) and _parse(stamp))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


def complete(log: str, time: str | None) -> str:
    """Return an event made of the whole fields of a log and of the fields that it must have.

    Control characters in strings are escaped, which does not count as completing the event. Raises
    UnusableError if auditID or stage is lost, or other text follows.
    """
    event = _parsed(records.escape_controls(log.encode()).decode().strip("\ufeff\0"))
    fields = event.fields
    if lost := [name for name in ("auditID", "stage") if not fields.get(name, "").startswith('"')]:
        cause = "not an audit event" if event.whole else "cut off"
        raise UnusableError(f"{cause}: {', '.join(lost)} lost")
    missing = _replace_missing(event)
    completed = not event.whole or bool(missing)
    received, stage = _TIMESTAMPS
    if not event.whole and received not in fields:
        fields[received] = _micro_time(fields, time)
    if not is_rfc3339(_decoded(fields.get(stage, ""))):
        fields[stage] = _micro_time(fields, time)
        completed = True
    if completed:
        annotations = fields.get("annotations", "")
        others = annotations[1:-1].strip() if annotations.startswith("{") else ""
        lost_fields = _MISSING % ",".join(missing) if missing else ""
        entries = ",".join(filter(None, (others, _TRUNCATED, lost_fields)))
        fields["annotations"] = f"{{{entries}}}"
    return "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in fields.items()) + "}"


def _replace_missing(event: _Parsed) -> list[str]:
    """Fill in verb, user and objectRef if they are lost; return the fields lost of the request."""
    fields = event.fields
    missing = [name for name in _UNKNOWN if name not in fields]
    if not fields.get("verb", '"').startswith('"'):  # it is not a string
        missing.insert(0, "verb")
    if event.whole and not missing:
        return missing
    uri_is_whole = "requestURI" in fields
    if missing and not uri_is_whole:
        if event.uri:
            fields["requestURI"] = event.uri
        else:
            missing.insert(0, "requestURI")
    fields |= {name: value for name, value in _UNKNOWN.items() if name in missing}
    uri = _decoded(fields.get("requestURI", "")) or ""
    if "objectRef" not in fields and (target := object_reference(uri, whole=uri_is_whole)):
        fields["objectRef"] = json.dumps(target, separators=(",", ":"))
    return missing


def _parsed(text: str) -> _Parsed:
    """Read the top-level fields. A number right before the cut may lack digits, and is left out."""
    fields: dict[str, str] = {}
    cut_off = _Parsed(fields)
    name, start, at = "", 0, _skip(text, 0)
    if not text.startswith("{", at):
        return cut_off
    try:
        while text[at : at + 1] in ("{", ","):
            name = ""
            name, at = records.scan(text, _skip(text, at + 1))
            colon = _skip(text, at)
            if text[colon : colon + 1] != ":" or not isinstance(name, str):
                return cut_off
            start = _skip(text, colon + 1)
            _, at = records.scan(text, start)
            end, at = at, _skip(text, at)
            if text[end - 1].isdigit() and text[at : at + 1] not in (",", "}"):
                return cut_off
            value = records.replace_invalid(text[start:end].encode())
            with suppress(msgspec.DecodeError):  # NaN, which is not JSON
                _decode_raw(value)
                fields[name] = value.decode()
    except (ValueError, RecursionError):
        return _Parsed(fields, uri=_before_the_cut(text, start) if name == "requestURI" else "")
    if not text.startswith("}", at):
        return cut_off
    if text[at + 1 :].strip():
        raise UnusableError("JSON followed by other text")
    return _Parsed(fields, whole=True)


def _before_the_cut(text: str, start: int) -> str:
    """Return the JSON of a string that begins at `start` and is cut off."""
    if not (found := _OPEN_STRING.match(text, start)):
        return ""
    value = f'{found[0]}"'
    if _decoded(value) is None:  # it ends in half a surrogate pair
        value = f'{found[0][:-_ESCAPED]}"'
    return value


def _decoded(value: str) -> str | None:
    """Return the string that a JSON value is; None if it is not a string."""
    try:
        return records.decode_text(value)
    except (msgspec.DecodeError, UnicodeError):
        return None


def _skip(text: str, at: int) -> int:
    """Return the index of the next character that is not white space."""
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]  # it matches anything


def _micro_time(fields: dict[str, str], time: str | None) -> str:
    """Return the record's time as JSON of Kubernetes' MicroTime, which has microseconds.

    Without a valid one, use the event's other timestamp, or the present time.
    """
    others = (_decoded(fields.get(name, "")) for name in _TIMESTAMPS)
    for text in (time, *others):
        with suppress(ValueError, OverflowError):
            instant = _parse(text or "")
            instant = instant.astimezone(UTC) if instant.tzinfo else instant.replace(tzinfo=UTC)
            return f'"{instant.isoformat(timespec="microseconds").replace("+00:00", "Z")}"'
    return _micro_time(fields, datetime.now(UTC).isoformat())
