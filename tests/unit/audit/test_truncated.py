"""A truncated event keeps its whole fields and gains required fields and annotations."""

import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from forwarder.audit.envelope import unpack
from forwarder.audit.truncated import complete, is_rfc3339
from forwarder.errors import UnusableError
from support.events import TIME, real_events, record, wrap

REQUIRED = ("auditID", "stage")
UNKNOWN = {"verb": "unknown", "user": {"username": "unknown"}}
TIMESTAMPS = ("requestReceivedTimestamp", "stageTimestamp")
TRUNCATED = ("audit.aks/truncated", "true")
MICRO_TIME = "2026-11-23T09:14:10.000000Z"
"""TIME as Go's MicroTime, which parses exactly six fractional digits."""


def _first(mark: bytes, *, largest: bool = False) -> bytes:
    found = sorted((event for event in real_events() if mark in event), key=len)
    return found[-1 if largest else 0]


KINDS = {
    "anonymous": _first(b'"user":{}'),
    "exec": _first(b"/exec?"),
    "annotations": _first(b'"annotations":{"'),
    "RequestResponse": _first(b'"responseObject":{'),
    "large": min(
        (event for event in real_events() if len(event) > 9000 and b"responseObject" in event),
        key=len,
    ),
    "unicode": _first(b'"user":{"').replace(b'"verb"', '"agent":"é\u2028漢😀","verb"'.encode()),
    "escapes": _first(b'"user":{"').replace(b'"verb"', rb'"agent":"\ud83d\ude00\"\\\u0000","verb"'),
    "blanks": json.dumps(json.loads(_first(b'"annotations":{"')), indent=1).encode(),
    "numbers": _first(b'"user":{"').replace(b'"verb"', b'"n":-12.50e+10,"m":7 ,"verb"'),
}


def _checked(original: dict[str, Any], cut: str) -> dict[str, Any] | None:
    """Complete an event and compare it with the original; None if it is rightly a dead letter."""
    try:
        text = complete(cut, TIME)
    except UnusableError as error:
        reason = str(error)
        assert set(reason.removeprefix("cut off: ").removesuffix(" lost").split(", ")) <= {
            *REQUIRED
        }
        return None
    saved: dict[str, Any] = json.loads(text)
    assert {*REQUIRED, *UNKNOWN, *TIMESTAMPS, "annotations"} <= saved.keys()
    annotations = dict(saved["annotations"])
    assert annotations.pop(TRUNCATED[0]) == TRUNCATED[1]
    missing = annotations.pop("audit.aks/missing", "").split(",")
    assert annotations in ({}, original.get("annotations", {}))
    for name in saved.keys() - {"annotations"}:
        if saved[name] != original.get(name, MISSING):
            assert name in (*UNKNOWN, *TIMESTAMPS, "requestURI", "objectRef")
            if name == "requestURI":
                assert original[name].startswith(saved[name])
                assert missing == ["verb", "user"] or not saved[name]
            elif name == "objectRef":
                assert saved[name].items() <= original[name].items()
            else:
                assert saved[name] == UNKNOWN.get(name, MICRO_TIME)
                assert (name in missing) == (name in UNKNOWN)
    return saved


MISSING = object()


def _ends_of_fields(event: str) -> Iterator[tuple[str, int]]:
    """Yield each top-level field, and the length of the event from which the field is whole."""
    for name, value in json.loads(event).items():
        start = re.search(rf'[{{,]\s*"{name}"\s*:\s*', event)
        assert start
        end = json.JSONDecoder().raw_decode(event, start.end())[1]
        number = isinstance(value, int | float)
        yield name, end + number


@pytest.mark.parametrize("event", KINDS.values(), ids=KINDS)
def test_truncation_at_any_byte_keeps_whole_fields_and_invents_nothing(event: bytes) -> None:
    text = event.decode()
    original, ends = json.loads(text), [*_ends_of_fields(text)]
    assert {name for name, _ in ends} == original.keys()
    completed = 0
    for size in range(len(event)):
        cut = event[:size].decode(errors="ignore")
        whole = {name for name, end in ends if end <= len(cut)}
        saved = _checked(original, cut)
        assert (saved is not None) == whole.issuperset(REQUIRED)
        if saved is not None:
            completed += 1
            added = saved.keys() - whole - {*TIMESTAMPS, "annotations"}
            lost = UNKNOWN.keys() - whole
            assert added <= (lost | {"requestURI", "objectRef"} if lost else {"objectRef"})
    assert completed > len(event) // 10


def test_a_truncated_event_is_completed_when_it_is_unpacked() -> None:
    event = KINDS["RequestResponse"]
    cut = event[: event.index(b'"responseObject"') + 30]
    (found,) = unpack(wrap([record(cut)]), frozenset({"kube-audit"})).events
    assert found.completed
    assert found.stage_timestamp == MICRO_TIME
    assert "responseObject" not in json.loads(found.body)


def test_fields_keep_their_bytes_and_order() -> None:
    cut = (
        '{"stage" : "s","auditID":"\\u0041","verb":"g","user":{ "a" : 1.50 },"z":[1, 2],"level":"M'
    )
    assert complete(cut, TIME) == (
        '{"stage":"s","auditID":"\\u0041","verb":"g","user":{ "a" : 1.50 },"z":[1, 2],'
        f'"requestReceivedTimestamp":"{MICRO_TIME}","stageTimestamp":"{MICRO_TIME}",'
        '"annotations":{"audit.aks/truncated":"true"}}'
    )


START = '{"auditID":"1","stage":"s","verb":"g","user":{},'


@pytest.mark.parametrize("end", ["1", "12", "-1", "1.", "1.5", "1e", "1e+", "1.5e3", "tru", "12 "])
def test_a_number_or_literal_that_may_be_incomplete_is_dropped(end: str) -> None:
    assert "n" not in json.loads(complete(f'{START}"n":{end}', TIME))


@pytest.mark.parametrize("value", ["1", "-1.50", "true", "null", '"x"', "[]", "9" * 5000])
def test_a_value_before_a_comma_is_kept(value: str) -> None:
    assert f'"n":{value},' in complete(f'{START}"n":{value},"m":"', TIME)


@pytest.mark.parametrize("value", ["NaN", "[Infinity]", '{"a":[-Infinity]}'])
def test_only_values_that_are_invalid_json_are_dropped(value: str) -> None:
    saved = json.loads(complete(f'{START}"n":{value},"level":"Metadata","m":"', TIME))
    assert "n" not in saved
    assert saved["level"] == "Metadata"


LONE_SURROGATES = {
    r"\ud800": r"\ufffd",
    r"\uDC00\ud83d": r"\ufffd\ufffd",
    r"\ud83d\uDE00\\ud800": None,
}


@pytest.mark.parametrize("text", LONE_SURROGATES)
def test_a_patch_with_a_lone_surrogate_keeps_its_object(text: str) -> None:
    """kube-apiserver logs the body of a patch unchanged, and Go decodes it as U+FFFD."""
    event = f'{START}"requestObject":{{"spec":"{text}"}},"stageTimestamp":"{TIME}"}}'
    (found,) = unpack(wrap([record(event)]), frozenset({"kube-audit"})).events
    assert found.body.decode() == event.replace(text, LONE_SURROGATES[text] or text)
    assert found.completed == (LONE_SURROGATES[text] is not None)


@pytest.mark.parametrize("value", ["{}", "{ }", "null", '"text"', "[1]", "7"])
def test_empty_or_invalid_annotations_are_replaced(value: str) -> None:
    saved = json.loads(complete(f'{START}"annotations":{value},"m":"', TIME))
    assert saved["annotations"] == dict([TRUNCATED])


def test_the_annotation_is_added_to_others_and_overrides_its_own_name() -> None:
    others = '{"a":"b", "audit.aks/truncated":"false" }'
    saved = json.loads(complete(f'{START}"annotations":{others},"m":"', TIME))
    assert saved["annotations"] == {"a": "b", "audit.aks/truncated": "true"}


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("2026-11-23T09:14:10Z", "2026-11-23T09:14:10.000000Z"),
        ("2026-11-23T09:14:10.1234567Z", "2026-11-23T09:14:10.123456Z"),
        ("2026-11-23T09:14:10.5+02:00", "2026-11-23T07:14:10.500000Z"),
        ("2026-11-23T09:14:10", "2026-11-23T09:14:10.000000Z"),
        ("0031-01-02T03:04:05Z", "0031-01-02T03:04:05.000000Z"),
    ],
)
def test_the_time_of_a_record_is_converted_to_micro_time(time: str, expected: str) -> None:
    saved = json.loads(complete(f'{START}"m":"', time))
    assert [saved[name] for name in TIMESTAMPS] == [expected, expected]


def test_a_time_without_a_zone_is_utc_in_every_time_zone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TZ", "UTC-9")
    time.tzset()
    try:
        saved = json.loads(complete(f'{START}"m":"', "2026-11-23T09:14:10"))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert saved["stageTimestamp"] == MICRO_TIME


@pytest.mark.parametrize("time", [None, "", "now", "0001-01-01T00:00:00+14:00"])
def test_a_missing_record_time_falls_back_to_the_other_timestamp_or_now(
    time: str | None,
) -> None:
    other = json.loads(complete(f'{START}"requestReceivedTimestamp":"{TIME}"', time))
    assert other["stageTimestamp"] == MICRO_TIME
    now = json.loads(complete(f'{START}"m":"', time))["stageTimestamp"]
    assert abs(datetime.now(UTC) - datetime.fromisoformat(now)) < timedelta(minutes=5)


ACCEPTED = [
    *("2026-01-02T03:04:05Z", "2026-01-02T03:04:05.1Z", "2026-01-02T03:04:05.678901Z"),
    *("2026-01-02T03:04:05.123456789Z", "2026-01-02T23:59:59+05:30", "2024-02-29T00:00:00-00:00"),
]
REFUSED = [
    *("", "2026-01-02", "2026-01-02T03:04:05", "2026-01-02T03:04:05.678901", "1767323045"),
    *("2026-01-02t03:04:05Z", "2026-01-02T03:04:05z", "2026-01-02 03:04:05Z", "now"),
    *("2026-01-02 03:04:05.678901Z", "2026-01-02T03:04:05.678901z", "2026-01-02t03:04:05.678901Z"),
    *("2026-01-02T03:04Z", "2026-01-02T24:00:00Z", "2026-01-02T03:60:05Z", "2026-01-02T03:04:60Z"),
    *("2026-02-30T03:04:05.678901Z", "2026-13-02T03:04:05Z", "2026-W01-2T03:04:05.678901Z"),
    *("2026-01-02T030405.12345678Z", "20260102T03:04:05.123456789Z", "2026-01-02T03:04:05+0100"),
    *("2026-01-02T03:04:05+05:60", "2026-01-02T03:04:05.1-01:99"),
    *("2026-01-02T03:04:05.Z", " 2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z ", "\u0662026"),
]


@pytest.mark.parametrize("stamp", [*ACCEPTED, *REFUSED, None])
def test_only_a_stage_timestamp_that_go_refuses_is_replaced(stamp: str | None) -> None:
    event: dict[str, Any] = {
        "stage": "Panic",
        "stageTimestamp": stamp,
        "auditID": "1",
        "verb": "get",
        "user": {},
    }
    text = json.dumps(event, separators=(",", ":"))
    (found,) = unpack(wrap([record(text)]), frozenset({"kube-audit"})).events
    if stamp in ACCEPTED:
        assert (found.body.decode(), found.completed, found.stage_timestamp) == (text, False, stamp)
        return
    text = text.replace(json.dumps(stamp), f'"{MICRO_TIME}"').removesuffix("}")
    assert found.body.decode() == text + ',"annotations":{"audit.aks/truncated":"true"}}'
    assert (found.completed, found.stage_timestamp) == (True, MICRO_TIME)


@given(st.from_regex(r"\A20[0-9TZtz:+. W-]{1,26}\Z") | st.datetimes().map(datetime.isoformat))
def test_every_accepted_timestamp_has_the_format_of_rfc_3339(stamp: str) -> None:
    form = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)"
    for text in stamp, stamp + "Z", stamp + ".123456Z":
        if is_rfc3339(text):
            assert re.fullmatch(form, text)
            datetime.fromisoformat(text)


HIDDEN = "/api/v1/namespaces/a/pods/b%20c/exec?command=" + "x" * 17000


def hidden(uri: str, keep: int) -> dict[str, Any]:
    """Return the event that is delivered for a request whose URI is truncated."""
    event = KINDS["exec"].decode()
    event = re.sub(r'"requestURI":"[^"]*"', lambda _: f'"requestURI":"{uri}"', event)
    cut = event[: event.index('"requestURI"') + keep]
    (found,) = unpack(wrap([record(cut)]), frozenset({"kube-audit"})).events
    assert found.completed
    saved: dict[str, Any] = json.loads(found.body)
    return saved


def test_a_request_cannot_hide_behind_a_long_query() -> None:
    saved = hidden(HIDDEN, 16000)
    assert HIDDEN.startswith(saved["requestURI"])
    assert len(saved["requestURI"]) == 16000 - len('"requestURI":"')
    assert (saved["verb"], saved["user"]) == ("unknown", {"username": "unknown"})
    assert saved["objectRef"] == {
        "resource": "pods",
        "namespace": "a",
        "name": "b c",
        "apiVersion": "v1",
        "subresource": "exec",
    }
    assert saved["annotations"] == {
        "audit.aks/truncated": "true",
        "audit.aks/missing": "verb,user",
    }
    assert saved["stageTimestamp"] == MICRO_TIME


def test_a_request_cannot_hide_its_target_behind_a_long_user_agent() -> None:
    event = KINDS["exec"].decode()
    cut = event[: event.index('"userAgent":"') + 20]
    saved, original = json.loads(complete(cut, TIME)), json.loads(event)
    for name in ("verb", "user", "requestURI", "objectRef"):
        assert saved[name] == original[name]
    assert saved["annotations"] == {"audit.aks/truncated": "true"}


@pytest.mark.parametrize("end", ["\\", "\\u", "\\u00e", "\\ud83d", "\\ud83d\\ude0"])
def test_an_incomplete_escape_sequence_is_removed_from_a_uri(end: str) -> None:
    uri = "/api/v1/pods?" + end
    assert hidden(uri + "x" * 100, len('"requestURI":"' + uri))["requestURI"] == "/api/v1/pods?"


def test_a_truncated_path_loses_the_segment_that_may_be_incomplete() -> None:
    uri = "/api/v1/namespaces/a/pods/" + "b" * 17000
    saved = hidden(uri, 16000)
    assert saved["requestURI"] == uri[: 16000 - len('"requestURI":"')]
    assert saved["objectRef"] == {"resource": "pods", "namespace": "a", "apiVersion": "v1"}


def test_missing_fields_are_listed_in_an_annotation() -> None:
    start = '{"auditID":"1","stage":"s",'
    for text, missing in {
        start + '"requestURI":"/a","verb":"get","user":{"username"': "user",
        start + '"requestURI":"/a","ver': "verb,user",
        start + '"requestURI"': "requestURI,verb,user",
        start + '"user":{}}': "requestURI,verb",
    }.items():
        saved = json.loads(complete(text, TIME))
        assert saved["annotations"]["audit.aks/missing"] == missing
        assert "objectRef" not in saved
    assert "audit.aks/missing" not in complete(f'{START}"m":', TIME)


@pytest.mark.parametrize("separator", ["; ", "\ufffd "])
def test_a_field_without_a_colon_counts_as_missing(separator: str) -> None:
    saved = json.loads(complete(f'{{"auditID":"a","stage":"s","verb"{separator}"get"}}', TIME))
    assert saved["verb"] == "unknown"
    assert dict([TRUNCATED]).items() <= saved["annotations"].items()


def test_raw_control_characters_in_an_event_are_escaped() -> None:
    whole = f'{START}"stageTimestamp":"{TIME}","m":"a\0b\n\t\\"c"}}'
    (found,) = unpack(wrap([record(whole)]), frozenset({"kube-audit"})).events
    assert json.loads(found.body)["m"] == 'a\0b\n\t"c'
    assert found.body.decode() == whole.replace("\0", r"\u0000").replace("\n", r"\u000a").replace(
        "\t", r"\u0009"
    )
    assert found.completed


@pytest.mark.parametrize("rest", ["{}", "x", "]", ',"a":1'])
def test_a_whole_event_followed_by_other_text_is_a_dead_letter(rest: str) -> None:
    with pytest.raises(UnusableError, match="followed by other text"):
        complete(f'{START}"m":1}}{rest}', TIME)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
_objects = st.dictionaries(st.text() | st.sampled_from([*TIMESTAMPS, "level"]), _values).map(
    lambda others: {"auditID": "1", "stage": "s", "verb": "g", "user": {}, **others}
)


@given(
    _objects,
    st.fixed_dictionaries({"ensure_ascii": st.booleans(), "indent": st.sampled_from([None, 1])}),
    st.data(),
)
@settings(max_examples=300)
def test_truncation_of_any_object_invents_nothing(
    original: dict[str, Any], style: dict[str, Any], data: st.DataObject
) -> None:
    assume(isinstance(original.get("annotations", {}), dict))
    text = json.dumps(original, **style)
    _checked(original, text[: data.draw(st.integers(0, len(text) - 1))])


@given(st.text(st.characters(codec="utf-8")) | st.text(alphabet='{}[]",:\\ 1eE.-tnfNI'))
@settings(max_examples=300)
def test_any_text_is_a_dead_letter_and_raises_no_other_exception(text: str) -> None:
    with pytest.raises(UnusableError):
        complete(text, TIME)


@given(st.text(alphabet='{}[]",:\\ 1eE.-tnfNI'))
@settings(max_examples=300)
def test_a_completed_event_is_valid_json_for_any_text_after_the_whole_fields(text: str) -> None:
    try:
        json.loads(complete(START + text, TIME))
    except UnusableError as error:
        assert "followed by other text" in str(error)  # noqa: PT017 - both outcomes are valid
