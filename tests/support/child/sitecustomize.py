"""Runs first in a forwarder that has this folder on its path: what a test changes in it.

The wall clock is an hour ahead after SIGUSR1 and an hour back after SIGUSR2, as `time.time` has it,
by which everything in the forwarder and its libraries waits that does not ask the monotonic clock.

With SYNC_WAITS_FOR a file is synced only while nobody has a lock on the file that this names.

With DIES_OF the JSON library crashes, as C does, at a text that holds these characters.
"""

import ctypes
import fcntl
import os
import signal
import time
from typing import Any

_real = time.time, time.time_ns
_ahead = 0


def _jump(number: int, _: object) -> None:
    global _ahead  # noqa: PLW0603 - there is one clock
    _ahead += 3600 if number == signal.SIGUSR1 else -3600


time.time = lambda: _real[0]() + _ahead
time.time_ns = lambda: _real[1]() + _ahead * 10**9
for _number in (signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(_number, _jump)

if _deadly := os.environ.get("DIES_OF", "").encode():
    import msgspec

    class _Decoder:
        def __init__(self, *arguments: Any) -> None:
            self._decoder = _decoder(*arguments)

        def decode(self, text: Any) -> Any:
            if _deadly in (text.encode() if isinstance(text, str) else bytes(text)):
                ctypes.string_at(0)
            return self._decoder.decode(text)

    _decoder: Any = msgspec.json.Decoder
    msgspec.json.Decoder = _Decoder  # type: ignore[assignment,misc]

if _gate := os.environ.get("SYNC_WAITS_FOR", ""):
    _fsync = os.fsync

    def _sync(file: Any) -> None:
        with open(_gate) as gate:  # noqa: PTH123 - as early as this, few modules are loaded
            fcntl.flock(gate, fcntl.LOCK_SH)
            _fsync(file)

    os.fsync = _sync  # type: ignore[assignment]
