"""Explains what a policy does to recorded events. Pure: `commands/policy.py` does the I/O."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from forwarder.audit.envelope import unpack
from forwarder.audit.records import UNREADABLE
from forwarder.deadletters.record import Record
from forwarder.policy.attributes import EventFields, Request, UsedFields, attributes, decode, lost
from forwarder.policy.document import LEVELS, Policy, Rule
from forwarder.policy.rules import NO_RULE, UNSURE, Engine

_MAX_KINDS: Final = 1000  # of events per rule, to limit memory
_EXAMPLES: Final = 3
_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


@dataclass(slots=True)
class Tally:
    """The events that a rule decides on, with sizes in bytes; `rule` may be `none` or `unsure`."""

    rule: str
    level: str
    conditions: str
    events: int = 0
    size: int = 0
    events_left: int = 0
    size_left: int = 0
    examples: Counter[str] = field(default_factory=Counter)  # by kind of event

    def add(self, event: bytes, left: bytes | None, kind: str) -> None:
        """Add an event and what is left of it."""
        self.events += 1
        self.size += len(event)
        if left:
            self.events_left += 1
            self.size_left += len(left)
        if kind in self.examples or len(self.examples) < _MAX_KINDS:
            self.examples[kind] += 1


def events_in(line: bytes, categories: frozenset[str]) -> Iterator[bytes]:
    """Yield the events in a line: an event, an EventList, a dead letter, or a hub message."""
    try:
        fields = _fields(line)
        if "items" in fields:
            yield from map(bytes, msgspec.json.decode(fields["items"], type=list[msgspec.Raw]))
        elif "reason" in fields and "sequenceNumber" in fields:
            yield from events_in(msgspec.json.decode(line, type=Record).original, categories)
        elif "auditID" in fields:
            yield line.strip()
        else:
            yield from (event.body for event in unpack(line, categories).events)
    except UNREADABLE:
        return


def tally(
    policy: Policy, lines: Iterable[bytes], categories: frozenset[str]
) -> tuple[list[Tally], int]:
    """Apply a policy to the events in all lines; also return the number of lines without events."""
    engine, unreadable = Engine(policy), 0
    tallies = {
        str(number): Tally(str(number), rule.level, shown(rule))
        for number, rule in enumerate(policy.rules, 1)
    }
    tallies[NO_RULE] = Tally(NO_RULE, LEVELS[0], "no rule matches")
    tallies[UNSURE] = Tally(UNSURE, "as it is", "incomplete, without what a rule looks at")
    for line in filter(bytes.strip, lines):
        events = list(events_in(line, categories))
        if not events:
            unreadable += 1
        for event in events:
            try:
                fields = decode(event)
            except UNREADABLE:
                tallies[UNSURE].add(event, event, "an unusual event")
            else:
                left, (rule, _) = engine.apply(event, fields)
                tallies[rule].add(event, left, summary(fields))
    return list(tallies.values()), unreadable


def report(policy: Policy, tallies: Sequence[Tally], unreadable: int) -> Iterator[str]:
    """Yield the lines of a table with the results of `tally`."""
    events, size = sum(row.events for row in tallies), sum(row.size for row in tallies)
    yield f"{'rule':>6}  {'level':15} {'events':>10} {'':>6} {'bytes':>9} {'':>6} {'left':>6}"
    for row in tallies:
        if row.events or row.rule.isdecimal():
            yield (
                f"{row.rule:>6}  {row.level:15} {row.events:10,} {_share(row.events, events):>6} "
                f"{_bytes(row.size):>9} {_share(row.size, size):>6} "
                f"{_share(row.size_left, row.size):>6}  {row.conditions}"
            )
            for kind, count in row.examples.most_common(_EXAMPLES):
                yield f"{'':24} {count:10,} x {kind}"
    events_left = sum(row.events_left for row in tallies)
    size_left = sum(row.size_left for row in tallies)
    yield ""
    yield (
        f"{events:,} events, {_bytes(size)}; left by {policy}: {events_left:,} events "
        f"({_share(events_left, events)}), {_bytes(size_left)} ({_share(size_left, size)})"
    )
    if never := [row.rule for row in tallies if row.rule.isdecimal() and not row.events]:
        yield f"rules that never matched: {', '.join(never)}"
    if unreadable:
        yield f"lines without an audit event: {unreadable:,}"


def trace(policy: Policy, event: bytes) -> Iterator[str]:
    """Yield how a policy decides on an event, rule by rule; UNREADABLE if it is invalid."""
    engine, fields = Engine(policy), decode(event)
    yield f"{fields.id} {fields.stage}: {summary(fields)}"
    steps = engine.steps(Request(*attributes(fields, UsedFields())), lost(fields, event))
    results = {None: "matches", UNSURE: "unsure: the event has lost what this rule looks at"}
    for rule, (decision, failed) in zip(policy.rules, steps, strict=False):
        result = results.get(failed, f"no, by its {failed}")
        yield f"{decision.rule:>6}  {rule.level:15} {result:22} {shown(rule)}"
    left, (number, level) = engine.apply(event, fields)
    if left:
        yield f"left: {len(left):,} of {len(event):,} bytes, at level {level}"
    else:
        cause = " (no rule matches)" if number == NO_RULE else ""
        yield f"left: nothing of {len(event):,} bytes{cause}"


def summary(fields: EventFields) -> str:
    """Return who did what to what kind of object."""
    if target := fields.target:
        kind = f"{target.resource}/{target.subresource}".rstrip("/")
        what = f"{kind}.{target.group}" if target.group else kind
    else:
        what = fields.uri.partition("?")[0]
    return f"{fields.verb} {what} by {fields.user.username or 'an unknown user'}"


def shown(rule: Rule) -> str:
    """Return a rule's conditions on one line."""
    resources = [
        f"{resource}.{group.group}" if group.group else resource
        for group in rule.resources
        for resource in group.resources or ("*",)
    ]
    named = {
        "users": rule.users,
        "userGroups": rule.user_groups,
        "verbs": rule.verbs,
        "namespaces": [namespace or '""' for namespace in rule.namespaces],
        "resources": resources,
        "resourceNames": [name for group in rule.resources for name in group.resource_names],
        "nonResourceURLs": rule.non_resource_urls,
        "omitStages": rule.omit_stages,
    }
    conditions = (f"{name}: {', '.join(texts)}" for name, texts in named.items() if texts)
    return "  ".join(conditions) or "everything"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"  # noqa: PLR2004
