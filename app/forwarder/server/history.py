"""The last hour of each partition, for the curves of the status page."""

from collections import deque
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

INTERVAL: Final = 30.0  # seconds between two points
_POINTS: Final = 120
_SHORTEST_RATE: Final = 5.0  # seconds; a rate over less than that jumps with each POST


class State(NamedTuple):
    """How a partition is doing now."""

    partition: str
    lag: int
    """Messages in the hub behind the checkpoint."""
    oldest: float
    """Age in seconds of the oldest undelivered message."""
    checkpoint: int | None
    """Sequence number of the checkpoint."""
    delivered: int
    """Events delivered since the process started."""


class History:
    """Points of the partitions that this process owns, each a time (monotonic) and a state."""

    def __init__(self) -> None:
        self._points: dict[str, deque[tuple[float, State]]] = {}

    def note(self, now: float, states: Iterable[State]) -> None:
        """Add a point per partition; the points of others are forgotten."""
        before, self._points = self._points, {}
        for state in states:
            points = before.get(state.partition, deque(maxlen=_POINTS))
            points.append((now, state))
            self._points[state.partition] = points

    def curve(self, now: float, state: State) -> list[dict[str, Any]]:
        """Return the points of a partition, oldest first, with the rate in events per second.

        The state of now is the last one, so that a curve's maximum includes the current value.
        """
        points = [*self._points.get(state.partition, ()), (now, state)]
        found, rate = [], 0.0
        for (before, old), (at, new) in zip(points[:1] + points, points, strict=False):
            if at - before >= _SHORTEST_RATE:
                rate = (new.delivered - old.delivered) / (at - before)
            ago = now - at
            found.append({"secondsAgo": ago, "lag": new.lag, "oldest": new.oldest, "rate": rate})
        return found
