"""`policy`: shows what a policy does to recorded events or to those in the hub."""

import argparse
import asyncio
import math
import os
import sys
from contextlib import AsyncExitStack
from fileinput import FileInput
from typing import Final

from forwarder import redaction
from forwarder.audit.records import UNREADABLE
from forwarder.commands.explain import events_in, report, tally, trace
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
    explain = verbs.add_parser("explain", help=text, description=text)
    source = explain.add_mutually_exclusive_group(required=True)
    text = "events as JSON lines, or dead letters; - for standard input"
    source.add_argument("file", nargs="?", default="", metavar="FILE", help=text)
    text = "the newest N messages of the hub"
    source.add_argument("--hub", type=_count, default=0, metavar="N", help=text)
    text = "FILE (- for standard input), quiet or security; overrides AuditPolicyFile"
    explain.add_argument("--policy", default="", metavar="POLICY", help=text)
    explain.add_argument("--event", action="store_true", help="the first event, rule by rule")
    text = "print a preset as a starting point for your own policy"
    show = verbs.add_parser("show", help=text, description=text)
    show.add_argument("name", choices=document.PRESETS)


def run(given: argparse.Namespace) -> int:
    """Run `policy` with these arguments; return the exit status, which is 1 without any event.

    SettingsError if the policy or the settings are invalid.
    """
    if given.verb == "show":
        sys.stdout.write(document.text(given.name))
        return 0
    policy = _policy(given.policy)
    settings = Settings.from_env() if given.hub else Settings()
    redaction.configure(settings.secrets)
    try:
        with FileInput(given.file, mode="rb") as recorded:
            lines = asyncio.run(_newest(settings, given.hub)) if given.hub else recorded
            if given.event:
                events = (event for line in lines for event in events_in(line, settings.categories))
                shown = trace(policy, next(events, b""))
            else:
                shown = report(policy, *tally(policy, lines, settings.categories))
            sys.stdout.write("".join(f"{redaction.printable(line.rstrip())}\n" for line in shown))
    except (ForwarderError, OSError, *UNREADABLE) as error:
        no_event = isinstance(error, UNREADABLE)
        reason = "there is no audit event" if no_event else redaction.printable(str(error))
        sys.stderr.write(f"{reason}\n")
        return 1
    return 0


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def _policy(given: str) -> Policy:
    """Return the policy that the option or the environment names."""
    name = "--policy" if given else _VARIABLE
    try:
        if not (source := given or variable(os.environ, _VARIABLE)[0]):
            raise PolicyError(["missing; give --policy FILE, --policy quiet or --policy security"])
        return load("/dev/stdin" if source == "-" else source)
    except ValueError as error:
        problems = error.problems if isinstance(error, PolicyError) else [error]
        raise SettingsError([f"{name}: {problem}" for problem in problems]) from None


async def _newest(settings: Settings, count: int) -> list[bytes]:
    """Return the newest messages of the hub, the same number from each partition."""
    try:
        async with AsyncExitStack() as stack:
            client = connect(settings, login(settings, stack), retry_total=0)
            await stack.enter_async_context(client)
            numbers = await client.get_partition_ids()
            partitions = await asyncio.gather(*map(client.get_partition_properties, numbers))
            filled = [partition for partition in partitions if not partition["is_empty"]]
            each = math.ceil(count / max(1, len(filled)))
            peeks = (peek(client, partition, each, _PEEK_SECONDS) for partition in filled)
            peeked = await asyncio.gather(*peeks)
    except Exception as error:  # noqa: BLE001 - whatever the client raises
        raise ForwarderError(str(causes.of_hub(error, settings))) from None
    if peeked and all(found is None for found in peeked):
        raise ForwarderError(
            f"a forwarder reads the hub as '{settings.consumer_group}': set ConsumerGroup to "
            "another consumer group, or wait until no partition has a reader"
        )
    return [body for found in peeked for body in found or ()]
