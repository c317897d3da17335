"""A namespace for each module, and a summary of the measurements."""

import time
from collections.abc import Callable, Generator, Iterator

import pytest

from e2e.cluster import CommandError, Proxy, proxy, run
from e2e.world import World

Note = Callable[[str, object], None]
Lap = Callable[[], str]
_worlds: list[World] = []


@pytest.fixture(scope="session")
def cluster() -> Iterator[Proxy]:
    with proxy() as reached:
        yield reached


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest, cluster: Proxy) -> Iterator[World]:
    """Create the module's NAMESPACE from scratch, and delete it at the end."""
    world = World(request.module.NAMESPACE, cluster)
    _worlds.append(world)
    world.create()
    yield world
    _worlds.remove(world)
    world.remove()


@pytest.fixture
def note(record_property: Callable[[str, object], None]) -> Note:
    """Add a measurement to the summary."""
    return record_property


@pytest.fixture
def lap() -> Lap:
    """Return the seconds since the test began or since the last call."""
    last = time.monotonic()

    def seconds() -> str:
        nonlocal last
        before, last = last, time.monotonic()
        return f"{last - before:.1f} s"

    return seconds


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add objects, events and logs of the cluster to a failure."""
    report = yield
    if report.failed:
        for world in _worlds:
            for command in (
                ("get", "pods,services,persistentvolumeclaims", "--output=wide"),
                ("get", "events", "--sort-by=.lastTimestamp"),
                ("logs", "--selector=app=aks-audit-log-forwarder", "--tail=200"),
            ):
                try:
                    output = run("kubectl", "--namespace", world.namespace, *command)
                except CommandError as error:
                    output = str(error)
                report.sections.append((f"kubectl {' '.join(command)}", output[-20000:]))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the measurements."""
    terminalreporter.section("measured")
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{name:<60} {value}")
