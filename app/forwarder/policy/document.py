"""The policy: an audit.k8s.io/v1 Policy as kube-apiserver takes it, read and checked."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, get_args

import msgspec
from msgspec import Struct, field

from forwarder.errors import PolicyError

Level = Literal["None", "Metadata", "Request", "RequestResponse"]
Stage = Literal["RequestReceived", "ResponseStarted", "ResponseComplete", "Panic"]
LEVELS: Final[tuple[str, ...]] = get_args(Level)  # the lowest first
PRESETS: Final = ("quiet", "security")

_API: Final = "audit.k8s.io/v1"
_LABEL: Final = "[a-z0-9]([a-z0-9-]*[a-z0-9])?"
_GROUP: Final = re.compile(rf"({_LABEL}(\.{_LABEL})*)?")
_ERROR: Final = re.compile(r"(.*?)(?: - at `\$(.*)`)?")  # what msgspec says, and where


class _Part(Struct, frozen=True):
    def problems(self) -> Iterator[str]:
        """Yield what kube-apiserver would refuse although each field is well-formed."""
        yield from ()


class GroupResources(_Part, frozen=True):
    """Resources of one API group; "" is the core group, no resources are all of them."""

    group: str = ""
    resources: tuple[str, ...] = ()
    resource_names: tuple[str, ...] = field(default=(), name="resourceNames")

    def problems(self) -> Iterator[str]:
        """Yield what kube-apiserver would refuse although each field is well-formed."""
        if not _GROUP.fullmatch(self.group):
            yield f"group: '{self.group}' is no API group such as apps, which has no version"
        if self.resource_names and not self.resources:
            yield "resourceNames: need resources"


class Rule(_Part, frozen=True):
    """The requests that it is for, by all conditions together, and what is kept of their events."""

    level: Level
    users: tuple[str, ...] = ()
    user_groups: tuple[str, ...] = field(default=(), name="userGroups")
    verbs: tuple[str, ...] = ()
    resources: tuple[GroupResources, ...] = ()
    namespaces: tuple[str, ...] = ()
    non_resource_urls: tuple[str, ...] = field(default=(), name="nonResourceURLs")
    omit_stages: tuple[Stage, ...] = field(default=(), name="omitStages")
    omit_managed_fields: bool | None = field(default=None, name="omitManagedFields")

    def problems(self) -> Iterator[str]:
        """Yield what kube-apiserver would refuse although each field is well-formed."""
        if self.non_resource_urls and (self.resources or self.namespaces):
            other = "resources" if self.resources else "namespaces"
            yield f"nonResourceURLs: exclude {other}, no request has both; make it two rules"
        for url in self.non_resource_urls:
            if url != "*" and not url.startswith("/"):
                yield f"nonResourceURLs: '{url}' does not begin with /"
            if "*" in url[:-1]:
                yield f"nonResourceURLs: '{url}' has its * elsewhere than at the end"


class Policy(_Part, frozen=True):
    """The rules in order; `source` is the preset's name or the path that it was read from."""

    rules: tuple[Rule, ...]
    omit_stages: tuple[Stage, ...] = field(default=(), name="omitStages")
    omit_managed_fields: bool = field(default=False, name="omitManagedFields")
    source: str = ""

    def __str__(self) -> str:
        return f"{self.source}, {len(self.rules)} rules"

    def problems(self) -> Iterator[str]:
        """Yield what kube-apiserver would refuse although each field is well-formed."""
        if not self.rules:
            yield "rules: there is none, which would drop everything"


def load(source: str) -> Policy:
    """Read the preset of this name, or the file at this path; PolicyError names all problems."""
    try:
        found = text(source)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        named = " or ".join(PRESETS)
        raise PolicyError([f"'{source}' is not {named}, nor can it be read: {reason}"]) from None
    return msgspec.structs.replace(parse(found), source=source)


def text(source: str) -> str:
    """Return the YAML of the preset of this name, or of the file at this path."""
    path = Path(__file__).with_name(f"{source}.yaml") if source in PRESETS else Path(source)
    return path.read_text(encoding="utf-8-sig")


def parse(yaml: str) -> Policy:
    """Read a Policy in YAML or JSON; PolicyError has every problem, with rule number and field."""
    from forwarder.policy import manifest  # noqa: PLC0415 - most forwarders have no policy

    try:
        found = manifest.read(yaml)
    except ValueError as error:
        raise PolicyError([str(error)]) from None
    if not isinstance(found, dict):
        raise PolicyError([f"is no object with apiVersion: {_API}, kind: Policy and rules"])
    problems = [
        f"{name}: must be {value}"
        for name, value in (("apiVersion", _API), ("kind", "Policy"))
        if found.pop(name, None) != value
    ]
    found.pop("metadata", None)
    policy: Policy | None = _convert(Policy, found, "", problems)
    if not policy or problems:
        raise PolicyError(problems)
    return policy


def _convert(kind: Any, found: Any, where: str, problems: list[str]) -> Any:
    """Return what was found as this kind, None if it is not; add what is wrong with each part.

    `where` is followed by a field's name as it is: "", "rule 3: ", "rule 3: resources[0].".
    """
    before, (item, *_) = len(problems), get_args(kind) or (None,)
    made: Any = None
    if isinstance(found, dict) and isinstance(kind, type) and issubclass(kind, _Part):
        known = {one.encode_name: one for one in msgspec.structs.fields(kind)}
        known.pop("source", None)
        values = {}
        for name, value in found.items():
            if value is None:  # as if it were not there, to kube-apiserver too
                continue
            if name in known:
                place = f"{where}{name}"
                values[known[name].name] = _convert(known[name].type, value, place, problems)
            else:
                problems.append(f"{where}{name}: unknown field; known are {', '.join(known)}")
        lacking = [one.encode_name for one in known.values() if one.required]
        problems += [f"{where}{name}: missing" for name in lacking if found.get(name) is None]
        if len(problems) == before:
            made = kind(**values)
            problems += [f"{where}{problem}" for problem in made.problems()]
    elif isinstance(found, list) and isinstance(item, type) and issubclass(item, _Part):
        place = "rule {}: " if item is Rule else f"{where}[{{}}]."
        first = 1 if item is Rule else 0
        made = tuple(
            _convert(item, one, place.format(number), problems)
            for number, one in enumerate(found, first)
        )
    else:
        try:
            made = msgspec.convert(found, kind)
        except msgspec.ValidationError as error:
            what, at = _ERROR.fullmatch(str(error)).groups("")  # type: ignore[union-attr]
            problems.append(f"{where.rstrip('.: ')}{at}: {what}{_accepted(kind, what)}")
    return made if len(problems) == before else None


def _accepted(kind: Any, what: str) -> str:
    """Return the words that a field takes, if it takes some only."""
    words = get_args(get_args(kind)[0] if kind != Level else kind) if "enum" in what else ()
    return f"; known are {', '.join(words)}" if words else ""
