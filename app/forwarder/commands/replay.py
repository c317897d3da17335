"""`replay`: posts dead letters or events of the hub again, also while a forwarder is running."""

import argparse
import asyncio
import sys
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from azure.core.exceptions import AzureError

from forwarder import log
from forwarder.commands.backfill import Backfill
from forwarder.commands.repost import Repost
from forwarder.config.parsers import start_position
from forwarder.config.settings import Settings
from forwarder.errors import ForwarderError

_PATIENCE: Final = 15.0  # seconds that the sink may be down
_PROGRESS: Final = 2.0  # seconds between two lines

HELP: Final = "post dead letters again; those that the sink accepts are removed, the others stay"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `replay`."""
    for option, text in (
        ("--since", "only those since an ISO 8601 instant, or not older than an age such as 6h"),
        ("--until", "with --hub: only those until then"),
    ):
        parser.add_argument(option, type=_instant, metavar="WHEN", help=text)
    parser.add_argument(
        "--reason", default="", metavar="TEXT", help="only those with this text in their reason"
    )
    action = parser.add_mutually_exclusive_group()
    for option, name, text in (
        ("--dry-run", "count", "only count them"),
        ("--show", "show", "print them, as JSON lines"),
        ("--discard", "discard", "remove them for good; needs --reason or --since"),
    ):
        action.add_argument(option, dest="action", action="store_const", const=name, help=text)
    parser.add_argument(
        "--hub", action="store_true", help="post events of the hub instead; needs --since"
    )
    parser.add_argument(
        "--consumer-group", metavar="NAME", help="with --hub: read in this consumer group"
    )
    parser.set_defaults(action="post", error=parser.error)


async def run(given: argparse.Namespace, settings: Settings, stop: asyncio.Event) -> bool:
    """Run `replay` with these arguments; True if everything that was selected was accepted."""
    if wrong := _contradiction(given):
        given.error(wrong)
    work: Backfill | Repost
    if given.hub:
        settings = replace(settings, consumer_group=given.consumer_group or settings.consumer_group)
        dry_run = given.action == "count"
        work = Backfill(settings, given.since, given.until, dry_run=dry_run)
    else:
        work = Repost(settings, given.since, given.reason, given.action)
    succeeded, failure = False, ""
    try:
        async with AsyncExitStack() as stack, work.sink, asyncio.TaskGroup() as group:
            watch = group.create_task(_watch(work, stop))
            succeeded = await work.run(stack)
            watch.cancel()
    except* (ForwarderError, AzureError, OSError) as errors:
        failure = f"{log.describe(errors)}\n"
    sys.stderr.write(failure)
    counts = sys.stderr if given.action == "show" else sys.stdout
    counts.write("".join(f"{line}\n" for line in work.report()))
    return succeeded and not failure


def _contradiction(given: argparse.Namespace) -> str:
    if not given.hub:
        if given.until or given.consumer_group:
            return "--until and --consumer-group need --hub"
        if given.action == "discard" and not given.reason and not given.since:
            return "--discard needs --reason or --since"
        return ""
    if given.reason or given.action not in {"post", "count"}:
        return "--reason, --show and --discard are for dead letters, not for --hub"
    if not given.since:
        return "--hub needs --since"
    return "--until is before --since" if given.until and given.until <= given.since else ""


async def _watch(work: Backfill | Repost, stop: asyncio.Event) -> None:
    """Print the counts every 2 s; ForwarderError when the sink stays down or `stop` is set."""
    printed = time.monotonic()
    while not stop.is_set():
        outage, now = work.sink.outage, time.monotonic()
        if outage.since and now - outage.since > _PATIENCE:
            raise ForwarderError(f"given up, the sink accepts nothing: {outage.reason}")
        if now - printed > _PROGRESS:
            printed = now
            sys.stderr.write(f"{work.report()[0]}\n")
        await asyncio.sleep(0.1)
    raise ForwarderError("stopped")


def _instant(text: str) -> datetime:
    with suppress(ValueError):
        start = start_position(text)
        if isinstance(start, timedelta):
            return datetime.now(UTC) - start
        if isinstance(start, datetime):
            return start
    raise argparse.ArgumentTypeError(f"'{text}' is neither an ISO 8601 instant nor an age like 6h")
