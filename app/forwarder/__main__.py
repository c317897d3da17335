"""`python -m forwarder`: signals are caught first, what takes a second to import comes after."""

import os
import signal
import sys

_early: list[int] = []


def _on_early_signal(number: int, _: object) -> None:
    if _early:
        os._exit(1)
    _early.append(number)


for _number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(_number, _on_early_signal)


def main(arguments: list[str]) -> int:
    """Run the forwarder; return the exit status: 0 stopped, 2 bad settings, 1 anything else."""
    from forwarder import cli  # noqa: PLC0415 - takes a second, and signals must not wait

    return cli.main(arguments, stopped=lambda: bool(_early))


sys.exit(main(sys.argv[1:]))
