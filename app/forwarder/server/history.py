"""The last hour of each partition, for the curves of the status page."""

from collections import deque
from collections.abc import Iterable
from typing import Final, NamedTuple

_STEP: Final = 30.0  # seconds between two points
_POINTS: Final = 120


class State(NamedTuple):
    """How a partition is doing now."""

    partition: str
    lag: int
    """Messages in the hub behind the checkpoint."""
    oldest: float
    """Age in seconds of the oldest message that is not delivered."""
    checkpoint: int | None
    """Sequence number of the checkpoint."""
    delivered: int
    """Events delivered since the process started."""


class Point(NamedTuple):
    """A partition at one moment."""

    lag: int
    oldest: float
    rate: float
    """Events delivered a second since the point before."""


class History:
    """Points at equal distances; those of partitions that went elsewhere are forgotten."""

    def __init__(self) -> None:
        self._points: dict[str, deque[Point]] = {}
        self._delivered: dict[str, int] = {}
        self._at = float("-inf")

    def note(self, now: float, states: Iterable[State]) -> None:
        """Add a point a partition, unless the last ones are young; `now` is monotonic."""
        if (passed := now - self._at) < _STEP:
            return
        points, self._points = self._points, {}
        delivered, self._delivered = self._delivered, {}
        for state in states:
            name = state.partition
            rate = (state.delivered - delivered.get(name, state.delivered)) / passed
            self._points[name] = points.get(name, deque(maxlen=_POINTS))
            self._points[name].append(Point(state.lag, state.oldest, rate))
            self._delivered[name] = state.delivered
        self._at = now

    def of(self, partition: str) -> list[Point]:
        """Return a partition's points, the oldest first."""
        return list(self._points.get(partition, ()))
