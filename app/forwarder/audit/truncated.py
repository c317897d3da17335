"""Completes an audit event whose JSON was cut off, or that lacks what a sensor looks at first.

AKS keeps 16 KiB of a log entry. kube-apiserver writes the fields of an event in a fixed order:
auditID, stage, requestURI, verb, user, …, objectRef, the objects, both timestamps, annotations. So
the top-level fields before the cut are whole, and they stay as they were written. The timestamps
come from the record's `time`, and an annotation tells that the event is not the original.

A client can move the cut by the length of its query or User-Agent. An event that lost its verb or
user is therefore completed too, or a request could hide itself: `unknown` stands for both. A target
that is lost is derived from the path.
"""

import json
import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

import msgspec

from forwarder.audit import records
from forwarder.audit.requestinfo import object_reference
from forwarder.errors import UnusableError

_TRUNCATED: Final = '"audit.aks/truncated":"true"'
_MISSING: Final = '"audit.aks/missing":"%s"'
_UNKNOWN: Final = {"verb": '"unknown"', "user": '{"username":"unknown"}'}
_TIMESTAMPS: Final = ("requestReceivedTimestamp", "stageTimestamp")
_RFC3339: Final = re.compile(
    r"\d{4}-\d\d-\d\dT([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII
)
_parse: Final = datetime.fromisoformat
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_TEXT: Final = re.compile(r'"(?:[^"\\\0-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*+')
_decode: Final = json.JSONDecoder(parse_int=str).raw_decode  # int() refuses 4,301 digits
_raw: Final = msgspec.json.Decoder(msgspec.Raw).decode
_text: Final = msgspec.json.Decoder(str).decode


def is_rfc3339(stamp: str | None) -> bool:
    """Tell whether Go's parser, and so a sensor, takes this timestamp."""
    try:
        # As kube-apiserver writes it, 2026-01-02T03:04:05.678901Z; the expression takes longer.
        common = stamp[7:20:3] == "-T::." and stamp[26:] == "Z"  # type: ignore[index]
        return bool((common or _RFC3339.fullmatch(stamp)) and _parse(stamp))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


def complete(log: str, time: str | None) -> str:
    """Return an event made of the whole fields of a log and of the fields that it must have.

    Control characters in texts are escaped; an event that was whole but for these is not annotated.
    Raises UnusableError if auditID or stage is lost.
    """
    text = records.escaped(log.encode()).decode().strip("\ufeff\0")
    fields, cut, rest = _whole_fields(text)
    whole = cut is None
    if rest:
        raise UnusableError("JSON followed by other text")
    if lost := [name for name in ("auditID", "stage") if not fields.get(name, "").startswith('"')]:
        cause = "not an audit event" if whole else "cut off"
        raise UnusableError(f"{cause}: {', '.join(lost)} lost")
    missing = _replace_missing(fields, cut)
    completed = bool(not whole or missing)
    received, stage = _TIMESTAMPS
    if not whole and received not in fields:
        fields[received] = _micro_time(fields, time)
    if not is_rfc3339(_decoded(fields.get(stage, ""))):
        fields[stage] = _micro_time(fields, time)
        completed = True
    if completed:
        annotations = fields.get("annotations", "{}")
        others = annotations[1:-1].strip() if annotations.startswith("{") else ""
        added = [_TRUNCATED, _MISSING % ",".join(missing)][: 1 + bool(missing)]
        fields["annotations"] = "{" + ",".join([others] * bool(others) + added) + "}"
    return "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in fields.items()) + "}"


def _replace_missing(fields: dict[str, str], cut: str | None) -> list[str]:
    """Fill in verb, user and target if they are lost; return what was lost of the request."""
    missing = [name for name in _UNKNOWN if name not in fields]
    if not fields.get("verb", '"').startswith('"'):
        missing.insert(0, "verb")
    if not missing and cut is None:
        return missing
    whole = "requestURI" in fields
    if missing and not whole:
        if cut:
            fields["requestURI"] = cut
        else:
            missing.insert(0, "requestURI")
    fields |= {name: value for name, value in _UNKNOWN.items() if name in missing}
    uri = _decoded(fields.get("requestURI", "")) or ""
    if "objectRef" not in fields and (target := object_reference(uri, whole=whole)):
        fields["objectRef"] = json.dumps(target, separators=(",", ":"))
    return missing


def _whole_fields(text: str) -> tuple[dict[str, str], str | None, str]:
    """Return the fields that end before the cut, their values as written, and text after the end.

    Between them is None for an object that is whole, and else what there is of its requestURI, as
    JSON, if the cut is there. A number before the cut is not whole: its next digit may be lost.
    """
    fields: dict[str, str] = {}
    name, start, at = "", 0, _skip(text, 0)
    if text[at : at + 1] != "{":
        return fields, "", ""
    try:
        while text[at : at + 1] in ("{", ","):
            name = ""
            name, at = _decode(text, _skip(text, at + 1))
            start = _skip(text, _skip(text, at) + 1)
            if text[start - 1 : start] not in ": \t\n\r" or not isinstance(name, str):
                return fields, "", ""
            _, at = _decode(text, start)
            end, at = at, _skip(text, at)
            if text[end - 1].isdigit() and text[at : at + 1] not in (",", "}"):
                return fields, "", ""
            value = records.legible(text[start:end].encode())
            with suppress(msgspec.DecodeError):  # NaN, no JSON to a sink
                _raw(value)
                fields[name] = value.decode()
    except (ValueError, RecursionError):
        return fields, _begun(text, start) if name == "requestURI" else "", ""
    if text[at : at + 1] == "}":
        return fields, None, text[at + 1 :].strip()
    return fields, "", ""


def _begun(text: str, start: int) -> str:
    """Return the text that begins here as far as it goes, without half a character."""
    begun = _TEXT.match(text, start)
    value = f'{begun[0]}"' if begun else ""
    return value if _decoded(value) is not None else f'{value[:-7]}"' * bool(value)


def _decoded(value: str) -> str | None:
    """Return the text that a JSON value is, None if it is none."""
    try:
        return _text(value)
    except (msgspec.DecodeError, UnicodeError):
        return None


def _skip(text: str, at: int) -> int:
    """Return the index of the next character that is no white space."""
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _micro_time(fields: dict[str, str], time: str | None) -> str:
    """Return the time as JSON of Kubernetes' MicroTime, which has six digits of a second.

    It is the record's; without one that of the event's other timestamp, or now.
    """
    others = (_decoded(fields.get(name, "")) for name in _TIMESTAMPS)
    for text in (time, *others):
        with suppress(ValueError, OverflowError):
            instant = _parse(text or "")
            instant = instant.astimezone(UTC) if instant.tzinfo else instant.replace(tzinfo=UTC)
            return f'"{instant.isoformat(timespec="microseconds").replace("+00:00", "Z")}"'
    return _micro_time(fields, datetime.now(UTC).isoformat())
