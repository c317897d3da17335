"""`replay`: post dead letters again, beside a running forwarder or without one."""

import argparse
import asyncio
import sys
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Final

import stamina
from azure.core.exceptions import AzureError

from forwarder import log
from forwarder.commands.progress import progress
from forwarder.commands.repost import Repost, Selection
from forwarder.config.parsers import start_position
from forwarder.config.settings import Settings
from forwarder.deadletters.files import DeadLetterFiles
from forwarder.deadletters.store import DIRECTORY, DeadLetterStore, open_dead_letters
from forwarder.errors import ForwarderError
from forwarder.hub.login import login
from forwarder.redaction import printable
from forwarder.sink.webhook import Sink
from forwarder.storage import has_account

_PATIENCE: Final = 5.0  # seconds that the sink may be down
_AT_ONCE: Final = 8  # batches


HELP: Final = "post dead letters again; those that the sink accepts are removed, the others stay"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `replay`."""
    parser.add_argument(
        "--since",
        type=_instant,
        metavar="WHEN",
        help="only those since an ISO 8601 instant, or not older than an age such as 6h",
    )
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
    parser.set_defaults(action="post", error=parser.error)


async def run(given: argparse.Namespace, settings: Settings, stop: asyncio.Event) -> bool:
    """Run `replay` with these arguments; True if it succeeded."""
    if given.action == "discard" and not given.reason and not given.since:
        given.error("--discard needs --reason or --since")
    return await replay(settings, Selection(given.since, given.reason, given.action), stop)


async def replay(settings: Settings, selected: Selection, stop: asyncio.Event) -> bool:
    """Post the dead letters that are there now; True if all that were selected are accepted."""
    stamina.instrumentation.set_on_retry_hooks([])  # failures are in the summary
    work, failure = Repost(settings, selected), ""
    try:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(work.sink)
            todo = [
                (store, name, size)
                for store in await _stores(settings, stack)
                for name, size in (await store.sizes()).items()
            ]
            total = sum(size for _, _, size in todo) or 1
            left = iter(todo)

            async def worker() -> None:
                for store, name, _ in left:
                    await work.run(store, name)

            shown = progress(lambda: work.bytes / total, work.counts)
            async with shown, asyncio.TaskGroup() as group:
                watch = group.create_task(_watch(work.sink, stop))
                async with asyncio.TaskGroup() as workers:
                    for _ in range(_AT_ONCE):
                        workers.create_task(worker())
                watch.cancel()
    except* (ForwarderError, AzureError, OSError) as errors:
        failure = f"{log.describe(errors)}\n"
    sys.stderr.write(failure)
    summary = sys.stderr if selected.action == "show" else sys.stdout
    summary.write(f"{work.counts()}\n")
    for reason, count in work.staying.most_common():
        summary.write(f"{count:10,} {printable(reason)}\n")
    return not failure and (selected.action != "post" or not work.staying)


async def _stores(settings: Settings, stack: AsyncExitStack) -> list[DeadLetterStore]:
    """Return the store in use and, with a storage account, what an earlier one left on disk."""
    found: list[DeadLetterStore] = []
    directory = settings.state_directory / DIRECTORY
    if directory.is_dir():
        found.append(DeadLetterFiles(directory, settings.dead_letter_max_bytes))
    if has_account(settings):
        opened = open_dead_letters(settings, await login(settings, stack), settings.state_directory)
        found.append(await stack.enter_async_context(opened))
    return found


async def _watch(sink: Sink, stop: asyncio.Event) -> None:
    """End the replay when it is asked to stop, or when the sink is down: posts wait for it."""
    while not stop.is_set():
        if sink.outage.since and time.monotonic() - sink.outage.since > _PATIENCE:
            raise ForwarderError(f"given up, the sink takes nothing: {sink.outage.reason}")
        await asyncio.sleep(0.1)
    raise ForwarderError("stopped")


def _instant(text: str) -> datetime:
    try:
        start = start_position(text)
    except ValueError:
        start = ""
    if isinstance(start, timedelta):
        return datetime.now(UTC) - start
    if isinstance(start, datetime):
        return start
    raise argparse.ArgumentTypeError(f"'{text}' is neither an ISO 8601 instant nor an age like 6h")
