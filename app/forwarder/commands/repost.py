"""Posts dead letters again, batch by batch.

A record with an event is posted as it is, because it has passed the audit policy. A record with an
Azure Monitor record or a whole message is unpacked again with the present settings. Records that
the sink accepts are removed from the batch. The others stay, with their new reason.
"""

import asyncio
import itertools
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from datetime import datetime
from typing import Final

import msgspec
from msgspec.structs import replace

from forwarder.audit.envelope import Unpacked, unpack
from forwarder.commands.posting import Replay
from forwarder.config.settings import Settings
from forwarder.deadletters.blobs import DeadLetterBlobs
from forwarder.deadletters.files import DIRECTORY, DeadLetterFiles
from forwarder.deadletters.record import Record, parse
from forwarder.deadletters.writer import DeadLetterStore
from forwarder.delivery.partition import Partition
from forwarder.delivery.watermark import Message
from forwarder.hub.login import login
from forwarder.redaction import printable
from forwarder.storage import has_account, open_container

_CONCURRENCY: Final = 8  # batches


class Repost(Replay):
    """Processes the records of all stores that were refused since an instant for a reason.

    `reason` is a part of the reason. `action` is `post`, `count` (a dry run), `show` or `discard`.
    """

    def __init__(
        self, settings: Settings, since: datetime | None, reason: str, action: str
    ) -> None:
        super().__init__(settings)
        self._since, self._reason, self._action = since, reason, action
        self._selected = self._removed = self._unreadable = 0
        self._staying = Counter[str]()  # by reason
        self._numbers = itertools.count()  # one for each message, in place of sequence numbers
        self._refused = defaultdict[int, list[Record]](list)  # by these numbers

    def report(self) -> list[str]:
        """Return the counts, then a line for each reason of the records that stay."""
        removed = {"post": "accepted and removed", "discard": "discarded"}.get(self._action)
        done = f", {self._removed:,} {removed}, {self._staying.total():,} stay" if removed else ""
        unreadable = f", {self._unreadable:,} lines unreadable" if self._unreadable else ""
        counts = f"{self._selected:,} dead letters selected{done}{unreadable}"
        reasons = self._staying.most_common()
        return [counts, *(f"{count:10,} {printable(reason)}" for reason, count in reasons)]

    async def run(self, stack: AsyncExitStack) -> bool:
        """Process the batches that exist now; True if the sink accepted all that was posted."""
        stores = await self._stores(stack)
        batches = iter([(store, name) for store in stores for name in await store.sizes()])

        async def worker() -> None:
            for store, name in batches:
                await self._process(store, name)

        async with asyncio.TaskGroup() as workers:
            for _ in range(_CONCURRENCY):
                workers.create_task(worker())
        return self._action != "post" or not self._staying

    async def _stores(self, stack: AsyncExitStack) -> list[DeadLetterStore]:
        """Return the store in use, and the state directory if it has dead letters as well."""
        settings, stores = self._settings, list[DeadLetterStore]()
        directory = settings.state_directory / DIRECTORY
        if directory.is_dir():
            stores.append(DeadLetterFiles(directory, settings.dead_letter_max_bytes))
        if has_account(settings):
            container = open_container(settings, login(settings, stack))
            stores.append(DeadLetterBlobs(await stack.enter_async_context(container)))
        return stores

    async def _process(self, store: DeadLetterStore, name: str) -> None:
        """Process a batch, and write what is left of it, also when cancelled."""
        before = await store.read(name)
        lines: list[bytes] = []
        selected: dict[int, Record] = {}  # by line
        for line, record in parse(before):
            if record is None:
                self._unreadable += 1
            elif self._reason in record.reason and (not self._since or record.time >= self._since):
                selected[len(lines)] = record
            lines.append(line)
        self._selected += len(selected)
        if self._action in {"count", "show"}:
            self._staying.update(record.reason for record in selected.values())
            if self._action == "show":
                for index in selected:
                    sys.stdout.write(f"{json.dumps(json.loads(lines[index]))}\n")
            return
        try:
            if self._action == "post":
                await self._post(selected, lines)
            else:
                self._removed += len(selected)
                for index in selected:
                    lines[index] = b""
        finally:
            if (after := b"".join(lines)) != before:
                await store.replace(name, after)

    async def _post(self, selected: Mapping[int, Record], lines: list[bytes]) -> None:
        """Post records; replace the line of each by what the sink refuses of it."""
        partition = Partition("replay", self._delivery)
        messages = [Message(next(self._numbers), "", time.time(), 0) for _ in selected]
        for message, record in zip(messages, selected.values(), strict=True):
            partition.submit(message, self._unpack(record.original))
        try:
            partition.dispatch()
            await partition.drain()
        finally:
            partition.cancel()
            for message, (index, record) in zip(messages, selected.items(), strict=True):
                refused = self._refused.pop(message.sequence_number, [])
                if message.pending:
                    self._staying["not posted"] += 1
                    continue
                if refused:
                    self._staying[refused[0].reason] += 1
                else:
                    self._removed += 1
                kept = [
                    replace(record, reason=new.reason, body=new.body, body_base64=new.body_base64)
                    for new in refused
                ]
                lines[index] = b"".join(new.line() for new in kept)

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
