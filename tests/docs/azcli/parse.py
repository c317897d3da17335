"""Run by azure-cli's Python: reads commands as JSON, has az parse each, and writes what it said.

Input: a list of lists of arguments, without `az`. Output: a list of the errors, "" for none.
"""

import contextlib
import io
import json
import sys

from azure.cli.core import get_default_cli
from knack.events import EVENT_INVOKER_POST_PARSE_ARGS


def parse(arguments: list[str]) -> str:
    """Run a command to where its arguments are parsed; what az said if they are wrong."""
    cli = get_default_cli()
    cli.register_event(EVENT_INVOKER_POST_PARSE_ARGS, _stop)
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            status = cli.invoke(arguments, out_file=said)
        except SystemExit as end:
            status = end.code
    return (said.getvalue() or f"exit status {status}") if status else ""


def _stop(*_: object, **__: object) -> None:
    raise SystemExit(0)


json.dump([parse(arguments) for arguments in json.load(sys.stdin)], sys.stdout)
