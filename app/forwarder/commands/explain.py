"""What a policy makes of recorded events, as a report. Pure: the command reads and prints."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from forwarder.audit.envelope import unpack
from forwarder.deadletters.record import Record
from forwarder.policy.attributes import EventFields, Request, UsedFields, attributes, decode, lost
from forwarder.policy.document import LEVELS, Policy, Rule
from forwarder.policy.rules import NO_RULE, UNSURE, Engine

_KINDS: Final = 1000  # of events that are told apart, of each rule, for little memory
_EXAMPLES: Final = 3
_record: Final = msgspec.json.Decoder(Record).decode
_list: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_items: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode


class Share(msgspec.Struct):
    """Events and their bytes."""

    events: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        """Add an event of that many bytes."""
        self.events += 1
        self.bytes += size


class Tally(msgspec.Struct, rename="camel"):
    """What came to a rule, by its number, `none` or `unsure`, and what it leaves of that."""

    rule: str
    level: str
    conditions: str
    came: Share = msgspec.field(default_factory=Share)
    left: Share = msgspec.field(default_factory=Share)
    examples: dict[str, int] = msgspec.field(default_factory=Counter)
    """How often the most frequent kinds of events came."""


class Report(msgspec.Struct, rename="camel"):
    """The tallies of all rules and their sum."""

    policy: str
    rules: list[Tally]
    came: Share = msgspec.field(default_factory=Share)
    left: Share = msgspec.field(default_factory=Share)
    never_matched: list[str] = []
    unreadable: int = 0
    """Lines without an audit event."""


class Check(msgspec.Struct, rename="camel"):
    """Whether one rule matches: if not, the field that keeps it from that."""

    rule: str
    level: str
    conditions: str
    matches: bool
    because: str | None = None


class Trace(msgspec.Struct, rename="camel"):
    """How a policy came to its decision on one event: the rules up to the one that matched."""

    event: str
    audit_id: str
    stage: str
    came: int
    """Bytes, of the event as it is."""
    checks: list[Check]
    rule: str
    level: str
    left: int


def events_in(line: bytes, categories: frozenset[str]) -> Iterator[bytes]:
    """Yield the events in a line: an event, a list of them, a dead letter or a hub's message."""
    try:
        fields = _list(line)
        if "items" in fields:
            yield from map(bytes, _items(fields["items"]))
        elif "reason" in fields and "sequenceNumber" in fields:
            yield from events_in(_record(line).original, categories)
        elif "auditID" in fields:
            yield line.strip()
        else:
            yield from (event.body for event in unpack(line, categories).events)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return


def report(policy: Policy, lines: Iterable[bytes], categories: frozenset[str]) -> Report:
    """Apply a policy to the events in all lines."""
    engine = Engine(policy)
    tallies = {
        str(number): Tally(str(number), rule.level, shown(rule))
        for number, rule in enumerate(policy.rules, 1)
    }
    tallies[NO_RULE] = Tally(NO_RULE, LEVELS[0], "no rule matches")
    tallies[UNSURE] = Tally(UNSURE, "as it is", "incomplete, without what a rule looks at")
    whole = Report(str(policy), list(tallies.values()))
    for line in filter(bytes.strip, lines):
        events = list(events_in(line, categories))
        whole.unreadable += not events
        for event in events:
            left: bytes | None
            try:
                found = decode(event)
            except msgspec.ValidationError:
                left, rule, kind = event, UNSURE, "an unusual event"
            else:
                left, (rule, _) = engine.apply(event, found)
                kind = summary(found)
            tally = tallies[rule]
            if kind in tally.examples or len(tally.examples) < _KINDS:
                tally.examples[kind] = tally.examples.get(kind, 0) + 1
            for part in (whole, tally):
                part.came.add(len(event))
                if left:
                    part.left.add(len(left))
    for tally in whole.rules:
        tally.examples = dict(Counter(tally.examples).most_common(_EXAMPLES))
    numbered = whole.rules[: len(policy.rules)]
    whole.never_matched = [tally.rule for tally in numbered if not tally.came.events]
    return whole


def trace(policy: Policy, event: bytes) -> Trace:
    """Follow one event; raises msgspec's errors if it is none."""
    engine, found = Engine(policy), decode(event)
    steps = engine.steps(Request(*attributes(found, UsedFields())), lost(found, event))
    checks = [
        Check(decision.rule, LEVELS[decision.rank], shown(rule), failed is None, failed)
        for rule, (decision, failed) in zip(policy.rules, steps, strict=False)
    ]
    left, (rule, level) = engine.apply(event, found)
    size = len(left or b"")
    return Trace(summary(found), found.id, found.stage, len(event), checks, rule, level, size)


def summary(found: EventFields) -> str:
    """Return who did what to what kind of object."""
    if target := found.target:
        kind = f"{target.resource}/{target.subresource}".rstrip("/")
        what = f"{kind}.{target.group}" if target.group else kind
    else:
        what = found.uri.partition("?")[0]
    return f"{found.verb} {what} by {found.user.username or 'nobody who logged in'}"


def shown(rule: Rule) -> str:
    """Return a rule's conditions on one line."""
    resources = [
        f"{resource}.{one.group}" if one.group else resource
        for one in rule.resources
        for resource in one.resources or ("*",)
    ]
    named = {
        "users": rule.users,
        "userGroups": rule.user_groups,
        "verbs": rule.verbs,
        "namespaces": [namespace or '""' for namespace in rule.namespaces],
        "resources": resources,
        "resourceNames": [name for one in rule.resources for name in one.resource_names],
        "nonResourceURLs": rule.non_resource_urls,
        "omitStages": rule.omit_stages,
    }
    return "  ".join(f"{name}: {', '.join(texts)}" for name, texts in named.items() if texts)
