"""The queue of one partition's events; lists for the sink are taken from it."""

from collections import deque
from collections.abc import Iterable
from itertools import islice, repeat

from forwarder.audit.envelope import Event
from forwarder.delivery.watermark import Message
from forwarder.sink.webhook import LIST_OVERHEAD

Queued = tuple[Event, Message]
"""An event and the message that it came in."""


class EventQueue:
    """Events in the order of the hub."""

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._alone_bytes = max_bytes // 4
        self._events: deque[Queued] = deque()

    def __len__(self) -> int:
        return len(self._events)

    def extend(self, events: Iterable[Event], message: Message) -> None:
        """Append the events of a message."""
        self._events.extend(zip(events, repeat(message)))

    def next_list(self, max_events: int) -> list[Queued]:
        """Take the events of the next POST, `max_events` at most.

        A deeply nested or large event is posted alone, so that a sink that cannot handle it loses
        no other: Falco answers 200 before it parses the body, and drops all of it when its parser
        gives up at 300 levels.
        """
        size, count = LIST_OVERHEAD, 0
        for event, _ in islice(self._events, min(max_events, self._max_events)):
            length = len(event.body)
            size += length + 1
            if length > self._alone_bytes or event.post_alone or size > self._max_bytes:
                count = count or 1
                break
            count += 1
        return [self._events.popleft() for _ in range(count)]
