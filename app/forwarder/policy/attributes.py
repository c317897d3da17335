"""The fields of an event that a policy uses, decoded in the pass that validates the event.

kube-apiserver matches rules against the request. Afterwards it adds fields to the event that the
request does not have. `attributes` returns what the rules see.
"""

from typing import Any, Final, NamedTuple
from urllib.parse import unquote

import msgspec
from msgspec import Raw, Struct, field

_ON_TARGETS: Final = frozenset({"namespaces", "resources", "nonResourceURLs"})  # fields of rules
_ON_USERS: Final = frozenset({"users", "userGroups"})
_WITH_OBJECT: Final = ("create", "update")  # verbs of requests that contain the whole object
# Annotations and values of completed events, see audit/truncated.py.
_TRUNCATED: Final = b'"audit.aks/truncated"'
_MISSING: Final = b'"audit.aks/missing"'
UNKNOWN: Final = "unknown"


class User(Struct, gc=False):
    """The authenticated user; without a name if authentication failed."""

    username: str | None = None
    groups: tuple[str, ...] = ()


class Target(Struct, gc=False):
    """The object or objects that a request is about."""

    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    group: str = field(default="", name="apiGroup")


class RequiredFields(Struct, gc=False):
    """The fields that every event has."""

    id: str = field(name="auditID")
    stage: str
    verb: str
    user: Any
    stage_timestamp: str | None = field(default=None, name="stageTimestamp")
    request_object: Raw = field(default=Raw(), name="requestObject")
    response_object: Raw = field(default=Raw(), name="responseObject")
    annotations: Raw = Raw()


class EventFields(RequiredFields, gc=False, kw_only=True):
    """The fields that rules use, and those that may be removed."""

    user: User
    level: str = ""
    uri: str = field(default="", name="requestURI")
    target: Target | None = field(default=None, name="objectRef")


class UsedFields(NamedTuple):
    """Whether the rules of a policy use these fields, which vary most between requests."""

    groups: bool = True
    names: bool = True
    namespaces: bool = True


class Request(NamedTuple):
    """A request as kube-apiserver's rules see it; `resource` is None if it is not about one.

    `path` is unquoted. `user` is the authenticated user, not the impersonated one.
    """

    user: str | None
    groups: tuple[str, ...]
    verb: str
    resource: str | None
    subresource: str
    group: str
    namespace: str
    name: str
    path: str


decode = msgspec.json.Decoder(EventFields).decode
decode_required = msgspec.json.Decoder(RequiredFields).decode


def lost(fields: EventFields, event: bytes) -> frozenset[str]:
    """Return the fields of rules that need what a completed event has lost."""
    missing: frozenset[str] = frozenset()
    if (fields.target is None or not fields.uri) and _TRUNCATED in event:
        missing |= _ON_TARGETS
    if UNKNOWN in (fields.verb, fields.user.username) and _MISSING in event:
        if fields.verb == UNKNOWN:
            missing |= {"verbs"}
        if fields.user.username == UNKNOWN:
            missing |= _ON_USERS
        if "?" not in fields.uri:  # cut off in the path
            missing |= _ON_TARGETS
    return missing


def attributes(fields: EventFields, used: UsedFields) -> tuple[Any, ...]:
    """Return the fields of the event's Request, the key of a cache; unused ones are empty."""
    user, target = fields.user, fields.target
    groups, names, namespaces = used
    known = user.groups if groups else ()
    if target is None:
        return user.username, known, fields.verb, None, "", "", "", "", _path(fields.uri)
    namespace = target.namespace if namespaces else ""
    name = target.name if names else ""
    if (name or namespace) and fields.verb in _WITH_OBJECT and fields.uri:
        namespace, name = _if_in_path(_path(fields.uri), namespace, name)
    resource, subresource, group = target.resource, target.subresource, target.group
    return user.username, known, fields.verb, resource, subresource, group, namespace, name, ""


def _path(uri: str) -> str:
    path = uri.partition("?")[0]
    return unquote(path, errors="surrogateescape") if "%" in path else path


def _if_in_path(path: str, namespace: str, name: str) -> tuple[str, str]:
    """Return namespace and name, each only if it is in the path.

    Otherwise the API server reads them from the object, after it has evaluated the rules.
    """
    parts = path.strip("/").split("/")
    match parts[2 if parts[0] == "api" else 3 :]:
        case ["namespaces", _] | ["namespaces", _, "status" | "finalize", *_]:
            return namespace, name
        case ["namespaces", _, _, *rest]:
            return namespace, name if rest else ""
        case [_, _, *_]:
            return "", name
    return "", ""
