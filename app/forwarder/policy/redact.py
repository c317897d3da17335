"""Cuts in the bytes of an event: what stays is never decoded and written again."""

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Raw, Struct, field

from forwarder.policy.document import LEVELS

# As kube-apiserver begins every event; one of somebody else is taken apart instead.
_HEADS: Final = {
    level: b'{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"%b"' % level.encode()
    for level in LEVELS
}
_MANAGED: Final = b'"managedFields"'


class _Document(Struct, gc=False):
    metadata: Raw = field(default_factory=Raw)
    items: Raw = field(default_factory=Raw)
    rows: Raw = field(default_factory=Raw)


class _Metadata(Struct, gc=False):
    managed_fields: Raw = field(default_factory=Raw, name="managedFields")


_document: Final = msgspec.json.Decoder(_Document).decode
_metadata: Final = msgspec.json.Decoder(_Metadata).decode
_fields: Final = msgspec.json.Decoder(dict[str, Raw]).decode
_items: Final = msgspec.json.Decoder(list[Raw]).decode

Edits = Mapping[bytes, tuple[Raw, bytes]]
"""By an object's name: its bytes in the event, and those to write instead, b"" to cut it out."""


def edited(event: bytes, level: str, new: str, edits: Edits) -> bytes:
    """Return the event with another level and its top-level objects edited."""
    head = _HEADS.get(level, b"")
    if not head or not event.startswith(head):
        return _rebuilt(event, level, new, edits)
    at, pieces = len(head), [_HEADS[new]]
    for name, (raw, instead) in edits.items():
        key, value = b',"%b":' % name, bytes(raw)
        start = event.find(key, at)
        end = start + len(key) + len(value)
        # Found once, with this value: there may be fields of this name inside another object.
        here = start >= 0 and event.startswith(value, start + len(key))
        if not here or event.find(key, end) >= 0:
            return _rebuilt(event, level, new, edits)
        pieces.append(event[at:start])
        if instead:
            pieces.append(key + instead)
        at = end
    pieces.append(event[at:])
    return b"".join(pieces)


def annotated(event: bytes, annotations: Raw | None, key: str, value: str) -> bytes:
    """Return the event with one annotation more; `annotations` are those in it, if known."""
    if annotations is None:
        annotations = _fields(event).get("annotations", Raw())
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
        field = b",%b:%b" % (_MANAGED, managed)
        if not managed or value.count(field) == 1:
            return value.replace(field, b"") if managed else b""
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


def _rebuilt(event: bytes, level: str, new: str, edits: Edits) -> bytes:
    fields = _fields(event)
    if new != level:
        fields["level"] = Raw(msgspec.json.encode(new))
    for name, (_, instead) in edits.items():
        if instead:
            fields[name.decode()] = Raw(instead)
        else:
            del fields[name.decode()]
    return _joined(fields)


def _joined(fields: Mapping[str, Raw]) -> bytes:
    pairs = (b"%b:%b" % (msgspec.json.encode(name), value) for name, value in fields.items())
    return b"{%b}" % b",".join(pairs)
