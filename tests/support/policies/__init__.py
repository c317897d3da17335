"""Recordings of what a real kube-apiserver logs for the same requests under many audit policies.

`recorded/everything.jsonl` is the audit log under a policy that keeps everything.
`recorded/NAME.jsonl` describes the audit log under `recorded/NAME.yaml`. A line has the level, the
stages, how the objects were changed, and the Audit-IDs of all requests with this result. README.md
lists the findings; `python -m support.policies.record` repeats the recording.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).parent / "recorded"
EVERYTHING = "everything"

Event = dict[str, Any]
Key = tuple[str, str]
"""Audit-ID, which names the request, and stage."""


@dataclass(frozen=True, slots=True)
class Recording:
    """The effect of a policy on events; those that it drops are not in `kept`."""

    name: str
    policy_text: str
    events: list[bytes]
    """As the API server writes them at level RequestResponse."""
    kept: dict[Key, Event]
    """The events that it writes under the policy; only timestamps differ from a real log."""


def recordings() -> list[Recording]:
    """Read all recordings, except `everything`, in the order of their names."""
    events = (RECORDED / f"{EVERYTHING}.jsonl").read_bytes().splitlines()
    everything = keyed(events)
    return [
        Recording(
            path.stem,
            path.read_text(),
            events,
            _kept(path.with_suffix(".jsonl").read_text(), everything),
        )
        for path in sorted(RECORDED.glob("*.yaml"))
        if path.stem != EVERYTHING
    ]


def keyed(lines: list[bytes]) -> dict[Key, Event]:
    """Decode events."""
    events = map(json.loads, lines)
    return {(event["auditID"], event["stage"]): event for event in events}


def event_of(event: Event, line: Event) -> Event:
    """Apply the changes that a line of a recording describes to an event."""
    changes = {
        part: unmanaged(event[part]) if line.get(part) == "unmanaged" else event[part]
        for part in ("requestObject", "responseObject")
        if part in event and line.get(part) != "absent"
    }
    rest = {name: value for name, value in event.items() if not name.endswith("Object")}
    return rest | {"level": line["level"]} | changes


def unmanaged(value: Any) -> Any:
    """Return an object, a list of objects, or a table of them, without their managedFields."""
    if not isinstance(value, dict):
        return value
    without = dict(value)
    if isinstance(metadata := value.get("metadata"), dict):
        without["metadata"] = {k: v for k, v in metadata.items() if k != "managedFields"}
    if isinstance(items := value.get("items"), list):
        without["items"] = [unmanaged(item) for item in items]
    if isinstance(rows := value.get("rows"), list):
        without["rows"] = [{**row, "object": unmanaged(row.get("object"))} for row in rows]
    return without


def _kept(text: str, everything: dict[Key, Event]) -> dict[Key, Event]:
    return {
        (audit_id, stage): event_of(everything[audit_id, stage], line)
        for line in map(json.loads, text.splitlines())
        for audit_id in line["auditIDs"]
        for stage in line["stages"]
    }
