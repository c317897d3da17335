"""The summary of an audit event that the log shows: who did what to which object, no content."""

from typing import Any

import msgspec


def summary(event: bytes) -> dict[str, Any]:
    """Return the fields of a level 3 log entry; what an odd event lacks is empty."""
    found = msgspec.json.decode(event)
    user, target, status = (
        value if isinstance(value := found.get(name), dict) else {}
        for name in ("user", "objectRef", "responseStatus")
    )
    resource, subresource = target.get("resource", ""), target.get("subresource")
    return {
        "auditID": found["auditID"],
        "stage": found["stage"],
        "verb": found["verb"],
        "user": user.get("username", ""),
        "resource": f"{resource}/{subresource}" if subresource else resource,
        "namespace": target.get("namespace", ""),
        "name": target.get("name", ""),
        "code": status.get("code", 0),
    }
