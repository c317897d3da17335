"""Runs the steps of a check in order, each with a time limit, up to the first that fails."""

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Literal, NamedTuple

from forwarder.config.settings import Settings
from forwarder.diagnosis.causes import Diagnosis

_SECONDS: Final = 20.0  # for one step


class Finding(NamedTuple):
    """The result of a step, and the remedy; "" if none is needed."""

    state: Literal["ok", "warn", "FAIL", "skipped"]
    found: str
    remedy: str = ""


Steps = Mapping[str, Callable[[], Awaitable[Finding | str]]]
"""Steps by name. A step that returns a text is ok, one that raises an exception has failed."""


class Check:
    """The check of one component: its steps, and the function that diagnoses their errors."""

    steps: Steps

    def __init__(
        self, settings: Settings, diagnose: Callable[[BaseException, Settings], Diagnosis]
    ) -> None:
        self.settings = settings
        self._diagnose = diagnose
        self.findings = asyncio.Queue[tuple[str, Finding] | None]()
        """The finding of each step, in order; None after the last."""
        self.done = asyncio.Event()

    async def run(self, deadline: float) -> None:
        """Run the steps until `deadline`, by the monotonic clock."""
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


def connection_steps(
    component: str, host: str, port: int, tls: Callable[[], ssl.SSLContext] | None
) -> Steps:
    """Return the steps that connect to a component's host; None for a host without TLS."""

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

    steps: Steps = {f"{component} DNS": resolve, f"{component} TCP": connect}
    return {**steps, f"{component} TLS": handshake} if tls else steps
