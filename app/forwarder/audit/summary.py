"""The summary of an audit event that the log shows: who did what to which object, no content."""

from typing import Any

import msgspec


class _Event(msgspec.Struct, rename={"id": "auditID", "target": "objectRef"}):
    """The fields, of any type: one decode into it costs half of one decode for each field."""

    id: Any = None
    stage: Any = None
    verb: Any = None
    user: Any = None
    target: Any = None
    response: Any = msgspec.field(default=None, name="responseStatus")


_decode = msgspec.json.Decoder(_Event).decode


def summary(event: bytes) -> dict[str, Any]:
    """Return the fields of a level 3 log entry; what an odd event lacks is empty."""
    try:
        found = _decode(event)
    except (msgspec.DecodeError, RecursionError):  # a user that is nested 2,000 deep
        found = _Event()
    user, target, response = (
        one if isinstance(one, dict) else {} for one in (found.user, found.target, found.response)
    )
    resource, subresource = target.get("resource", ""), target.get("subresource")
    return {
        "auditID": found.id,
        "stage": found.stage,
        "verb": found.verb,
        "user": user.get("username", ""),
        "resource": f"{resource}/{subresource}" if subresource else resource,
        "namespace": target.get("namespace", ""),
        "name": target.get("name", ""),
        "code": response.get("code", 0),
    }
