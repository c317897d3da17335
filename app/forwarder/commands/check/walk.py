"""Walks: steps in order, each for a bounded time; what follows a failed one is skipped."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from forwarder.diagnosis.causes import Diagnosis
from forwarder.errors import ForwarderError

State = Literal["ok", "warn", "FAIL", "skipped"]
_SECONDS: Final = 10.0  # for a step by default


class Result(msgspec.Struct, frozen=True):
    """What a step found, and the remedy, "" if none is needed."""

    step: str
    state: State
    found: str
    remedy: str = msgspec.field(default="", name="do")


class Doubt(NamedTuple):
    """A step returns it instead of a text: it works, but somebody should look at it."""

    found: str
    remedy: str


class Skip(NamedTuple):
    """A step returns it instead of a text: it was not done, and nothing depends on it."""

    found: str


class BrokenError(ForwarderError):
    """A step failed for a reason that it knows."""

    def __init__(self, kind: str, what: str, remedy: str) -> None:
        super().__init__(what)
        self.diagnosis = Diagnosis(kind, what, remedy)


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
        except Exception as error:  # noqa: BLE001 - the report goes on after any error
            why = error.diagnosis if isinstance(error, BrokenError) else explain(error)
            yield Result(step.name, "FAIL", why.what, why.remedy)
            failed = step.name
        else:
            match found:
                case Doubt():
                    yield Result(step.name, "warn", *found)
                case Skip():
                    yield Result(step.name, "skipped", found.found)
                case _:
                    yield Result(step.name, "ok", found)
