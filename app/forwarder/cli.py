"""The command line: runs the forwarder or a command, and returns the exit status."""

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from signal import SIGINT, SIGTERM
from typing import TYPE_CHECKING

import uvloop

from forwarder import __version__, log, redaction
from forwarder.config.parsers import shown_url
from forwarder.config.settings import Settings
from forwarder.errors import ForwarderError, SettingsError
from forwarder.imports import import_basics

if TYPE_CHECKING:
    from argparse import Namespace


def main(arguments: Sequence[str], *, stopped: Callable[[], bool]) -> int:
    """Run until SIGINT or SIGTERM; `stopped` returns whether one has arrived already.

    Returns the exit status: 0 after a graceful stop, 2 for invalid settings, 1 for anything else.
    """
    redaction.guard_streams()
    given = _parse(arguments) if arguments else None
    try:
        if given and given.command == "policy":
            return int(given.run(given))
        settings = Settings.from_env()
    except SettingsError as error:
        sys.stderr.write("".join(f"{redaction.printable(problem)}\n" for problem in error.problems))
        return 2
    log.configure(settings.verbose_level, settings.log_format, settings.secrets)

    async def until_signal() -> int:
        stop = asyncio.Event()
        for number in (SIGINT, SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, _stop, stop)
        if stopped():
            stop.set()
        if given:
            return 0 if await given.run(given, settings, stop) else 1
        _log_start(settings)
        import_basics()
        from forwarder.app import run  # noqa: PLC0415 - slow, and commands do not need it

        await run(settings, stop)
        return 0

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(until_signal())
    except Exception as error:  # noqa: BLE001 - the last output must be a log entry
        known = isinstance(error, ForwarderError)
        log.error("cannot run" if known else "stopped by an error", reason=log.describe(error))
        return 1


def _parse(arguments: Sequence[str]) -> "Namespace":
    """Parse a command and its arguments. The forwarder has none, and saves these imports."""
    import argparse  # noqa: PLC0415

    from forwarder.commands import policy, replay  # noqa: PLC0415
    from forwarder.commands.check import command as check  # noqa: PLC0415

    parser = argparse.ArgumentParser("forwarder", description="Without a command: forward events.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in (("check", check), ("replay", replay), ("policy", policy)):
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser.parse_args(arguments)


def _log_start(settings: Settings) -> None:
    log.info("start", version=__version__, url=str(shown_url(settings.web_sink_url)))
    hub, blob = settings.hub_connection, settings.blob_connection
    log.write(
        log.POST,
        "settings",
        EventHubName=settings.event_hub_name,
        BlobContainerName=settings.blob_container_name,
        WebSinkURL=str(shown_url(settings.web_sink_url)),
        VerboseLevel=settings.verbose_level,
        EhubNamespaceConnectionString=hub.length if hub else 0,
        BlobStorageConnectionString=blob.length if blob else 0,
    )


def _stop(stop: asyncio.Event) -> None:
    """Stop gracefully at the first signal, at once at the second."""
    if stop.is_set():
        os._exit(1)
    stop.set()
