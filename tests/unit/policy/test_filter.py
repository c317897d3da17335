"""Events are filtered by policy and by cluster, annotated and counted."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from forwarder.audit.envelope import Unpacked, unpack
from forwarder.config.settings import Settings
from forwarder.policy.filter import Filter, filter_for
from support import events
from support.eventhubs import Server
from support.events import RESOURCE_ID, envelope, record, wrap
from support.harness import HUB
from support.inprocess import forwarding
from support.webhook import Webhook

CATEGORIES = frozenset({"kube-audit"})
HUB_KEY = {"EventHubNamespace": "a.servicebus.windows.net"}
Object = dict[str, Any]
STAMP = {"stageTimestamp": "2026-11-23T09:14:09Z"}


def policy(directory: Path, *rules: Object) -> str:
    """Write a policy; return its path."""
    file = directory / "policy.yaml"
    file.write_text(json.dumps({"rules": rules}))
    return str(file)


def filter_of(given: Settings) -> Filter | None:
    return filter_for(given.audit_policy, given.resource_ids, annotates=given.cluster_annotation)


def filtered(message: bytes, **variables: str) -> Unpacked:
    """Unpack a message as a forwarder with these settings does."""
    return unpack(message, CATEGORIES, filter_of(Settings.from_env(HUB_KEY | variables)))


def bodies(unpacked: Unpacked) -> list[Object]:
    return [json.loads(event.body) for event in unpacked.events]


def test_without_settings_there_is_no_filter() -> None:
    assert filter_of(Settings()) is None


def test_events_are_filtered_and_counted_by_rule_and_level(tmp_path: Path) -> None:
    rules = {"level": "None", "verbs": ["watch"]}, {"level": "Metadata", "verbs": ["get", "list"]}
    unpacked = filtered(envelope(events.real_events()), AuditPolicyFile=policy(tmp_path, *rules))
    verbs = [json.loads(event)["verb"] for event in events.real_events()]
    read = sum(verb in ("get", "list") for verb in verbs)
    assert [one["verb"] in ("get", "list") for one in bodies(unpacked)] == [True] * read
    assert unpacked.filtered == len(verbs) - read
    assert unpacked.rule_counts == {
        ("1", "None"): verbs.count("watch"),
        ("2", "Metadata"): read,
        ("none", "None"): len(verbs) - read - verbs.count("watch"),
    }
    assert unpacked.records == len(verbs)


@pytest.mark.parametrize("loose", [False, True])
def test_only_the_clusters_of_resource_ids_are_kept(loose: bool) -> None:  # noqa: FBT001
    event = events.real_events()[0]
    records = [
        record(event, resource_id=name) for name in ("/SUB/MANAGEDCLUSTERS/PROD-1", "/sub/test", "")
    ]
    records.append(
        b'{"category": "kube-audit", "properties": {"log": %b}, "resourceId": 7}'
        % (json.dumps(event.decode()).encode())
    )
    message = wrap(records if loose else records[:3])
    if loose:
        message = message.removeprefix(b'{"records": ').removesuffix(b"}")
    unpacked = filtered(message, ResourceIds="*/x,*/managedclusters/prod-*")
    # A record that names no cluster may be of one of these.
    assert len(unpacked.events) == (3 if loose else 2)
    assert unpacked.skipped == 1


@pytest.mark.parametrize(
    ("annotations", "others"),
    [
        ({"a": "b"}, {"a": "b"}),
        ({}, {}),
        (None, {}),
        ("absent", {}),
        ({"aks-audit/cluster": "forged", "a": "b"}, {"a": "b"}),
    ],
)
@pytest.mark.parametrize("last", [True, False])
def test_an_event_is_annotated_with_its_cluster_and_otherwise_unchanged(
    annotations: object,
    others: Object,
    last: bool,  # noqa: FBT001
) -> None:
    event: Object = {"auditID": "1", "stage": "Panic", "verb": "get", "user": {}, **STAMP}
    more = {} if annotations == "absent" else {"annotations": annotations}
    tail: Object = {"x": {"annotations": {}}}
    event = {**event, **tail, **more} if last else {**event, **more, **tail}
    unpacked = filtered(
        envelope([json.dumps(event, separators=(",", ":")).encode()]), ClusterAnnotation="true"
    )
    (found,) = bodies(unpacked)
    assert unpacked.events[0].body.count(b"aks-audit/cluster") == 1
    assert found.pop("annotations") == {**others, "aks-audit/cluster": RESOURCE_ID}
    assert found == {key: value for key, value in event.items() if key != "annotations"}


def test_an_annotation_adds_bytes_and_changes_none() -> None:
    pair = f'"aks-audit/cluster":"{RESOURCE_ID}"'.encode()
    for before, after in zip(
        events.real_events(),
        filtered(envelope(events.real_events()), ClusterAnnotation="true").events,
        strict=True,
    ):
        parts = after.body.split(pair)
        assert [parts[0].rstrip(b",") + parts[1]] == [before] or b'"annotations"' not in before
        assert json.loads(after.body)["annotations"]["aks-audit/cluster"] == RESOURCE_ID


def test_a_policy_and_the_annotation_are_combined(tmp_path: Path) -> None:
    unpacked = filtered(
        envelope(events.real_events()),
        ClusterAnnotation="true",
        AuditPolicyFile=policy(tmp_path, {"level": "Metadata"}),
    )
    assert len(unpacked.events) == len(events.real_events())
    for event in bodies(unpacked):
        assert event["annotations"]["aks-audit/cluster"] == RESOURCE_ID
        assert event["level"] == "Metadata"
        assert not {"requestObject", "responseObject"} & event.keys()


def test_a_truncated_event_is_not_filtered_by_the_fields_that_it_lost(tmp_path: Path) -> None:
    path = policy(
        tmp_path, {"level": "None", "nonResourceURLs": ["*"]}, {"level": "None", "namespaces": [""]}
    )
    event = max(events.real_events(), key=len).decode()
    cut = event[: event.index("requestURI") + 20]
    plain = unpack(envelope([cut.encode()]), CATEGORIES)
    unpacked = filtered(envelope([cut.encode()]), AuditPolicyFile=path)
    assert [one.body for one in unpacked.events] == [one.body for one in plain.events]
    assert unpacked.events[0].completed
    assert unpacked.rule_counts == {("unsure", json.loads(event)["level"]): 1}


@pytest.mark.parametrize(
    "fields",
    [{"user": "me"}, {"user": None}, {"objectRef": []}, {"level": 1}, {"requestURI": None}],
)
def test_an_event_with_fields_of_unexpected_types_is_unchanged(
    fields: Object, tmp_path: Path
) -> None:
    whole = {"auditID": "1", "stage": "Panic", "verb": "get", "user": {}, **STAMP}
    event = json.dumps({**whole, **fields})
    unpacked = filtered(
        envelope([event.encode()]), AuditPolicyFile=policy(tmp_path, {"level": "None"})
    )
    assert [one.body for one in unpacked.events] == [event.encode()]
    assert unpacked.rule_counts == {("unsure", "unknown"): 1}


def test_a_record_without_an_event_remains_a_dead_letter(tmp_path: Path) -> None:
    path = policy(tmp_path, {"level": "None"})
    for log in (b"no JSON", b'{"auditID": "1"}', b'{"auditID": 1, "stage": "a"'):
        plain = unpack(envelope([log]), CATEGORIES)
        unpacked = filtered(envelope([log]), AuditPolicyFile=path)
        assert (unpacked.unusable, unpacked.rule_counts) == (plain.unusable, {})


async def test_filtered_events_are_counted_and_checkpointed(
    webhook: Webhook, tmp_path: Path
) -> None:
    path = policy(tmp_path, {"level": "None", "verbs": ["watch"]}, {"level": "Metadata"})
    message = envelope(events.real_events())
    watches = sum(json.loads(event)["verb"] == "watch" for event in events.real_events())
    kept = len(events.real_events()) - watches
    only_watches = [e for e in events.real_events() if json.loads(e)["verb"] == "watch"]
    short = {"AuditPolicyFile": path, "CheckpointInterval": "0.1"}
    async with (
        Server({HUB: 1}) as server,
        forwarding(server, webhook.url, tmp_path, **short) as forwarder,
    ):
        server.hubs[HUB].publish(0, message)
        server.hubs[HUB].publish(0, envelope(only_watches))
        await forwarder.until(lambda: forwarder.checkpoint() == 1)
        assert await forwarder.outcomes() == {"delivered": kept, "filtered": 2 * watches}
        assert await forwarder.total("policy_rule_total", rule="1", level="None") == 2 * watches
        assert await forwarder.total("policy_rule_total", rule="2", level="Metadata") == kept
    assert webhook.total == kept


def test_long_resource_ids_are_not_cached() -> None:
    cluster_filter = filter_for(None, ["*/managedclusters/prod*"], annotates=False)
    assert cluster_filter
    assert cluster_filter.wants
    tracemalloc.start()
    try:
        for number in range(20):
            assert cluster_filter.wants("/" + "a" * 900_000 + f"/MANAGEDCLUSTERS/PROD-{number}")
            assert not cluster_filter.wants("/" + "a" * 900_000 + f"/managedclusters/test-{number}")
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()


def test_an_object_that_the_policy_removes_does_not_count_as_depth(tmp_path: Path) -> None:
    deep = '{"a":' * 200 + "1" + "}" * 200
    event = events.real_events()[0].replace(
        b',"requestR', b',"responseObject":%b,"requestR' % deep.encode(), 1
    )
    for level, alone in ("Request", False), ("RequestResponse", True):
        (found,) = filtered(
            envelope([event]), AuditPolicyFile=policy(tmp_path, {"level": level})
        ).events
        assert (found.post_alone, b'"a":' in found.body) == (alone, alone)
