"""The watermark of a partition: how far its messages are complete without a gap.

A checkpoint is one position per partition and consumer group, and a restart reads everything after
it again. Lists are posted concurrently and dead letters are written in batches, so messages are
completed in any order. The position may only move over messages that are complete; otherwise a
restart would skip those in the gap.

`track` adds a message in the order of the hub, `acknowledge` completes some of its records, and
`position` is the last message up to which, itself included, each record is delivered, kept as a
dead letter, skipped or filtered. Only `position` may be written as a checkpoint.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

from forwarder.delivery.buffer import ReceiveBuffer

_COMPACT_AT: Final = 100  # messages; below that, compacting saves nothing
_ENTRY_BYTES: Final = 256  # memory of a Message, whose body may have been delivered already


@dataclass(slots=True, eq=False)
class Message:
    """The position of a message in the hub, and what is left to be done with it."""

    sequence_number: int
    offset: str
    enqueued: float  # Unix seconds, when the hub received it
    size: int  # bytes of its body
    pending: int = 0  # records that are not acknowledged
    buffered: int = 0  # records in memory
    charged: int = 0  # bytes of the receive buffer; small records take more than the message

    def release(self, records: int, buffer: ReceiveBuffer) -> None:
        """Note that this many records left memory; with the last one the message's bytes do."""
        self.buffered -= records
        if not self.buffered:
            buffer.release(self.charged)


class Watermark:
    """The messages of one partition that are in flight, and the position before them.

    They count in the receive buffer, because millions of them may wait for a full disk.
    """

    def __init__(self, buffer: ReceiveBuffer) -> None:
        self._buffer = buffer
        self._messages: deque[Message] = deque()
        self._closed = False
        self._compact_at = _COMPACT_AT
        self.position: Message | None = None
        """The last message of the complete prefix; None until there is one."""

    @property
    def oldest(self) -> Message | None:
        """The first message that is not complete."""
        return self._messages[0] if self._messages else None

    def track(self, message: Message, records: int) -> None:
        """Add the next message, which is complete once `records` are acknowledged."""
        message.pending = records  # guard: pending-records
        if self._closed:
            return
        self._messages.append(message)
        self._buffer.charge(_ENTRY_BYTES)
        if len(self._messages) >= self._compact_at:
            self._compact()
        self._advance()

    def acknowledge(self, message: Message, records: int) -> None:
        """Complete this many of the message's records."""
        message.pending -= records  # guard: acknowledged-records
        self._advance()

    def mark_unsettleable(self, message: Message) -> None:
        """Never move over this message: a record of it was evicted, and has to be read again.

        Messages after it can never become the position, so they are forgotten.
        """
        self._closed = True
        while self._messages and self._messages[-1].sequence_number > message.sequence_number:
            self._messages.pop()
            self._buffer.release(_ENTRY_BYTES)

    def _advance(self) -> None:
        while self._messages and not self._messages[0].pending:  # guard: contiguous-acknowledgement
            self.position = self._messages.popleft()  # guard: checkpoint-in-order
            self._buffer.release(_ENTRY_BYTES)

    def _compact(self) -> None:
        """Forget each complete message whose successor is complete: the position skips it anyway.

        Otherwise thousands of complete messages pile up after one that waits for a full disk.
        """
        kept = deque[Message]()
        for message in self._messages:
            if kept and not kept[-1].pending and not message.pending:  # guard: compaction
                kept.pop()
            kept.append(message)
        self._buffer.release(_ENTRY_BYTES * (len(self._messages) - len(kept)))
        self._messages, self._compact_at = kept, _COMPACT_AT + 2 * len(kept)
