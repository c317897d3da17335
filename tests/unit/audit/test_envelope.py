"""Unpacking loses nothing: a record becomes an event, is unusable, or is counted as skipped."""

import json
import time
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from forwarder.audit.envelope import Unpacked, unpack
from forwarder.audit.truncated import is_rfc3339
from support.events import envelope, real_events, record, typical_events, wrap
from support.events.odd import ODD, Odd

CATEGORIES = frozenset({"kube-audit", "kube-audit-admin"})
EVENTS = list(typical_events()[:30])
RECORDS = [record(event + b"\n") for event in EVENTS]
MEGABYTE = 1_000_000


def unpack_and_check(message: bytes) -> Unpacked:
    """Unpack a message and assert the invariants of every message."""
    unpacked = unpack(message, CATEGORIES)
    assert unpacked.records == len(unpacked.events) + len(unpacked.unusable) + unpacked.skipped
    if not unpacked.records:
        assert json.loads(message) in ([], {"records": []})
    for event in unpacked.events:
        assert {"auditID", "stage", "verb", "user"} <= json.loads(event.body).keys()
    assert all(unusable.reason for unusable in unpacked.unusable)
    return unpacked


def bodies(unpacked: Unpacked) -> list[bytes]:
    return [event.body for event in unpacked.events]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd.name)
def test_an_odd_message_has_the_expected_outcome(odd: Odd) -> None:
    unpacked = unpack_and_check(odd.body)
    assert (
        len(unpacked.events),
        len(unpacked.unusable),
        unpacked.skipped,
        sum(event.completed for event in unpacked.events),
    ) == (odd.delivered, odd.dead_lettered, odd.skipped, odd.salvaged)


@pytest.mark.parametrize("properties_as", ["object", "string"])
@pytest.mark.parametrize("category", sorted(CATEGORIES))
def test_real_events_are_unpacked_byte_for_byte(properties_as: str, category: str) -> None:
    message = envelope(
        real_events(),
        category=category,
        properties_as="string" if properties_as == "string" else "object",
    )
    unpacked = unpack_and_check(message)
    assert bodies(unpacked) == list(real_events())
    assert not any(event.completed for event in unpacked.events)
    assert [event.stage_timestamp for event in unpacked.events] == [
        json.loads(event)["stageTimestamp"] for event in real_events()
    ]


@pytest.mark.parametrize("count", [0, 1, 5000])
def test_a_message_may_contain_any_number_of_records(count: int) -> None:
    events = [EVENTS[n % len(EVENTS)] for n in range(count)]
    assert bodies(unpack_and_check(envelope(events))) == events


def test_a_log_that_is_an_object_is_kept_unchanged() -> None:
    log = EVENTS[0].replace(b",", b" , ", 1)
    message = wrap([b'{"category":"kube-audit","properties":{"log":%b}}' % log])
    assert bodies(unpack_and_check(message)) == [log]


def test_only_the_configured_categories_are_kept() -> None:
    message = wrap([RECORDS[0], record(EVENTS[1], category="kube-audit-admin")])
    unpacked = unpack(message, frozenset({"kube-audit-admin"}))
    assert (bodies(unpacked), unpacked.skipped) == ([EVENTS[1]], 1)


def test_a_byte_order_mark_is_ignored() -> None:
    assert bodies(unpack_and_check(b"\xef\xbb\xbf" + wrap(RECORDS))) == EVENTS
    assert not unpack_and_check(b"\xef\xbb\xbf" + wrap(RECORDS)).unusable


def test_records_are_found_under_another_key_and_in_json_lines() -> None:
    other = unpack_and_check(wrap(RECORDS).replace(b'"records"', b'"recordz"', 1))
    assert (bodies(other), len(other.unusable)) == (EVENTS, 1)
    lines = unpack_and_check(b"\n".join(RECORDS))
    assert (bodies(lines), len(lines.unusable)) == (EVENTS, 0)


BAD = {
    "null": b"null",
    "number": b"7",
    "object": b"{}",
    "other shape": b'{"category":["kube-audit"]}',
    "quote": b'"',
    "end of a string": b'x"',
    "open object": b'{"a":',
    "open string in an object": b'{"a":"b',
    "closing bracket": b"}]",
    "cut in the log": RECORDS[0][:700],
    "without its last quote": RECORDS[0][:-2] + b"}",
    "without its last bracket": RECORDS[0][:-1],
    "without its first bracket": RECORDS[0][1:],
    "not UTF-8": RECORDS[0].replace(b"kube-audit", b"kube-audit\xff", 1),
    "NUL": RECORDS[0].replace(b"kube-audit", b"kube\0audit", 1),
    "UTF-16": RECORDS[0].decode().encode("utf-16-le"),
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff\xab",
    "brackets": b"[" * 5000,
    "objects": b'{"a":' * 20,
    "digits": b'{"category":1,"n":' + b"9" * 5000 + b"x}",
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize("position", range(4))
def test_a_bad_record_does_not_affect_its_neighbours(bad: bytes, position: int) -> None:
    records = RECORDS[1:4]
    records.insert(position, bad)
    for message in wrap(records), b"[%b]" % b",".join(records):
        unpacked = unpack_and_check(message)
        assert bodies(unpacked) == EVENTS[1:4]
        assert len(unpacked.unusable) >= 1
        lost = bad.strip(b" ,[]}")
        assert lost in b" ".join(unusable.body for unusable in unpacked.unusable)


@pytest.mark.parametrize("time", ["", "soon", "0001-01-01T00:00:00+14:00"])
def test_a_truncated_event_with_an_invalid_time_is_delivered(time: str) -> None:
    event = EVENTS[0][: EVENTS[0].index(b',"requestReceivedTimestamp"')]
    first, cut, last = unpack_and_check(
        wrap([RECORDS[1], record(event, time=time), RECORDS[2]])
    ).events
    assert [first.body, last.body] == EVENTS[1:3]
    assert is_rfc3339(cut.stage_timestamp)


def test_a_message_truncated_anywhere_yields_its_whole_records_and_keeps_the_rest() -> None:
    message = wrap(RECORDS[:3])
    ends = _ends(3)
    for cut in range(len(message)):
        unpacked = unpack_and_check(message[:cut])
        whole = sum(end <= cut for end in ends)
        assert bodies(unpacked) == EVENTS[:whole]
        rest = message[ends[whole - 1] : cut].strip(b", ") if whole else message[:cut]
        only_separators = rest in (b"", b"]") and whole
        assert [unusable.body for unusable in unpacked.unusable] == (
            [] if only_separators else [rest]
        )


def _ends(count: int) -> list[int]:
    return [len(b'{"records": [' + b",".join(RECORDS[:n])) for n in range(1, count + 1)]


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_arbitrary_bytes_become_dead_letters_and_never_raise(message: bytes) -> None:
    unpack_and_check(message)


_TOKENS = (
    b'{ } [ ] " , : \\ 0 \0 \xff null {" "records" "category": "kube-audit" "properties": "log":'
)
_fragments = st.lists(st.sampled_from([b" ", *_TOKENS.split()]), max_size=20).map(b"".join)


@given(_fragments)
@example(b'{"records": [],"category":[]}')
@example(b'[{"records":[],"properties":null}]')
@settings(max_examples=500)
def test_fragments_of_an_envelope_are_never_lost(message: bytes) -> None:
    unpacked = unpack_and_check(message)
    assert not unpacked.events
    kept = b"".join(unusable.body for unusable in unpacked.unusable)
    if not unpacked.skipped:
        separators = b' {}[]:,"records'
        assert len(kept.translate(None, separators)) >= len(message.translate(None, separators)) - 1


@given(st.lists(st.one_of(_fragments, st.sampled_from(RECORDS[:5]), st.binary(max_size=20))))
@settings(max_examples=200)
def test_good_records_keep_their_order_with_anything_between_them(parts: list[bytes]) -> None:
    expected = [EVENTS[RECORDS.index(part)] for part in parts if part in RECORDS]
    assert _is_subsequence(expected, bodies(unpack_and_check(wrap(parts))))


def _is_subsequence(short: list[bytes], long: list[bytes]) -> bool:
    rest = iter(long)
    return all(one in rest for one in short)


@given(
    at=st.integers(0, 10_000),
    removed=st.integers(0, 3),
    inserted=st.one_of(st.binary(max_size=3), _fragments),
)
@settings(max_examples=500)
def test_damage_in_a_real_message_affects_only_the_damaged_record(
    at: int, removed: int, inserted: bytes
) -> None:
    message = wrap(RECORDS[:5])
    at %= len(message)
    damaged = message[:at] + inserted + message[at + removed :]
    starts = [end - len(one) for end, one in zip(_ends(5), RECORDS, strict=False)]
    undamaged = [
        event
        for event, start, end in zip(EVENTS, starts, _ends(5), strict=False)
        if at >= end or at + removed <= start
    ]
    assert _is_subsequence(undamaged, bodies(unpack_and_check(damaged)))


_lists = st.tuples(
    st.sampled_from(["records", "Records", "RECORDS", "value"]),
    st.lists(st.integers(0, 29), max_size=3),
)
_blank = st.sampled_from([b"", b" ", b"\n", b"\r\n\t"])


@given(st.lists(st.lists(_lists, min_size=1, max_size=3), min_size=1, max_size=4), _blank)
@settings(max_examples=300)
def test_records_are_found_under_any_key_any_number_of_times(
    envelopes: list[list[tuple[str, list[int]]]], blank: bytes
) -> None:
    numbers = [number for one in envelopes for _, listed in one for number in listed]
    assume(numbers)
    message = blank.join(
        b"{%b}"
        % (b"," + blank).join(
            b'%b"%b":%b[%b]'
            % (blank, key.encode(), blank, b",".join(RECORDS[number] for number in listed))
            for key, listed in one
        )
        for one in envelopes
    )
    unpacked = unpack_and_check(message)
    assert bodies(unpacked) == [EVENTS[number] for number in numbers]
    assert unpacked.unusable == []


def _json_log(log: bytes) -> bytes:
    text = json.dumps(log.decode("latin-1"))
    return b'{"category":"kube-audit","properties":{"log":%b}}' % text.encode()


_HEAD = b'{"auditID":"1","stage":"s","verb":"get","user":{},"x":'
_PATTERNS = [b"[", b"{", b'"', b"\\", b'\\"', b'"\\', b'{"', b'{"a":', b'{"a":"b"', b'[{"a":']
_PATTERNS += [b" ", b"{ ", b"0,", b"{},", b'{"a":{},', b'{"category":1},', b'\n{"', b"\xff"]
_POSITIONS: dict[str, Callable[[bytes], bytes]] = {
    "bare": bytes,
    "array of": lambda text: b"[" + text,
    "records of": lambda text: b'{"records":[' + text,
    "after a record": lambda text: wrap([RECORDS[0], text]),
    "in a log": lambda text: wrap([_json_log(text)]),
    "in an event": lambda text: wrap([_json_log(_HEAD + text)]),
    "in a string of an event": lambda text: wrap([_json_log(_HEAD + b'"' + text)]),
}
HOSTILE = {
    f"{name} {pattern.decode('latin-1')!r}": make(pattern * (MEGABYTE // len(pattern)))
    for pattern in _PATTERNS
    for name, make in _POSITIONS.items()
} | {
    "text cut after a backslash": b'{"records":[{"log":"' + rb"\"" * (MEGABYTE // 2) + b"\\",
    "end and blanks": b"[{}]" + b" " * MEGABYTE + b"x",
    "digits": b'{"category":"guard","n":' + b"9" * MEGABYTE + b"}",
    "zeros": b"[" + b"0," * (MEGABYTE // 2) + b"0]",
    "half open": b'{"a":[' * 450 + b"0," * 400_000 + b"[" * 2000,
}


def test_a_message_with_too_many_open_objects_is_kept_as_unusable() -> None:
    message = wrap([RECORDS[0], b'{"a":' * 10_000, RECORDS[1]])
    unpacked = unpack_and_check(message)
    assert bodies(unpacked) == EVENTS[:1]
    assert [message.endswith(unusable.body) for unusable in unpacked.unusable] == [True]
    assert unpacked.unusable[0].body.startswith(b'{"a":{"a":')


@pytest.mark.timeout(600)  # 6 s of CPU time, which is also what it measures
def test_a_hostile_megabyte_takes_at_most_a_thousand_times_as_long_as_a_normal_one() -> None:
    """A normal message takes a few ms; quadratic parsing would take minutes."""
    normal = envelope([EVENTS[n % len(EVENTS)] for n in range(MEGABYTE // 1500)])
    unit = min(_seconds(normal) for _ in range(3))
    slow = {name: took for name, body in HOSTILE.items() if (took := _seconds(body)) > 1000 * unit}
    assert not slow, unit


def _seconds(message: bytes) -> float:
    started = time.process_time()
    unpack(message, CATEGORIES)
    return time.process_time() - started


@pytest.mark.parametrize("unit", [b"\x01", b"\x01\x02", rb"\n", rb"\n\ud800"])
def test_a_megabyte_of_characters_to_escape_takes_few_megabytes(unit: bytes) -> None:
    """A list of all replacements took more than 100 MB."""
    log = rb"\ud800" + unit * (MEGABYTE // len(unit))
    message = wrap([b'{"category":"kube-audit","properties":{"log":"%b"}}' % log])
    tracemalloc.start()
    unpack_and_check(message)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 48 * MEGABYTE


@pytest.mark.parametrize("record", [b"0", b"{}", b'{"category":1}'])
def test_the_size_of_a_message_limits_the_number_of_its_records(record: bytes) -> None:
    """Each dead letter takes several hundred bytes of memory and disk space."""
    message = b"[%b]" % b",".join([record] * (MEGABYTE // (len(record) + 1)))
    assert unpack_and_check(message).records <= MEGABYTE // len(b'{"category":1},')


def nested(levels: int, opened: str = '{"a":', inner: str = "1") -> bytes:
    """Return a real event whose requestObject has this many levels."""
    closed = "".join({"{": "}", "[": "]"}.get(one, "") for one in reversed(opened))
    value = opened * levels + inner + closed * levels
    return EVENTS[0].replace(b',"requestR', b',"requestObject":%b,"requestR' % value.encode(), 1)


@pytest.mark.parametrize("opened", ['{"a":', "[", '[1,{"a":'])
def test_an_event_nested_deeper_than_100_levels_is_marked_to_be_posted_alone(opened: str) -> None:
    step = len(opened.translate({ord(other): None for other in '1,"ab:]'}))
    for levels in (99 // step, 100 // step + 1, 400 // step):
        inner = r'"\\\"{[}"' if step == 1 else "[" * (step - 1) + "]" * (step - 1)
        event = nested(levels, opened, inner)
        (found,) = unpack_and_check(envelope([event])).events
        assert found.body == event
        assert found.post_alone == (levels * step > 99)


def test_many_or_quoted_brackets_do_not_count_as_depth() -> None:
    wide = nested(1, inner="[" + ",".join(['{"b":[]}'] * 500) + "]")
    quoted = nested(1, inner=json.dumps("[{" * 500 + '"' + "}" * 3))
    after = nested(1, inner=json.dumps("]}" * 500))
    assert not any(e.post_alone for e in unpack_and_check(envelope([wide, quoted, after])).events)
    hidden = nested(200, opened='{"]}":"]}","a":')
    assert unpack_and_check(envelope([hidden])).events[0].post_alone


def test_typical_events_do_not_need_their_depth_counted() -> None:
    """None of them contains an object from a client."""
    assert not any(b'Object":{' in event for event in EVENTS)


def test_a_message_of_many_unusable_records_takes_little_memory() -> None:
    for one in b'{"category":"kube-audit"}', b'{"category":"kube-audit","properties":{"log":""}}':
        message = wrap([*[one] * (900_000 // len(one)), RECORDS[0]])
        unpacked = unpack_and_check(message)
        assert bodies(unpacked) == EVENTS[:1]
        assert len(unpacked.unusable) <= 101
        assert sum(unusable.body.count(b"category") for unusable in unpacked.unusable) in (
            0,
            900_000 // len(one),
        )
        assert unpacked.size < 2 * len(message)


def test_the_size_of_small_events_includes_their_memory_overhead() -> None:
    log = json.dumps('{"auditID":"1","stage":"Panic"}').encode()
    unpacked = unpack_and_check(
        wrap([b'{"category":"kube-audit","properties":{"log":%b}}' % log] * 5000)
    )
    assert len(unpacked.events) == 5000
    assert unpacked.size > 5000 * 400
