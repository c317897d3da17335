"""Adaptive concurrency: how many POSTs are in flight, for the sink as a whole.

The capacity of a sink is unknown and changes. With a fixed concurrency a slow sink times out, still
processes what it received, and receives it again. The limit therefore follows the responses, as
TCP's congestion window does (models: Vector's adaptive request concurrency and Netflix's
concurrency-limits):

- It starts at 1 and grows only while POSTs wait for it, so it never exceeds partitions x
  WebSinkConcurrency: by 1 per success, which doubles it per round trip, and once a failure has
  shown where it is too high, by 1 per round trip.
- No POST joins others that could then come near WebSinkTimeout, by the time per event in flight
  that responses show. That takes the sink for one that serves events one after another; whether
  it serves POSTs side by side is tried from time to time.
- It is halved by a time-out, 429 and every other failure that may be repeated, and reduced when
  a response comes near WebSinkTimeout. A time-out at 1 also halves the lists.

When POSTs fail and none succeeds between them, the limit is 1: one POST probes the sink, at most
5 s after its last failure or when Retry-After allows, and all others wait for it. The first
success ends that wait, so nothing of an outage outlives it.
"""

import asyncio
import math
import random
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Final

from prometheus_client import Gauge

from forwarder.outage import Outage

_BACKOFF: Final = 0.2  # seconds, doubled by each failed round
MAX_BACKOFF: Final = 5.0
_FULL: Final = 0.5  # of WebSinkTimeout: no POST is added that may take longer
_TRIABLE: Final = 0.65  # of WebSinkTimeout: above that, a second POST is not even tried
_NEAR_TIMEOUT: Final = 0.8  # of WebSinkTimeout: the limit is reduced
_REDUCTION: Final = 0.75
_SMOOTHING: Final = 0.3
_SAME: Final = 1.5  # times the latency of a POST that is alone: the sink serves others beside it
_ATTEMPT_AFTER: Final = 10.0  # seconds, doubled by each attempt that finds a serial sink
_MAX_ATTEMPT_AFTER: Final = 320.0
_LOG_AFTER: Final = 5.0  # seconds below a quarter


@dataclass(slots=True)
class Slot:
    """A POST in flight."""

    started: float
    events: int
    load: int
    """Events in flight when it started, its own included."""
    released: bool = False


class _Speed:
    """Estimates from the responses whether the sink would answer more POSTs in time."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._cost = 0.0  # seconds per event in flight
        self._alone = 0.0  # seconds of a POST that had the sink to itself
        self._attempt_at, self._attempt_after = 0.0, _ATTEMPT_AFTER
        self.parallel = False  # it serves POSTs side by side, or that is being tried

    def observe(self, slot: Slot, seconds: float) -> None:
        """Note a response that took this long."""
        cost = seconds / slot.load
        self._cost += (cost - self._cost) * (_SMOOTHING if self._cost else 1)
        if slot.load == slot.events:
            self._alone = seconds
        else:
            self.parallel = seconds < _SAME * self._alone
            if self.parallel:
                self._attempt_after = _ATTEMPT_AFTER

    def in_time(self, load: int) -> bool:
        """Return whether a POST with which this many events are in flight is answered in time."""
        return self.parallel or self._cost * load <= _FULL * self._timeout

    def tries_two(self, seconds: float, now: float) -> bool:
        """Return whether to try two POSTs side by side, after one that took this long alone.

        That the sink serves one after another is only a guess. Rarely, if it was right before.
        """
        if seconds > _TRIABLE * self._timeout or now < self._attempt_at:
            return False
        self._attempt_at = now + self._attempt_after
        self._attempt_after = min(2 * self._attempt_after, _MAX_ATTEMPT_AFTER)
        self.parallel = True
        return True


class AdaptiveConcurrency:
    """Hands out slots for POSTs. Each is given back by `succeeded`, `failed` or `release`."""

    def __init__(self, timeout: float, gauge: Gauge) -> None:
        self._timeout = timeout
        self._limit = 1.0
        self._threshold = math.inf
        self._waiting: deque[tuple[asyncio.Future[Slot], int]] = deque()
        self._in_flight = self._load = self._demand = 0
        self._failed_rounds = 0
        self._changed_at = 0.0  # the limit was last reduced; POSTs of before do not reduce it again
        self._resume_at = 0.0
        self._retry_after = False
        self._timer: asyncio.TimerHandle | None = None
        self._speed = _Speed(timeout)
        self._reduced = Outage("post concurrency reduced", "post concurrency restored")
        self._sufficient_at = time.monotonic()
        self.max_events = sys.maxsize
        """Events that a list may have at present."""
        gauge.set_function(lambda: self.limit)

    @property
    def limit(self) -> int:
        """The number of POSTs that may be in flight now."""
        return int(self._limit)

    async def acquire(self, events: int, *, retry: bool = False) -> Slot:
        """Wait for a slot; with `retry` before all others, so that few lists probe a sink."""
        if not self._waiting and self._is_open(events, time.monotonic()):
            return self._start(events)
        waiter: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        entry = (waiter, events)
        (self._waiting.appendleft if retry else self._waiting.append)(entry)
        self._demand = max(self._demand, self._in_flight + len(self._waiting))
        self._dispatch()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                with suppress(ValueError):  # `_dispatch` has seen it first
                    self._waiting.remove(entry)
            else:
                self.release(waiter.result())
            raise

    def release(self, slot: Slot) -> None:
        """Give a slot back, unless it was, without a verdict on the sink."""
        if slot.released:
            return
        slot.released = True
        self._in_flight -= 1
        self._load -= slot.events
        self._dispatch()

    def succeeded(self, slot: Slot) -> None:
        """Give a slot back: the sink answered, and other POSTs are welcome."""
        now = time.monotonic()
        if not self._retry_after or slot.started >= self._resume_at:
            self._resume_at, self._retry_after = 0.0, False
        if self._failed_rounds > 1:
            self._sufficient_at = now  # it was down, which is not slow
        self._failed_rounds = 0
        self._adapt(slot, now - slot.started, now)
        self._report(now)
        self.release(slot)

    def failed(self, slot: Slot, *, timed_out: bool = False, retry_after: float = 0.0) -> None:
        """Give a slot back: the sink did not take the events this time."""
        now = time.monotonic()
        if slot.started >= self._changed_at:  # POSTs that were in flight together fail as one
            self._failed_rounds += 1
            self._changed_at = now
            self._retry_after = self._speed.parallel = False
            if timed_out and self.limit == 1:
                self.max_events = max(1, slot.events // 2)
            lasting = self._failed_rounds > 1
            self._limit = 1.0 if lasting else max(1.0, self._limit / 2)
            self._threshold = math.inf if lasting else self._limit
        backoff = min(_BACKOFF * 2 ** min(self._failed_rounds - 1, 10), MAX_BACKOFF)
        backoff *= random.uniform(0.5, 1)  # noqa: S311 - not a secret
        self._retry_after = self._retry_after or retry_after > backoff
        self._resume_at = max(self._resume_at, now + max(backoff, retry_after))
        self.release(slot)

    def _adapt(self, slot: Slot, seconds: float, now: float) -> None:
        """Adjust the limit to a response that took this long."""
        self._speed.observe(slot, seconds)
        if seconds > _NEAR_TIMEOUT * self._timeout:
            if slot.started >= self._changed_at:
                self._changed_at = now
                self._limit = max(1.0, self._limit * _REDUCTION)
        elif self.max_events < slot.events * 2:
            if self._speed.in_time(slot.load + slot.events):
                self.max_events *= 2
        elif self._waiting:
            added = sum(events for _, events in islice(self._waiting, 2))
            if self._speed.in_time(self._load - slot.events + added) or (
                self.limit == 1 and self._speed.tries_two(seconds, now)
            ):
                self._limit += 1 if self._limit < self._threshold else 1 / self._limit

    def _report(self, now: float) -> None:
        """Log when the limit has been below a quarter of the demand, and when it is no longer."""
        if self._limit * 4 >= self._demand:
            self._sufficient_at = now
            self._reduced.end(limit=self.limit, demand=self._demand)
        elif now - self._sufficient_at > _LOG_AFTER and self._waiting:
            metrics = "aks_audit_post_seconds, aks_audit_post_retries_total"
            reason = f"the sink is slow or rejects load: see {metrics}"
            self._reduced.fail(reason, limit=self.limit, demand=self._demand)

    def _is_open(self, events: int, now: float) -> bool:
        if now < self._resume_at or not self._in_flight:
            return now >= self._resume_at
        return self._in_flight < self.limit and self._speed.in_time(self._load + events)

    def _start(self, events: int) -> Slot:
        self._in_flight += 1
        self._load += events
        return Slot(time.monotonic(), events, self._load)

    def _dispatch(self) -> None:
        """Hand out the slots that are free, now or when the back-off ends."""
        now = time.monotonic()  # once, or the back-off could end between two looks at the clock
        while self._waiting and self._is_open(self._waiting[0][1], now):
            waiter, events = self._waiting.popleft()
            if not waiter.cancelled():
                waiter.set_result(self._start(events))
        if self._timer:
            self._timer.cancel()
        if self._waiting and (pause := self._resume_at - now) > 0:
            self._timer = asyncio.get_running_loop().call_later(pause, self._dispatch)
        elif self._waiting and self._in_flight < self.limit:
            self._limit = self._in_flight  # one more would not be in time
