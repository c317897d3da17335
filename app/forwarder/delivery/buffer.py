"""The receive buffer: limits the bytes received and not yet delivered, for the whole process."""

import asyncio


class ReceiveBuffer:
    """A counter of bytes with a limit. A message larger than the limit passes when it is empty."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._lock = asyncio.Lock()
        self._room = asyncio.Event()
        self._waiting = 0

    def has_room(self, size: int) -> bool:
        """Return whether `acquire` would not wait: `size` bytes fit and nobody else waits."""
        return not self._waiting and self._fits(size)

    async def acquire(self, size: int) -> None:
        """Wait until the bytes of a message fit, in the order of the calls, and count them."""
        # The lock is free for a moment between two owners, so it cannot tell whether anybody waits.
        self._waiting += 1
        try:
            async with self._lock:  # so that small messages do not overtake large ones
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
        """Subtract bytes that left memory."""
        self.used -= size
        self._room.set()

    def _fits(self, size: int) -> bool:
        return not self.used or self.used + size <= self.limit  # guard: buffer-limit
