"""The messages of a partition that are under way, and how far everything is settled."""

from collections import deque
from dataclasses import dataclass
from typing import Final

from forwarder.buffer import ReceiveBuffer

_ENTRY_BYTES: Final = 256  # what a settled message still holds until the watermark passes it


@dataclass(slots=True, eq=False)
class Message:
    """A message's place in the hub; `enqueued` is in Unix seconds, `pending` counts records."""

    sequence_number: int
    offset: str
    enqueued: float
    size: int
    pending: int = 0


class Window:
    """Messages settle out of order, the watermark never does.

    `watermark` is the last message before which, itself included, everything is settled:
    delivered, kept as a dead letter, skipped or filtered. Only it may become a checkpoint.
    """

    def __init__(self, buffer: ReceiveBuffer) -> None:
        self._buffer = buffer
        self._messages: deque[Message] = deque()
        self.watermark: Message | None = None

    @property
    def oldest(self) -> Message | None:
        """The first message that is not settled."""
        return self._messages[0] if self._messages else None

    def add(self, message: Message, pending: int) -> None:
        """Take in a message, whose bytes the buffer counts already, with so many open records."""
        message.pending = pending
        self._buffer.used += _ENTRY_BYTES
        self._messages.append(message)
        self.settle(message, 0)

    def settle(self, message: Message, count: int) -> None:
        """Settle so many of the message's records; the last one frees its bytes."""
        message.pending -= count
        if message.pending:
            return
        self._buffer.release(message.size)
        while self._messages and not self._messages[0].pending:
            self.watermark = self._messages.popleft()
            self._buffer.release(_ENTRY_BYTES)
