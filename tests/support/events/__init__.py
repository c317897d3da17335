"""Audit events of a real kube-apiserver, wrapped as AKS wraps them.

`audit-events.jsonl` holds one event of each kind (verb, user, resource, code, stage) as
kube-apiserver 1.34 wrote it. `events.odd` has unusual and malformed messages.
"""

import functools
import itertools
import json
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

EVENTS_FILE = Path(__file__).with_name("audit-events.jsonl")
RESOURCE_ID = (
    "/SUBSCRIPTIONS/00000000-0000-0000-0000-000000000000/RESOURCEGROUPS/DEMO"
    "/PROVIDERS/MICROSOFT.CONTAINERSERVICE/MANAGEDCLUSTERS/DEMO"
)
TIME = "2026-11-23T09:14:10.0000000Z"

Key = tuple[str, str]
"""The identity of an event: auditID and stage."""


class Message(NamedTuple):
    """A message for the hub, and its events as the sink must receive them."""

    body: bytes
    events: list[bytes]


class _Named(msgspec.Struct):
    auditID: str  # noqa: N815  the field's name in audit.k8s.io/v1
    stage: str


_named = msgspec.json.Decoder(_Named)


def key(event: bytes) -> Key:
    """Return auditID and stage of an event; text after it is ignored."""
    try:
        named = _named.decode(event)
    except msgspec.DecodeError:
        named = _named.decode(event[: event.rindex(b"}") + 1])
    return named.auditID, named.stage


@functools.cache
def real_events() -> tuple[bytes, ...]:
    """Return the 376 real events byte for byte, without line ends."""
    return tuple(EVENTS_FILE.read_bytes().splitlines())


@functools.cache
def typical_events() -> tuple[bytes, ...]:
    """Return the real events up to 1,100 B: 22 of them are a message of 33 KB, as in AKS."""
    return tuple(event for event in real_events() if len(event) <= 1100)


def record(  # noqa: PLR0913  one argument per field that a test varies
    log: str | bytes,
    *,
    category: str = "kube-audit",
    time: str = TIME,
    resource_id: str = RESOURCE_ID,
    properties_as: Literal["object", "string"] = "object",
    pod: str = "kube-apiserver-79599f95c7-qn557",
) -> bytes:
    """Return one record of Azure Monitor; `log` is not changed, in AKS it ends with a newline."""
    text = log if isinstance(log, str) else log.decode()
    properties = _dumps({"log": text, "stream": "stdout", "pod": pod})
    if properties_as == "string":
        properties = _dumps(properties)
    return (
        '{ "operationName": "Microsoft.ContainerService/managedClusters/diagnosticLogs/Read", '
        f'"category": {_dumps(category)}, "ccpNamespace": "5eb120ce57f96500011bde2d", '
        f'"resourceId": {_dumps(resource_id)}, "properties": {properties}, "time": "{time}", '
        '"Cloud": "AzureCloud", "Environment": "prod", "UnderlayClass": "hcp-underlay", '
        '"UnderlayName": "hcp-underlay-westeurope-cx-104"}'
    ).encode()


def wrap(records: Iterable[bytes]) -> bytes:
    """Return a message with these records."""
    return b'{"records": [%b]}' % b",".join(records)


def envelope(
    events: Iterable[bytes],
    *,
    category: str = "kube-audit",
    time: str = TIME,
    resource_id: str = RESOURCE_ID,
    properties_as: Literal["object", "string"] = "object",
) -> bytes:
    """Return the message in which AKS sends these events."""
    return wrap(
        record(
            event + b"\n",
            category=category,
            time=time,
            resource_id=resource_id,
            properties_as=properties_as,
        )
        for event in events
    )


def messages(
    n_events: int,
    *,
    per_message: int = 22,
    unique: bool = True,
    events: Sequence[bytes] | None = None,
) -> Iterator[Message]:
    """Create messages of `per_message` events, cycling through `events` (the real ones).

    400 events are a message of 900 KB. Unique events get a new auditID, and the current time as
    stageTimestamp so that delays can be measured; others are not changed.
    """
    if not unique:
        plain = itertools.cycle(events or real_events())
        for start in range(0, n_events, per_message):
            chunk = list(itertools.islice(plain, min(per_message, n_events - start)))
            yield Message(envelope(chunk), chunk)
        return
    templates = itertools.cycle([_template(event) for event in events or real_events()])
    ids = itertools.count(uuid.uuid4().int)
    for start in range(0, n_events, per_message):
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}".encode()
        stamp, time = now + b"Z", now + b"0Z"
        made, records = [], []
        for (e0, e1, e2), (r0, r1, r2, r3) in itertools.islice(
            templates, min(per_message, n_events - start)
        ):
            audit_id = str(uuid.UUID(int=next(ids) % 2**128)).encode()
            made.append(b"".join((e0, audit_id, e1, stamp, e2)))
            records.append(b"".join((r0, audit_id, r1, stamp, r2, time, r3)))
        yield Message(wrap(records), made)


_VARIES = re.compile(rb'(?<="auditID":")[^"]+|(?<="stageTimestamp":")[^"]+')


def _template(event: bytes) -> tuple[list[bytes], list[bytes]]:
    """Split an event and its record at the values that vary, so that new ones are cheap."""
    slot = b"@slot@"
    filled = record(_VARIES.sub(slot, event) + b"\n", time=slot.decode())
    return _VARIES.split(event), filled.split(slot)


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
