"""Walks: steps one after another, each for a bounded time; what follows a failed one is skipped."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from forwarder.diagnosis.causes import Diagnosis
from forwarder.errors import ForwarderError

State = Literal["ok", "warn", "FAIL", "skipped"]
_SECONDS: Final = 10.0  # for a step that says nothing else


class Result(msgspec.Struct, frozen=True):
    """What a step found: `step` is its name, `do` the remedy, "" if none is needed."""

    step: str
    state: State
    found: str
    do: str = ""


class Doubt(NamedTuple):
    """Works, but the user should know; a step returns it instead of a text."""

    found: str
    do: str


class Skip(NamedTuple):
    """Was not done, and nothing depends on it; a step returns it instead of a text."""

    found: str


class BrokenError(ForwarderError):
    """A step failed by a cause that it knows."""

    def __init__(self, cause: Diagnosis) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Step(NamedTuple):
    """A step: its name, and its work, which returns what it found or raises."""

    name: str
    work: Callable[[], Awaitable[str | Doubt | Skip]]
    seconds: float = _SECONDS


async def walk(
    steps: Sequence[Step], explain: Callable[[BaseException], Diagnosis], deadline: float
) -> AsyncIterator[Result]:
    """Yield the result of each step; `deadline` is by the monotonic clock, for all of them."""
    failed = ""
    for step in steps:
        if failed:
            yield Result(step.name, "skipped", f"needs {failed}")
            continue
        try:
            async with asyncio.timeout(min(step.seconds, deadline - time.monotonic())):
                found = await step.work()
        except Exception as error:  # noqa: BLE001 - whatever it is, the report goes on
            cause = error.cause if isinstance(error, BrokenError) else explain(error)
            yield Result(step.name, "FAIL", cause.what, cause.do)
            failed = step.name
        else:
            match found:
                case Doubt():
                    yield Result(step.name, "warn", found.found, found.do)
                case Skip():
                    yield Result(step.name, "skipped", found.found)
                case _:
                    yield Result(step.name, "ok", found)
