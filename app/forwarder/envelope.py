"""The envelope of Azure Monitor: bytes of a hub's message in, audit events out. Pure, no I/O."""

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from forwarder.errors import UnusableError
from forwarder.salvage import salvage


class Event(msgspec.Struct, gc=False, frozen=True):
    """An audit event: its own JSON as bytes, and its stageTimestamp (RFC 3339, "" if absent)."""

    body: bytes
    stage_timestamp: str
    salvaged: bool = False


class Refused(msgspec.Struct, gc=False, frozen=True):
    """A record, or a whole message, that holds no usable event: its bytes as they were."""

    body: bytes
    reason: str


class Unpacked(msgspec.Struct, gc=False):
    """What one message held; `skipped` counts the records of other categories."""

    events: list[Event]
    refused: list[Refused]
    skipped: int = 0

    @property
    def records(self) -> int:
        """The number of records in the message."""
        return len(self.events) + len(self.refused) + self.skipped


class _Audit(msgspec.Struct, gc=False):
    """The fields that audit.k8s.io/v1 requires; the rest is validated and passed over."""

    auditID: str  # noqa: N815 - the name in the JSON
    stage: str
    verb: str
    user: msgspec.Raw
    stageTimestamp: str = ""  # noqa: N815 - the same


class _Properties(msgspec.Struct, gc=False):
    log: str


class _Record(msgspec.Struct, gc=False):
    category: str
    properties: _Properties
    time: str | None = None


class _Envelope(msgspec.Struct, gc=False):
    records: list[_Record]


class _LooseRecord(msgspec.Struct, gc=False):
    category: str
    properties: msgspec.Raw
    time: str | None = None


class _LooseProperties(msgspec.Struct, gc=False):
    log: msgspec.Raw


_envelope = msgspec.json.Decoder(_Envelope)
_audit = msgspec.json.Decoder(_Audit)
_loose_record = msgspec.json.Decoder(_LooseRecord)
_loose_properties = msgspec.json.Decoder(_LooseProperties)
_raw_list = msgspec.json.Decoder(list[msgspec.Raw])
_raw_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_text = msgspec.json.Decoder(str)

# Deep nesting is a RecursionError and a lone surrogate a UnicodeError, not errors of msgspec.
_UNREADABLE: Final = (msgspec.DecodeError, RecursionError, UnicodeError)
_TOKEN: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\Z)|[\[\]{}]', re.DOTALL)
_HEAD: Final = re.compile(rb'\s*(?:\{\s*"records"\s*:\s*)?\[')
_TAIL: Final = re.compile(rb"\s*(?:\]\s*\}?\s*)?")


def unpack(message: bytes, categories: frozenset[str]) -> Unpacked:
    """Take a message apart; never raises, and one bad record never costs its neighbours.

    Takes `{"records":[…]}`, a bare array of records and a single record.
    """
    unpacked = Unpacked([], [])
    try:
        for record in _envelope.decode(message).records:
            if record.category in categories:
                _add(unpacked, record.properties.log, record.time)
            else:
                unpacked.skipped += 1
    except _UNREADABLE:
        unpacked = Unpacked([], [])
        _unpack_loosely(unpacked, message, categories)
    return unpacked


def _add(unpacked: Unpacked, log: str, time: str | None) -> None:
    """Add an event, salvaged if it was cut off, or the log itself as refused."""
    try:
        body = log.encode().strip()
        unpacked.events.append(Event(body, _audit.decode(body).stageTimestamp))
    except msgspec.ValidationError as error:
        unpacked.refused.append(Refused(log.encode(), f"not an audit event: {error}"))
    except _UNREADABLE as error:
        try:
            body = salvage(log, time).encode()
            unpacked.events.append(Event(body, _audit.decode(body).stageTimestamp, salvaged=True))
        except (UnusableError, *_UNREADABLE) as hopeless:
            reason = str(hopeless if isinstance(hopeless, UnusableError) else error)
            unpacked.refused.append(Refused(log.encode(errors="surrogatepass"), reason))


def _unpack_loosely(unpacked: Unpacked, message: bytes, categories: frozenset[str]) -> None:
    """Take apart, record by record, what is not quite the envelope that is expected."""
    for body, whole in _records(message):
        try:
            if not whole:
                raise UnusableError("not JSON, or cut off in the middle of a record")
            record = _loose_record.decode(body)
            if record.category in categories:
                _add(unpacked, _log(bytes(record.properties)), record.time)
            else:
                unpacked.skipped += 1
        except (UnusableError, *_UNREADABLE) as error:
            unpacked.refused.append(Refused(body, f"unusable record: {error}"))


def _log(properties: bytes) -> str:
    """Return the log of a record whose properties, or log, may be an object or text of one."""
    if properties.startswith(b'"'):
        properties = _text.decode(properties).encode()
    log = bytes(_loose_properties.decode(properties).log)
    return _text.decode(log) if log.startswith(b'"') else log.decode()


def _records(message: bytes) -> Iterator[tuple[bytes, bool]]:
    """Yield each record's bytes, and whether it is whole."""
    try:
        if message.lstrip()[:1] == b"[":
            found = _raw_list.decode(message)
        else:
            records = _raw_object.decode(message).get("records")
            found = _raw_list.decode(records) if records else [msgspec.Raw(message)]
    except _UNREADABLE:
        yield from _split(message)
    else:
        yield from ((bytes(record), True) for record in found)


def _split(message: bytes) -> Iterator[tuple[bytes, bool]]:
    """Find the records of broken JSON by their brackets; what is left over is one piece."""
    head = _HEAD.match(message)
    start = end = head.end() if head else 0
    depth = 0
    for token in _TOKEN.finditer(message, start) if head else ():
        if token[0] in (b"{", b"["):
            start = token.start() if depth == 0 else start
            depth += 1
        elif token[0] in (b"}", b"]"):
            depth -= 1
            if depth < 0:
                break
            if depth == 0:
                end = token.end()
                yield message[start:end], True
    rest = message[end:] if head and end > head.end() else message
    if not _TAIL.fullmatch(rest):
        yield rest, False
