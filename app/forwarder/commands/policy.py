"""The command `policy`: shows what a policy makes of recorded events, or of those in the hub."""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import msgspec

from forwarder import redaction
from forwarder.commands.explain import Report, Share, Trace, events_in, report, trace
from forwarder.config.parsers import variable
from forwarder.config.settings import Settings
from forwarder.diagnosis import causes
from forwarder.errors import ForwarderError, PolicyError, SettingsError
from forwarder.hub.client import connect, peek
from forwarder.hub.login import login
from forwarder.policy import document
from forwarder.policy.document import Policy, load

_PEEK_SECONDS: Final = 20.0
_VARIABLE: Final = "AuditPolicyFile"


HELP: Final = "show what an audit policy does to events, or print a preset"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `policy`."""
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    text = "show which events each rule matches and what it leaves of them"
    verb = verbs.add_parser("explain", help=text, description=text)
    where = verb.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "file",
        nargs="?",
        default="",
        metavar="FILE",
        help="events as JSON lines, or dead letters; - for standard input",
    )
    where.add_argument(
        "--hub", type=_count, default=0, metavar="N", help="the newest N messages of the hub"
    )
    verb.add_argument(
        "--policy",
        default="",
        metavar="POLICY",
        help="FILE (- for standard input), quiet or security; overrides AuditPolicyFile",
    )
    verb.add_argument("--event", action="store_true", help="the first event, rule by rule")
    verb.add_argument("--json", action="store_true", help="print JSON")
    text = "print a preset, to start your own policy from"
    verbs.add_parser("show", help=text, description=text).add_argument(
        "name", choices=document.PRESETS
    )


def run(given: argparse.Namespace) -> int:
    """Run `policy` with these arguments; return the exit status."""
    if given.verb == "show":
        sys.stdout.write(document.text(given.name))
        return 0
    return explain(given.file, given.policy, given.hub, event=given.event, as_json=given.json)


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def explain(source: str, policy: str, hub: int, *, event: bool, as_json: bool) -> int:
    """Print what the policy makes of the events in a file, `-` for standard input, or in the hub.

    `hub` is the number of its newest messages, 0 for the file. Returns the exit status: 2 for a
    policy or settings that are wrong, 1 if there is nothing to explain.
    """
    try:
        rules = _policy(policy)
        settings = Settings.from_env() if hub else Settings()
        redaction.configure(settings.secrets)
        lines = _from_hub(settings, hub) if hub else _from_file(source)
        made: Report | Trace
        if event:
            events = (one for line in lines for one in events_in(line, settings.categories))
            made = trace(rules, next(events, b""))
        else:
            made = report(rules, lines, settings.categories)
    except SettingsError as error:
        sys.stderr.write("".join(f"{_plain(problem)}\n" for problem in error.problems))
        return 2
    except (ForwarderError, OSError) as error:
        sys.stderr.write(f"{_plain(str(error))}\n")
        return 1
    except msgspec.DecodeError:
        sys.stderr.write("no audit event is there\n")
        return 1
    if as_json:
        sys.stdout.write(json.dumps(msgspec.to_builtins(made), indent=2) + "\n")
    else:
        shown = _of_report(made) if isinstance(made, Report) else _of_trace(made)
        sys.stdout.write("".join(f"{_plain(line.rstrip())}\n" for line in shown))
    return 0


def _policy(given: str) -> Policy:
    """Return the policy of the option, or of the environment; SettingsError if it is wrong."""
    name = "--policy" if given else _VARIABLE
    try:
        if not (source := given or variable(os.environ, _VARIABLE)[0]):
            raise PolicyError(["missing; give --policy FILE, --policy quiet or --policy security"])
        return load("/dev/stdin" if source == "-" else source)
    except PolicyError as error:
        raise SettingsError([f"{name}: {problem}" for problem in error.problems]) from None
    except ValueError as error:
        raise SettingsError([f"{name}: {error}"]) from None


def _from_file(source: str) -> Iterator[bytes]:
    if source == "-":
        yield from sys.stdin.buffer
    else:
        with Path(source).open("rb") as file:
            yield from file


def _from_hub(settings: Settings, count: int) -> Iterator[bytes]:
    """Return the newest messages of the hub, the same number of each partition."""

    async def look() -> list[bytes]:
        async with AsyncExitStack() as stack:
            client = connect(settings, await login(settings, stack), retry_total=0)
            await stack.enter_async_context(client)
            numbers = await client.get_partition_ids()
            found = await asyncio.gather(*map(client.get_partition_properties, numbers))
            filled = [one for one in found if not one["is_empty"]]
            each = -(-count // (len(filled) or 1))
            peeked = await asyncio.gather(
                *(peek(client, settings, one, each, _PEEK_SECONDS) for one in filled)
            )
        if peeked and all(bodies is None for bodies in peeked):
            raise ForwarderError(
                f"a forwarder reads the hub as '{settings.consumer_group}': set ConsumerGroup to "
                "another consumer group, or wait until no partition has a reader"
            )
        return [body for bodies in peeked for body in bodies or ()]

    try:
        yield from asyncio.run(look())
    except ForwarderError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the client raises
        raise ForwarderError(str(causes.of_hub(error, settings))) from None


def _of_report(made: Report) -> Iterator[str]:
    yield f"{'rule':>6}  {'level':15} {'events':>10} {'':>6} {'bytes':>9} {'':>6} {'left':>6}"
    for one in made.rules:
        if not one.rule.isdecimal() and not one.came.events:
            continue
        share, size = _percent(one.came, made.came, "events"), _percent(one.came, made.came)
        yield (
            f"{one.rule:>6}  {one.level:15} {one.came.events:10,} {share:>6} "
            f"{_bytes(one.came.bytes):>9} {size:>6} {_percent(one.left, one.came):>6}  "
            f"{one.conditions or 'everything'}"
        )
        yield from (f"{'':24} {n:10,} x {kind}" for kind, n in one.examples.items())
    yield ""
    yield (
        f"{made.came.events:,} events, {_bytes(made.came.bytes)}; left by {made.policy}: "
        f"{made.left.events:,} events ({_percent(made.left, made.came, 'events')}), "
        f"{_bytes(made.left.bytes)} ({_percent(made.left, made.came)})"
    )
    if made.never_matched:
        yield f"rules that never matched: {', '.join(made.never_matched)}"
    if made.unreadable:
        yield f"lines without an audit event: {made.unreadable:,}"


def _of_trace(made: Trace) -> Iterator[str]:
    yield f"{made.audit_id} {made.stage}: {made.event}"
    for one in made.checks:
        found = "matches" if one.matches else f"no, by its {one.because}"
        if one.because == "unsure":
            found = "unsure: the event has lost what this rule looks at"
        yield f"{one.rule:>6}  {one.level:15} {found:22} {one.conditions or 'everything'}"
    if made.left:
        yield f"left: {made.left:,} of {made.came:,} bytes, at level {made.level}"
    else:
        yield f"left: nothing of {made.came:,} bytes{' (no rule matches)' * (made.rule == 'none')}"


def _percent(part: Share, whole: Share, of: str = "bytes") -> str:
    total = getattr(whole, of)
    return f"{100 * getattr(part, of) / total:.0f} %" if total else "-"


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"  # noqa: PLR2004


def _plain(line: str) -> str:
    """Return a line that is harmless to a terminal and stays one, whatever a client sent."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in line)
