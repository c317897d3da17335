"""What the two kinds of replay share: events are posted by the rules of a partition's delivery.

What the sink refuses is handed back to the replay, and becomes no new dead letter.
"""

import asyncio
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

from forwarder import __version__
from forwarder.audit.envelope import Unpacked, unpack
from forwarder.config.settings import Settings
from forwarder.deadletters.record import Record
from forwarder.delivery.buffer import ReceiveBuffer
from forwarder.delivery.partition import DeliveryContext, Partition
from forwarder.metrics import Metrics
from forwarder.outage import Outage
from forwarder.policy.filter import filter_for
from forwarder.sink.webhook import Sink


class Replay(ABC):
    """Posts events again, and counts what becomes of them. The DeadLetterSink of its partitions."""

    waiting = evicted = 0

    def __init__(self, settings: Settings) -> None:
        # A sink that refuses everything does no harm: the events stay where they are.
        self._settings = replace(settings, web_sink_max_rejects=sys.maxsize)
        self._filter = filter_for(
            settings.audit_policy, settings.resource_ids, annotates=settings.cluster_annotation
        )
        self.outage = Outage("", "")
        metrics = Metrics(__version__)
        self.sink = Sink(self._settings, metrics)
        self._buffer = ReceiveBuffer(settings.receive_buffer_bytes)
        self._delivery = DeliveryContext(self._settings, self.sink, self, self._buffer, metrics)

    @abstractmethod
    async def run(self, stack: AsyncExitStack) -> None:
        """Post everything; `stack` closes what is opened."""

    @abstractmethod
    def counts(self) -> str:
        """Return what has become of all events as a line."""

    @abstractmethod
    def summary(self) -> Iterator[str]:
        """Yield the lines below the counts at the end."""

    @property
    @abstractmethod
    def succeeded(self) -> bool:
        """Whether the sink has accepted everything that was to be posted."""

    @abstractmethod
    def _refuse(self, record: Record) -> None:
        """Note what the sink refuses."""

    async def dead_letter(self, records: Sequence[Record]) -> asyncio.Future[int]:
        """Accept what the sink refuses; nothing is written."""
        for record in records:
            self._refuse(record)
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        done.set_result(0)
        return done

    def _partition(self, number: str) -> Partition:
        return Partition(number, self._delivery)

    def _unpack(self, body: bytes) -> Unpacked:
        return unpack(body, self._settings.categories, self._filter)
