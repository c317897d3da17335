"""What is measured: loads, what carries them, and targets."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Load:
    """What a hub holds, in messages of `per_message` events, and how the sink behaves."""

    per_message: int = 22
    events: Literal["typical", "all", "responses"] = "typical"
    messages: int = 60_000
    unique: bool = False
    """Whether all events differ; if not, a few messages are published over and over."""
    partitions: int = 4
    pace: float = 0
    """Seconds between two messages, without end; with 0 all are there from the start."""
    delay: float = 0
    """Seconds that the sink takes to answer."""
    capacity: float = 0
    """Events per second of a sink that serves one POST at a time; 0 is no limit."""
    outage: float = 0
    """Seconds from the first POST on for which the sink answers 503."""
    tls: bool = False
    """Whether the hub is served over TLS too."""


@dataclass(frozen=True)
class Carrier:
    """The processes that carry a load: a module with these settings."""

    module: str = "forwarder"
    settings: Mapping[str, str] = field(default_factory=dict)
    replicas: int = 1
    shared: bool = False
    """Whether checkpoints are in a storage account. The measurement then starts once each replica
    has its share of the partitions."""
    tls: bool = False
    """Whether the hub is read over TLS."""
    app: str = ""
    """The `app` folder of another version; "" is this one."""


PLAIN = Carrier("bench.baseline")
"""One event per POST, in turn, and a checkpoint per message."""


@dataclass(frozen=True)
class Work:
    """A load, what carries it, what else does for comparison, and targets by names of measures."""

    title: str
    load: Load
    targets: Mapping[str, float | None]
    """Absolute ones."""
    ratios: Mapping[str, float] = field(default_factory=dict)
    """Targets as a share of the version that is compared with."""
    carrier: Carrier = field(default_factory=Carrier)
    against: Carrier | None = None
    seconds: float = 3
    """How long a round is measured, at most, from the first event on."""
    settle: float = 0
    """Seconds, from the first event on, that are not measured."""
    rounds: int = 5
    short: bool = True
    """Whether the short run has it."""


_SINGLE = {"WebSinkMaxEvents": "1"}
_SHARING = {"LoadBalancingInterval": "1"}
_WIDE = Load(partitions=8, messages=90_000)
_SLOW = 150  # events per second

WORKS: dict[str, Work] = {
    "lists": Work(
        "lists, messages of 33 KB",
        Load(),
        {"rate": None, "cpu": None, "memory": 80, "start": 1, "ramp": 2},
        {"cpu": 0.85},
        against=PLAIN,
    ),
    "large": Work(
        "lists, messages of 900 KB",
        Load(per_message=400, events="all", messages=4_000),
        {"rate": None, "cpu": None, "memory": 128},
        against=PLAIN,
    ),
    "responses": Work(
        "events of 2.3 KB, with responses",
        Load(events="responses", messages=40_000),
        {"rate": None, "cpu": None},
        {"cpu": 0.85},
        against=PLAIN,
        rounds=3,
        short=False,
    ),
    "single": Work(
        "one event per POST",
        Load(messages=20_000),
        {"rate": None, "cpu": None, "ramp": 2},
        {"cpu": 0.75},
        carrier=Carrier(settings=_SINGLE),
        against=PLAIN,
    ),
    "small": Work(
        "one partition, one record per message",
        Load(per_message=1, messages=60_000, partitions=1),
        {"rate": 10_000, "cpu": None},
        rounds=3,
        short=False,
    ),
    "slow": Work(
        "sink answers after 5 ms",
        Load(delay=0.005),
        {"rate": None, "gain": 25},
        against=PLAIN,
        rounds=3,
    ),
    "pressed": Work(
        f"sink takes {_SLOW} events per second, timeout 3 s",
        Load(messages=909, unique=True, capacity=_SLOW),
        {"goodput": 85, "copies": 5},
        carrier=Carrier(settings={"WebSinkTimeout": "3"}),
        seconds=30,
        rounds=2,
        short=False,
    ),
    "recovery": Work(
        "sink back after 40 s of 503",
        Load(outage=40),
        {"recovery": 2},
        seconds=12,
        rounds=2,
        short=False,
    ),
    "waiting": Work(
        "8,000 events after 40 s of 503",
        Load(messages=364, outage=40),
        {"drained": 5},
        seconds=40,
        rounds=2,
        short=False,
    ),
    "live": Work(
        "a live event, 10 per second",
        Load(per_message=1, messages=0, pace=0.1),
        {"delay": 20},
        settle=1,
        rounds=3,
    ),
    "idle": Work(
        "4 quiet partitions",
        Load(messages=0),
        {"share": 2, "memory": 45},
        seconds=6,
        settle=2,
        rounds=3,
    ),
    "idle_shared": Work(
        "4 quiet partitions, storage account",
        Load(messages=0),
        {"share": 2, "memory": 62},
        carrier=Carrier(settings=_SHARING, shared=True),
        seconds=6,
        settle=2,
        rounds=2,
        short=False,
    ),
    "idle_tls": Work(
        "32 quiet partitions, over TLS",
        Load(messages=0, partitions=32, tls=True),
        {"share": 1, "memory": None},
        carrier=Carrier(tls=True),
        seconds=20,
        settle=5,
        rounds=2,
        short=False,
    ),
    "wide": Work(
        "32 partitions, messages of 900 KB",
        Load(per_message=400, events="all", messages=4_000, partitions=32),
        {"rate": None, "memory": 110},
        rounds=2,
        short=False,
    ),
    **{
        f"policy_{name}": Work(
            f"policy `{name}` (to none)",
            Load(events="all", messages=30_000),
            {"added": 3},
            carrier=Carrier(settings={"AuditPolicyFile": name}),
            against=Carrier(),
            rounds=3,
            short=False,
        )
        for name in ("quiet", "security")
    },
    "tls": Work(
        "hub over TLS (to without)",
        Load(tls=True),
        {"rate": None, "cpu": None},
        carrier=Carrier(tls=True),
        against=Carrier(),
        rounds=3,
        short=False,
    ),
    "level": Work(
        "log level 4 (to level 2)",
        Load(),
        {"rate": None, "cpu": None, "dearer": 2},
        carrier=Carrier(settings={"VerboseLevel": "4"}),
        against=Carrier(),
        rounds=3,
        short=False,
    ),
    "replicas": Work(
        "2 replicas, 8 partitions (to 1)",
        _WIDE,
        {"rate": None, "cpu": None, "scale": 1.8},
        carrier=Carrier(settings=_SHARING, replicas=2, shared=True),
        against=Carrier(settings=_SHARING, shared=True),
        rounds=3,
        short=False,
    ),
    "four": Work(
        "4 replicas, 8 partitions",
        Load(partitions=8, messages=120_000),
        {"rate": None, "slowest": None, "memory": None},
        carrier=Carrier(settings=_SHARING, replicas=4, shared=True),
        rounds=3,
        short=False,
    ),
    "many": Work(
        "4 replicas, 32 partitions",
        Load(partitions=32, messages=120_000),
        {"rate": None, "slowest": None, "cpu": None, "memory": None},
        carrier=Carrier(settings=_SHARING, replicas=4, shared=True),
        rounds=3,
        short=False,
    ),
}


@dataclass(frozen=True)
class Point:
    """A round of a growth: what grew, to how much, with what load and settings."""

    growth: str
    x: float
    load: Load
    settings: Mapping[str, str] = field(default_factory=dict)
    series: str = ""
    seconds: float = 3


DRAIN = 200.0  # seconds, at most, for what is measured to its end
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
