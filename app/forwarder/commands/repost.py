"""Reposting: dead letters are posted again, batch by batch, by the rules of a partition's delivery.

A record that holds an event is posted as it is: the audit policy has seen it. One that holds an
Azure Monitor record or a whole message is unpacked again, with the settings of now. What the sink
accepts is taken out of the batch; what it refuses stays, with the reason that it gives now.
"""

import asyncio
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from datetime import datetime

import msgspec

from forwarder import __version__
from forwarder.audit.envelope import Unpacked, unpack
from forwarder.config.settings import Settings
from forwarder.deadletters.files import DeadLetterFiles
from forwarder.deadletters.record import Record, parse
from forwarder.deadletters.store import DIRECTORY, DeadLetterStore, open_dead_letters
from forwarder.delivery.buffer import ReceiveBuffer
from forwarder.delivery.partition import DeliveryContext, Partition
from forwarder.delivery.watermark import Message
from forwarder.hub.login import login
from forwarder.metrics import Metrics
from forwarder.outage import Outage
from forwarder.policy.filter import filter_for
from forwarder.redaction import printable
from forwarder.sink.webhook import Sink
from forwarder.storage import has_account

_AT_ONCE = 8  # batches


@dataclass(frozen=True, slots=True)
class Selection:
    """The records refused since an instant, with this text in the reason; what to do with them.

    `action` is `post`, `count` (a dry run), `show` or `discard`.
    """

    since: datetime | None = None
    reason: str = ""
    action: str = "post"


class Repost:
    """Posts records, and counts what becomes of them."""

    def __init__(self, settings: Settings, selection: Selection) -> None:
        # What is refused stays where it is: no misconfigured sink can do harm.
        self._settings = replace(settings, web_sink_max_rejects=sys.maxsize)
        self._selection = selection
        self._filter = filter_for(
            settings.audit_policy, settings.resource_ids, annotates=settings.cluster_annotation
        )
        self._metrics = Metrics(__version__)
        self.sink = Sink(self._settings, self._metrics)
        self.selected = self.accepted = self.unreadable = 0
        self._done, self._total = 0, 1  # bytes
        self.staying: Counter[str] = Counter()
        """The records that stay, by reason."""

    def counts(self) -> str:
        """Return the counts as a line."""
        removed = "discarded" if self._selection.action == "discard" else "accepted and removed"
        counts = (
            f"{self.selected:,} dead letters selected, "
            f"{self.accepted:,} {removed}, {self.staying.total():,} stay"
        )
        return f"{counts}, {self.unreadable:,} lines unreadable" if self.unreadable else counts

    @property
    def succeeded(self) -> bool:
        """Whether nothing stays that was to be posted."""
        return self._selection.action != "post" or not self.staying

    def share(self) -> float:
        """Return how much is done, from 0 to 1."""
        return self._done / self._total

    def summary(self) -> Iterator[str]:
        """Yield a line for each reason why records stay."""
        for reason, count in self.staying.most_common():
            yield f"{count:10,} {printable(reason)}"

    async def run(self, stack: AsyncExitStack) -> None:
        """Process the batches that are there now, some at once."""
        todo = [
            (store, name, size)
            for store in await self._stores(stack)
            for name, size in (await store.sizes()).items()
        ]
        self._total = sum(size for _, _, size in todo) or 1
        left = iter(todo)

        async def worker() -> None:
            for store, name, _ in left:
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
            credential = await login(settings, stack)
            opened = open_dead_letters(settings, credential, settings.state_directory)
            found.append(await stack.enter_async_context(opened))
        return found

    async def _batch(self, store: DeadLetterStore, name: str) -> None:
        """Process a batch, and leave in it what stays, also when cancelled."""
        before = await store.read(name)
        rest: list[bytes] = []
        chosen: list[tuple[int, Record]] = []
        for line, record in parse(before):
            if record and self._wants(record):
                chosen.append((len(rest), record))
            self.unreadable += record is None
            rest.append(line)
        self.selected += len(chosen)
        try:
            match self._selection.action:
                case "post":
                    await self._post(chosen, rest)
                case "discard":
                    self.accepted += len(chosen)
                    for index, _ in chosen:
                        rest[index] = b""
                case action:
                    self.staying.update(record.reason for _, record in chosen)
                    for index, _ in chosen if action == "show" else ():
                        sys.stdout.write(f"{json.dumps(json.loads(rest[index]))}\n")
        finally:
            after = b"".join(rest)
            if after != before and self._selection.action in {"post", "discard"}:
                await store.replace(name, after)
            self._done += len(before)

    async def _post(self, chosen: Sequence[tuple[int, Record]], rest: list[bytes]) -> None:
        """Post records, and take out of the rest what is accepted."""
        refused: defaultdict[int, list[Record]] = defaultdict(list)
        sink = Refused(lambda record: refused[record.sequence_number].append(record))
        buffer = ReceiveBuffer(0)
        partition = Partition(
            "replay", DeliveryContext(self._settings, self.sink, sink, buffer, self._metrics)
        )
        messages = [Message(number, "", time.time(), 0) for number in range(len(chosen))]
        for message, (_, record) in zip(messages, chosen, strict=True):
            partition.submit(message, self._unpack(record.original))
        try:
            partition.dispatch()
            await partition.drain()
        finally:
            partition.cancel()
            for message, (index, record) in zip(messages, chosen, strict=True):
                if message.pending:
                    self.staying["not posted"] += 1
                elif again := refused[message.sequence_number]:
                    self.staying[again[0].reason] += 1
                    rest[index] = b"".join(_from(record, one).line() for one in again)
                else:
                    self.accepted += 1
                    rest[index] = b""

    def _wants(self, record: Record) -> bool:
        since, reason = self._selection.since, self._selection.reason
        return (not since or record.time >= since) and reason in record.reason

    def _unpack(self, body: bytes) -> Unpacked:
        """Return the event that a record holds, or what its message holds by now."""
        categories = self._settings.categories
        with suppress(UnicodeDecodeError):
            record = {"category": min(categories), "properties": {"log": body.decode()}}
            unpacked = unpack(msgspec.json.encode({"records": [record]}), categories)
            if unpacked.events:
                return unpacked
        return unpack(body, categories, self._filter)


class Refused:
    """A DeadLetterSink that stores nothing: it tells what the sink refuses."""

    waiting = evicted = 0

    def __init__(self, refused: Callable[[Record], None]) -> None:
        self.outage = Outage("", "")
        self._refused = refused

    async def add(self, records: Sequence[Record]) -> asyncio.Future[int]:
        """Tell of records."""
        for record in records:
            self._refused(record)
        written: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        written.set_result(0)
        return written


def _from(record: Record, refused: Record) -> Record:
    """Return what was refused again, with the place and time of the record that it was in."""
    return msgspec.structs.replace(
        refused,
        time=record.time,
        partition=record.partition,
        sequence_number=record.sequence_number,
    )
