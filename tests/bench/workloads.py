"""The workloads: loads, the variants that forward them, and targets."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Load:
    """The content of the hub, in messages of `per_message` events, and the sink's behaviour."""

    per_message: int = 22
    events: Literal["typical", "all", "responses"] = "typical"
    messages: int = 60_000
    unique: bool = False
    """Whether all events are distinct; otherwise, a few messages are repeated."""
    partitions: int = 4
    pace: float = 0
    """Seconds between two messages, without end; with 0, all are published before the start."""
    delay: float = 0
    """Seconds until the sink responds."""
    capacity: float = 0
    """Events per second of a sink that processes one POST at a time; 0 is no limit."""
    outage: float = 0
    """Seconds from the first POST on during which the sink responds with 503."""
    tls: bool = False
    """Whether the hub also listens with TLS."""


@dataclass(frozen=True)
class Variant:
    """What is measured: a module with these settings, in one or more processes."""

    module: str = "forwarder"
    settings: Mapping[str, str] = field(default_factory=dict)
    replicas: int = 1
    shared: bool = False
    """Whether checkpoints are in a storage account. The measurement then starts when each replica
    owns its share of the partitions."""
    tls: bool = False
    """Whether it connects to the hub with TLS."""
    app: str = ""
    """The `app` folder of another version; "" is this one."""


MINIMAL = Variant("bench.baseline")
"""One event per POST, sequentially, and one checkpoint per message."""


@dataclass(frozen=True)
class Workload:
    """A load, a variant to measure and its baseline, and targets by names of measures."""

    title: str
    load: Load
    targets: Mapping[str, float | None]
    """Absolute targets."""
    ratios: Mapping[str, float] = field(default_factory=dict)
    """Targets for the ratio to the earlier version."""
    variant: Variant = field(default_factory=Variant)
    baseline: Variant | None = None
    seconds: float = 3
    """Maximum duration of a round, from the first event on."""
    settle: float = 0
    """Seconds after the first event that are not measured."""
    rounds: int = 5
    short: bool = True
    """Whether it is part of the short run."""


_SINGLE = {"WebSinkMaxEvents": "1"}
_SHARING = {"LoadBalancingInterval": "1"}
_WIDE = Load(partitions=8, messages=90_000)
_SLOW = 150  # events per second

WORKLOADS: dict[str, Workload] = {
    "lists": Workload(
        "lists, messages of 33 KB",
        Load(),
        {"rate": None, "cpu": None, "memory": 80, "start": 1, "ramp": 2},
        {"cpu": 0.85},
        baseline=MINIMAL,
    ),
    "large": Workload(
        "lists, messages of 900 KB",
        Load(per_message=400, events="all", messages=4_000),
        {"rate": None, "cpu": None, "memory": 128},
        baseline=MINIMAL,
    ),
    "responses": Workload(
        "events of 2.3 KB, with responses",
        Load(events="responses", messages=40_000),
        {"rate": None, "cpu": None},
        {"cpu": 0.85},
        baseline=MINIMAL,
        rounds=3,
        short=False,
    ),
    "single": Workload(
        "one event per POST",
        Load(messages=20_000),
        {"rate": None, "cpu": None, "ramp": 2},
        {"cpu": 0.75},
        variant=Variant(settings=_SINGLE),
        baseline=MINIMAL,
    ),
    "small": Workload(
        "one partition, one record per message",
        Load(per_message=1, messages=60_000, partitions=1),
        {"rate": 10_000, "cpu": None},
        rounds=3,
        short=False,
    ),
    "slow": Workload(
        "sink responds after 5 ms",
        Load(delay=0.005),
        {"rate": None, "gain": 25},
        baseline=MINIMAL,
        rounds=3,
    ),
    "pressed": Workload(
        f"sink takes {_SLOW} events per second, timeout 3 s",
        Load(messages=909, unique=True, capacity=_SLOW),
        {"goodput": 85, "copies": 5},
        variant=Variant(settings={"WebSinkTimeout": "3"}),
        seconds=30,
        rounds=2,
        short=False,
    ),
    "recovery": Workload(
        "sink back after 40 s of 503",
        Load(outage=40),
        {"recovery": 2},
        seconds=12,
        rounds=2,
        short=False,
    ),
    "waiting": Workload(
        "8,000 events after 40 s of 503",
        Load(messages=364, outage=40),
        {"drained": 5},
        seconds=40,
        rounds=2,
        short=False,
    ),
    "live": Workload(
        "a live event, 10 per second",
        Load(per_message=1, messages=0, pace=0.1),
        {"delay": 20},
        settle=1,
        rounds=3,
    ),
    "idle": Workload(
        "4 quiet partitions",
        Load(messages=0),
        {"share": 2, "memory": 45},
        seconds=6,
        settle=2,
        rounds=3,
    ),
    "idle_shared": Workload(
        "4 quiet partitions, storage account",
        Load(messages=0),
        {"share": 2, "memory": 62},
        variant=Variant(settings=_SHARING, shared=True),
        seconds=6,
        settle=2,
        rounds=2,
        short=False,
    ),
    "idle_tls": Workload(
        "32 quiet partitions, over TLS",
        Load(messages=0, partitions=32, tls=True),
        {"share": 1, "memory": None},
        variant=Variant(tls=True),
        seconds=20,
        settle=5,
        rounds=2,
        short=False,
    ),
    "wide": Workload(
        "32 partitions, messages of 900 KB",
        Load(per_message=400, events="all", messages=4_000, partitions=32),
        {"rate": None, "memory": 110},
        rounds=2,
        short=False,
    ),
    **{
        f"policy_{name}": Workload(
            f"policy `{name}` (to none)",
            Load(events="all", messages=30_000),
            {"added": 3},
            variant=Variant(settings={"AuditPolicyFile": name}),
            baseline=Variant(),
            rounds=3,
            short=False,
        )
        for name in ("quiet", "security")
    },
    "tls": Workload(
        "hub over TLS (to without)",
        Load(tls=True),
        {"rate": None, "cpu": None},
        variant=Variant(tls=True),
        baseline=Variant(),
        rounds=3,
        short=False,
    ),
    "level": Workload(
        "log level 4 (to level 2)",
        Load(),
        {"rate": None, "cpu": None, "dearer": 2},
        variant=Variant(settings={"VerboseLevel": "4"}),
        baseline=Variant(),
        rounds=3,
        short=False,
    ),
    "replicas": Workload(
        "2 replicas, 8 partitions (to 1)",
        _WIDE,
        {"rate": None, "cpu": None, "scale": 1.8},
        variant=Variant(settings=_SHARING, replicas=2, shared=True),
        baseline=Variant(settings=_SHARING, shared=True),
        rounds=3,
        short=False,
    ),
    "four": Workload(
        "4 replicas, 8 partitions",
        Load(partitions=8, messages=120_000),
        {"rate": None, "slowest": None, "memory": None},
        variant=Variant(settings=_SHARING, replicas=4, shared=True),
        rounds=3,
        short=False,
    ),
    "many": Workload(
        "4 replicas, 32 partitions",
        Load(partitions=32, messages=120_000),
        {"rate": None, "slowest": None, "cpu": None, "memory": None},
        variant=Variant(settings=_SHARING, replicas=4, shared=True),
        rounds=3,
        short=False,
    ),
}


@dataclass(frozen=True)
class Point:
    """A round of a growth series: the varied quantity, its value, load and settings."""

    growth: str
    x: float
    load: Load
    settings: Mapping[str, str] = field(default_factory=dict)
    series: str = ""
    seconds: float = 3


DRAIN = 200.0  # maximum seconds for a load that is measured until its end
PER_MESSAGE = (1, 7, 22, 70, 220, 640)  # events of 1.5 KB: 1.5 KB to 965 KB
DELAYS = (0, 0.005, 0.05, 0.5)  # seconds

GROWTH: tuple[Point, ...] = (
    *(Point("partitions", n, Load(partitions=n)) for n in (1, 4, 16, 32)),
    *(
        Point("size", n * 1.5, Load(per_message=n, messages=min(100_000, 2_000_000 // n)))
        for n in PER_MESSAGE
    ),
    *(
        Point("backlog", n, Load(messages=n // 22), seconds=DRAIN)
        for n in (10_000, 100_000, 1_000_000, 5_000_000)
    ),
    *(
        Point(
            "latency",
            delay * 1000,
            Load(delay=delay),
            {"WebSinkConcurrency": str(concurrency)},
            str(concurrency),
            4 if delay == max(DELAYS) else 2,
        )
        for concurrency in (1, 4, 16)
        for delay in DELAYS
    ),
)
