"""Takes lists for the sink from the queue of one partition's events."""

from collections import deque
from itertools import islice

from forwarder.audit.envelope import Event
from forwarder.delivery.watermark import Message
from forwarder.sink.webhook import LIST_OVERHEAD

Queued = tuple[Event, Message]
"""An event and the message that it came in."""


def next_list(queue: deque[Queued], max_events: int, max_bytes: int) -> list[Queued]:
    """Remove the events of the next POST from a queue that is not empty.

    A deeply nested event, or one larger than a quarter of `max_bytes`, is posted alone, so that a
    sink that cannot handle it loses no other.
    """
    size, count, alone = LIST_OVERHEAD, 0, max_bytes // 4
    for event, _ in islice(queue, max_events):
        length = len(event.body)
        size += length + 1
        if length > alone or event.post_alone or size > max_bytes:
            count = count or 1
            break
        count += 1
    return [queue.popleft() for _ in range(count)]
