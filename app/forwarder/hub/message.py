"""One AMQP message as bytes in, its place in the hub and its body out. Pure, no I/O.

The SDK decodes every section (azure-eventhub 5.15.1). It raises at a body of an unknown type, at a
list nested 1,000 levels deep, or at one byte that is not UTF-8, and then receives the same message
again, without end. Here sections are skipped by their length (AMQP 1.0, parts 1.6 and 3.2), and
only the hub's own annotations and a body of bytes or text are read. An annotation of another type,
or one that no checkpoint may have, counts as missing.
"""

from typing import Final, NamedTuple

from forwarder.checkpoints.listing import LATEST, OFFSET

_FIXED: Final = {0x4: 0, 0x5: 1, 0x6: 2, 0x7: 4, 0x8: 8, 0x9: 16}  # bytes, by a type's high digit
_SHORT: Final = {0xA, 0xC, 0xE}  # the length is in the next byte
_LONG: Final = {0xB, 0xD, 0xF}  # the length is in the next four bytes
_TEXT: Final = {0xA0, 0xB0, 0xA1, 0xB1}  # binary, string
_INTEGERS: Final = {0x54, 0x55, 0x71, 0x81, 0x83}  # int, long, timestamp
_COUNT: Final = {0xC1: 1, 0xD1: 4}  # bytes before the entries of a map, which hold their number
_ANNOTATIONS, _DATA, _VALUE = 0x72, 0x75, 0x77
_Entry = tuple[int, memoryview] | None  # type and content


class Received(NamedTuple):
    """A received message."""

    sequence_number: int | None  # None if the hub's annotations cannot be read
    offset: str
    enqueued: float | None
    """Unix time in seconds."""
    body: bytes
    """With a `problem` it is the whole message, as it was encoded."""
    problem: str
    reserved: int
    """Bytes of the receive buffer that are reserved for this message."""


def parse(message: memoryview, reserved: int = 0) -> Received:
    """Return a message; never raises."""
    annotations: dict[bytes, _Entry] = {}
    body: list[memoryview] = []
    problem = ""
    at = 0
    try:
        while at < len(message):
            if message[at]:
                raise ValueError("a section has no descriptor")
            descriptor, start = _value(message, at + 1)
            content, at = _value(message, start)
            code = descriptor[-1]
            if code == _ANNOTATIONS:
                annotations = _pairs(content, _COUNT[message[start]])
            elif code == _DATA or (code == _VALUE and message[start] in _TEXT):
                body.append(content)
        if not body:
            problem = "the AMQP body is neither bytes nor text"
    except (IndexError, KeyError, ValueError, RecursionError) as error:
        problem = f"the AMQP message cannot be decoded: {error}"
    enqueued = _integer(annotations.get(b"x-opt-enqueued-time"), int(LATEST * 1000))
    return Received(
        _integer(annotations.get(b"x-opt-sequence-number"), 2**63),
        _offset(annotations.get(b"x-opt-offset")),
        None if enqueued is None else enqueued / 1000,
        bytes(message) if problem else b"".join(body),
        problem,
        reserved,
    )


def _value(message: memoryview, at: int) -> tuple[memoryview, int]:
    """Return the content of the value that begins at this index, and the index of its end."""
    code = message[at]
    kind = code >> 4
    if code == 0:  # described: a descriptor, then a value
        return _value(message, _value(message, at + 1)[1])
    if kind in _FIXED:
        start, size = at + 1, _FIXED[kind]
    elif kind in _SHORT:
        start, size = at + 2, message[at + 1]
    elif kind in _LONG:
        start, size = at + 5, int.from_bytes(message[at + 1 : at + 5], "big")
    else:
        raise ValueError(f"unknown type 0x{code:02x}")
    if start + size > len(message):
        raise ValueError("it is cut off")
    return message[start : start + size], start + size


def _pairs(content: memoryview, at: int) -> dict[bytes, _Entry]:
    """Return the entries of a map; the first one begins at this index."""
    entries: dict[bytes, _Entry] = {}
    while at < len(content):
        key, at = _value(content, at)
        kind = content[at]
        value, at = _value(content, at)
        entries[bytes(key)] = kind, value
    return entries


def _integer(entry: _Entry, limit: int) -> int | None:
    """Return an integer from 0 to below a limit; None if it is none."""
    if not entry or entry[0] not in _INTEGERS:
        return None
    number = int.from_bytes(entry[1], "big", signed=True)
    return number if 0 <= number < limit else None


def _offset(entry: _Entry) -> str:
    """Return an offset; "" if it is none."""
    text = bytes(entry[1]).decode("ascii", "replace") if entry and entry[0] in _TEXT else ""
    return text if OFFSET.fullmatch(text) else ""
