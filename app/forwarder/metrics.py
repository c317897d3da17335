"""The Prometheus metrics; their names and labels are the public interface."""

import re
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from forwarder import __version__, log

_OUTCOMES: Final = ("delivered", "dead_lettered", "skipped", "filtered", "dropped")
_RESULTS: Final = ("ok", "error", "superseded")
_POST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_DELAY_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600, 14400, 86400)
_DELAY_BATCH: Final = 20  # POSTs
_parse: Final = datetime.fromisoformat


class PartitionMetrics:
    """The counters of one partition; they keep their values when it is claimed again."""

    def __init__(self, metrics: "Metrics", partition: str) -> None:
        self.messages = metrics.messages.labels(partition)
        self.received_bytes = metrics.bytes.labels(partition)
        self.records = metrics.records.labels(partition)
        self.salvaged = metrics.salvaged.labels(partition)
        self.lost = metrics.lost.labels(partition)
        self.outcomes = {name: metrics.events.labels(partition, name) for name in _OUTCOMES}
        self.checkpoints = {name: metrics.checkpoints.labels(partition, name) for name in _RESULTS}


class _DroppedEntries(Collector):
    """Reads the counter of the log, which is below the metrics and cannot import them."""

    def collect(self) -> Iterator[Metric]:
        text = "Log entries dropped because nobody reads the log fast enough"
        yield CounterMetricFamily("aks_audit_log_entries_dropped", text, value=log.dropped())


class _Delays(Collector):
    """A histogram that counts events in batches; one by one would cost as much as unpacking."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, list[str]]] = []
        self._up_to = dict.fromkeys(_DELAY_BUCKETS, 0)
        self._count = 0
        self._sum = 0.0

    def observe(self, stage_timestamps: list[str]) -> None:
        """Record that events with these timestamps (RFC 3339) are accepted now."""
        self._waiting.append((time.time(), stage_timestamps))
        if len(self._waiting) >= _DELAY_BATCH:
            self._count_waiting()

    def _count_waiting(self) -> None:
        delays = [
            now - _parse(stamp).timestamp() for now, stamps in self._waiting for stamp in stamps
        ]
        self._waiting.clear()
        delays.sort()
        for bound in _DELAY_BUCKETS:
            self._up_to[bound] += bisect_right(delays, bound)
        self._count += len(delays)
        self._sum += sum(delays[bisect_left(delays, 0.0) :])  # negative if this clock is behind

    def collect(self) -> Iterator[HistogramMetricFamily]:
        self._count_waiting()
        counts = [(str(float(bound)), count) for bound, count in self._up_to.items()]
        yield HistogramMetricFamily(
            "aks_audit_event_delay_seconds",
            "From stageTimestamp to the sink's acceptance",
            buckets=[*counts, ("+Inf", self._count)],
            sum_value=self._sum,
        )


class Metrics:
    """All metrics of one process, in their own registry."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a third of all samples
        ProcessCollector(registry=registry)
        registry.register(_DroppedEntries())

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"aks_audit_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"aks_audit_{name}", text, labels, registry=registry)

        self.messages = counter("hub_messages", "Messages received from Event Hubs", "partition")
        self.bytes = counter("hub_bytes", "Bytes received from Event Hubs", "partition")
        self.records = counter("records", "Records unpacked from messages", "partition")
        self.events = counter("events", "Records by outcome", "partition", "outcome")
        self.salvaged = counter("events_salvaged", "Truncated events completed", "partition")
        self.lost = counter("lost_messages", "Messages expired before being read", "partition")
        self.checkpoints = counter("checkpoints", "Checkpoints written", "partition", "result")
        self.posts = counter("posts", "Responses of the sink by status", "status")
        self.retries = counter("post_retries", "POSTs repeated, by reason", "reason")
        self.post_seconds = Histogram(
            "aks_audit_post_seconds", "Duration of a POST", buckets=_POST_BUCKETS, registry=registry
        )
        self.post_concurrency = gauge("post_concurrency", "Current limit of concurrent POSTs")
        self.expiry = gauge(
            "tls_certificate_expiry_seconds", "Certificate expiry, Unix time", "file"
        )
        self.delays = _Delays()
        registry.register(self.delays)
        self.lag = gauge("lag_messages", "Messages behind the last checkpoint", "partition")
        self.oldest = gauge("oldest_undelivered_seconds", "Age of the oldest message", "partition")
        self.rules = counter("policy_rule", "Events by rule and resulting level", "rule", "level")
        self.dead_letters_waiting = gauge("dead_letters_waiting", "Dead letters not written yet")
        reopened = counter("reopened", "Partitions or clients reopened after a stall", "what")
        self.reopened = {what: reopened.labels(what) for what in ("partition", "client")}
        self.losses = counter("partition_losses", "Partitions lost to another reader", "partition")
        self.owned = gauge("partitions_owned", "Partitions that this process reads")
        self.hub_partitions = gauge("hub_partitions", "Partitions that the hub has")
        self.skew = gauge("clock_skew_seconds", "Seconds that the local clock is ahead")
        self.hub_up = gauge("hub_up", "1 if the hub answered when it was last asked")
        self.sink_up = gauge("sink_up", "1 if the sink accepted or rejected the last events")
        gauge("build_info", "1, with the version", "version").labels(__version__).set(1)

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """Return all metrics in the format that an Accept header prefers, and its content type.

        prometheus_client 0.26 ignores the weights, so each media range is tried on its own.
        """
        encode, content_type = choose_encoder("")
        for media_range in sorted(accept.split(","), key=_weight, reverse=True):
            with suppress(TypeError, ValueError):  # an invalid version
                encode, content_type = choose_encoder(media_range)
                if "openmetrics" in content_type or media_range.strip().startswith("text/plain"):
                    break
        return encode(self.registry), content_type


def _weight(media_range: str) -> float:
    """Return the weight of a media range, such as 0.5 of `text/plain;q=0.5`."""
    weight = re.search(r";\s*q=(\d(?:\.\d+)?)", media_range, re.ASCII)
    return float(weight[1]) if weight else 1.0
