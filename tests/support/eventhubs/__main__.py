"""Run the server as a process."""

import argparse
import asyncio
import signal
import sys

import uvloop

from support.eventhubs import Server


def _hub(text: str) -> tuple[str, int]:
    name, _, partitions = text.partition("=")
    return name, int(partitions or 4)


async def _serve(options: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with Server(
        dict(options.hub), host=options.host, port=options.port, retention=options.retention
    ) as server:
        for hub in server.hubs.values():
            hub.groups |= set(options.group)
        sys.stdout.write(server.connection_string() + "\n")
        sys.stdout.flush()
        await stop.wait()


def main() -> None:
    """Parse the command line and serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="eventhubs", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5672)
    parser.add_argument(
        "--hub", type=_hub, action="append", required=True, metavar="NAME=PARTITIONS"
    )
    parser.add_argument("--group", action="append", default=[], help="another consumer group")
    parser.add_argument("--retention", type=float, help="seconds; without it nothing expires")
    uvloop.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
