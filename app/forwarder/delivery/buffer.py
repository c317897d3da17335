"""The receive buffer: bounds the bytes that are received and not yet delivered, process-wide."""

import asyncio


class ReceiveBuffer:
    """A counter of bytes with a limit. A message larger than the limit passes when it is empty."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._turn = asyncio.Lock()
        self._room = asyncio.Event()
        self._waiting = 0

    def has_room(self, size: int) -> bool:
        """Return whether `acquire` would not wait: `size` bytes fit and nobody else waits."""
        return not self._waiting and self._fits(size)

    async def acquire(self, size: int) -> None:
        """Count the bytes of a message; waits until they fit, in the order of the calls."""
        # The lock is free for a moment between two owners, so it cannot tell who waits.
        self._waiting += 1
        try:
            async with self._turn:  # or small messages would pass large ones
                while not self._fits(size):
                    self._room.clear()
                    await self._room.wait()
                self.used += size
        finally:
            self._waiting -= 1

    def charge(self, size: int) -> None:
        """Count bytes that cannot wait, whether they fit or not."""
        self.used += size

    def release(self, size: int) -> None:
        """Uncount bytes."""
        self.used -= size
        self._room.set()

    def _fits(self, size: int) -> bool:
        return not self.used or self.used + size <= self.limit  # guard: buffer-limit
