"""The messages of a partition that are under way, and how far everything is settled."""

import itertools
from collections import deque
from dataclasses import dataclass
from typing import Final

from forwarder.delivery.buffer import ReceiveBuffer

_FEW: Final = 100  # messages: a look at all of them costs nothing
_ENTRY_BYTES: Final = 256  # what a settled message still holds until the watermark passes it


@dataclass(slots=True, eq=False)
class Message:
    """A message's place in the hub; `enqueued` is in Unix seconds.

    `pending` counts records that are not settled, `held` those of them that hold its bytes.
    """

    sequence_number: int
    offset: str
    enqueued: float
    size: int
    pending: int = 0
    held: int = 0


class Watermark:
    """Messages settle out of order, the watermark never does.

    `watermark` is the last message before which, itself included, everything is settled:
    delivered, kept as a dead letter, skipped or filtered. Only it may become a checkpoint.
    """

    def __init__(self, buffer: ReceiveBuffer) -> None:
        self._buffer = buffer
        self._messages: deque[Message] = deque()
        self._closed = False
        self._crowded = _FEW
        self.position: Message | None = None

    @property
    def oldest(self) -> Message | None:
        """The first message that is not settled."""
        return self._messages[0] if self._messages else None

    def add(self, message: Message, pending: int) -> None:
        """Take in a message, whose bytes the buffer counts already, with so many open records."""
        message.pending = message.held = pending
        if not self._closed:
            self._buffer.used += _ENTRY_BYTES
            self._messages.append(message)
            if len(self._messages) >= self._crowded:
                self._thin_out()
        self.acknowledge(message, 0)

    def release_bytes(self, message: Message, count: int) -> None:
        """So many of the message's records no longer hold its bytes; the last one frees them."""
        message.held -= count
        if not message.held:
            self._buffer.release(message.size)

    def acknowledge(self, message: Message, count: int, *, held: bool = True) -> None:
        """Settle so many of the message's records, which held its bytes or were let out before."""
        if held:
            self.release_bytes(message, count)
        message.pending -= count
        while self._messages and not self._messages[0].pending:  # guard: contiguous-acknowledgement
            self.position = self._messages.popleft()  # guard: checkpoint-in-order
            self._buffer.release(_ENTRY_BYTES)

    def mark_unsettleable(self, message: Message) -> None:
        """Note that this message never settles here: none behind it can become the watermark."""
        self._closed = True
        while self._messages and self._messages[-1].sequence_number > message.sequence_number:
            self._messages.pop()
            self._buffer.release(_ENTRY_BYTES)

    def _thin_out(self) -> None:
        """Forget settled messages with settled ones behind: the watermark would pass them at once.

        Where one message waits for long, for a disk that is full, thousands pile up behind it.
        """
        before = len(self._messages)
        behind = [*itertools.islice(self._messages, 1, None), None]
        self._messages = deque(
            one
            for one, after in zip(self._messages, behind, strict=True)
            if one.pending or after is None or after.pending
        )
        self._buffer.release(_ENTRY_BYTES * (before - len(self._messages)))
        self._crowded = _FEW + 2 * len(self._messages)
