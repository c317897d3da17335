"""The envelope of Azure Monitor: bytes of a hub's message in, audit events out. Pure, no I/O."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

import msgspec

from forwarder.audit.truncated import salvage
from forwarder.errors import UnusableError


class Event(msgspec.Struct, gc=False, frozen=True):
    """An audit event: its own JSON as bytes, and its stageTimestamp (RFC 3339, "" if absent)."""

    body: bytes
    stage_timestamp: str
    salvaged: bool = False


class Unusable(msgspec.Struct, gc=False, frozen=True):
    """A record, or a whole message, that holds no usable event: its bytes as they were."""

    body: bytes
    reason: str


class Unpacked(msgspec.Struct, gc=False):
    """What one message held; `skipped` counts the records of other categories and clusters.

    `filtered` counts the events that the audit policy dropped, `ruled` all that it saw, by rule and
    the level that they are left at.
    """

    events: list[Event]
    refused: list[Unusable]
    skipped: int = 0
    filtered: int = 0
    ruled: dict[tuple[str, str], int] = {}

    @property
    def records(self) -> int:
        """The number of records in the message."""
        return len(self.events) + len(self.refused) + self.skipped + self.filtered


class Filter(Protocol):
    """What is wanted of the events; see `forwarder.screen`."""

    wants: Callable[[str | None], bool] | None
    """Tells whether records of this cluster are wanted; None if all are."""

    def add(
        self, unpacked: Unpacked, body: bytes, resource_id: str | None, *, salvaged: bool
    ) -> None:
        """Add what is wanted of an event; raises as `plain` if it is none."""


class _Audit(msgspec.Struct, gc=False):
    """The fields that audit.k8s.io/v1 requires; the rest is validated and passed over."""

    auditID: str  # noqa: N815 - the name in the JSON
    stage: str
    verb: str
    user: msgspec.Raw
    stageTimestamp: str | None = None  # noqa: N815 - the same; Go writes its zero time as null


class _Properties(msgspec.Struct, gc=False):
    log: str


class _Record(msgspec.Struct, gc=False):
    category: str
    properties: _Properties
    time: str | None = None


class _Envelope(msgspec.Struct, gc=False):
    records: list[_Record]


class _IdentifiedRecord(_Record, gc=False):
    resourceId: str | None = None  # noqa: N815 - the name in the JSON


class _IdentifiedEnvelope(msgspec.Struct, gc=False):
    records: list[_IdentifiedRecord]


class _LooseRecord(msgspec.Struct, gc=False):
    category: str
    properties: msgspec.Raw = msgspec.Raw(b"null")
    time: str | None = None
    resourceId: Any = None  # noqa: N815 - the name in the JSON


class _LooseProperties(msgspec.Struct, gc=False):
    log: msgspec.Raw


_envelope = msgspec.json.Decoder(_Envelope)
_identified = msgspec.json.Decoder(_IdentifiedEnvelope)
_audit = msgspec.json.Decoder(_Audit)
_loose_record = msgspec.json.Decoder(_LooseRecord)
_loose_properties = msgspec.json.Decoder(_LooseProperties)
_raw_list = msgspec.json.Decoder(list[msgspec.Raw])
_raw_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_text = msgspec.json.Decoder(str)

# Deep nesting is a RecursionError and a lone surrogate a UnicodeError, not errors of msgspec.
_UNREADABLE: Final = (msgspec.DecodeError, RecursionError, UnicodeError)
# Where an object may begin: within a string every quote has a backslash before it.
_OBJECT: Final = re.compile(r'\{[ \t\r\n]*"')
_BLANKS: Final = b" \t\r\n"
_BETWEEN: Final = _BLANKS + b","
_GLUE: Final = {b"", b"[", b"]", b"]}", b'{"records":[', b'\xef\xbb\xbf{"records":['}
_SMALLEST: Final = 16  # bytes of `{"category":""},`: no record is smaller
_scan: Final = json.JSONDecoder(parse_int=str).raw_decode  # int() refuses 4,301 digits


def unpack(message: bytes, categories: frozenset[str], screen: Filter | None = None) -> Unpacked:
    """Take a message apart; never raises, and one bad record never costs its neighbours.

    Takes `{"records":[…]}`, a bare array of records and a single record.
    """
    unpacked = Unpacked([], [])
    try:
        if screen:
            wants = screen.wants
            for one in _identified.decode(message).records:
                if one.category in categories and (not wants or wants(one.resourceId)):
                    _add(unpacked, one.properties.log, one.time, screen, one.resourceId)
                else:
                    unpacked.skipped += 1
            return unpacked
        for record in _envelope.decode(message).records:
            if record.category in categories:
                _add(unpacked, record.properties.log, record.time)
            else:
                unpacked.skipped += 1
    except _UNREADABLE:
        _unpack_loosely(unpacked, message, categories, screen)
    return unpacked


def plain(body: bytes, *, salvaged: bool = False) -> Event:
    """Return the event as it is; raises msgspec's errors if it is none."""
    return Event(body, _audit.decode(body).stageTimestamp or "", salvaged)


def categories(message: bytes) -> list[str]:
    """Return the category of each record in a message; "" of what cannot be read."""
    found = []
    for body, _ in _records(message):
        try:
            found.append(_loose_record.decode(body).category)
        except _UNREADABLE:
            found.append("")
    return found


def _add(
    unpacked: Unpacked,
    log: str,
    time: str | None,
    screen: Filter | None = None,
    resource_id: str | None = None,
) -> None:
    """Add an event, salvaged if it was cut off, or the log itself as refused."""
    try:
        body = log.encode().strip()
        if screen:
            screen.add(unpacked, body, resource_id, salvaged=False)
        else:
            unpacked.events.append(Event(body, _audit.decode(body).stageTimestamp or ""))
    except msgspec.ValidationError as error:
        unpacked.refused.append(Unusable(log.encode(), f"not an audit event: {error}"))
    except _UNREADABLE as error:
        try:
            body = salvage(log, time).encode()
            if screen:
                screen.add(unpacked, body, resource_id, salvaged=True)
            else:
                unpacked.events.append(plain(body, salvaged=True))
        except (UnusableError, *_UNREADABLE) as hopeless:
            reason = str(hopeless if isinstance(hopeless, UnusableError) else error)
            unpacked.refused.append(Unusable(log.encode(), reason))


def _unpack_loosely(
    unpacked: Unpacked, message: bytes, categories: frozenset[str], screen: Filter | None
) -> None:
    """Take apart, record by record, what is not quite the envelope that is expected."""
    for body, whole in _records(message):
        try:
            if not whole:
                raise UnusableError("not JSON of Azure Monitor, or cut off")
            record = _loose_record.decode(body)
            cluster = record.resourceId if isinstance(record.resourceId, str) else None
            wants = screen.wants if screen else None
            if record.category in categories and (not wants or wants(cluster)):
                _add(unpacked, _log(bytes(record.properties)), record.time, screen, cluster)
            else:
                unpacked.skipped += 1
        except (UnusableError, *_UNREADABLE) as error:
            unpacked.refused.append(Unusable(body, f"unusable record: {error}"))


def _log(properties: bytes) -> str:
    """Return the log of a record whose properties, or log, may be an object or text of one."""
    if properties.startswith(b'"'):
        properties = _text.decode(properties).encode()
    log = bytes(_loose_properties.decode(properties).log)
    return _text.decode(log) if log.startswith(b'"') else log.decode()


def _records(message: bytes) -> Iterator[tuple[bytes, bool]]:
    """Yield each record's bytes, and whether it is whole."""
    try:
        array = message.lstrip(_BLANKS).startswith(b"[")
        found = _raw_list.decode(message if array else _raw_object.decode(message)["records"])
    except (KeyError, *_UNREADABLE):
        yield from _split(message)
    else:
        if len(found) * _SMALLEST > len(message) + _SMALLEST:
            yield message, False  # or half a million zeros were as many dead letters
        else:
            yield from ((bytes(record), True) for record in found)


def _split(message: bytes) -> Iterator[tuple[bytes, bool]]:
    """Find the records in anything else; what lies between them is kept in pieces.

    Each object is tried as a record, then looked into, until eight times the message was read.
    """
    text = message.decode("latin-1")  # one character a byte
    at = end = 0
    left = 8 * len(text) + 100_000
    while left > 0 and (found := _OBJECT.search(text, at)):
        start = found.start()
        fields, stop = _object(text, start)
        if "category" in fields:
            between = message[end:start].strip(_BETWEEN)
            if between.translate(None, _BLANKS) not in _GLUE:
                yield between, False
            yield message[start:stop], True
            at = end = stop
        else:
            at = start + 1
            left -= stop - start + 1000
    rest = message[end:].strip(_BETWEEN) if end else message
    if not end or rest.translate(None, _BLANKS) not in _GLUE:
        yield rest, False


def _object(text: str, start: int) -> tuple[dict[str, Any], int]:
    """Return the object that begins here and where it ends; {} and how far it could be read."""
    try:
        return _scan(text, start)
    except json.JSONDecodeError as error:
        return {}, error.pos
    except RecursionError:
        return {}, start + len(text) // 2  # it does not say how far
