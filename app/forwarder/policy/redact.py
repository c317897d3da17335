"""Edits events in their bytes: what stays is never decoded and written again.

kube-apiserver writes the fields of an event in a fixed order: the level near the start, the two
objects and what follows them at the end. A tail of just timestamps and annotations closes the event
itself, so the objects stand right before it, whatever other objects contain. An event of any other
order or white space is taken apart and put together again.
"""

import re
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Raw, Struct, field

from forwarder.policy.attributes import EventFields
from forwarder.policy.document import LEVELS

# As kube-apiserver begins every event; one of somebody else is taken apart instead.
_HEADS: Final = {
    level: b'{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"%b"' % level.encode()
    for level in LEVELS
}
_AFTER_OBJECTS: Final = b',"requestReceivedTimestamp":'
_TAIL: Final = re.compile(
    rb',"requestReceivedTimestamp":"[^"\\{}]*","stageTimestamp":"[^"\\{}]*"'
    rb'(?:,"annotations":\{[^{}]*\})?\}'
)
_MANAGED: Final = b'"managedFields"'


class _Document(Struct, gc=False):
    metadata: Raw = Raw()
    items: Raw = Raw()
    rows: Raw = Raw()


class _Metadata(Struct, gc=False):
    managed_fields: Raw = field(default=Raw(), name="managedFields")


_document: Final = msgspec.json.Decoder(_Document).decode
_metadata: Final = msgspec.json.Decoder(_Metadata).decode
_fields: Final = msgspec.json.Decoder(dict[str, Raw]).decode
_items: Final = msgspec.json.Decoder(list[Raw]).decode

Edits = dict[bytes, bytes]
"""By an object's name: the bytes to write instead of it, b"" to cut it out."""


def edited(event: bytes, found: EventFields, level: str, edits: Edits) -> bytes:
    """Return the event at this level, with its top-level objects edited."""
    head, end = _HEADS.get(found.level, b"?"), event.rfind(_AFTER_OBJECTS)
    if not event.startswith(head) or end < 0 or not _TAIL.fullmatch(event, end):
        return _rebuilt(event, found, level, edits)
    pieces = [event[end:]]
    objects = (b"responseObject", found.response_object), (b"requestObject", found.request_object)
    for name, raw in objects:
        if raw:
            key, value = b',"%b":' % name, bytes(raw)
            start = end - len(value) - len(key)
            if not event.startswith(key, start) or not event.startswith(value, start + len(key)):
                return _rebuilt(event, found, level, edits)
            if value := edits.get(name, value):
                pieces += (value, key)
            end = start
    pieces += (event[len(head) : end], _HEADS[level])
    return b"".join(reversed(pieces))


def annotated(event: bytes, annotations: Raw, key: str, value: str) -> bytes:
    """Return the event with one annotation more; `annotations` are those in it."""
    raw, name = bytes(annotations), msgspec.json.encode(key)
    pair = b"%b:%b" % (name, msgspec.json.encode(value))
    if not raw:
        return b'%b,"annotations":{%b}}' % (event[:-1], pair)
    if raw.startswith(b'{"') and name not in raw and event.endswith(b'"annotations":%b}' % raw):
        return b"%b,%b}}" % (event[:-2], pair)
    others = _fields(raw) if raw.startswith(b"{") else {}
    others[key] = Raw(msgspec.json.encode(value))
    return _joined(_fields(event) | {"annotations": Raw(_joined(others))})


def without_managed_fields(document: Raw) -> bytes:
    """Return an object, list or table of objects without their metadata.managedFields.

    Returns b"" if there are none.
    """
    value = bytes(document)
    if not (count := value.count(_MANAGED)) or not value.startswith(b"{"):
        return b""
    found = _document(value)
    if count == 1 and not found.items and not found.rows:
        # Of what else is in an object, nothing is decoded.
        metadata = bytes(found.metadata)
        managed = _metadata(metadata).managed_fields if metadata.startswith(b"{") else Raw()
        pair = b",%b:%b" % (_MANAGED, managed)
        if not managed or value.count(pair) == 1:
            return value.replace(pair, b"") if managed else b""
    fields = _fields(value)
    for name, inside in (("items", ""), ("rows", "object")):
        if (raw := bytes(fields.get(name, b""))).startswith(b"["):
            fields[name] = Raw(b"[%b]" % b",".join(_stripped(one, inside) for one in _items(raw)))
    _strip(fields)
    return _joined(fields)


def _stripped(item: Raw, inside: str) -> bytes:
    """Return an item of a list, or of a table, where the object is inside its row."""
    if not bytes(item).startswith(b"{"):
        return bytes(item)
    fields = _fields(item)
    if not inside:
        _strip(fields)
    elif inside in fields:
        fields[inside] = Raw(_stripped(fields[inside], ""))
    return _joined(fields)


def _strip(fields: dict[str, Raw]) -> None:
    if bytes(fields.get("metadata", b"")).startswith(b"{"):
        metadata = _fields(fields["metadata"])
        if metadata.pop("managedFields", None) is not None:
            fields["metadata"] = Raw(_joined(metadata))


def _rebuilt(event: bytes, found: EventFields, level: str, edits: Edits) -> bytes:
    fields = _fields(event)
    if level != found.level:
        fields["level"] = Raw(msgspec.json.encode(level))
    for name, instead in edits.items():
        if instead:
            fields[name.decode()] = Raw(instead)
        else:
            del fields[name.decode()]
    return _joined(fields)


def _joined(fields: Mapping[str, Raw]) -> bytes:
    pairs = (b"%b:%b" % (msgspec.json.encode(name), value) for name, value in fields.items())
    return b"{%b}" % b",".join(pairs)
