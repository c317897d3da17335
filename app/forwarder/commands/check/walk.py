"""Walks: the steps of a part in order, each for a bounded time, up to the first that fails."""

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Literal, NamedTuple

from forwarder.config.settings import Settings
from forwarder.diagnosis.causes import Diagnosis

_SECONDS: Final = 20.0  # for a step, at most


class Finding(NamedTuple):
    """What a step found, and the remedy, "" if none is needed."""

    state: Literal["ok", "warn", "FAIL", "skipped"]
    found: str
    remedy: str = ""


Steps = Mapping[str, Callable[[], Awaitable[Finding | str]]]
"""Steps by name. A text is a finding that is ok, an exception one that failed."""


class Part:
    """A part of the way: its steps, and what diagnoses their errors."""

    steps: Steps

    def __init__(
        self, settings: Settings, diagnose: Callable[[BaseException, Settings], Diagnosis]
    ) -> None:
        self.settings = settings
        self._diagnose = diagnose
        self.findings = asyncio.Queue[tuple[str, Finding] | None]()
        """Each step's finding, in order; None is the end."""
        self.done = asyncio.Event()

    async def walk(self, deadline: float) -> None:
        """Take the steps; `deadline` is by the monotonic clock, for all of them."""
        failed = ""
        for name, step in self.steps.items():
            finding = Finding("skipped", f"needs {failed}")
            if not failed:
                try:
                    async with asyncio.timeout(min(_SECONDS, deadline - time.monotonic())):
                        found = await step()
                    finding = Finding("ok", found) if isinstance(found, str) else found
                except Exception as error:  # noqa: BLE001 - the report goes on after any error
                    why = self._diagnose(error, self.settings)
                    finding = Finding("FAIL", why.what, why.remedy)
                failed = name if finding.state == "FAIL" else ""
            self.findings.put_nowait((name, finding))
        self.findings.put_nowait(None)
        self.done.set()


def reach(part: str, host: str, port: int, tls: Callable[[], ssl.SSLContext] | None) -> Steps:
    """Return the steps to the host of a part; without `tls` it is reached without TLS."""

    async def resolve() -> str:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = dict.fromkeys(str(entry[4][0]) for entry in found)
        return f"{host} is {', '.join(addresses)}"

    async def connect() -> str:
        _, writer = await asyncio.open_connection(host, port)
        writer.transport.abort()
        return f"port {port} is open"

    async def handshake() -> str:
        _, writer = await asyncio.open_connection(host, port, ssl=tls and tls())
        end = writer.get_extra_info("peercert")["notAfter"]
        version = writer.get_extra_info("ssl_object").version()
        writer.transport.abort()
        days = (ssl.cert_time_to_seconds(end) - time.time()) / 86_400
        return f"{version}, certificate valid for {days:.0f} days"

    steps: Steps = {f"{part} DNS": resolve, f"{part} TCP": connect}
    return {**steps, f"{part} TLS": handshake} if tls else steps
