"""Sizing by number of clusters, from limits of the service and measured figures."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from bench.figures import Results

# Assumptions about a cluster; sizing.md describes how to measure them.
EVENTS = 50.0  # per second, on average over a day
PEAK = 4.0  # times the average
KB = 1.5  # per event, in the hub
PER_MESSAGE = 22  # events

# Limits of the service, Standard tier.
UNIT_IN, UNIT_OUT = 1.0, 2.0  # MB/s of a throughput unit; of a partition too
PARTITIONS = 32  # of a hub
UNIT_HOLDS = 84  # GB that a throughput unit includes

CATCH_UP = UNIT_OUT / UNIT_IN  # times the peak: the maximum rate for a backlog
CORE = 0.6  # planned utilization of a core
MONTH = 730 * 3600  # seconds
CHECKPOINT, BALANCING = 5, 10  # seconds, the default settings


def _up(value: float) -> int:
    """Round up, but ignore rounding errors above a whole number."""
    return ceil(round(value, 6))


@dataclass(frozen=True)
class Size:
    """The resources for this number of clusters; `cpu` is in microseconds per event."""

    clusters: int
    cpu: float

    @property
    def namespaces(self) -> int:
        """Event Hubs namespaces, such that no hub exceeds the limit of partitions."""
        return _up(self.clusters * EVENTS * PEAK * KB / 1000 / (PARTITIONS * UNIT_IN))

    @property
    def each(self) -> float:
        """Clusters per namespace."""
        return self.clusters / self.namespaces

    @property
    def events(self) -> float:
        """Events per second on average."""
        return self.each * EVENTS

    @property
    def inward(self) -> float:
        """MB/s at the peak."""
        return self.events * PEAK * KB / 1000

    @property
    def units(self) -> int:
        """Throughput units."""
        return _up(self.inward / UNIT_IN)

    @property
    def partitions(self) -> int:
        """Partitions: a power of two, at least 4."""
        return max(4, 1 << (self.units - 1).bit_length())

    @property
    def cores(self) -> float:
        """Cores to catch up at the peak."""
        return self.events * PEAK * CATCH_UP * self.cpu / 1e6

    @property
    def replicas(self) -> int:
        """Pods; at least two for more than one cluster."""
        return max(1 if self.clusters == 1 else 2, _up(self.cores / CORE))

    @property
    def writes(self) -> float:
        """Metadata writes to the storage account per month; none for a single replica."""
        each = self.partitions * (1 / CHECKPOINT + 1 / BALANCING)
        return 0 if self.replicas == 1 else self.namespaces * each * MONTH

    @property
    def lists(self) -> float:
        """List operations per month: each replica lists ownerships and replicas."""
        each = self.replicas * 2 / BALANCING
        return 0 if self.replicas == 1 else self.namespaces * each * MONTH


def markdown(results: Results) -> str:
    """Return the table for 1, 10, 100 and 1,000 clusters as Markdown."""
    cpu = results.medians()["tls", "cpu"]
    memory = results.medians()["many", "memory"]
    limit = 64 * _up(2 * memory / 64)  # twice the measured value
    sizes = [Size(clusters, cpu) for clusters in (1, 10, 100, 1000)]
    rows: tuple[tuple[str, str, Callable[[Size], str]], ...] = (
        (
            "namespaces, each with its own release",
            f"peak MB/s ÷ {PARTITIONS} partitions",
            lambda s: f"{s.namespaces}",
        ),
        (
            "*of each namespace:* events per second",
            f"clusters × {EVENTS:g}",
            lambda s: f"{s.events:,.0f}",
        ),
        ("at the peak", f"× {PEAK:g}", lambda s: f"{s.events * PEAK:,.0f}"),
        ("MB/s into the hub at the peak", f"× {KB:g} KB", lambda s: f"{s.inward:.1f}"),
        (
            "messages per second on average",
            f"÷ {PER_MESSAGE}",
            lambda s: f"{s.events / PER_MESSAGE:,.0f}",
        ),
        ("**throughput units**", f"MB/s ÷ {UNIT_IN:g}", lambda s: f"**{s.units}**"),
        ("**partitions**", "≥ units, 4 at least", lambda s: f"**{s.partitions}**"),
        (
            "cores to catch up at the peak",
            f"peak × {CATCH_UP:g} × {cpu:.1f} us",
            lambda s: f"{s.cores:.2f}",
        ),
        ("**replicas**", f"cores ÷ {CORE:g}, 2 for redundancy", lambda s: f"**{s.replicas}**"),
        (
            "**memory limit** of a pod",
            f"2 × {memory:.0f} MiB",
            lambda _: f"**{limit} MiB**",
        ),
        (
            "GB for a day of retention",
            f"a unit includes {UNIT_HOLDS}",
            lambda s: f"{s.events * KB * 86400 / 1e6:,.0f}",
        ),
        (
            "*a month, in all:* unit hours",
            "units × 730",
            lambda s: f"{s.namespaces * s.units * 730:,}",
        ),
        (
            "million ingress events",
            "messages, of 64 KB at most",
            lambda s: f"{s.namespaces * s.events / PER_MESSAGE * MONTH / 1e6:,.0f}",
        ),
        (
            "million metadata writes to the storage account",
            f"partitions × (1/{CHECKPOINT} s + 1/{BALANCING} s)",
            lambda s: f"{s.writes / 1e6:,.0f}" if s.writes else "none",
        ),
        (
            "million list operations on it",
            f"replicas × 2 ÷ {BALANCING} s",
            lambda s: f"{s.lists / 1e6:,.0f}" if s.lists else "none",
        ),
    )
    lines = ["| clusters | | " + " | ".join(f"{s.clusters:,}" for s in sizes) + " |"]
    lines.append("|---|---" + "|--:" * len(sizes) + "|")
    lines += [
        f"| {name} | {how} | " + " | ".join(of(size) for size in sizes) + " |"
        for name, how, of in rows
    ]
    return "\n".join(lines)
