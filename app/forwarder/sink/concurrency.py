"""Adaptive concurrency: how many POSTs may be in flight, for the sink as a whole.

The capacity of a sink is unknown and changes. With a fixed concurrency a slow sink times out, still
processes what it received, and receives it again. So the limit follows the responses, as TCP's
congestion window does (models: Vector's adaptive request concurrency and Netflix's
concurrency-limits):

- It starts at 1 and grows only while POSTs wait for a slot, so it never exceeds partitions x
  WebSinkConcurrency. It grows by 1 per success, which doubles it per round trip. Once a failure has
  shown where it is too high, it grows by 1 per round trip.
- A POST has to wait while the time per event, measured on responses, says that it could come near
  WebSinkTimeout. This assumes a sink that processes events one after another. Whether it processes
  POSTs in parallel is tried from time to time.
- It is halved by a time-out, 429 and every other retryable failure, and reduced when a response
  comes near WebSinkTimeout. A time-out at 1 also halves the lists.

When POSTs fail and none succeeds between them, the limit is 1: one POST probes the sink, at most
5 s after the last failure or when Retry-After allows, and all others wait for it. The first success
ends the back-off for all.
"""

import asyncio
import math
import random
import sys
import time
from collections import deque
from contextlib import suppress
from itertools import islice
from typing import Final, NamedTuple

from prometheus_client import Gauge

from forwarder.outage import Outage

_BACKOFF: Final = 0.2  # seconds, doubled by each failed round
MAX_BACKOFF: Final = 5.0
_SAFE: Final = 0.5  # of WebSinkTimeout: a POST that may take longer has to wait
_MAX_TRIAL: Final = 0.65  # of WebSinkTimeout: if one POST takes longer, two are not tried
_NEAR_TIMEOUT: Final = 0.8  # of WebSinkTimeout: if one POST takes longer, the limit is reduced
_REDUCTION: Final = 0.75
_SMOOTHING: Final = 0.3
_PARALLEL: Final = 1.5  # times the latency of a single POST: below that, POSTs run in parallel
_COMPARABLE: Final = 1.75  # times its events in flight: below that, a serial sink is hardly slower
_TRIAL_INTERVAL: Final = 10.0  # seconds, doubled by each trial that finds a serial sink
_MAX_TRIAL_INTERVAL: Final = 320.0
_LOG_AFTER: Final = 5.0  # seconds below a quarter of the demand


class Slot(NamedTuple):
    """A POST in flight."""

    started: float
    events: int
    load: int  # events in flight when it started, its own included


class _Speed:
    """Estimates from the responses whether the sink would answer more POSTs in time."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._cost = 0.0  # seconds per event in flight
        self._alone, self._events_alone = 0.0, 1  # seconds and events of the last single POST
        self._next_trial, self._trial_interval = 0.0, _TRIAL_INTERVAL
        self.parallel = False  # the sink processes POSTs in parallel
        self.trial = False  # a second POST may start, to find that out

    def observe(self, slot: Slot, seconds: float) -> None:
        """Learn from a response that took this long."""
        cost = seconds / slot.load
        self._cost += (cost - self._cost) * (_SMOOTHING if self._cost else 1)
        if slot.load == slot.events:
            self._alone, self._events_alone = seconds, slot.events
        elif slot.load >= _COMPARABLE * slot.events:
            limit = _PARALLEL * self._alone
            if not self.parallel:  # a short list is fast in any case
                limit *= min(1.0, slot.events / self._events_alone)
            self.parallel = seconds < limit
            if self.parallel:
                self._trial_interval = _TRIAL_INTERVAL

    def in_time(self, load: int) -> bool:
        """Return whether a POST is answered in time if it brings the events in flight to `load`."""
        return self.parallel or self._cost * load <= _SAFE * self._timeout

    def start_trial(self, seconds: float, now: float) -> bool:
        """Return whether to try two POSTs in parallel, if a single one takes this long.

        The interval between trials grows while they find that the sink is serial.
        """
        if seconds > _MAX_TRIAL * self._timeout or now < self._next_trial:
            return False
        self._next_trial = now + self._trial_interval
        self._trial_interval = min(2 * self._trial_interval, _MAX_TRIAL_INTERVAL)
        self.trial = True
        return True


class AdaptiveConcurrency:
    """Grants slots for POSTs. Each is returned by `release`, at once after the verdict if any."""

    def __init__(self, timeout: float, gauge: Gauge) -> None:
        self._timeout = timeout
        self._limit = 1.0
        self._threshold = math.inf  # limit from which on it grows slowly
        self._waiting: deque[tuple[asyncio.Future[Slot], int]] = deque()
        self._in_flight = self._load = 0  # POSTs, and events in them
        self._demand = 0  # the most POSTs that were in flight or waiting
        self._failed_rounds = 0
        self._reduced_at = 0.0  # POSTs that started before do not reduce the limit again
        self._resume_at = 0.0  # the end of the back-off
        self._retry_after = False  # whether the sink asked for the back-off
        self._timer: asyncio.TimerHandle | None = None
        self._speed = _Speed(timeout)
        self._reduced = Outage("post concurrency reduced", "post concurrency restored")
        self._sufficient_at = time.monotonic()
        self.max_events = sys.maxsize
        """Maximum events per list at present."""
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
        if not self._waiting:
            self._sufficient_at = time.monotonic()  # an idle hour is not a slow sink
        self._waiting.insert(0 if retry else len(self._waiting), entry)
        self._demand = max(self._demand, self._in_flight + len(self._waiting))
        self._dispatch()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                with suppress(ValueError):  # `_dispatch` has removed it already
                    self._waiting.remove(entry)
            else:
                self.release(waiter.result())
            raise

    def release(self, slot: Slot) -> None:
        """Return a slot."""
        self._in_flight -= 1
        self._load -= slot.events
        self._dispatch()

    def succeeded(self, slot: Slot) -> None:
        """Note that the sink answered, and can take other POSTs."""
        now = time.monotonic()
        # Retry-After is honoured although a POST that started before it has succeeded.
        if not self._retry_after or slot.started >= self._resume_at:
            self._resume_at, self._retry_after = 0.0, False
        if self._failed_rounds > 1:
            self._sufficient_at = now  # it was down, which is not slow
        self._failed_rounds = 0
        self._adapt(slot, now - slot.started, now)
        self._report(now)

    def failed(self, slot: Slot, *, timed_out: bool = False, retry_after: float = 0.0) -> None:
        """Note that the sink did not accept the events this time."""
        now = time.monotonic()
        if slot.started >= self._reduced_at:  # POSTs that were in flight together fail as one
            self._failed_rounds += 1
            self._reduced_at = now
            self._retry_after = self._speed.parallel = self._speed.trial = False
            if timed_out and self.limit == 1:
                self.max_events = max(1, slot.events // 2)
            outage = self._failed_rounds > 1
            self._limit = 1.0 if outage else max(1.0, self._limit / 2)
            self._threshold = math.inf if outage else self._limit
        backoff = min(_BACKOFF * 2 ** min(self._failed_rounds - 1, 10), MAX_BACKOFF)
        backoff *= random.uniform(0.5, 1)  # noqa: S311 - not a secret
        if retry_after > MAX_BACKOFF:
            self._sufficient_at = now + retry_after  # the sink is down, which is not slow
        self._retry_after = self._retry_after or retry_after > backoff
        self._resume_at = max(self._resume_at, now + max(backoff, retry_after))

    def _adapt(self, slot: Slot, seconds: float, now: float) -> None:
        """Adjust the limit to a response that took this long."""
        self._speed.observe(slot, seconds)
        if seconds > _NEAR_TIMEOUT * self._timeout:
            if slot.started >= self._reduced_at:
                self._reduced_at = now
                self._limit = max(1.0, self._limit * _REDUCTION)
        elif self.max_events < slot.events * 2:
            if self._speed.in_time(slot.load + slot.events):
                self.max_events *= 2
        elif self._waiting:
            added = sum(events for _, events in islice(self._waiting, 2))
            expected = seconds * added / 2 / slot.events  # for one of the next POSTs
            if self._speed.in_time(self._load - slot.events + added) or (
                self.limit == 1 and self._speed.start_trial(expected, now)
            ):
                self._limit += 1 if self._limit < self._threshold else 1 / self._limit

    def _report(self, now: float) -> None:
        """Log when the limit stays below a quarter of the demand, and when it has recovered."""
        if self._limit * 4 >= self._demand:
            self._sufficient_at = now
            self._reduced.end(limit=self.limit, demand=self._demand)
        elif now - self._sufficient_at > _LOG_AFTER and self._waiting:
            metrics = "aks_audit_post_seconds, aks_audit_post_retries_total"
            reason = f"the sink is slow or rejects load: see {metrics}"
            self._reduced.fail(reason, limit=self.limit, demand=self._demand)

    def _is_open(self, events: int, now: float) -> bool:
        if now < self._resume_at:
            return False
        in_time = self._speed.trial or self._speed.in_time(self._load + events)
        return not self._in_flight or (self._in_flight < self.limit and in_time)

    def _start(self, events: int) -> Slot:
        if self._in_flight:
            self._speed.trial = False  # until its result is known, no third POST starts
        self._in_flight += 1
        self._load += events
        return Slot(time.monotonic(), events, self._load)

    def _dispatch(self) -> None:
        """Grant the slots that are free, now or when the back-off ends."""
        now = time.monotonic()  # read once, or the back-off could end between two readings
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
