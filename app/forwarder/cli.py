"""The command line: reads settings, runs the forwarder, turns errors into exit statuses."""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from signal import Signals

import uvloop

from forwarder import __version__, log
from forwarder.app import run
from forwarder.errors import ForwarderError, SettingsError
from forwarder.settings import Settings


def main(
    arguments: Sequence[str], signals: Sequence[Signals], *, stopped: Callable[[], bool]
) -> int:
    """Run until one of the signals comes; `stopped` tells whether one has come already.

    Returns the exit status: 0 after a graceful stop, 2 for bad settings, 1 for anything else.
    """
    parser = argparse.ArgumentParser("forwarder", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    parser.parse_args(arguments)
    try:
        settings = Settings.from_env()
    except SettingsError as error:
        sys.stderr.write("".join(f"{problem}\n" for problem in error.problems))
        return 2
    log.configure(settings)

    async def until_signal() -> None:
        stop = asyncio.Event()
        for number in signals:
            asyncio.get_running_loop().add_signal_handler(number, _stop, stop)
        if stopped():
            stop.set()
        await run(settings, stop)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(until_signal())
    except ForwarderError as error:
        log.error("cannot run", reason=str(error))
        return 1
    except Exception as error:  # noqa: BLE001 - the last word must be a log entry
        log.error("stopped by an error", reason=log.describe(error))
        return 1
    return 0


def _stop(stop: asyncio.Event) -> None:
    """Stop gracefully at the first signal, at once at the second."""
    if stop.is_set():
        os._exit(1)
    stop.set()
