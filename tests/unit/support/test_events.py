"""The events of the test helpers are those that AKS would send."""

import json

import pytest

from support import events
from support.events.odd import ODD


def test_real_events_are_whole_and_unique() -> None:
    real = events.real_events()
    assert len(real) == 376
    assert len({events.key(event) for event in real}) == 376
    for event in map(json.loads, real):
        assert {"auditID", "stage", "verb", "user", "stageTimestamp"} <= event.keys()


@pytest.mark.parametrize("properties_as", ["object", "string"])
def test_an_envelope_contains_each_event_byte_for_byte(properties_as: str) -> None:
    as_string = properties_as == "string"
    body = events.envelope(
        events.real_events(),
        category="kube-audit-admin",
        properties_as="string" if as_string else "object",
    )
    records = json.loads(body)["records"]
    assert {record["category"] for record in records} == {"kube-audit-admin"}
    properties = [record["properties"] for record in records]
    if as_string:
        properties = [json.loads(text) for text in properties]
    assert [p["log"].encode() for p in properties] == [e + b"\n" for e in events.real_events()]


def test_unique_messages_never_repeat_an_event_and_differ_only_in_id_and_time() -> None:
    generated = list(events.messages(1000, per_message=300))
    assert [len(message.events) for message in generated] == [300, 300, 300, 100]
    flat = [event for message in generated for event in message.events]
    assert len({events.key(event) for event in flat}) == 1000
    assert {events.key(e) for e in flat}.isdisjoint(map(events.key, events.real_events()))
    varies = ("auditID", "stageTimestamp")
    for event, original in zip(flat, events.real_events(), strict=False):
        assert len(json.loads(event)["auditID"]) == 36
        fresh, old = json.loads(event), json.loads(original)
        assert [fresh[k] for k in fresh if k not in varies] == [
            old[k] for k in old if k not in varies
        ]
        assert all(fresh[k] > "2026" for k in varies[1:])
    for message in generated:
        logs = [record["properties"]["log"] for record in json.loads(message.body)["records"]]
        assert [log.encode() for log in logs] == [event + b"\n" for event in message.events]


def test_messages_that_are_not_unique_contain_the_real_events() -> None:
    generated = list(events.messages(400, unique=False))
    flat = [event for message in generated for event in message.events]
    assert tuple(flat[:376]) == events.real_events()
    assert flat[376:] == list(events.real_events()[:24])


def test_messages_are_as_large_as_on_aks() -> None:
    typical = next(events.messages(22, events=events.typical_events()))
    assert len(typical.body) == pytest.approx(33_339, rel=0.05)
    large = next(events.messages(400, per_message=400))
    assert 850_000 < len(large.body) < 1_048_576


def test_odd_messages_have_unique_names_and_fit_into_a_hub() -> None:
    assert len({odd.name for odd in ODD}) == len(ODD)
    assert all(len(odd.body) < 1_048_576 for odd in ODD)
