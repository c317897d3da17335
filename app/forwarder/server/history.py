"""The last hour of each partition, for the curves of the status page."""

from collections import deque
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Final, NamedTuple

INTERVAL: Final = 30.0  # seconds between two points
_POINTS: Final = 120
_MIN_RATE: Final = 5.0  # seconds; over a shorter time, the rate would jump with each POST


class State(NamedTuple):
    """The state of a partition."""

    partition: str
    lag: int  # messages in the hub behind the checkpoint
    oldest: float  # seconds: the age of the oldest undelivered message
    checkpoint: int | None  # its sequence number
    delivered: int  # events since this process claimed the partition


class History:
    """Points of the owned partitions, each a time (monotonic) and a state."""

    def __init__(self) -> None:
        self._points: dict[str, deque[tuple[float, State]]] = {}

    def note(self, now: float, states: Iterable[State]) -> None:
        """Add a point for each partition, and drop the points of all other partitions."""
        before, self._points = self._points, {}
        for state in states:
            points = before.get(state.partition, deque(maxlen=_POINTS))
            points.append((now, state))
            self._points[state.partition] = points

    def curve(self, now: float, state: State) -> list[dict[str, Any]]:
        """Return the points of a partition, oldest first, with the rate in events per second.

        The last one is the present state, so that it is included in a curve's maximum.
        """
        points = [*self._points.get(state.partition, ()), (now, state)]
        curve, rate = [], 0.0
        for (before, old), (at, new) in pairwise([points[0], *points]):
            if at - before >= _MIN_RATE:
                counted = old.delivered if old.delivered <= new.delivered else 0  # claimed again
                rate = (new.delivered - counted) / (at - before)
            ago = now - at
            curve.append({"secondsAgo": ago, "lag": new.lag, "oldest": new.oldest, "rate": rate})
        return curve
