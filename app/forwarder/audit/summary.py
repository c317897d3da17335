"""The summary of an audit event that the log shows: who did what to which object, no content."""

from typing import Any

import msgspec

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def summary(event: bytes) -> dict[str, Any]:
    """Return the fields of a level 3 log entry; what an odd event lacks is empty."""
    fields = _decode(event)

    def value(name: str, kind: type = object) -> Any:
        try:
            found = msgspec.json.decode(fields.get(name, b"null"))
        except (msgspec.DecodeError, RecursionError):
            found = None
        return found if isinstance(found, kind) else {}

    user, target, status = (value(name, dict) for name in ("user", "objectRef", "responseStatus"))
    parts = (target.get("resource", ""), target.get("subresource"))
    return {
        **{name: value(name) for name in ("auditID", "stage", "verb")},
        "user": user.get("username", ""),
        "resource": "/".join(str(part) for part in parts if part),
        "namespace": target.get("namespace", ""),
        "name": target.get("name", ""),
        "code": status.get("code", 0),
    }
