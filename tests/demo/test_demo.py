"""The demo reports missing events, and reads a real hub without affecting other readers."""

import asyncio
import io
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from azure.eventhub.aio import EventHubConsumerClient
from rich.console import Console

from demo import local
from demo.live import line
from forwarder.audit.envelope import Event
from support import events
from support.eventhubs import Server
from support.harness import free_port
from support.webhook import Post, Response

ROOT = Path(__file__).parents[2]
HUB = "insights-logs-kube-audit"
UNREACHABLE = (
    f"Endpoint=sb://127.0.0.1:{free_port()};SharedAccessKeyName=a;SharedAccessKey=geheim;"
    "UseDevelopmentEmulator=true"
)


@asynccontextmanager
async def demo(*arguments: str, root: Path = ROOT, **variables: str) -> AsyncIterator[Process]:
    """Run `python -m demo` as make does, without a terminal."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "demo",
        *arguments,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{root / 'app'}:{root / 'tests'}",
            **variables,
        },
        stdout=PIPE,
        stderr=PIPE,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def result(process: Process) -> tuple[int, str, str]:
    """Return exit status, standard output and standard error."""
    out, err = await asyncio.wait_for(process.communicate(), 200)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_it_kills_the_forwarder_and_shows_that_nothing_is_missing() -> None:
    async with demo("10000") as process:
        status, out, err = await result(process)
    assert (status, err) == (0, "")
    rows = [[cell.strip() for cell in row.split("│")[1:3]] for row in out.splitlines()]
    table = {row[1].split(":")[0].split(",")[0]: row[0] for row in rows if len(row) == 2}
    assert table["audit events published"] == "10,000"
    assert table["delivered"] == "9,999"
    assert table["dead letters"] == "1"
    assert table["missing"] == "0"
    assert "1 of them completed" in out
    assert "Killed with SIGKILL" in out
    assert '"message":"hub message"' in out
    assert 'aks_audit_events_total{outcome="delivered"' in out


async def test_it_runs_without_helm_and_reports_it(tmp_path: Path) -> None:
    """The same sources in a folder without .bin, and a PATH without helm."""
    for name in ("app", "tests", "chart"):
        (tmp_path / name).symlink_to(ROOT / name)
    async with demo("300", root=tmp_path, PATH="/nowhere") as process:
        status, out, err = await result(process)
    assert (status, err) == (0, "")
    assert "Helm is not installed" in out


async def test_it_fails_when_an_event_is_missing() -> None:
    """The sink returns 200 but discards POSTs with one kind of event."""
    discarded = b'"subresource":"binding"'

    def rule(post: Post) -> Response:
        return Response(delay=0.05, discard=discarded in post.body)

    shown = io.StringIO()
    assert any(discarded in event for event in events.real_events())
    status = await local.show(1500, Console(file=shown, width=120), rule=rule, patience=4)
    assert status == 1
    (row,) = [row for row in shown.getvalue().splitlines() if "│ missing" in row]
    assert int(row.split("│")[1].strip().replace(",", "")) > 0


async def test_ctrl_c_ends_it_without_a_traceback_or_a_forwarder_left_behind() -> None:
    async with demo("100000") as process:
        assert process.stdout
        await process.stdout.readline()
        demo_process = psutil.Process(process.pid)
        await until(lambda: bool(demo_process.children()))
        await asyncio.sleep(1)
        (forwarder,) = demo_process.children()
        process.send_signal(signal.SIGINT)
        status, _, err = await result(process)
    assert (status, err) == (130, "")
    assert not forwarder.is_running()


async def test_it_reports_why_the_forwarder_does_not_run() -> None:
    async with demo("300", VerboseLevel="5") as process:
        status, out, err = await result(process)
    assert (status, err) == (1, "")
    assert "VerboseLevel" in out


async def test_new_events_of_a_real_hub_are_printed_one_line_per_event() -> None:
    async with Server({HUB: 4}) as server:
        hub = server.hubs[HUB]
        hub.publish(0, events.envelope(events.real_events()[:1]))
        connection = server.connection_string()
        async with demo(EhubNamespaceConnectionString=connection) as process:
            await until(lambda: len(server.receivers) == 4)
            assert {receiver.epoch for receiver in server.receivers} == {None}
            hub.publish(1, events.envelope(events.real_events()[1:2]))
            hub.publish(2, b"not JSON")
            hub.publish(3, events.envelope(events.real_events()[2:5], category="guard"))
            assert process.stdout
            lines = [(await process.stdout.readline()).decode() for _ in range(3)]
            await asyncio.sleep(0.5)
            process.send_signal(signal.SIGINT)
            status, out, err = await result(process)
    assert (status, err) == (0, "")
    assert lines[2] == (
        "2026-11-23T09:16:53.623299Z deletecollection system:serviceaccount:kube-system:"
        "namespace-controller pods team-1 200\n"
    )
    assert "3 messages" in out
    assert "1 events" in out
    assert "3 records of other categories" in out
    assert "1 dead letters" in out
    assert server.keys.popitem()[1] not in "".join(lines) + out


async def test_reading_a_real_hub_never_affects_the_owner_of_its_consumer_group() -> None:
    """It is refused if there is an owner, ends when one attaches, and prints a remedy."""
    async with Server({HUB: 2}) as server:
        connection = server.connection_string(HUB)
        owner = EventHubConsumerClient.from_connection_string(connection, "$Default")
        received: list[str] = []

        async def receive(context: object, batch: object) -> None:
            received.append(f"{context}{batch}")

        async def own() -> None:
            await owner.receive_batch(receive, owner_level=0, starting_position="-1")

        async def attached(epochs: set[int | None]) -> None:
            await until(
                lambda: (
                    [r.epoch for r in server.receivers] == [*epochs, *epochs]
                )  # one per partition
            )

        async with demo(EhubNamespaceConnectionString=connection) as first:
            await attached({None})
            owning = asyncio.create_task(own())
            status, out, _ = await result(first)
            assert (status, "ConsumerGroup=NAME make demo" in out) == (1, True)
        await attached({0})
        before = set(server.receivers)
        async with demo(EhubNamespaceConnectionString=connection) as second:
            status, out, _ = await result(second)
            assert (status, "ConsumerGroup=NAME make demo" in out) == (1, True)
        server.hubs[HUB].groups.add("demo")
        async with demo(EhubNamespaceConnectionString=connection, ConsumerGroup="demo") as other:
            await until(lambda: len(server.receivers) == 4)
            server.hubs[HUB].publish(0, events.envelope(events.real_events()[:1]))
            assert other.stdout
            lines = [await other.stdout.readline() for _ in range(3)]
            assert b"watch admin secrets" in lines[2]
        await until(lambda: bool(received))
        assert before <= server.receivers, "the owner's links were replaced"
        owning.cancel()
        await asyncio.gather(owning, return_exceptions=True)
        await owner.close()


@pytest.mark.parametrize(
    ("connection", "status", "reported"),
    [
        ("Endpoint=sb://x;SharedAccessKey=geheim", 2, "SharedAccessKeyName"),
        (UNREACHABLE, 1, "does not respond"),
    ],
)
async def test_a_hub_that_cannot_be_read_is_reported_in_one_line(
    connection: str, status: int, reported: str
) -> None:
    async with demo(EhubNamespaceConnectionString=connection) as process:
        found, out, err = await result(process)
    assert found == status
    assert reported in out
    assert "geheim" not in out + err
    assert "Traceback" not in out + err


def test_a_line_has_no_control_characters() -> None:
    body = rb'{"auditID":"a","stage":"Panic","verb":"get","user":{"username":"\u001b[2J\nx\u202e"}}'
    assert line(Event(body, "")).replace("\N{REPLACEMENT CHARACTER}", "?") == "- get ?[2J?x? - - 0"
