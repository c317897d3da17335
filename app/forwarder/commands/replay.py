"""Replay: dead letters are posted again; what the sink accepts is removed, what not stays."""

import argparse
import asyncio
import sys
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from typing import Final

import stamina
from azure.core.exceptions import AzureError

from forwarder import log
from forwarder.app import login
from forwarder.commands.progress import progress
from forwarder.commands.repost import Repost, Selection
from forwarder.config.parsers import start_position
from forwarder.config.settings import Settings
from forwarder.deadletters.blobs import DeadLetterBlobs, open_dead_letter_blobs
from forwarder.deadletters.files import DeadLetterFiles
from forwarder.errors import ForwarderError, StateError
from forwarder.sink.webhook import Sink

_PATIENCE: Final = 5.0  # seconds that the sink may be down: some tries
_FOR_FILES: Final = 20.0  # seconds to wait for a forwarder that moves its files to the account
_BLOBS: Final = 8  # replayed at once


HELP: Final = "post dead letters again; accepted ones are removed, the others stay"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `replay`."""
    parser.add_argument(
        "--since",
        type=_since,
        metavar="WHEN",
        help="only those since an ISO 8601 instant, or not older than an age such as 6h",
    )
    parser.add_argument(
        "--reason", default="", metavar="TEXT", help="only those with this text in their reason"
    )
    parser.add_argument("--dry-run", action="store_true", help="only count them")


async def run(given: argparse.Namespace, settings: Settings, stop: asyncio.Event) -> bool:
    """Run `replay` with these arguments; True if it succeeded."""
    return await replay(settings, Selection(given.since, given.reason, given.dry_run), stop)


def _since(text: str) -> datetime | timedelta:
    try:
        if not isinstance(start := start_position(text), str):
            return start
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"'{text}' is neither an ISO 8601 instant nor an age like 6h")


async def replay(settings: Settings, selection: Selection, stop: asyncio.Event) -> bool:
    """Post the dead letters that are there now; True if all that were selected are accepted."""
    stamina.instrumentation.set_on_retry_hooks([])  # the summary says it
    work, trouble = Repost(settings, selection), ""
    try:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(work.sink)
            todo = await _todo(settings, selection, stack)
            total = sum(size for _, names in todo for size in names.values())
            shown = progress(lambda: work.bytes / (total or 1), work.counts)
            async with shown, asyncio.TaskGroup() as group:
                watch = group.create_task(_watch(work.sink, stop))
                for store, names in todo:
                    await _each(work, store, names)
                watch.cancel()
    except* (ForwarderError, AzureError, OSError) as errors:
        trouble = f"{log.describe(errors)}\n"
    sys.stderr.write(trouble)
    sys.stdout.write(f"{work.counts()}\n")
    for reason, count in work.staying.most_common():
        sys.stdout.write(f"{count:10,} {reason}\n")
    return not trouble and (selection.dry_run or not work.staying)


async def _todo(
    settings: Settings, selection: Selection, stack: AsyncExitStack
) -> list[tuple[DeadLetterFiles | DeadLetterBlobs, dict[str, int]]]:
    """Return the stores, what is in each by name, and its bytes."""
    found: list[tuple[DeadLetterFiles | DeadLetterBlobs, dict[str, int]]] = []
    if (directory := settings.state_directory / "deadletters").is_dir():
        files = DeadLetterFiles(directory, settings.dead_letter_max_bytes)
        if not selection.dry_run:
            async for attempt in stamina.retry_context(
                on=StateError, attempts=None, timeout=_FOR_FILES, wait_max=1
            ):
                with attempt:
                    stack.enter_context(files.taking())
        found.append((files, await files.sizes()))
    credential = await login(settings, stack)
    if blobs := await stack.enter_async_context(open_dead_letter_blobs(settings, credential)):
        found.append((blobs, await blobs.sizes()))
    return found


async def _each(
    work: Repost, store: DeadLetterFiles | DeadLetterBlobs, names: Iterable[str]
) -> None:
    """Replay files one after another, for their bound counts what is taken, and blobs at once."""
    left = iter(names)

    async def some() -> None:
        for name in left:
            await work.run(store, name)

    async with asyncio.TaskGroup() as group:
        for _ in range(_BLOBS if isinstance(store, DeadLetterBlobs) else 1):
            group.create_task(some())


async def _watch(sink: Sink, stop: asyncio.Event) -> None:
    """End the replay when it is asked to stop, or the sink, which it asks without end, is down."""
    while not stop.is_set():
        if sink.down_since and time.monotonic() - sink.down_since > _PATIENCE:
            raise ForwarderError(f"given up, the sink takes nothing: {sink.failure}")
        await asyncio.sleep(0.1)
    raise ForwarderError("stopped")
