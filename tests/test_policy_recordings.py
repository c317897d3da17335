"""The engine against a real kube-apiserver: of the same requests it leaves the same events."""

import json

import pytest

from forwarder.policy import document, facts
from forwarder.policy.engine import Engine
from policies import Recording, keyed, recordings


def apply(policy: str, event: bytes) -> bytes | None:
    """Apply a policy's text to an event."""
    return Engine(document.parse(policy)).apply(event, facts.decode(event))[2]


@pytest.mark.parametrize("recording", recordings(), ids=lambda recording: recording.name)
def test_leaves_what_the_api_server_wrote_under_the_same_policy(recording: Recording) -> None:
    engine = Engine(document.parse(recording.policy_text))
    results = (engine.apply(event, facts.decode(event))[2] for event in recording.events)
    left = keyed([event for event in results if event is not None])
    assert left.keys() == recording.kept.keys()
    assert [key for key, event in left.items() if event != recording.kept[key]] == []


def test_what_stays_is_not_written_anew() -> None:
    """Apart from what is cut out, the bytes are the API server's own, in their order."""
    for recording in recordings():
        for event in recording.events:
            left = apply(recording.policy_text, event)
            if left is not None:
                whole = json.loads(event)
                assert json.dumps(json.loads(left)) == json.dumps(
                    {key: json.loads(left)[key] for key in whole if key in json.loads(left)}
                )
