"""Record what a real kube-apiserver does with audit policies.

It starts etcd, and a kube-apiserver for each policy, on loopback. Both programs come from PATH, in
any version. Each API server starts with an empty store and receives the list of `requests`. With
PYTHONPATH=app:tests, at the root of the repository:

    python -m support.policies.record                 all recordings
    python -m support.policies.record users verbs     only these
    python -m support.policies.record --compare NAME  compare, write nothing

To add a policy, write `recorded/NAME.yaml` and record it by its name. After a change of the
requests, record all policies again. Each takes about ten seconds. Comparisons ignore what differs
between two runs of the API server: timestamps, UIDs, and which of several reasons it gives for an
authorization.
"""

import argparse
import json
import re
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forwarder.policy import document
from forwarder.policy.attributes import decode
from forwarder.policy.rules import Engine
from support.policies import EVERYTHING, RECORDED, Event, Key, event_of, keyed
from support.policies.apiserver import Etcd, etcd
from support.policies.requests import REQUESTS

Apply = Callable[[bytes], bytes | None]
"""Applies a policy to an event; None if it is dropped."""

_STAGES = ("RequestReceived", "ResponseStarted", "ResponseComplete", "Panic")
_OBJECTS = ("requestObject", "responseObject")
_OBJECT_STATES = ("whole", "absent", "unmanaged")
_TOKEN = re.compile(rb"\beyJ[\w.-]+")
_DIFFERENT = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"
    r"|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    r"|(?<=generated-)[a-z0-9]{5}\b"
    r"|^\d+s$"  # an age in a table
    r"|(?<=192\.0\.2\.1:)\d+"
)
_VERSIONS = ("resourceVersion", "continue")
_BY_CHANCE = ("apiserver.latency.k8s.io/", "authorization.k8s.io/reason")
"""Annotations that vary: the first is on slow requests, the second has one of many reasons."""


def record(server: Etcd, names: list[str]) -> None:
    """Write these recordings, or all existing ones if none is named."""
    if not names:
        _write(EVERYTHING, _lines(server, EVERYTHING))
    everything = keyed((RECORDED / f"{EVERYTHING}.jsonl").read_bytes().splitlines())
    for name in names or _names():
        written = keyed(_lines(server, name))
        _write(name, [_encoded(line) for line in _summary(written, everything)])
        _print(f"{name}: {len(written)} of {len(everything)} events")


def compare(server: Etcd, names: list[str], engine: Callable[[str], Apply]) -> list[str]:
    """Return the differences between the output of an engine and that of the API server."""
    events = _lines(server, EVERYTHING)
    differences = []
    for name in names or _names():
        apply = engine(_policy(name).read_text())
        left = _comparable([event for one in events if (event := apply(one)) is not None])
        written = _comparable(_lines(server, name))
        found = [
            f"{name}: {key}: {left.get(key, 'dropped')}\n    {written.get(key, 'not written')}"
            for key in sorted(left.keys() | written.keys())
            if left.get(key) != written.get(key)
        ]
        _print(f"{name}: {len(written)} events, {len(found)} differ")
        differences += found
    return differences


def _summary(written: dict[Key, Event], everything: dict[Key, Event]) -> list[Event]:
    """Describe how events were changed; any other change is a RuntimeError."""
    lines: dict[str, Event] = {}
    for audit_id in dict.fromkeys(audit_id for audit_id, _ in written):
        events = {stage: event for (one, stage), event in written.items() if one == audit_id}
        before = {stage: everything[audit_id, stage] for stage in events}
        level = next(iter(events.values()))["level"]
        line: Event = {"level": level, "stages": list(events)}
        for part in _OBJECTS:
            if any(part in event for event in before.values()):
                line[part] = _object_state(part, before, events)
        for stage, event in events.items():
            expected, actual = _normal(event_of(before[stage], line)), _normal(event)
            if expected != actual:
                raise RuntimeError(f"{audit_id}, {stage}: {expected}\n    API server: {actual}")
        lines.setdefault(str(line), line | {"auditIDs": []})["auditIDs"].append(audit_id)
    return list(lines.values())


def _object_state(part: str, before: dict[str, Event], after: dict[str, Event]) -> str:
    """Return the first of _OBJECT_STATES that is true for all stages."""
    for state in _OBJECT_STATES:
        line = {"level": "", part: state}
        if all(
            _normal(event_of(event, line)).get(part) == _normal(after[stage]).get(part)
            for stage, event in before.items()
        ):
            return state
    raise RuntimeError(f"{part} is neither whole, absent nor unmanaged: {after}")


def _comparable(lines: list[bytes]) -> dict[Key, Event]:
    return {key: _normal(event) for key, event in keyed(lines).items()}


def _normal(event: Event) -> Event:
    """Return an event without the values that differ from run to run."""
    annotations = event.get("annotations", {})
    kept = {key: value for key, value in annotations.items() if not key.startswith(_BY_CHANCE)}
    normal: Event = _same(event | {"annotations": kept})
    return normal


def _same(value: Any) -> Any:
    if isinstance(value, str):
        return _DIFFERENT.sub("", value)
    if isinstance(value, list):
        return [_same(one) for one in value]
    if not isinstance(value, dict):
        return value
    same = {key: _same(one) for key, one in value.items() if key not in _VERSIONS}
    if isinstance(managers := same.get("managedFields"), list):  # they are sorted by second
        same["managedFields"] = sorted(managers, key=str)
    return same


def _lines(server: Etcd, name: str) -> list[bytes]:
    """Return the events of our requests under a policy, sorted, without tokens that were issued."""
    ours = {request.audit_id: number for number, request in enumerate(REQUESTS)}
    lines = server.audit_log(_policy(name), REQUESTS).splitlines()
    found = []
    for line in lines:
        event = json.loads(line)
        if event["auditID"] in ours:
            order = ours[event["auditID"]], _STAGES.index(event["stage"])
            found.append((order, _TOKEN.sub(b"token", line)))
    return [line for _, line in sorted(found)]


def _encoded(line: Event) -> bytes:
    return json.dumps(line, separators=(",", ":")).encode()


def _policy(name: str) -> Path:
    return RECORDED / f"{name}.yaml"


def _names() -> list[str]:
    return sorted(path.stem for path in RECORDED.glob("*.yaml") if path.stem != EVERYTHING)


def _write(name: str, lines: list[bytes]) -> None:
    (RECORDED / f"{name}.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))


def _engine(policy: str) -> Apply:
    engine = Engine(document.parse(policy))
    return lambda event: engine.apply(event, decode(event))[0]


def _print(*lines: str) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()


def main() -> int:
    """Record or compare; return the exit status."""
    parser = argparse.ArgumentParser("policies.record", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of recorded/NAME.yaml")
    parser.add_argument("--compare", action="store_true", help="write nothing: check the engine")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # to stop the child processes
    try:
        with tempfile.TemporaryDirectory() as directory, etcd(Path(directory)) as server:
            if not arguments.compare:
                record(server, arguments.names)
                return 0
            differences = compare(server, arguments.names, _engine)
    except RuntimeError as error:
        _print(str(error), *getattr(error, "__notes__", ()))
        return 1
    _print(*differences)
    return int(bool(differences))


if __name__ == "__main__":
    sys.exit(main())
