"""The check: walks the way from hub to sink and reports what it found, one line per step."""

import argparse
import asyncio
import os
import sys
import time
from contextlib import AsyncExitStack, suppress
from typing import Final

import msgspec

from forwarder import log
from forwarder.commands.check import reach
from forwarder.commands.check.hub import HubCheck
from forwarder.commands.check.sink import SinkCheck
from forwarder.commands.check.store import StoreCheck
from forwarder.commands.check.walk import Part, Result
from forwarder.config.parsers import shown_url
from forwarder.config.settings import Settings
from forwarder.hub.login import login
from forwarder.redaction import printable
from forwarder.storage import has_account

_SECONDS: Final = 50.0  # for all, closing comes on top
_CLOSE: Final = 5.0
_COLOURS: Final = {"ok": "32", "warn": "33", "FAIL": "1;31", "skipped": "2"}


HELP: Final = "check the way from the hub to the sink, step by step, with causes and remedies"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `check`."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--no-post", action="store_true", help="do not post to the sink")


async def run(given: argparse.Namespace, settings: Settings, stop: asyncio.Event) -> bool:
    """Run `check` until it is done or stopped; False if a part does not answer."""
    log.silence()
    work = asyncio.ensure_future(check(settings, post=not given.no_post, as_json=given.json))
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
    return work.done() and work.result()


async def check(settings: Settings, *, post: bool, as_json: bool) -> bool:
    """Walk hub, store and sink at once and print a report; False if a part does not answer."""
    deadline = time.monotonic() + _SECONDS
    report = _Report(as_json=as_json)
    report.add(Result("settings", "ok", _summary(settings)))
    if await reach.forwarder_state(settings.http_port) == "draining":
        what = "this pod was told to stop and delivers what it has: its faults may be repaired"
        remedy = "ask the new pod, after: kubectl rollout status deployment/aks-audit"
        report.add(Result("forwarder", "warn", what, remedy))
    async with AsyncExitStack() as stack:
        credential = await login(settings, stack)
        store = StoreCheck(settings, credential)
        stored = asyncio.get_running_loop().create_future()
        hub = HubCheck(settings, credential, stored)
        sink = SinkCheck(settings, post=post)
        parts: list[Part] = [hub, store, sink]
        queues = [asyncio.Queue[Result | None]() for _ in parts]

        async def go(part: Part, queue: asyncio.Queue[Result | None]) -> None:
            async for result in part.walk(deadline):
                await queue.put(result)
            await queue.put(None)
            if part is store:
                stored.set_result(store.found)

        async with asyncio.TaskGroup() as group:
            for part, queue in zip(parts, queues, strict=True):
                group.create_task(go(part, queue))
            for queue in queues:
                while result := await queue.get():
                    report.add(result)
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE):
                await asyncio.gather(*(part.close() for part in parts))
    return report.end()


class _Report:
    """Prints results as they come, or all of them as JSON at the end."""

    def __init__(self, *, as_json: bool) -> None:
        self._json = as_json
        self._colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self._results: list[Result] = []

    def add(self, result: Result) -> None:
        texts = (printable(text) for text in (result.found, result.remedy))
        result = Result(result.step, result.state, *texts)
        self._results.append(result)
        if not self._json:
            sys.stdout.write(self._lines(result))
            sys.stdout.flush()

    def end(self) -> bool:
        failed = [result.step for result in self._results if result.state == "FAIL"]
        if self._json:
            whole = {"ok": not failed, "steps": self._results}
            sys.stdout.write(msgspec.json.format(msgspec.json.encode(whole).decode()) + "\n")
        elif failed:
            sys.stdout.write(f"\n{len(failed)} failed: {', '.join(failed)}\n")
        else:
            doubts = sum(result.state == "warn" for result in self._results)
            sys.stdout.write(f"\nall parts answer{f', {doubts} to look at' if doubts else ''}\n")
        return not failed

    def _lines(self, result: Result) -> str:
        state = f"{result.state:7}"
        if self._colours:
            state = f"\033[{_COLOURS[result.state]}m{state}\033[0m"
        lines = f"{state} {result.step:15} {result.found}\n"
        return lines + (f"{'':8}do: {result.remedy}\n" if result.remedy else "")


def _summary(settings: Settings) -> str:
    store = settings.blob_container_name
    if not has_account(settings):
        store = str(settings.state_directory)
    policy = f", audit policy {settings.audit_policy}" if settings.audit_policy else ""
    sink = shown_url(settings.web_sink_url)
    return f"{settings.event_hub_name} to {sink}, checkpoints in {store}{policy}"
