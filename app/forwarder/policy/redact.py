"""Edits events in their bytes: what stays is never decoded and written again.

An object is taken apart into its fields, each as its bytes, and put together again. Only white
space between them is lost, which kube-apiserver does not write.
"""

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Raw

_MANAGED: Final = b'"managedFields"'
_fields: Final = msgspec.json.Decoder(dict[str, Raw]).decode
_items: Final = msgspec.json.Decoder(list[Raw]).decode
_encode: Final = msgspec.json.encode


def edited(event: bytes, edits: Mapping[str, bytes]) -> bytes:
    """Return the event with other values of these top-level fields; without those that are b""."""
    fields = _fields(event)
    for name, value in edits.items():
        if value:
            fields[name] = Raw(value)
        else:
            del fields[name]
    return _encode(fields)


def annotated(event: bytes, annotations: Raw, key: str, value: str) -> bytes:
    """Return the event with one annotation more; `annotations` are those in it."""
    raw, name = bytes(annotations), _encode(key)
    if raw.startswith(b'{"') and name not in raw and event.endswith(b'"annotations":%b}' % raw):
        return b"%b,%b:%b}}" % (event[:-2], name, _encode(value))  # as kube-apiserver writes it
    others = _fields(raw) if raw.startswith(b"{") else {}
    return edited(event, {"annotations": _encode({**others, key: value})})


def without_managed_fields(document: Raw) -> bytes:
    """Return an object, list or table of objects without managedFields; b"" if there are none."""
    value = bytes(document)
    if _MANAGED not in value or not value.startswith(b"{"):
        return b""
    fields = _fields(value)
    for name, inside in (("items", ""), ("rows", "object")):
        if (raw := bytes(fields.get(name, b""))).startswith(b"["):
            fields[name] = Raw(_encode([_stripped(item, inside) for item in _items(raw)]))
    _strip(fields)
    return _encode(fields)


def _stripped(item: Raw, inside: str) -> Raw:
    """Return an item of a list, or of a table, where the object is inside its row."""
    if not bytes(item).startswith(b"{"):
        return item
    fields = _fields(item)
    if not inside:
        _strip(fields)
    elif inside in fields:
        fields[inside] = _stripped(fields[inside], "")
    return Raw(_encode(fields))


def _strip(fields: dict[str, Raw]) -> None:
    if bytes(fields.get("metadata", b"")).startswith(b"{"):
        metadata = _fields(fields["metadata"])
        if metadata.pop("managedFields", None) is not None:
            fields["metadata"] = Raw(_encode(metadata))
