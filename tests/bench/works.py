"""What is measured: loads, who carries them, and the figures that are aimed at."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Load:
    """What a hub holds, in messages of so many events, and how long the sink takes to answer."""

    per_message: int = 22
    events: Literal["typical", "all", "responses"] = "typical"
    messages: int = 60_000
    """Different ones are few, and published over and over: making them is not what is measured."""
    partitions: int = 4
    pace: float = 0
    """Seconds between two messages, without end; with 0 all are there from the start."""
    delay: float = 0
    """Seconds."""
    tls: bool = False
    """Whether the hub is served over TLS too."""


@dataclass(frozen=True)
class Carrier:
    """Who carries a load: so many processes of a module, with these settings."""

    module: str = "forwarder"
    settings: Mapping[str, str] = field(default_factory=dict)
    replicas: int = 1
    shared: bool = False
    """Whether checkpoints are in a storage account; measured is then what comes once each replica
    has its share of the partitions."""
    tls: bool = False
    """Whether the hub is read over TLS."""


OLD = Carrier("bench.baseline")
"""One event a POST, in turn, and a checkpoint a message."""


@dataclass(frozen=True)
class Work:
    """A load, who carries it, who else does for comparison, and targets by names of measures."""

    title: str
    load: Load
    targets: Mapping[str, float | None]
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

WORKS: dict[str, Work] = {
    "lists": Work(
        "lists, messages of 33 KB",
        Load(),
        {"rate": 80_000, "cpu": 12, "memory": 80, "start": 3},
        against=OLD,
    ),
    "large": Work(
        "lists, messages of 900 KB",
        Load(per_message=400, events="all", messages=4_000),
        {"rate": 110_000, "cpu": 8.5, "memory": 128},
        against=OLD,
    ),
    "responses": Work(
        "events of 2.3 KB, with responses",
        Load(events="responses", messages=40_000),
        {"rate": 25_000, "cpu": None},
        against=OLD,
        rounds=3,
        short=False,
    ),
    "single": Work(
        "one event a POST",
        Load(messages=20_000),
        {"rate": 10_000, "cpu": None},
        Carrier(settings=_SINGLE),
        against=OLD,
    ),
    "slow": Work(
        "sink answers after 5 ms",
        Load(delay=0.005),
        {"rate": None, "gain": 25},
        against=OLD,
        rounds=3,
    ),
    "live": Work(
        "a live event, 10 a second",
        Load(per_message=1, messages=0, pace=0.1),
        {"delay": 20},
        settle=1,
        rounds=3,
    ),
    "idle": Work(
        "4 quiet partitions",
        Load(messages=0),
        {"share": 2, "memory": 60},
        seconds=6,
        settle=2,
        rounds=3,
    ),
    "tls": Work(
        "hub over TLS (to without)",
        Load(tls=True),
        {"rate": None, "cpu": None},
        Carrier(tls=True),
        against=Carrier(),
        rounds=3,
        short=False,
    ),
    "level": Work(
        "log level 4 (baseline: 2)",
        Load(),
        {"rate": None, "cpu": None},
        Carrier(settings={"VerboseLevel": "4"}),
        against=Carrier(),
        rounds=3,
        short=False,
    ),
    "replicas": Work(
        "2 replicas, 8 partitions (to 1)",
        _WIDE,
        {"rate": None, "cpu": None, "scale": 1.8},
        Carrier(settings=_SHARING, replicas=2, shared=True),
        against=Carrier(settings=_SHARING, shared=True),
        rounds=3,
        short=False,
    ),
    "many": Work(
        "4 replicas, 32 partitions",
        Load(partitions=32, messages=120_000),
        {"rate": None, "cpu": None, "memory": None},
        Carrier(settings=_SHARING, replicas=4, shared=True),
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
