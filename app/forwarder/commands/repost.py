"""Dead letters are posted again, batch by batch.

A record that holds an event is posted as it is: the audit policy has seen it. One that holds an
Azure Monitor record or a whole message is unpacked again, with the present settings. What the sink
accepts is removed from the batch; what it refuses stays, with its new reason.
"""

import asyncio
import itertools
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import datetime

import msgspec

from forwarder.audit.envelope import Unpacked, unpack
from forwarder.commands.posting import Replay
from forwarder.config.settings import Settings
from forwarder.deadletters.files import DeadLetterFiles
from forwarder.deadletters.record import Record, parse
from forwarder.deadletters.store import DIRECTORY, DeadLetterStore, dead_letter_store
from forwarder.delivery.watermark import Message
from forwarder.hub.login import login
from forwarder.redaction import printable
from forwarder.storage import has_account, open_container

_AT_ONCE = 8  # batches


@dataclass(frozen=True, slots=True)
class Selection:
    """The records refused since an instant, with this text in the reason; what to do with them.

    `action` is `post`, `count` (a dry run), `show` or `discard`.
    """

    since: datetime | None = None
    reason: str = ""
    action: str = "post"

    def has(self, record: Record) -> bool:
        """Return whether a record is selected."""
        return (not self.since or record.time >= self.since) and self.reason in record.reason


class Repost(Replay):
    """Posts dead letters of all stores."""

    def __init__(self, settings: Settings, selection: Selection) -> None:
        super().__init__(settings)
        self._selection = selection
        self._selected = self._removed = self._unreadable = 0
        self._staying = Counter[str]()  # by reason
        self._numbers = itertools.count()
        self._refused = defaultdict[int, list[Record]](list)  # by those numbers

    def counts(self) -> str:
        """Return the counts as a line."""
        removed = "discarded" if self._selection.action == "discard" else "accepted and removed"
        unreadable = f", {self._unreadable:,} lines unreadable" if self._unreadable else ""
        return (
            f"{self._selected:,} dead letters selected, {self._removed:,} {removed}, "
            f"{self._staying.total():,} stay{unreadable}"
        )

    def summary(self) -> Iterator[str]:
        """Yield a line for each reason why records stay."""
        for reason, count in self._staying.most_common():
            yield f"{count:10,} {printable(reason)}"

    @property
    def succeeded(self) -> bool:
        """Whether nothing stays that was to be posted."""
        return self._selection.action != "post" or not self._staying

    async def run(self, stack: AsyncExitStack) -> None:
        """Process the batches that are there now, some at once."""
        stores = await self._stores(stack)
        todo = iter([(store, name) for store in stores for name in await store.sizes()])

        async def worker() -> None:
            for store, name in todo:
                await self._batch(store, name)

        async with asyncio.TaskGroup() as workers:
            for _ in range(_AT_ONCE):
                workers.create_task(worker())

    async def _stores(self, stack: AsyncExitStack) -> list[DeadLetterStore]:
        """Return the store in use and, with a storage account, what an earlier one left on disk."""
        settings, found = self._settings, list[DeadLetterStore]()
        directory = settings.state_directory / DIRECTORY
        if directory.is_dir():
            found.append(DeadLetterFiles(directory, settings.dead_letter_max_bytes))
        if has_account(settings):
            container = open_container(settings, await login(settings, stack))
            await stack.enter_async_context(container)
            found.append(dead_letter_store(settings, container))
        return found

    async def _batch(self, store: DeadLetterStore, name: str) -> None:
        """Process a batch, and leave in it what stays, also when cancelled."""
        before = await store.read(name)
        lines: list[bytes] = []
        chosen: dict[int, Record] = {}  # by line
        for line, record in parse(before):
            if record and self._selection.has(record):
                chosen[len(lines)] = record
            self._unreadable += record is None
            lines.append(line)
        self._selected += len(chosen)
        try:
            match self._selection.action:
                case "post":
                    await self._post(chosen, lines)
                case "discard":
                    self._removed += len(chosen)
                    for index in chosen:
                        lines[index] = b""
                case action:
                    self._staying.update(record.reason for record in chosen.values())
                    for index in chosen if action == "show" else ():
                        sys.stdout.write(f"{json.dumps(json.loads(lines[index]))}\n")
        finally:
            after = b"".join(lines)
            if after != before and self._selection.action in {"post", "discard"}:
                await store.replace(name, after)

    async def _post(self, chosen: Mapping[int, Record], lines: list[bytes]) -> None:
        """Post records, and take out of the lines what is accepted."""
        partition = self._partition("replay")
        messages = [Message(next(self._numbers), "", time.time(), 0) for _ in chosen]
        for message, record in zip(messages, chosen.values(), strict=True):
            partition.submit(message, self._unpack(record.original))
        try:
            partition.dispatch()
            await partition.drain()
        finally:
            partition.cancel()
            for message, (index, record) in zip(messages, chosen.items(), strict=True):
                refused = self._refused.pop(message.sequence_number, [])
                if message.pending:
                    self._staying["not posted"] += 1
                elif refused:
                    self._staying[refused[0].reason] += 1
                    lines[index] = b"".join(_at(record, one).line() for one in refused)
                else:
                    self._removed += 1
                    lines[index] = b""

    def _refuse(self, record: Record) -> None:
        self._refused[record.sequence_number].append(record)

    def _unpack(self, body: bytes) -> Unpacked:
        """Return the event that a record holds, or unpack it again."""
        categories = self._settings.categories
        with suppress(UnicodeDecodeError):
            record = {"category": min(categories), "properties": {"log": body.decode()}}
            unpacked = unpack(msgspec.json.encode({"records": [record]}), categories)
            if unpacked.events:
                return unpacked
        return super()._unpack(body)


def _at(place: Record, refused: Record) -> Record:
    """Return what was refused again, with the place and time of the record that it was in."""
    return msgspec.structs.replace(
        refused, time=place.time, partition=place.partition, sequence_number=place.sequence_number
    )
