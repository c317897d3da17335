"""Edits events without decoding their values: what stays is byte for byte what it was.

An object is split into its fields, each as raw bytes, and joined again. Only white space between
fields is lost, which kube-apiserver does not write.
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
    """Return the event with new values of top-level fields; b"" removes a field."""
    fields = _fields(event)
    for name, value in edits.items():
        if value:
            fields[name] = Raw(value)
        else:
            del fields[name]
    return _encode(fields)


def annotated(event: bytes, annotations: Raw, key: str, value: str) -> bytes:
    """Return the event with one more annotation; `annotations` are its present ones."""
    raw, name = bytes(annotations), _encode(key)
    if raw.startswith(b'{"') and name not in raw and event.endswith(b'"annotations":%b}' % raw):
        # kube-apiserver writes annotations last, so that one can be appended.
        return b"%b,%b:%b}}" % (event[:-2], name, _encode(value))
    others = _fields(raw) if raw.startswith(b"{") else {}
    return edited(event, {"annotations": _encode({**others, key: value})})


def without_managed_fields(document: Raw) -> bytes:
    """Return an object, list or table of objects without managedFields; b"" if it has none."""
    value = bytes(document)
    if _MANAGED not in value or not value.startswith(b"{"):
        return b""
    fields = _fields(value)
    for name, stripped in (("items", _stripped), ("rows", _stripped_row)):
        items = bytes(fields.get(name, b""))
        if items.startswith(b"["):
            fields[name] = Raw(_encode([stripped(item) for item in _items(items)]))
    _strip(fields)
    return _encode(fields)


def _stripped(item: Raw) -> Raw:
    if not bytes(item).startswith(b"{"):
        return item
    fields = _fields(item)
    _strip(fields)
    return Raw(_encode(fields))


def _stripped_row(row: Raw) -> Raw:
    """Return a row of a table, which has its object in the field `object`."""
    if not bytes(row).startswith(b"{"):
        return row
    fields = _fields(row)
    if "object" in fields:
        fields["object"] = _stripped(fields["object"])
    return Raw(_encode(fields))


def _strip(fields: dict[str, Raw]) -> None:
    if bytes(fields.get("metadata", b"")).startswith(b"{"):
        metadata = _fields(fields["metadata"])
        if metadata.pop("managedFields", None) is not None:
            fields["metadata"] = Raw(_encode(metadata))
