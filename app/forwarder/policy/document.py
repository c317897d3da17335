"""Reads and validates a policy: an audit.k8s.io/v1 Policy, as kube-apiserver accepts it."""

import re
from pathlib import Path
from typing import Any, Final, Literal, get_args

import msgspec
from msgspec import Struct, field

from forwarder.errors import PolicyError

Level = Literal["None", "Metadata", "Request", "RequestResponse"]
Stage = Literal["RequestReceived", "ResponseStarted", "ResponseComplete", "Panic"]
LEVELS: Final[tuple[str, ...]] = get_args(Level)  # the lowest first
PRESETS: Final = ("quiet", "security")

_HEAD: Final = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy"}
_LABEL: Final = "[a-z0-9]([a-z0-9-]*[a-z0-9])?"
_GROUP: Final = re.compile(rf"({_LABEL}(\.{_LABEL})*)?")
_ERROR: Final = re.compile(r"(.*?)(?: - at `\$\.?(.*)`)?")  # msgspec's error, and the field's path
_FIELD: Final = re.compile(r"Object (contains unknown|missing required) field `(.*)`")


class GroupResources(Struct, frozen=True, forbid_unknown_fields=True):
    """Resources of one API group; "" is the core group, no resources means all."""

    group: str = ""
    resources: tuple[str, ...] = ()
    resource_names: tuple[str, ...] = field(default=(), name="resourceNames")

    def __post_init__(self) -> None:
        if not _GROUP.fullmatch(self.group):
            raise ValueError(f"group: '{self.group}' is not an API group such as apps (no version)")
        if self.resource_names and not self.resources:
            raise ValueError("resourceNames: needs resources")


class Rule(Struct, frozen=True, forbid_unknown_fields=True):
    """The conditions of a rule, which must all be met, and what is kept of matching events."""

    level: Level
    users: tuple[str, ...] = ()
    user_groups: tuple[str, ...] = field(default=(), name="userGroups")
    verbs: tuple[str, ...] = ()
    resources: tuple[GroupResources, ...] = ()
    namespaces: tuple[str, ...] = ()
    non_resource_urls: tuple[str, ...] = field(default=(), name="nonResourceURLs")
    omit_stages: tuple[Stage, ...] = field(default=(), name="omitStages")
    omit_managed_fields: bool | None = field(default=None, name="omitManagedFields")

    def __post_init__(self) -> None:
        if self.non_resource_urls and (self.resources or self.namespaces):
            other = "resources" if self.resources else "namespaces"
            raise ValueError(f"nonResourceURLs: excludes {other}, no request has both")
        for url in self.non_resource_urls:
            if url != "*" and not url.startswith("/"):
                raise ValueError(f"nonResourceURLs: '{url}' does not begin with /")
            if "*" in url[:-1]:
                raise ValueError(f"nonResourceURLs: '{url}' has a * that is not at its end")


class _Options(Struct, frozen=True, forbid_unknown_fields=True):
    omit_stages: tuple[Stage, ...] = field(default=(), name="omitStages")
    omit_managed_fields: bool = field(default=False, name="omitManagedFields")


class Policy(_Options, frozen=True, kw_only=True):
    """The rules in order; `source` is the preset's name, or the path of the file."""

    rules: tuple[Rule, ...]
    source: str = ""

    def __str__(self) -> str:
        return f"{self.source}, {len(self.rules)} rules"


def load(source: str) -> Policy:
    """Read the preset of this name, or the file at this path; PolicyError has all problems."""
    try:
        found = text(source)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        named = ", ".join(PRESETS)
        raise PolicyError([f"'{source}' is not {named} or a readable file: {reason}"]) from None
    return msgspec.structs.replace(parse(found), source=source)


def text(source: str) -> str:
    """Return the YAML of the preset of this name, or of the file at this path."""
    path = Path(__file__).with_name(f"{source}.yaml") if source in PRESETS else Path(source)
    return path.read_text(encoding="utf-8-sig")


def parse(yaml: str) -> Policy:
    """Read a Policy in YAML or JSON; PolicyError has the first problem of each rule.

    apiVersion and kind are optional, because the chart's value has only the rules.
    """
    from forwarder.policy import manifest  # noqa: PLC0415 - most forwarders have no policy

    try:
        found = _without_nulls(manifest.read(yaml))
    except (ValueError, RecursionError) as error:
        raise PolicyError([str(error)]) from None
    if not isinstance(found, dict):
        raise PolicyError(["is not an object with rules, such as an audit.k8s.io/v1 Policy"])
    problems = [f"{k}: must be {v}" for k, v in _HEAD.items() if found.pop(k, v) != v]
    found.pop("metadata", None)
    given = found.pop("rules", None)
    if not isinstance(given, list) or not given:
        problems.append("rules: must be a list of at least one; no rule would drop everything")
        given = []
    options = _convert(_Options, found, "", problems)
    rules = [
        _convert(Rule, rule, f"rule {number}: ", problems) for number, rule in enumerate(given, 1)
    ]
    if problems:
        raise PolicyError(problems)
    return Policy(rules=tuple(rules), **msgspec.structs.asdict(options))


def _without_nulls(found: Any) -> Any:
    """Return a manifest without its null fields, which Kubernetes treats as missing."""
    if isinstance(found, dict):
        return {name: _without_nulls(item) for name, item in found.items() if item is not None}
    return [_without_nulls(item) for item in found] if isinstance(found, list) else found


def _convert(kind: Any, found: Any, where: str, problems: list[str]) -> Any:
    """Convert to this type, or add a problem that begins with `where` and the field."""
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        line = " ".join(str(error).split())  # it quotes names of the policy, which may have breaks
        what, place = _ERROR.fullmatch(line).groups("")  # type: ignore[union-attr]
        if unknown := _FIELD.fullmatch(what):
            what = f"{unknown[2]}: " + ("missing" if "missing" in unknown[1] else "unknown field")
        if place:
            in_field = re.match(r"\S+: ", what)  # errors of __post_init__ begin with a field
            place += "." if in_field else ": "
        problems.append(f"{where}{place}{what}")
