"""`python -m demo [EVENTS]`: the local demo, or a real hub if its connection string is set."""

import asyncio
import logging
import os
import sys

import uvloop
from rich.console import Console

from demo import live, local

_HUB = "EhubNamespaceConnectionString"


def main() -> int:
    """Run until the end or Ctrl-C; return the exit status, 1 if an event is missing."""
    logging.getLogger().addHandler(logging.NullHandler())  # suppress log entries of libraries
    real = bool(os.environ.get(_HUB) or os.environ.get(f"{_HUB}_FILE"))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            if real:
                return runner.run(live.show())
            events = int(sys.argv[1]) if sys.argv[1:] else local.EVENTS
            return runner.run(local.show(events, Console(highlight=False, soft_wrap=True)))
    except KeyboardInterrupt:
        return 0 if real else 130  # the exit status of shells after Ctrl-C


sys.exit(main())
