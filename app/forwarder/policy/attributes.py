"""What a policy looks at of an audit event: decoded in the one pass that validates it."""

from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec
from msgspec import Raw, Struct, field

from forwarder.audit.truncated import ANNOTATION

_FILLED_IN = ("create", "update")  # verbs of requests that carry the whole object
_CUT_OFF = ANNOTATION.partition(":")[0].encode()


class User(Struct, gc=False):
    """Who authenticated; a request that failed to has no name."""

    username: str | None = None
    groups: tuple[str, ...] = ()


class Target(Struct, gc=False):
    """The object or objects that a request is about."""

    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    group: str = field(default="", name="apiGroup")


class EventFields(Struct, gc=False):
    """The fields of an event that decide about it, and those that may be cut."""

    stage: str
    verb: str
    user: User
    id: str = field(name="auditID")
    level: str = ""
    uri: str = field(default="", name="requestURI")
    target: Target | None = field(default=None, name="objectRef")
    request_object: Raw = field(default_factory=Raw, name="requestObject")
    response_object: Raw = field(default_factory=Raw, name="responseObject")
    stage_timestamp: str | None = field(default=None, name="stageTimestamp")
    annotations: Raw = field(default_factory=Raw)


class UsedFields(NamedTuple):
    """What some rule of a policy asks for, of what differs between many requests."""

    groups: bool = True
    names: bool = True
    namespaces: bool = True


class Request(NamedTuple):
    """What kube-apiserver's rules see of a request; `resource` is None if it is about none.

    In `path` nothing is escaped. The user is the one who authenticated, whoever is impersonated.
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


def is_cut_off(event: bytes) -> bool:
    """Tell whether the event has lost fields: see `salvage`."""
    return _CUT_OFF in event


def is_unsure(facts: EventFields, event: bytes) -> bool:
    """Tell whether the event was cut off before it says what the request is about."""
    return (facts.target is None or not facts.uri) and is_cut_off(event)


def attributes(facts: EventFields, asked: UsedFields) -> tuple[Any, ...]:
    """Return the fields of its Request; those that no rule asks for are left empty."""
    user, target = facts.user, facts.target
    groups, names, namespaces = asked
    known = user.groups if groups else ()
    if target is None:
        return user.username, known, facts.verb, None, "", "", "", "", _path(facts.uri)
    namespace = target.namespace if namespaces else ""
    name = target.name if names else ""
    if (name or namespace) and facts.verb in _FILLED_IN and facts.uri:
        namespace, name = _before_the_object(_path(facts.uri), namespace, name)
    resource, subresource, group = target.resource, target.subresource, target.group
    return user.username, known, facts.verb, resource, subresource, group, namespace, name, ""


def _path(uri: str) -> str:
    path = uri.partition("?")[0]
    return unquote(path, errors="surrogateescape") if "%" in path else path


def _before_the_object(path: str, namespace: str, name: str) -> tuple[str, str]:
    """Return namespace and name if the path has them.

    The API server fills them in from the object once that is read: too late for its rules.
    """
    parts = path.strip("/").split("/")
    parts = parts[2 if parts[0] == "api" else 3 :]
    namespaced = parts[0:1] == ["namespaces"] and len(parts) > 1
    if namespaced and len(parts) > 2 and parts[2] not in ("status", "finalize"):  # noqa: PLR2004 - /namespaces/NAME/RESOURCE
        parts = parts[2:]
    return namespace if namespaced else "", name if len(parts) > 1 else ""
