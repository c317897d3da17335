"""The receive buffer: bytes received and not yet delivered, bounded for the whole process."""

import asyncio


class ReceiveBuffer:
    """Counts bytes; a message that is larger than the limit passes when nothing else is held."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._turn = asyncio.Lock()
        self._room = asyncio.Event()
        self._taking = 0
        self.used = 0

    def has_room(self, size: int) -> bool:
        """Tell whether `size` bytes fit now and nobody waits for room: `take` will not wait."""
        return not self._taking and self._fits(size)

    async def take(self, size: int) -> None:
        """Wait until the bytes fit, which holds the partition back, and take them."""
        self._taking += 1  # for the lock is free for a moment when it is handed on
        try:
            async with self._turn:  # in turn, or a large message would starve behind small ones
                while not self._fits(size):
                    self._room.clear()
                    await self._room.wait()
                self.used += size
        finally:
            self._taking -= 1

    def release(self, size: int) -> None:
        """Give bytes back."""
        self.used -= size
        self._room.set()

    def _fits(self, size: int) -> bool:
        return not self.used or self.used + size <= self.limit  # guard: buffer-limit
