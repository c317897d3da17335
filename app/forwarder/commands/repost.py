"""Reposting: letters of a file or blob to the sink again, by the rules of a partition."""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from forwarder import __version__
from forwarder.audit.envelope import Unpacked, unpack
from forwarder.config.settings import Settings
from forwarder.deadletters.blobs import DeadLetterBlobs
from forwarder.deadletters.files import DeadLetterFiles
from forwarder.deadletters.record import Record, letters
from forwarder.delivery.buffer import ReceiveBuffer
from forwarder.delivery.partition import DeliveryContext, Partition
from forwarder.delivery.watermark import Message
from forwarder.metrics import Metrics
from forwarder.policy.filter import Filter
from forwarder.sink.webhook import Sink

_SLICE: Final = 1_048_576  # bytes of letters unpacked at a time, for little memory


@dataclass(frozen=True, slots=True)
class Selection:
    """The letters to post: since an instant, or an age ago, with this text in the reason."""

    since: datetime | timedelta | None = None
    reason: str = ""
    dry_run: bool = False


class Repost:
    """Posts letters by the rules of a partition's delivery, and counts what becomes of them."""

    def __init__(self, settings: Settings, selection: Selection) -> None:
        # What is refused stays: there is nothing to guard from a misconfigured sink.
        self._settings = replace(settings, web_sink_max_rejects=sys.maxsize)
        self._dry, self._reason, since = selection.dry_run, selection.reason, selection.since
        self._since = datetime.now(UTC) - since if isinstance(since, timedelta) else since
        self._filter = Filter.of(settings)
        self._metrics = Metrics(__version__)
        self.sink = Sink(self._settings, self._metrics)
        self.selected = self.accepted = self.unreadable = self.bytes = 0
        self.staying: Counter[str] = Counter()
        """The letters that stay, by reason."""

    def counts(self) -> str:
        """Return the counts as a line."""
        counts = (
            f"{self.selected:,} dead letters selected, "
            f"{self.accepted:,} accepted and removed, {self.staying.total():,} stay"
        )
        return f"{counts}, {self.unreadable:,} lines unreadable" if self.unreadable else counts

    async def run(self, store: DeadLetterFiles | DeadLetterBlobs, name: str) -> None:
        """Post what one file or blob holds and leave in it what stays, when cancelled too."""
        before = await (store.read(name) if self._dry else store.take(name))
        lines, rest = letters(before), list[bytes]()
        chosen: list[tuple[int, Record]] = []
        size = 0
        try:
            for line, letter in lines:
                if letter and self._wants(letter):
                    chosen.append((len(rest), letter))
                self.unreadable += letter is None
                rest.append(line)
                size += len(line)
                if size > _SLICE:
                    await self._post(chosen, rest)
                    self.bytes += size
                    chosen, size = [], 0
            await self._post(chosen, rest)
            self.bytes += size
        finally:
            rest.extend(line for line, _ in lines)
            after = b"".join(rest)
            if not self._dry:
                await store.put_back(name, None if after == before else after)

    async def _post(self, chosen: Sequence[tuple[int, Record]], rest: list[bytes]) -> None:
        """Post letters and take out of the rest what is accepted; of a dry run just count."""
        self.selected += len(chosen)
        staying = _Staying()
        delivery = DeliveryContext(
            self._settings, self.sink, staying, ReceiveBuffer(0), self._metrics
        )
        partition = Partition("replay", delivery)
        posted = []
        for number, (_, letter) in enumerate(chosen):
            message, unpacked = Message(number, "", time.time(), 0), self._unpack(letter.original)
            partition.submit(message, unpacked)
            posted.append((message, len(unpacked.events) + len(unpacked.refused)))
        try:
            if not self._dry:
                partition.dispatch()
            await partition.drain()
        finally:
            partition.cancel()
            for (index, letter), (message, parts) in zip(chosen, posted, strict=True):
                again = staying.refused.get(message.sequence_number, [])
                if message.pending:
                    self.staying[letter.reason if self._dry else "not posted"] += 1
                elif not again:
                    self.accepted += 1
                    rest[index] = b""
                else:
                    self.staying[again[0].reason] += 1
                    if len(again) < parts:
                        rest[index] = b"".join(_from(letter, one).line() for one in again)

    def _wants(self, letter: Record) -> bool:
        return (not self._since or letter.time >= self._since) and self._reason in letter.reason

    def _unpack(self, body: bytes) -> Unpacked:
        """Return the event that a letter holds, or what its record or message holds by now.

        An event has passed the screen already.
        """
        categories = self._settings.categories
        with suppress(UnicodeDecodeError):
            record = {"category": min(categories), "properties": {"log": body.decode()}}
            unpacked = unpack(msgspec.json.encode({"records": [record]}), categories)
            if unpacked.events:
                return unpacked
        return unpack(body, categories, self._filter)


class _Staying:
    """Collects what is refused again, by the number of the letter that it comes from."""

    waiting = evicted = 0
    failure = ""

    def __init__(self) -> None:
        self.refused: dict[int, list[Record]] = {}

    async def add(self, refused: Sequence[Record]) -> asyncio.Future[int]:
        for letter in refused:
            self.refused.setdefault(letter.sequence_number, []).append(letter)
        safe: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        safe.set_result(0)
        return safe


def _from(letter: Record, refused: Record) -> Record:
    """Return what was refused of a whole message as a letter from where that message was."""
    time, partition, number = letter.time, letter.partition, letter.sequence_number
    return msgspec.structs.replace(refused, time=time, partition=partition, sequence_number=number)
