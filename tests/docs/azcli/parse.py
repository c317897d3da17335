"""Run by the Python of azure-cli: reads commands as JSON, parses each, and writes the errors.

Input: a list of lists of arguments, without `az`. Output: a list of the errors, "" for none.
"""

import contextlib
import io
import json
import sys

from azure.cli.core import get_default_cli
from knack.events import EVENT_INVOKER_POST_PARSE_ARGS


def parse(arguments: list[str]) -> str:
    """Run a command until its arguments are parsed; return the output of az if they are invalid."""
    cli = get_default_cli()
    cli.register_event(EVENT_INVOKER_POST_PARSE_ARGS, _stop)
    output = io.StringIO()
    with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
        try:
            status = cli.invoke(arguments, out_file=output)
        except SystemExit as end:
            status = end.code
    return (output.getvalue() or f"exit status {status}") if status else ""


def _stop(*_: object, **__: object) -> None:
    raise SystemExit(0)


json.dump([parse(arguments) for arguments in json.load(sys.stdin)], sys.stdout)
