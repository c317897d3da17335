"""Finds the records in a message, whatever surrounds them.

The expected form is an object with `records` as its only key, which `list_in` recognizes by its
first and last bytes. JSON keeps the last of two equal keys, so everything else is searched for
objects that have a category: duplicate keys, `Records` or `value` instead of `records`, envelopes
one after the other, JSON lines, messages that are cut off or damaged.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct, field

# Deep nesting is a RecursionError and a lone surrogate a UnicodeError, not errors of msgspec.
UNREADABLE: Final = (msgspec.DecodeError, RecursionError, UnicodeError)

_HEAD: Final = re.compile(rb'(\xef\xbb\xbf)?\s*+(\{\s*+"records"\s*+:\s*+)?(?=\[)')
# Where an object may begin: within a string every quote has a backslash before it.
_OBJECT: Final = re.compile(r'\{[ \t\r\n]*"')
_BLANKS: Final = b" \t\r\n"
_BETWEEN: Final = _BLANKS + b","
_KEY: Final = rb'\{?"(?:records|value)":\['
_GLUE: Final = re.compile(
    rb"(?:\]\}?)?,?(?:\xef\xbb\xbf)?(?:\[|(?:%b\]\}?,?(?:\xef\xbb\xbf)?)*(?:%b)?)" % (_KEY, _KEY),
    re.IGNORECASE,
)
_SMALLEST: Final = 16  # bytes of `{"category":""},`: no record is smaller
_CATEGORY: Final = re.compile(rb'"category"\s*:\s*"([\w-]*)"')
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_CONTROL: Final = re.compile(rb"[\0-\x1f]")
_SURROGATE: Final = re.compile(rb"\\u[dD]")
_HALF: Final = re.compile(rb"(?is)\\(?:ud[89ab]..\\ud[c-f]..|(ud[89a-f]..)|.)")
_MAX_LEVELS: Final = 100
_ESCAPE: Final = re.compile(rb"\\.", re.DOTALL)
_ONE_KIND: Final = bytes.maketrans(b"{[}]", b"(())")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b'{[}]"'))
# strict: control characters in strings; int() refuses 4,301 digits.
_scan: Final = json.JSONDecoder(parse_int=str, strict=False).raw_decode


class Record(Struct, gc=False):
    """A record of which just the category must be as expected."""

    category: str
    properties: Raw = field(default_factory=lambda: Raw(b"null"))
    time: Any = None
    resource_id: Any = field(default=None, name="resourceId")


class _Properties(Struct, gc=False):
    log: Raw


_decode_record: Final = msgspec.json.Decoder(Record).decode
_decode_properties: Final = msgspec.json.Decoder(_Properties).decode
_decode_list: Final = msgspec.json.Decoder(list[Raw]).decode
_decode_text: Final = msgspec.json.Decoder(str).decode


def list_in(message: bytes) -> memoryview:
    """Return the list of records. It cannot be decoded if the message holds anything else."""
    head, end = _HEAD.match(message), len(message.rstrip(_BLANKS))
    if head and head[2]:
        return memoryview(message)[head.end() : end - (message[end - 1 : end] == b"}")]
    return memoryview(message)[head.end() if head else 0 :]


def split(message: bytes) -> Iterator[tuple[bytes, bool]]:
    """Yield the bytes of each record, and whether it is whole."""
    try:
        records = _decode_list(list_in(message))
    except UNREADABLE:
        yield from _search(message)
    else:
        if len(records) * _SMALLEST > len(message) + _SMALLEST:
            yield message, False  # or half a million zeros would be as many dead letters
        else:
            yield from ((bytes(record), True) for record in records)


def decode(body: bytes) -> Record:
    """Decode a record; if need be without what JSON does not have in its strings."""
    try:
        return _decode_record(body)
    except UNREADABLE:
        record = _decode_record(legible(escaped(body)))
        if not (record.category.isascii() and record.category.isprintable()):
            raise
        return record


def log_of(properties: bytes) -> str:
    """Return the log of a record whose properties, or log, may be an object or text of one."""
    properties = legible(properties)
    if properties.startswith(b'"'):
        properties = legible(_decode_text(escaped(properties)).encode())
    log = bytes(_decode_properties(properties).log)
    return _decode_text(escaped(log)) if log.startswith(b'"') else log.decode()


def categories(message: bytes) -> list[str]:
    """Return the category of each record in a message; "" of what cannot be read."""
    names = []
    for body, _ in split(message):
        try:
            names.append(decode(body).category)
        except UNREADABLE:
            names.append("")
    return names


def is_deep(value: Raw) -> bool:
    """Tell whether an object in an event makes it deeper than 100 levels; text is no nesting."""
    if len(value) < 2 * _MAX_LEVELS:
        return False
    text = bytes(value)
    opened = text.count(b"{") + text.count(b"[")
    # managedFields have hundreds of empty objects; each is at most one level, the last.
    if opened < _MAX_LEVELS or opened - text.count(b"{}") - text.count(b"[]") < _MAX_LEVELS - 1:
        return False
    skeleton = _ESCAPE.sub(b"", text).translate(_ONE_KIND, _NO_BRACKETS).replace(b'""', b"")
    brackets = b"".join(skeleton.split(b'"')[::2])
    return all((brackets := brackets.replace(b"()", b"")) for _ in range(_MAX_LEVELS - 1))


def is_of_another(body: bytes, categories: frozenset[str]) -> bool:
    """Tell whether a damaged record is of a category that is not wanted."""
    names = _CATEGORY.findall(body)
    return body.startswith(b"{") and len(names) == 1 and names[0].decode() not in categories


def escaped(text: bytes) -> bytes:
    r"""Return JSON with the control characters in its strings as JSON has them: \u0000."""
    if not _CONTROL.search(text):
        return text
    return _STRING.sub(lambda string: _CONTROL.sub(_escape, string[0]), text)


def legible(text: bytes) -> bytes:
    r"""Return JSON with U+FFFD, as Go reads it, for half a surrogate and what is not UTF-8."""
    text = text.decode(errors="replace").encode()
    if not _SURROGATE.search(text):
        return text
    return _HALF.sub(lambda found: rb"\ufffd" if found[1] else found[0], text)


def _escape(control: re.Match[bytes]) -> bytes:
    return b"\\u%04x" % ord(control[0])


def _search(message: bytes) -> Iterator[tuple[bytes, bool]]:
    """Find the records in anything; what lies between them is kept in pieces.

    Each object is tried as a record, then searched, until eight times the message was read.
    """
    text = message.decode("latin-1")  # one character a byte
    at = end = 0
    left = 8 * len(text) + 100_000
    while left > 0 and (brace := _OBJECT.search(text, at)):
        start = brace.start()
        fields, stop = _object(text, start)
        if "category" in fields and not {name.lower() for name in fields} & {"records", "value"}:
            between = message[end:start].strip(_BETWEEN)
            if not _is_glue(between):
                yield between, False
            yield message[start:stop], True
            at = end = stop
        else:
            at = start + 1
            left -= stop - start + 1000
    rest = message[end:].strip(_BETWEEN) if end else message
    if not end or not _is_glue(rest):
        yield rest, False


def _is_glue(between: bytes) -> bool:
    return bool(_GLUE.fullmatch(between.translate(None, _BLANKS)))


def _object(text: str, start: int) -> tuple[dict[str, Any], int]:
    """Return the object that begins here and where it ends; {} and how far it could be read."""
    try:
        return _scan(text, start)
    except json.JSONDecodeError as error:
        return {}, error.pos
    except RecursionError:
        return {}, start + len(text) // 2  # it does not say how far
