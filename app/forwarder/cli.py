"""The command line: reads settings, runs a command, turns errors into exit statuses."""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from signal import Signals
from typing import Any

import uvloop

from forwarder import __version__, log
from forwarder.app import run
from forwarder.commands.check.command import check
from forwarder.commands.policy import explain
from forwarder.commands.replay import replay
from forwarder.commands.repost import Selection
from forwarder.config.parsers import start_position, whole
from forwarder.config.settings import Settings
from forwarder.errors import ForwarderError, SettingsError
from forwarder.policy import document


def main(
    arguments: Sequence[str], signals: Sequence[Signals], *, stopped: Callable[[], bool]
) -> int:
    """Run until one of the signals comes; `stopped` tells whether one has come already.

    Returns the exit status: 0 after a graceful stop, 2 for bad settings, 1 for anything else.
    """
    parser = argparse.ArgumentParser("forwarder", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_check(commands)
    _add_replay(commands)
    _add_policy(commands)
    given = parser.parse_args(arguments)
    if given.command == "policy":
        return _policy(given)
    try:
        settings = Settings.from_env()
    except SettingsError as error:
        sys.stderr.write("".join(f"{problem}\n" for problem in error.problems))
        return 2
    log.configure(settings.verbose_level, settings.log_format, settings.secrets)

    async def until_signal() -> int:
        stop = asyncio.Event()
        for number in signals:
            asyncio.get_running_loop().add_signal_handler(number, _stop, stop)
        if stopped():
            stop.set()
        if given.command == "check":
            log.silence()
            work = asyncio.ensure_future(
                check(settings, post=not given.no_post, as_json=given.json)
            )
            stopping = asyncio.ensure_future(stop.wait())
            await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return 0 if work.done() and work.result() else 1
        if given.command == "replay":
            selection = Selection(given.since, given.reason, given.dry_run)
            return 0 if await replay(settings, selection, stop) else 1
        await run(settings, stop)
        return 0

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(until_signal())
    except ForwarderError as error:
        log.error("cannot run", reason=str(error))
        return 1
    except Exception as error:  # noqa: BLE001 - the last word must be a log entry
        log.error("stopped by an error", reason=log.describe(error))
        return 1


def _add_check(commands: Any) -> None:
    text = "walk from the hub to the sink and say, a line a step, what works, what not and why"
    parser = commands.add_parser("check", help=text, description=text)
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--no-post", action="store_true", help="post no empty list to the sink")


def _add_replay(commands: Any) -> None:
    text = "post dead letters again; what is accepted is removed, what is not stays"
    parser = commands.add_parser("replay", help=text, description=text)
    parser.add_argument(
        "--since",
        type=_since,
        metavar="WHEN",
        help="only those since an ISO 8601 instant, or not older than an age such as 6h",
    )
    parser.add_argument(
        "--reason", default="", metavar="TEXT", help="only those with this text in their reason"
    )
    parser.add_argument("--dry-run", action="store_true", help="just count them")


def _add_policy(commands: Any) -> None:
    text = "show what an audit policy makes of events, or print one that is built in"
    verbs = commands.add_parser("policy", help=text, description=text).add_subparsers(
        dest="verb", metavar="COMMAND", required=True
    )
    text = "say for each rule which events it matches and what is left of them"
    parser = verbs.add_parser("explain", help=text, description=text)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "file",
        nargs="?",
        default="",
        metavar="FILE",
        help="events as JSON lines, dead letters; or -",
    )
    where.add_argument(
        "--hub", type=whole(1), default=0, metavar="N", help="the newest N messages of the hub"
    )
    parser.add_argument(
        "--policy",
        default="",
        metavar="POLICY",
        help="FILE, quiet or security, not AuditPolicyFile",
    )
    parser.add_argument("--event", action="store_true", help="the first event, rule by rule")
    parser.add_argument("--json", action="store_true", help="for machines")
    text = "print a policy that is built in, to start your own from"
    verbs.add_parser("show", help=text, description=text).add_argument(
        "name", choices=document.PRESETS
    )


def _policy(given: argparse.Namespace) -> int:
    if given.verb == "show":
        sys.stdout.write(document.text(given.name))
        return 0
    return explain(given.file, given.policy, given.hub, event=given.event, as_json=given.json)


def _since(text: str) -> datetime | timedelta:
    try:
        if not isinstance(start := start_position(text), str):
            return start
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"'{text}' is neither an ISO 8601 instant nor an age like 6h")


def _stop(stop: asyncio.Event) -> None:
    """Stop gracefully at the first signal, at once at the second."""
    if stop.is_set():
        os._exit(1)
    stop.set()
