"""The command line: errors at startup, signals and exit statuses."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from signal import SIGINT, SIGTERM, Signals
from typing import Self

import pytest
import yaml

from forwarder import __version__
from support import events
from support.environment import APP, Environment
from support.harness import HUB, free_port
from support.process import Forwarder
from support.webhook import Response

CHART = Path(__file__).parents[2] / "chart" / "Chart.yaml"
KEY = "c2VjcmV0IG9mIHRoZSBodWI="


class Listener:
    """Counts the connections to its port, and closes each without a response."""

    async def __aenter__(self) -> Self:
        self.connections = 0
        self._server = await asyncio.start_server(self._count, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    def _count(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.close()


def connection_string(port: int) -> str:
    return (
        f"Endpoint=sb://127.0.0.1:{port};SharedAccessKeyName=Root;SharedAccessKey={KEY};"
        "UseDevelopmentEmulator=true"
    )


async def test_every_invalid_variable_is_reported_before_any_connection(
    tmp_path: Path,
) -> None:
    invalid = {
        "BlobStorageConnectionString": connection_string(1),
        "VerboseLevel": "5",
        "StartPosition": "yesterday",
        "WebSinkHeaders": '{"Authorization": "Bearer dG9rZW4',
        "WebSinkTimeout": "10s",
        "LogFormat_FILE": "/nowhere/file",
    }
    async with (
        Listener() as listener,
        Forwarder(
            {
                "EhubNamespaceConnectionString": connection_string(listener.port),
                "WebSinkURL": f"http://127.0.0.1:{listener.port}/",
                "StateDirectory": str(tmp_path / "state"),
                **invalid,
            }
        ) as forwarder,
    ):
        assert await forwarder.wait() == 2
        assert listener.connections == 0
    lines = forwarder.stderr.splitlines()
    names = [name.removesuffix("_FILE") for name in invalid]
    assert sorted(line.split(": ")[0] for line in lines) == sorted(names)
    assert forwarder.lines == []
    assert not (tmp_path / "state").exists()
    assert not any(secret in forwarder.stderr for secret in (KEY, "dG9rZW4"))


async def test_missing_settings_are_reported() -> None:
    async with Forwarder({}) as forwarder:
        assert await forwarder.wait() == 2
    [line] = forwarder.stderr.splitlines()
    assert line.startswith("EhubNamespaceConnectionString: missing")


async def test_version_is_the_charts_app_version_and_needs_no_settings() -> None:
    async with Forwarder({}, "--version") as forwarder:
        assert await forwarder.wait() == 0
    assert forwarder.lines == [__version__]
    assert str(yaml.safe_load(CHART.read_text())["appVersion"]) == __version__


async def test_an_unwritable_state_directory_prevents_startup(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    state = tmp_path / "file" / "state"
    async with (
        Listener() as listener,
        Forwarder(
            {
                "EhubNamespaceConnectionString": connection_string(listener.port),
                "WebSinkURL": f"http://127.0.0.1:{listener.port}/",
                "StateDirectory": str(state),
            }
        ) as forwarder,
    ):
        assert await forwarder.wait() == 1
        assert listener.connections == 0
    [_, entry] = forwarder.log
    assert (entry["level"], entry["message"]) == ("error", "cannot run")
    assert entry["reason"].startswith(f"StateDirectory '{state}' cannot be written")


async def test_a_second_process_on_a_state_directory_fails_until_the_first_has_exited(
    env: Environment,
) -> None:
    async with env.forwarder() as first:
        await first.wait_for("partition claimed")
        async with env.forwarder() as second:
            assert await second.wait() == 1
        [_, entry] = second.log
        assert entry["message"] == "cannot run"
        assert f"StateDirectory '{env.state}' is in use" in entry["reason"]
        assert first.process.returncode is None
        first.kill()
        await first.wait()
    async with env.forwarder() as third:
        await third.wait_for("partition claimed")


async def test_an_http_port_in_use_prevents_startup(env: Environment) -> None:
    async with Listener() as listener:
        async with env.forwarder(HttpPort=str(listener.port)) as forwarder:
            assert await forwarder.wait() == 1
        assert "in use" in forwarder.log[-1]["reason"]
        assert str(listener.port) in forwarder.log[-1]["reason"]


async def until_signals_are_handled(forwarder: Forwarder) -> None:
    """Wait until the process handles SIGTERM; it handles SIGINT before that."""
    async with asyncio.timeout(90):
        while not handled_signals(forwarder) >> (SIGTERM - 1) & 1:  # noqa: ASYNC110  another process
            await asyncio.sleep(0.001)


def handled_signals(forwarder: Forwarder) -> int:
    """Return the bit mask of the signals that the process handles."""
    lines = Path(f"/proc/{forwarder.pid}/status").read_text().splitlines()
    return int(dict(line.split(":\t") for line in lines)["SigCgt"], 16)


# Seconds after signals are handled. Imports take about one second, so all hit startup.
@pytest.mark.parametrize("delay", [0, 0.05, 0.15, 0.3, 0.5, 0.8, 1.2])
@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
async def test_a_signal_during_startup_stops_the_forwarder_gracefully(
    env: Environment, delay: float, number: Signals
) -> None:
    async with env.forwarder() as forwarder:
        await until_signals_are_handled(forwarder)
        await asyncio.sleep(delay)
        forwarder.process.send_signal(number)
        assert await forwarder.wait() == 0
    assert forwarder.stderr == ""
    assert [entry for entry in forwarder.log if entry["level"] == "error"] == []


def test_signals_are_handled_before_large_modules_are_imported() -> None:
    code = """
import runpy, signal, sys
signal.signal = lambda *_: sys.exit(" ".join(sys.modules))
runpy.run_module("forwarder", run_name="__main__")
"""
    environment = {"PYTHONPATH": str(APP)}
    process = subprocess.run(
        [sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, check=False
    )
    imported = {*process.stderr.decode().split()}
    assert "forwarder" in imported
    assert not imported & {"_ssl", "uvloop", "msgspec"}


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
async def test_a_signal_stops_a_running_forwarder_gracefully(
    env: Environment, number: Signals
) -> None:
    async with env.forwarder() as forwarder:
        await forwarder.wait_for("partition claimed")
        forwarder.process.send_signal(number)
        assert await forwarder.wait() == 0
    assert forwarder.stderr == ""
    order = ["stopping", "partition given up", "stopped"]
    assert [entry["message"] for entry in forwarder.log if entry["message"] in order] == order


UNREACHABLE: list[dict[str, str]] = [
    {"EhubNamespaceConnectionString": connection_string(free_port())},
    {
        "BlobStorageConnectionString": f"AccountName=a;AccountKey={KEY};"
        f"BlobEndpoint=http://127.0.0.1:{free_port()}/a"
    },
]


@pytest.mark.parametrize("unreachable", UNREACHABLE, ids=["hub", "store"])
async def test_a_signal_stops_a_forwarder_that_waits_for_hub_or_store(
    env: Environment, unreachable: dict[str, str]
) -> None:
    async with Forwarder({**env.settings(), **unreachable}) as forwarder:
        await forwarder.until(lambda: any(one["level"] == "error" for one in forwarder.log))
        forwarder.terminate()
        assert await forwarder.wait() == 0
    assert forwarder.log[-1]["message"] == "stopped"


async def test_a_missing_hub_does_not_end_the_process(env: Environment) -> None:
    """The hub may be created later, and a crash loop would not help."""
    async with env.forwarder(EventHubName="nowhere") as forwarder:
        entry = await forwarder.wait_for("hub does not answer")
        assert "nowhere" in entry["reason"]
        forwarder.terminate()
        assert await forwarder.wait() == 0


async def test_a_second_signal_ends_a_drain_at_once(env: Environment) -> None:
    """The sink never responds, so a graceful stop would take all of ShutdownGrace."""
    env.webhook.rule = lambda _: Response(delay=1000)
    env.hub.publish(0, events.envelope(events.real_events()[:1]))
    async with env.forwarder(ShutdownGrace="1000", WebSinkTimeout="1000") as forwarder:
        await forwarder.wait_for("hub message")
        forwarder.terminate()
        await forwarder.wait_for("stopping")
        forwarder.process.send_signal(SIGINT)
        assert await forwarder.wait() == 1
    assert not forwarder.entries("stopped")


async def test_a_second_signal_ends_startup_at_once(env: Environment) -> None:
    async with env.forwarder() as forwarder:
        await until_signals_are_handled(forwarder)
        forwarder.process.send_signal(signal.SIGSTOP)  # so that both arrive during imports
        for number in (SIGTERM, SIGINT, signal.SIGCONT):
            forwarder.process.send_signal(number)
        assert await forwarder.wait() == 1
    assert forwarder.lines == []


async def test_entity_path_in_another_case_reads_the_same_hub(env: Environment) -> None:
    connection = env.server.connection_string(HUB.upper())
    async with env.forwarder(EhubNamespaceConnectionString=connection) as forwarder:
        await forwarder.wait_for("partition claimed")
        await forwarder.wait_for("hub answers")
