"""The base of both kinds of replay: events are posted by the delivery code of the forwarder.

Events that the sink refuses are returned to the replay instead of being written as dead letters.
"""

import asyncio
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

from forwarder.audit.envelope import Unpacked, unpack
from forwarder.config.settings import Settings
from forwarder.deadletters.record import Record
from forwarder.delivery.buffer import ReceiveBuffer
from forwarder.delivery.partition import DeliveryContext
from forwarder.metrics import Metrics
from forwarder.policy.filter import filter_for
from forwarder.sink.webhook import Sink


class Replay(ABC):
    """Posts events again and counts the outcomes. It is the DeadLetterSink of its partitions."""

    def __init__(self, settings: Settings) -> None:
        # A sink that rejects everything needs no protection: the events stay where they are.
        self._settings = replace(settings, web_sink_max_rejects=sys.maxsize)
        self._filter = filter_for(
            settings.audit_policy, settings.resource_ids, annotates=settings.cluster_annotation
        )
        metrics = Metrics()
        self.sink = Sink(self._settings, metrics)
        self._buffer = ReceiveBuffer(settings.receive_buffer_bytes)
        self._delivery = DeliveryContext(self._settings, self.sink, self, self._buffer, metrics)

    @abstractmethod
    def _refuse(self, record: Record) -> None:
        """Record an event that the sink refuses."""

    async def dead_letter(self, records: Sequence[Record]) -> asyncio.Future[int]:
        """Accept what the sink refuses. Nothing is written, so nothing is dropped."""
        for record in records:
            self._refuse(record)
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        done.set_result(0)
        return done

    def _unpack(self, body: bytes) -> Unpacked:
        return unpack(body, self._settings.categories, self._filter)
