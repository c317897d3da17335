"""The summary of an audit event that the log shows: who did what to which object, no content."""

from typing import Any

import msgspec

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def summary(event: bytes) -> dict[str, Any]:
    """Return the fields of a level 3 log entry; what an odd event lacks is empty."""
    fields = _fields.decode(event)

    def value(name: str) -> Any:
        try:
            return msgspec.json.decode(fields.get(name, b"null"))
        except (msgspec.DecodeError, RecursionError):
            return None

    user, target, status = (
        found if isinstance(found := value(name), dict) else {}
        for name in ("user", "objectRef", "responseStatus")
    )
    resource, subresource = target.get("resource", ""), target.get("subresource")
    return {
        "auditID": value("auditID"),
        "stage": value("stage"),
        "verb": value("verb"),
        "user": user.get("username", ""),
        "resource": f"{resource}/{subresource}" if subresource else resource,
        "namespace": target.get("namespace", ""),
        "name": target.get("name", ""),
        "code": status.get("code", 0),
    }
