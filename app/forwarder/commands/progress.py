"""Progress of a command: a bar on a terminal, else a line now and then."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

_BAR: Final = 30  # characters
_TICK: Final = 0.2  # seconds between two looks of the bar
_LINE: Final = 5.0  # seconds between two lines


@asynccontextmanager
async def progress(done: Callable[[], float], text: Callable[[], str]) -> AsyncIterator[None]:
    """Show on standard error how much is done, from 0 to 1, and a text, as long as this runs."""
    terminal = sys.stderr.isatty()

    def show() -> None:
        share = min(1.0, done())
        if terminal:
            sys.stderr.write(f"\r{'█' * int(_BAR * share):░<{_BAR}} {share:4.0%}  {text()}\033[K")
            sys.stderr.flush()
        else:
            sys.stderr.write(f"{share:.0%} {text()}\n")

    async def tick() -> None:
        while True:
            await asyncio.sleep(_TICK if terminal else _LINE)
            show()

    ticking = asyncio.create_task(tick())
    try:
        yield
    finally:
        ticking.cancel()
        with suppress(asyncio.CancelledError):
            await ticking
        show()
        if terminal:
            sys.stderr.write("\n")
