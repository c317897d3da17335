"""Finds the records in a message, whatever surrounds them.

The expected form is an object with `records` as its only key, which `list_in` recognizes by its
first and last bytes. Everything else is searched for objects that have a category: duplicate keys
(a JSON decoder keeps only the last one), `Records` or `value` instead of `records`, consecutive
envelopes, JSON lines, messages that are cut off or damaged.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct, field

# msgspec raises RecursionError for deep nesting, and UnicodeError for half a surrogate pair.
UNREADABLE: Final = (msgspec.DecodeError, RecursionError, UnicodeError)

# A byte order mark and `{"records":` (group 2), both optional, before a list.
_HEAD: Final = re.compile(rb'(\xef\xbb\xbf)?\s*+(\{\s*+"records"\s*+:\s*+)?(?=\[)')
# Where an object may begin. Not inside a string, where quotes follow a backslash.
_OBJECT: Final = re.compile(r'\{[ \t\r\n]*"')
_BLANKS: Final = b" \t\r\n"
_SEPARATORS: Final = _BLANKS + b","
_LIST: Final = rb'\{?"(?:records|value)":\['
# What may be between two records, without blanks: the end of a list and the beginning of another.
_GLUE: Final = re.compile(
    rb"""(?:\]\}?)? ,? (?:\xef\xbb\xbf)?
        (?: \[ | (?:%b \]\}? ,? (?:\xef\xbb\xbf)?)* (?:%b)? )  # lists without records, and the next
    """
    % (_LIST, _LIST),
    re.IGNORECASE | re.VERBOSE,
)
_MIN_RECORD: Final = len('{"category":""},')
_CATEGORY: Final = re.compile(rb'"category"\s*:\s*"([\w-]*)"')
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)  # of JSON; the last may be cut off
_CONTROL: Final = re.compile(rb"[\0-\x1f]")
_MAY_BE_SURROGATE: Final = re.compile(rb"\\u[dD]")
# A surrogate without its other half (group 1), or all that is between two of them.
_SURROGATE: Final = re.compile(
    rb"(?is)\\(?!ud[89ab]..\\ud[c-f])(ud[89a-f]..)"
    rb"|(?:[^\\]|\\(?:ud[89ab]..\\ud[c-f]..|(?!ud[89a-f]..).))++"
)
_MAX_LEVELS: Final = 100
_ESCAPE: Final = re.compile(rb"\\.", re.DOTALL)
_TO_PARENTHESES: Final = bytes.maketrans(b"{[}]", b"(())")
_NOT_STRUCTURE: Final = bytes(set(range(256)) - set(b'{[}]"'))
# Not strict, to accept control characters in strings. int() refuses more than 4,300 digits.
scan: Final = json.JSONDecoder(parse_int=str, strict=False).raw_decode


class Record(Struct, gc=False):
    """A record; only the category must have the expected type."""

    category: str
    properties: Raw = Raw(b"null")
    time: Any = None
    resource_id: Any = field(default=None, name="resourceId")


class _Properties(Struct, gc=False):
    log: Raw


_decode_record: Final = msgspec.json.Decoder(Record).decode
_decode_properties: Final = msgspec.json.Decoder(_Properties).decode
_decode_list: Final = msgspec.json.Decoder(list[Raw]).decode
decode_text: Final = msgspec.json.Decoder(str).decode


def list_in(message: bytes) -> memoryview:
    """Return the JSON list of records; something undecodable if the message is in another form."""
    if not (head := _HEAD.match(message)):
        return memoryview(message)
    end = len(message)
    if head[2]:
        end = len(message.rstrip(_BLANKS))
        if message.endswith(b"}", 0, end):
            end -= 1
    return memoryview(message)[head.end() : end]


def split(message: bytes) -> Iterator[tuple[bytes, bool]]:
    """Yield the bytes of each record, and whether they are a whole JSON value."""
    try:
        records = _decode_list(list_in(message))
    except UNREADABLE:
        yield from _search(message)
    else:
        if len(records) * _MIN_RECORD > len(message) + _MIN_RECORD:
            # A list of half a million zeros must not become half a million dead letters.
            yield message, False
        else:
            yield from ((bytes(record), True) for record in records)


def decode(body: bytes) -> Record:
    """Decode a record, also one with characters that strings in JSON may not have."""
    try:
        return _decode_record(body)
    except UNREADABLE:
        record = _decode_record(replace_invalid(escape_controls(body)))
        if not (record.category.isascii() and record.category.isprintable()):
            raise  # a damaged category is not another category
        return record


def log_of(properties: bytes) -> str:
    """Return the log of a record; properties and log may each be an object or a string with one."""
    properties = replace_invalid(properties)
    if properties.startswith(b'"'):
        properties = replace_invalid(decode_text(escape_controls(properties)).encode())
    log = bytes(_decode_properties(properties).log)
    return decode_text(escape_controls(log)) if log.startswith(b'"') else log.decode()


def categories(message: bytes) -> list[str]:
    """Return the category of each record in a message; "" for a record that cannot be read."""
    names = []
    for body, _ in split(message):
        try:
            names.append(decode(body).category)
        except UNREADABLE:
            names.append("")
    return names


def is_deep(event: bytes) -> bool:
    """Return whether an event is nested deeper than 100 levels."""
    # bytes.count compares every byte (CPython 3.11); replace skips to the next bracket.
    opened = len(event) - len(event.replace(b"{", b"").replace(b"[", b""))
    # managedFields have hundreds of empty objects, which can only be the innermost level.
    if opened <= _MAX_LEVELS or opened - event.count(b"{}") < _MAX_LEVELS:
        return False
    structure = _ESCAPE.sub(b"", event).translate(_TO_PARENTHESES, _NOT_STRUCTURE)
    brackets = b"".join(structure.replace(b'""', b"").split(b'"')[::2])  # those outside strings
    for _ in range(_MAX_LEVELS):
        brackets = brackets.replace(b"()", b"")  # removes the innermost level
        if not brackets:
            return False
    return True


def has_other_category(body: bytes, categories: frozenset[str]) -> bool:
    """Return whether a damaged record certainly has a category other than these."""
    names = _CATEGORY.findall(body)
    return body.startswith(b"{") and len(names) == 1 and names[0].decode() not in categories


def escape_controls(text: bytes) -> bytes:
    r"""Return JSON with the control characters in its strings escaped, as in \u0000."""
    return _STRING.sub(_escape, text) if _CONTROL.search(text) else text


def replace_invalid(text: bytes) -> bytes:
    """Return JSON with U+FFFD for invalid UTF-8 and half surrogate pairs, as Go decodes it."""
    text = text.decode(errors="replace").encode()
    if not _MAY_BE_SURROGATE.search(text):
        return text
    return _SURROGATE.sub(lambda found: rb"\ufffd" if found[1] else found[0], text)


def _escape(string: re.Match[bytes]) -> bytes:
    text = string[0]
    for control in {*_CONTROL.findall(text)}:  # replaced one by one, each takes 100 bytes
        text = text.replace(control, b"\\u%04x" % ord(control))
    return text


def _search(message: bytes) -> Iterator[tuple[bytes, bool]]:
    """Find the records in any text. What is between them is yielded as pieces that are not whole.

    An object that is not a record is searched for records in turn. It is then read again, so the
    search ends when it has read eight times the length of the message.
    """
    text = message.decode("latin-1")  # one character per byte
    at = end = 0
    budget = 8 * len(text) + 100_000
    while budget > 0 and (brace := _OBJECT.search(text, at)):
        start = brace.start()
        fields, stop = _object(text, start)
        if "category" in fields and not {name.lower() for name in fields} & {"records", "value"}:
            between = message[end:start].strip(_SEPARATORS)
            if not _is_glue(between):
                yield between, False
            yield message[start:stop], True
            at = end = stop
        else:
            at = start + 1
            budget -= stop - start + 1000
    rest = message[end:].strip(_SEPARATORS) if end else message
    if not end or not _is_glue(rest):
        yield rest, False


def _is_glue(between: bytes) -> bool:
    return bool(_GLUE.fullmatch(between.translate(None, _BLANKS)))


def _object(text: str, start: int) -> tuple[dict[str, Any], int]:
    """Return the object that begins at `start` and where it ends.

    If it cannot be decoded, return {} and about how far it was read.
    """
    try:
        return scan(text, start)
    except json.JSONDecodeError as error:
        return {}, error.pos
    except RecursionError:
        return {}, start + len(text) // 2
