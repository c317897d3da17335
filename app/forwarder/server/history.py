"""The last hour of each partition, for the curves of the status page.

A point is kept every 30 s. The state at the moment of the request is added as the last point, so
that a curve ends at the current value and its maximum includes it.
"""

from collections import deque
from collections.abc import Iterable
from typing import Final, NamedTuple

_STEP: Final = 30.0  # seconds between two points
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


class Point(NamedTuple):
    """A partition at one moment."""

    at: float
    """By the monotonic clock."""
    lag: int
    oldest: float
    rate: float
    """Events delivered per second since the point before."""
    delivered: int


class History:
    """Points at equal distances; those of partitions that this process no longer owns are gone."""

    def __init__(self) -> None:
        self._points: dict[str, deque[Point]] = {}
        self._at = float("-inf")

    def note(self, now: float, states: Iterable[State]) -> None:
        """Add a point per partition if the last one is old enough; `now` is monotonic."""
        if now - self._at < _STEP:
            return
        before, self._points = self._points, {}
        for state in states:
            points = before.get(state.partition, deque(maxlen=_POINTS))
            points.append(_point(now, state, points))
            self._points[state.partition] = points
        self._at = now

    def until(self, now: float, state: State) -> list[Point]:
        """Return the points of a partition, oldest first, and its state now as the last one."""
        points = self._points.get(state.partition, deque())
        return [*points, _point(now, state, points)]


def _point(now: float, state: State, points: deque[Point]) -> Point:
    rate = 0.0
    if points:
        last = points[-1]
        passed = now - last.at
        long_enough = passed >= _SHORTEST_RATE
        rate = (state.delivered - last.delivered) / passed if long_enough else last.rate
    return Point(now, state.lag, state.oldest, rate, state.delivered)
