"""The policy engine keeps the same events of the same requests as a real kube-apiserver."""

import pytest

from forwarder.policy import document
from forwarder.policy.attributes import decode
from forwarder.policy.rules import Engine
from support.policies import Recording, keyed, recordings


@pytest.mark.parametrize("recording", recordings(), ids=lambda recording: recording.name)
def test_the_engine_keeps_what_the_api_server_wrote_under_the_same_policy(
    recording: Recording,
) -> None:
    engine = Engine(document.parse(recording.policy_text))
    results = (engine.apply(event, decode(event))[0] for event in recording.events)
    left = keyed([event for event in results if event is not None])
    assert left.keys() == recording.kept.keys()
    assert [key for key, event in left.items() if event != recording.kept[key]] == []
