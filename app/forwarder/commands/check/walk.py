"""Walks: the steps of a part in order, each for a bounded time, up to the first that fails."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, Literal, NamedTuple

import msgspec

from forwarder.config.settings import Settings
from forwarder.diagnosis.causes import Diagnosis
from forwarder.errors import ForwarderError

State = Literal["ok", "warn", "FAIL", "skipped"]
SECONDS: Final = 10.0  # for a step by default


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


Found = str | Doubt | Skip


class BrokenError(ForwarderError):
    """A step failed for a reason that it knows."""

    def __init__(self, kind: str, what: str, remedy: str) -> None:
        super().__init__(what)
        self.diagnosis = Diagnosis(kind, what, remedy)


class Part:
    """A part of the way: `steps` by name, each with its seconds, and its causes of errors."""

    steps: Mapping[str, tuple[Callable[[], Awaitable[Found]], float]]

    def __init__(
        self, settings: Settings, diagnose: Callable[[BaseException, Settings], Diagnosis]
    ) -> None:
        self.settings = settings
        self._diagnose = diagnose
        self.resources: list[Any] = []
        """What `close` closes."""

    async def close(self) -> None:
        """Close the connections."""
        await asyncio.gather(*(one.close() for one in self.resources), return_exceptions=True)

    async def walk(self, deadline: float) -> AsyncIterator[Result]:
        """Yield the result of each step; `deadline` is by the monotonic clock, for all of them."""
        failed = ""
        for name, (work, seconds) in self.steps.items():
            if failed:
                yield Result(name, "skipped", f"needs {failed}")
                continue
            try:
                async with asyncio.timeout(min(seconds, deadline - time.monotonic())):
                    found = await work()
            except Exception as error:  # noqa: BLE001 - the report goes on after any error
                own = error.diagnosis if isinstance(error, BrokenError) else None
                why = own or self._diagnose(error, self.settings)
                yield Result(name, "FAIL", why.what, why.remedy)
                failed = name
            else:
                states: dict[type, State] = {Doubt: "warn", Skip: "skipped"}
                texts = (found,) if isinstance(found, str) else found
                yield Result(name, states.get(type(found), "ok"), *texts)
