"""Unpacks the messages of an event hub: bytes in, audit events out.

A diagnostic setting sends `{"records":[…]}`, one record per log entry. The audit event is JSON in
the string `properties.log` of a record, so it is decoded in two passes: the envelope with its
records, then each log, to validate that it is a whole event. Fields that nothing here uses are only
checked for syntax. An event is passed on as the bytes that the API server wrote.

A message in any other form takes the slow path (see `records`). Events that are cut off or lack
what a sensor needs are completed (see `truncated`). Only a record without auditID or stage is
unusable. Every record becomes an event, is unusable, or is counted as skipped or filtered.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Protocol

import msgspec
from msgspec import Raw, Struct, field

from forwarder.audit import records
from forwarder.audit.truncated import complete, is_rfc3339
from forwarder.errors import UnusableError

_MAX_UNUSABLE: Final = 100  # per message; each takes a kilobyte until it is written
_ENTRY_BYTES: Final = 256  # memory of an event or unusable record in addition to its body


class Event(Struct, gc=False, frozen=True):
    """An audit event: its own JSON as bytes, and its stageTimestamp in RFC 3339.

    `completed`: a part of it was lost. `post_alone`: it is nested deeper than 100 levels, for which
    a sink may drop a whole body (Falco does at 300 levels, with status 200).
    """

    body: bytes
    stage_timestamp: str
    completed: bool = False
    post_alone: bool = False


class Unusable(Struct, gc=False, frozen=True):
    """A record, or a whole message, without a usable event: its original bytes."""

    body: bytes
    reason: str


class Unpacked(Struct, gc=False):
    """The contents of one message; `skipped` counts records of other categories and clusters.

    `filtered` counts the events that the filter dropped. `rule_counts` counts all events to which
    the audit policy was applied, by rule and resulting level.
    """

    events: list[Event]
    unusable: list[Unusable]
    skipped: int = 0
    filtered: int = 0
    rule_counts: dict[tuple[str, str], int] = {}

    @property
    def records(self) -> int:
        """The number of records in the message."""
        return len(self.events) + len(self.unusable) + self.skipped + self.filtered

    @property
    def size(self) -> int:
        """Approximate memory of the events and unusable records, in bytes."""
        bodies = [event.body for event in self.events] + [record.body for record in self.unusable]
        return sum(map(len, bodies)) + _ENTRY_BYTES * len(bodies)


class Filter(Protocol):
    """Decides which events are forwarded, and edits them."""

    wants: Callable[[str | None], bool] | None
    """Returns whether to forward records with this resource ID; None forwards all clusters."""

    def apply(
        self, event: bytes, resource_id: str | None
    ) -> tuple[bytes | None, Any, tuple[str, str] | None]:
        """Return the edited event (None: drop it), fields as in `_Event`, a key of `rule_counts`.

        Raises msgspec's errors if a field is missing that audit.k8s.io/v1 requires.
        """


class _Event(Struct, gc=False):
    """The fields that audit.k8s.io/v1 requires, and those with objects that clients send."""

    id: str = field(name="auditID")
    stage: str
    verb: str
    user: Raw
    stage_timestamp: str | None = field(default=None, name="stageTimestamp")
    request_object: Raw = field(default=Raw(), name="requestObject")
    response_object: Raw = field(default=Raw(), name="responseObject")


class _Properties(Struct, gc=False):
    log: str


class _Record(Struct, gc=False):
    category: str
    properties: _Properties
    time: str | None = None
    resource_id: str | None = field(default=None, name="resourceId")


_decode_event: Final = msgspec.json.Decoder(_Event).decode
_decode_records: Final = msgspec.json.Decoder(list[_Record]).decode


def unpack(
    message: bytes, categories: frozenset[str], event_filter: Filter | None = None
) -> Unpacked:
    """Unpack a message. Never raises; an unusable record does not affect the others.

    Accepts `{"records":[…]}`, an array of records, a single record, and records in any other text.
    """
    unpacked = Unpacked([], [])
    try:
        entries: Iterable[_Record] = _decode_records(records.list_in(message))
    except records.UNREADABLE:
        entries = _read_slowly(unpacked, message, categories)
    wants, apply = (event_filter.wants, event_filter.apply) if event_filter else (None, _accept)
    for record in entries:
        if record.category not in categories or (wants and not wants(record.resource_id)):
            unpacked.skipped += 1
            continue
        log, completed = record.properties.log, False
        try:
            body, fields, rule = apply(log.encode().strip(), record.resource_id)
            if not is_rfc3339(fields.stage_timestamp):
                raise UnusableError("its stageTimestamp is not RFC 3339")
        except (UnusableError, *records.UNREADABLE):
            try:
                body, fields, rule = apply(complete(log, record.time).encode(), record.resource_id)
            except (UnusableError, *records.UNREADABLE) as error:
                unpacked.unusable.append(Unusable(log.encode(), str(error)))
                continue
            completed = True
        if rule:
            unpacked.rule_counts[rule] = unpacked.rule_counts.get(rule, 0) + 1
        if body is None:
            unpacked.filtered += 1
            continue
        deep = bool(fields.request_object or fields.response_object) and records.is_deep(body)
        unpacked.events.append(Event(body, fields.stage_timestamp, completed, deep))
    if rest := unpacked.unusable[_MAX_UNUSABLE:]:  # a message may have 36,000
        reason = f"{len(rest)} unusable records in one message, the first: {rest[0].reason}"
        joined = Unusable(b"\n".join(record.body for record in rest), reason)
        unpacked.unusable[_MAX_UNUSABLE:] = [joined]
    return unpacked


def _accept(event: bytes, _: str | None) -> tuple[bytes | None, Any, tuple[str, str] | None]:
    return event, _decode_event(event), None


def _read_slowly(
    unpacked: Unpacked, message: bytes, categories: frozenset[str]
) -> Iterator[_Record]:
    """Yield the records of a message that is not in the expected form."""
    for body, whole in records.split(message):
        try:
            if not whole:
                raise UnusableError("not JSON of Azure Monitor, or cut off")
            record = records.decode(body)
            wanted = record.category in categories
            log = records.log_of(bytes(record.properties)) if wanted else ""
            cluster = record.resource_id if isinstance(record.resource_id, str) else None
            time = record.time if isinstance(record.time, str) else None
            yield _Record(record.category, _Properties(log), time, cluster)
        except (UnusableError, *records.UNREADABLE) as error:
            if records.has_other_category(body, categories):
                unpacked.skipped += 1
            else:
                unpacked.unusable.append(Unusable(body, f"unusable record: {error}"))
