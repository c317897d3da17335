"""Shared fixtures, and a check that the output of no test contains a key."""

import re
import signal
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from support.azurite import Azurite
from support.environment import Environment, environment
from support.eventhubs import Hub, Server
from support.harness import HUB
from support.process import Forwarder
from support.webhook import Webhook

# A shell ignores SIGINT for background jobs, and child processes would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run; the fuzzer of the fault suite searches for new ones.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],  # on a busy machine
)
settings.load_profile("repeatable")

_KEY = re.compile(r"(?:SharedAccessKey|AccountKey|sig)=([^;&\s]{8,})|://[^/\s]*:([^/\s@]{8,})@")


def _keys(text: str) -> set[str]:
    """Return the keys of connection strings, and the passwords of URLs."""
    return {key for found in _KEY.findall(text) for key in found if key}


_LOCAL_KEYS = _keys(f"{Server({}).connection_string()}\n{Azurite(0, 0).connection_string}")


@pytest.fixture
async def webhook() -> AsyncIterator[Webhook]:
    async with Webhook() as webhook:
        yield webhook


@pytest.fixture
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    """Run a local hub with two partitions, or with the module's `PARTITIONS`."""
    async with Server({HUB: getattr(request.module, "PARTITIONS", 2)}) as server:
        yield server


@pytest.fixture
def hub(server: Server) -> Hub:
    return server.hubs[HUB]


@pytest.fixture
async def env(tmp_path: Path) -> AsyncIterator[Environment]:
    """Run a hub with one partition and a sink, for forwarders in child processes."""
    async with environment(tmp_path / "state", partitions=1) as env:
        yield env


@pytest.fixture(autouse=True)
def no_forwarder_prints_a_key() -> Iterator[None]:
    """Fail a test if one of its forwarders printed a key."""
    yield
    while Forwarder.started:
        forwarder = Forwarder.started.pop()
        output = f"{forwarder.output}\n{forwarder.stderr}"
        assert not [
            key for key in _keys("\n".join(forwarder.environment.values())) if key in output
        ]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test whose captured output contains a key of the local servers."""
    report = yield
    captured = report.capstdout + report.capstderr + report.caplog
    if report.passed and any(key in captured for key in _LOCAL_KEYS):
        report.outcome = "failed"
        report.longrepr = "its output contains a key"
    return report
