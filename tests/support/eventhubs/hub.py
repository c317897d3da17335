"""Event hubs, their partitions, and the stored messages."""

import time
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from itertools import count
from typing import Any, NamedTuple, Protocol

from support.eventhubs.codec import AmqpError, application, data_head, stored_head

_NEVER = -62135596800000  # year 1, in milliseconds: the service's value for "no message yet"
_FIRST_OFFSET = 8192  # unlike any sequence number, so that tests notice a mix-up


class Reader(Protocol):
    def wake(self) -> None:
        """Schedule the delivery of available messages."""


class Message(NamedTuple):
    """A stored message. ``enqueued`` is in milliseconds; ``head`` precedes ``body`` on the wire."""

    sequence_number: int
    offset: int
    enqueued: int
    partition_key: str | None
    head: bytes
    body: bytes


_POSITIONS: dict[str, Callable[[Message], int]] = {
    "amqp.annotation.x-opt-offset": lambda message: message.offset,
    "amqp.annotation.x-opt-sequence-number": lambda message: message.sequence_number,
    "amqp.annotation.x-opt-enqueued-time": lambda message: message.enqueued,
}


class Partition:
    """A log of messages with consecutive sequence numbers; offsets count bytes."""

    def __init__(self, partition_id: str) -> None:
        self.id = partition_id
        self.messages: list[Message] = []
        self.last = -1  # sequence number
        self.last_offset = "-1"
        self.last_enqueued = _NEVER
        self.position_errors: dict[str, str] = {}
        """Errors for receivers that start at a position, by annotation, such as `x-opt-offset`."""
        self.readers: set[Reader] = set()
        self._end = _FIRST_OFFSET

    @property
    def begin(self) -> int:
        """Sequence number of the oldest message, or of the next one if there is none."""
        return self.last + 1 - len(self.messages)

    @property
    def last_enqueued_time(self) -> datetime:
        """When the newest message was enqueued; year 1 if there was none."""
        return datetime.fromtimestamp(self.last_enqueued / 1000, UTC)

    def append(
        self, body: bytes, sections: bytes, key: str | None, enqueued: int | None = None
    ) -> int:
        """Store a message; encoded ``sections`` precede its body. Return its sequence number."""
        self.last += 1
        self.last_offset = str(self._end)
        self.last_enqueued = int(time.time() * 1000) if enqueued is None else enqueued
        head = stored_head(self.last, self.last_offset, self.last_enqueued, key) + sections
        self.messages.append(Message(self.last, self._end, self.last_enqueued, key, head, body))
        self._end += len(head) + len(body)
        for reader in self.readers:
            reader.wake()
        return self.last

    def expire(self, before: int) -> None:
        """Delete the messages whose sequence number is below ``before``."""
        del self.messages[: max(0, before - self.begin)]

    def expire_older(self, instant: float) -> None:
        """Delete the messages that were enqueued before ``instant`` (milliseconds)."""
        kept = (m.sequence_number for m in self.messages if m.enqueued >= instant)
        self.expire(next(kept, self.last + 1))

    def find(self, selector: str | None) -> int:
        """Return the sequence number at which a receiver starts; without a selector, the end.

        A selector is ``amqp.annotation.x-opt-NAME > 'VALUE'`` or the same with ``>=``.
        """
        if selector is None:
            return self.last + 1
        try:
            name, operator, literal = selector.split(" ", 2)
            value = literal.strip("'")
            if value not in {"-1", "@latest"} and (
                refusal := self.position_errors.get(name.rpartition(".")[2])
            ):
                raise AmqpError(refusal, f"The supplied {name} '{value}' is invalid")
            if value in {"-1", "@latest"}:
                return self.begin if value == "-1" else self.last + 1
            bisect = {">": bisect_right, ">=": bisect_left}[operator]
            return self.begin + bisect(self.messages, int(value), key=_POSITIONS[name])
        except (KeyError, ValueError) as error:
            raise AmqpError("com.microsoft:argument-error", f"filter {selector!r}") from error


class Hub:
    """An event hub: its partitions, and the consumer groups that may read them."""

    def __init__(self, name: str, partitions: int) -> None:
        self.name = name
        self.created = datetime.now(UTC)
        self.groups = {"$Default"}
        self.partitions: list[Partition] = []
        self._turns = count()
        self.add_partitions(partitions)

    def add_partitions(self, number: int) -> None:
        """Add empty partitions at the end."""
        have = len(self.partitions)
        self.partitions += [Partition(str(i)) for i in range(have, have + number)]

    def partition(self, partition_id: str) -> Partition:
        """Return the partition with this id, or raise AmqpError."""
        for partition in self.partitions:
            if partition.id == partition_id:
                return partition
        raise AmqpError("amqp:not-found", f"no partition {partition_id} in {self.name}")

    def choose(self, key: str | None) -> Partition:
        """Return the partition of a key; without a key, the next partition in turn."""
        number = next(self._turns) if key is None else zlib.crc32(key.encode())
        return self.partitions[number % len(self.partitions)]

    def publish(
        self,
        partition: int,
        body: bytes,
        *,
        enqueued: datetime | None = None,
        properties: Mapping[str, Any] | None = None,
    ) -> int:
        """Store a message without AMQP, wake its receivers and return its sequence number.

        The body is not copied, so publishing one object many times costs little memory.
        """
        instant = int(enqueued.timestamp() * 1000) if enqueued else None
        sections = application(properties) + data_head(len(body))
        return self.partitions[partition].append(body, sections, None, instant)
