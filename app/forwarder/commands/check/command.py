"""`check`: checks hub, store and sink step by step, and prints one line per step."""

import argparse
import asyncio
import json
import os
import sys
import time
from contextlib import AsyncExitStack, suppress
from typing import Final

import aiohttp
from yarl import URL

from forwarder import log
from forwarder.commands.check.hub import HubCheck
from forwarder.commands.check.sink import SinkCheck
from forwarder.commands.check.steps import Check, Finding
from forwarder.commands.check.store import StoreCheck
from forwarder.config.parsers import shown_url
from forwarder.config.settings import Settings
from forwarder.hub.client import connect
from forwarder.hub.login import login
from forwarder.hub.transport import close_in_time
from forwarder.redaction import printable
from forwarder.storage import has_account, open_container

_SECONDS: Final = 50.0  # for all steps, without closing
_COLOURS: Final = {"ok": "32", "warn": "33", "FAIL": "1;31", "skipped": "2"}

HELP: Final = "check the path from the hub to the sink, step by step, with causes and remedies"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `check`."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--no-post", action="store_true", help="do not post to the sink")
    parser.add_argument("--sink", metavar="URL", help="warn if WebSinkURL leads elsewhere")


async def run(given: argparse.Namespace, settings: Settings, stop: asyncio.Event) -> bool:
    """Run `check` to its end, or until `stop` is set; False if a step failed."""
    log.silence()
    work = asyncio.ensure_future(_check(settings, given))
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
    return work.done() and work.result()


async def _check(settings: Settings, given: argparse.Namespace) -> bool:
    """Check hub, store and sink concurrently, and print a report; False if a step failed."""
    deadline = time.monotonic() + _SECONDS
    report = _Report(as_json=given.json)
    report.add("settings", Finding("ok", _summary(settings)))
    origin = settings.web_sink_url.origin()
    if given.sink and (wanted := URL(given.sink).origin()) != origin:
        found = f"WebSinkURL leads to {origin}, and the chart's webhook.url to {wanted}"
        remedy = "set webhook.url to WebSinkURL without password: TLS and NetworkPolicy follow it"
        report.add("sink URL", Finding("warn", found, remedy))
    if await _forwarder_state(settings.http_port) == "draining":
        found = "this pod is shutting down: what fails here may work in the new pod"
        remedy = "check the new pod, after: kubectl rollout status deployment/aks-audit"
        report.add("forwarder", Finding("warn", found, remedy))
    async with AsyncExitStack() as stack:
        credential = login(settings, stack)
        client = connect(settings, credential, retry_total=0)
        stack.push_async_callback(close_in_time, client.close)
        container = None
        if has_account(settings):
            container = open_container(settings, credential)
            stack.push_async_callback(close_in_time, container.close)
        store = StoreCheck(settings, container)
        checks: list[Check] = [
            HubCheck(settings, client, store),
            store,
            SinkCheck(settings, post=not given.no_post),
        ]
        async with asyncio.TaskGroup() as group:
            for check in checks:
                group.create_task(check.run(deadline))
            for check in checks:
                while result := await check.findings.get():
                    report.add(*result)
    return report.end()


async def _forwarder_state(port: int) -> str:
    """Return the state that the forwarder in this pod reports; "" if there is no forwarder."""
    with suppress(aiohttp.ClientError, OSError, ValueError):
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session,
            session.get(f"http://127.0.0.1:{port}/status") as response,
        ):
            return str((await response.json()).get("state", ""))
    return ""


class _Report:
    """Prints findings as they arrive, or all of them as JSON at the end."""

    def __init__(self, *, as_json: bool) -> None:
        self._json = as_json
        self._colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self._steps: list[dict[str, str]] = []

    def add(self, step: str, finding: Finding) -> None:
        found, remedy = printable(finding.found), printable(finding.remedy)
        self._steps.append({"step": step, "state": finding.state, "found": found, "do": remedy})
        if not self._json:
            state = f"{finding.state:7}"
            if self._colours:
                state = f"\033[{_COLOURS[finding.state]}m{state}\033[0m"
            remedy = f"{'':8}do: {remedy}\n" if remedy else ""
            sys.stdout.write(f"{state} {step:15} {found}\n{remedy}")
            sys.stdout.flush()

    def end(self) -> bool:
        failed = [step["step"] for step in self._steps if step["state"] == "FAIL"]
        if self._json:
            whole = {"ok": not failed, "steps": self._steps}
            sys.stdout.write(f"{json.dumps(whole, indent=2)}\n")
        elif failed:
            sys.stdout.write(f"\n{len(failed)} failed: {', '.join(failed)}\n")
        else:
            warnings = sum(step["state"] == "warn" for step in self._steps)
            more = f", {warnings} to look at" if warnings else ""
            sys.stdout.write(f"\nall parts answer{more}\n")
        return not failed


def _summary(settings: Settings) -> str:
    store = settings.blob_container_name if has_account(settings) else settings.state_directory
    policy = f", audit policy {settings.audit_policy}" if settings.audit_policy else ""
    sink = shown_url(settings.web_sink_url)
    return f"{settings.event_hub_name} to {sink}, checkpoints in {store}{policy}"
