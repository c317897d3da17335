"""The blob service of Azurite, the Azure Storage emulator, as an async context manager."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

_PACKAGES = Path(__file__).parents[2] / ".bin" / "js" / "node_modules"
# The well-known account of the emulator, documented by Microsoft. Not a secret.
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_START = 60.0  # seconds


class Azurite:
    """A running blob service. pause() suspends it; its connections stay open."""

    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self._pid = pid

    @property
    def account_url(self) -> str:
        """The account's blob endpoint."""
        return f"http://127.0.0.1:{self.port}/{_ACCOUNT}"

    @property
    def connection_string(self) -> str:
        """The connection string for storage clients."""
        return (
            f"DefaultEndpointsProtocol=http;AccountName={_ACCOUNT};AccountKey={_KEY};"
            f"BlobEndpoint={self.account_url};"
        )

    def pause(self) -> None:
        """Suspend the process (SIGSTOP)."""
        os.kill(self._pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Resume the process (SIGCONT). It then responds to pending requests."""
        os.kill(self._pid, signal.SIGCONT)


@asynccontextmanager
async def azurite(port: int = 0) -> AsyncIterator[Azurite]:
    """Start azurite with an empty store, on this port or a free one; stop it on exit."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", port))
        port = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        "node", _PACKAGES / "azurite/dist/src/blob/main.js", "--blobPort", str(port),
        "--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--disableTelemetry",
        stdout=asyncio.subprocess.DEVNULL,  # --silent still prints
        start_new_session=True,  # a paused process dies with its group's shell
    )  # fmt: skip
    store = Azurite(port, process.pid)
    try:
        await _wait_until_listening(port, process)
        yield store
    finally:
        with suppress(ProcessLookupError):
            store.resume()
            process.kill()
        await process.wait()


async def _wait_until_listening(port: int, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(_START):
        while process.returncode is None:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.05)
    raise RuntimeError(f"azurite ended with status {process.returncode}")
