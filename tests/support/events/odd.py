"""Unusual and malformed messages, each with the expected outcome of its records.

A complete event is a JSON object with auditID, stage and verb as strings, a user, and a
stageTimestamp in RFC 3339. An event that has only auditID and stage is completed. A message that
cannot be parsed counts as one record. If a message is truncated or damaged, everything that is not
a complete record becomes one dead letter. Delivered events include the salvaged ones, which were
completed.
"""

import gzip
import json
from dataclasses import dataclass
from typing import Any

from support.events import TIME, envelope, real_events, record, wrap

KEPT_BY_AKS = 16 * 1024
"""Bytes of a log that AKS keeps (Azure/AKS issue 4635)."""


@dataclass(frozen=True)
class Odd:
    """A message, and the number of its records by outcome."""

    name: str
    body: bytes
    delivered: int = 0
    dead_lettered: int = 0
    skipped: int = 0
    salvaged: int = 0

    @property
    def records(self) -> int:
        """Total number of records."""
        return self.delivered + self.dead_lettered + self.skipped


def _event(audit_id: str = "odd", **fields: Any) -> bytes:
    return json.dumps(
        {
            "kind": "Event",
            "apiVersion": "audit.k8s.io/v1",
            "auditID": audit_id,
            "stage": "ResponseComplete",
            "verb": "get",
            "user": {"username": "admin"},
            "stageTimestamp": "2026-11-23T09:14:09.800352Z",
            **fields,
        }
    ).encode()


def _without(field: str) -> bytes:
    return json.dumps({k: v for k, v in json.loads(_event()).items() if k != field}).encode()


def _beside(odd: bytes, **ends: int) -> dict[str, Any]:
    """Put a record between two valid ones, which are always delivered."""
    ends["delivered"] = ends.get("delivered", 0) + 2
    before, after = record(_event("before") + b"\n"), record(_event("after") + b"\n")
    return {"body": wrap([before, odd, after]), **ends}


_good = _event()
_record = record(_good + b"\n")
_five = envelope([_event(f"{n}") for n in range(5)])
_in_the_third = _five.index(b'\\"2\\"')
_anonymous = next(event for event in real_events() if b'"user":{}' in event)
_big = max(real_events(), key=len)
_log = record(_good).split(b'"log":')[1].split(b',"stream"')[0]
_klog = (
    'I0000 09:14:09.800352      10 controller.go:615] quota admission added evaluator for: "x"\n'
)
_tiny = rb'{"category":"kube-audit","properties":{"log":"{\"auditID\":\"%d\",\"stage\":\"Panic\",'
_tiny += rb'\"verb\":\"get\",\"user\":{},\"stageTimestamp\":\"2026-11-23T09:14:09Z\"}"}}'
_guard = b'{"category":"guard","properties":"x","resourceId":7}'
_brackets = b"[" * 100_000 + b"]" * 100_000

WHOLE = [
    Odd("0 records", b'{"records":[]}'),
    Odd("empty array", b"[]"),
    Odd("1 record", envelope([_good]), delivered=1),
    Odd("5,000 records", wrap(_tiny % n for n in range(5000)), delivered=5000),
    Odd("bare array", b"[%b,%b]" % (record(_good), record(_event("other"))), delivered=2),
    Odd("single record", record(_good), delivered=1),
    Odd("properties as a string", envelope([_good] * 2, properties_as="string"), delivered=2),
    Odd("spaces and line ends around", b"\r\n " + envelope([_good]) + b" \n", delivered=1),
    Odd("kube-audit-admin", envelope([_good], category="kube-audit-admin"), delivered=1),
    Odd("unauthenticated", envelope([_anonymous]), delivered=1),
    Odd("one giant event", envelope([_event(requestObject="x" * 900_000)]), delivered=1),
    Odd(
        "object too big for AKS",
        envelope([_event(requestObject="skipped-too-big-size-object")]),
        delivered=1,
    ),
    Odd("unicode", envelope([_event(requestURI="/é\u2028漢\U0001f600")]), delivered=1),
    Odd("two envelopes", envelope([_good]) + envelope([_good] * 2), delivered=3),
    Odd("envelopes on lines", b"\n".join([envelope([_good])] * 3), delivered=3),
    Odd("records twice", b'{"records":[%b],"records":[%b]}' % (_record, _record), delivered=2),
    Odd("Records too", b'{"Records":[%b],"records":[%b]}' % (_record, _record), delivered=2),
    Odd("value too", b'{"value":[%b],"records":[%b]}' % (_record, _record), delivered=2),
    Odd("empty value too", b'{"value":[],"records":[%b]}' % _record, delivered=1),
    Odd("value", b'{"value": [%b]}' % _record, delivered=1),
    Odd(
        "time is a number",
        envelope([_good]).replace(b'"time": "%b"' % TIME.encode(), b'"time":1'),
        delivered=1,
    ),
    Odd("line end in a record", wrap([_record.replace(rb'\n"', b'\n"')] * 2), delivered=2),
    Odd("control character in a name", wrap([_record.replace(b'"pod"', b'"po\1d"')]), delivered=1),
    Odd("log is an object", wrap([_record.replace(_log, _good)]), delivered=1),
    Odd("not UTF-8 in a log", wrap([_record.replace(b"admin", b"adm\xffin")]), delivered=1),
    Odd(
        "lone surrogate in a record",
        wrap([_record, _record.replace(b"admin", rb"adm\udc00in")]),
        delivered=2,
    ),
    Odd("duplicate keys", envelope([_good.replace(b"{", b'{"auditID":"first",', 1)]), delivered=1),
    Odd("number beyond 64 bits", envelope([_event(requestObject=2**70)]), delivered=1),
    Odd(
        "number beyond a double", envelope([_good.replace(b"{", b'{"n":-1E+999,', 1)]), delivered=1
    ),
    Odd(
        "number beyond 64 bits in a record",
        wrap([b'{"n":%d,' % 2**70 + record(_good)[1:]]),
        delivered=1,
    ),
]

SKIPPED = [
    Odd("guard", **_beside(record(_klog, category="guard"), skipped=1)),
    Odd("kube-apiserver", **_beside(record(_klog, category="kube-apiserver"), skipped=1)),
    Odd("other category without properties", **_beside(b'{"category":"guard"}', skipped=1)),
    Odd("other category, cut off", wrap([record(_klog, category="guard")[:-40]]), skipped=1),
    Odd(
        "other category, damaged",
        **_beside(record(_klog, category="guard").replace(b'"pod"', b'"pod'), skipped=1),
    ),
    Odd("other category, of numbers", **_beside(b'{"category":"guard","time":1}', skipped=1)),
    Odd("other category, properties are text", **_beside(_guard, skipped=1)),
    Odd("an event of another category", envelope([_good] * 3, category="csi"), skipped=3),
]

SALVAGED = [
    Odd("log cut at 16 KiB", **_beside(record(_big[:KEPT_BY_AKS]), delivered=1, salvaged=1)),
    Odd(
        "brackets in an event",
        # Not closed: Python 3.14 decodes as many levels as its stack holds, others 1,000 to 10,000.
        **_beside(record(_good[:-1] + b',"x":' + b"[" * 100_000), delivered=1, salvaged=1),
    ),
    Odd(
        "NUL byte in an event",
        **_beside(record(_good[:-1] + b',"x":"\0"}'), delivered=1, salvaged=1),
    ),
    Odd(
        "lone surrogate in an event", **_beside(record(_event(x="\ud800")), delivered=1, salvaged=1)
    ),
    *(
        Odd(name, **_beside(record(odd), delivered=1, salvaged=1))
        for name, odd in {
            "log cut before the user": _big[: _big.index(b'"user"')],
            "log cut in the query": _big[: _big.index(b'"verb"') - 4],
            "no verb": _without("verb"),
            "no user": _without("user"),
            "verb is an array": _event(verb=["get"]),
            "no stageTimestamp": _without("stageTimestamp"),
            "byte order mark": b"\xef\xbb\xbf" + _good,
            "NUL bytes behind it": _good + bytes(3),
            "stageTimestamp is null": _event(stageTimestamp=None),
            "stageTimestamp is a number": _event(stageTimestamp=1),
            "stageTimestamp without a zone": _event(stageTimestamp="2026-11-23T09:14:09"),
        }.items()
    ),
]

DEAD_RECORDS = [
    Odd(name, **_beside(odd, dead_lettered=1))
    for name, odd in {
        "log is text": record(_klog),
        "log is empty": record(""),
        "log is an array": record(b"[%b]" % _good),
        "log is brackets": record(_brackets),
        "log is a number": record(_good).replace(_log, b"1"),
        "log is a lone surrogate": record(_good).replace(_log, rb'"\ud800"'),
        "no auditID": record(_without("auditID")),
        "no stage": record(_without("stage")),
        "auditID is a number": record(_event(auditID=1)),
        "stage is null": record(_event(stage=None)),
        "no category": record(_good).replace(b'"category"', b'"Category"'),
        "no properties": record(_good).replace(b'"properties"', b'"Properties"'),
        "properties is null": b'{"category":"kube-audit","properties":null}',
        "properties is text": b'{"category":"kube-audit","properties":"audit"}',
        "properties is an array": b'{"category":"kube-audit","properties":[]}',
        "no log": b'{"category":"kube-audit","properties":{"stream":"stdout"}}',
        "record is null": b"null",
        "record is a number": b"1",
        "record is text": b'"record"',
        "record is an array": b"[]",
        "record is an empty object": b"{}",
    }.items()
]

BROKEN_OFF = [
    Odd("cut in the third of five", _five[:_in_the_third], delivered=2, dead_lettered=1),
    Odd("cut in the first", _five[:100], dead_lettered=1),
    Odd(
        "NUL bytes in the third",
        _five[:_in_the_third] + bytes(9) + _five[_in_the_third:],
        delivered=4,
        dead_lettered=1,
    ),
]

UNREADABLE = [
    Odd("empty body", b"", dead_lettered=1),
    Odd("not JSON", b"audit", dead_lettered=1),
    Odd("bad gzip", gzip.compress(envelope([_good]))[:-20], dead_lettered=1),
    Odd("UTF-16", envelope([_good]).decode().encode("utf-16"), dead_lettered=1),
    Odd("NUL bytes", bytes(1000), dead_lettered=1),
    Odd("100,000 brackets", b"[" * 100_000, dead_lettered=1),
    Odd("100,000 brackets that close", b"[" * 100_000 + b"]" * 100_000, dead_lettered=1),
    Odd("50,000 objects", b'{"records":' * 50_000, dead_lettered=1),
    Odd("null", b"null", dead_lettered=1),
    Odd("number", b"1", dead_lettered=1),
    Odd("string", b'"records"', dead_lettered=1),
    Odd("empty object", b"{}", dead_lettered=1),
    Odd("records is null", b'{"records":null}', dead_lettered=1),
    Odd("records is an object", b'{"records":{}}', dead_lettered=1),
]

ODD = [*WHOLE, *SKIPPED, *SALVAGED, *DEAD_RECORDS, *BROKEN_OFF, *UNREADABLE]
