"""Python imports this module when a forwarder starts whose PYTHONPATH has this folder.

SIGUSR1 moves the wall clock (`time.time`) an hour ahead, SIGUSR2 an hour back. This affects every
wait in the forwarder and its libraries that does not use the monotonic clock.

With FSYNC_LOCK_FILE, fsync waits while another process has a lock on the file of this name.

With CRASH_ON, the JSON decoder crashes with SIGSEGV on a text that contains these characters.
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

if _fatal_text := os.environ.get("CRASH_ON", "").encode():
    import msgspec

    class _Decoder:
        def __init__(self, *arguments: Any) -> None:
            self._decoder = _decoder(*arguments)

        def decode(self, text: Any) -> Any:
            if _fatal_text in (text.encode() if isinstance(text, str) else bytes(text)):
                ctypes.string_at(0)
            return self._decoder.decode(text)

    _decoder: Any = msgspec.json.Decoder
    msgspec.json.Decoder = _Decoder  # type: ignore[assignment,misc]

if _lock_file := os.environ.get("FSYNC_LOCK_FILE", ""):
    _fsync = os.fsync

    def _sync(file: Any) -> None:
        with open(_lock_file) as lock_file:  # noqa: PTH123 - pathlib is not imported yet
            fcntl.flock(lock_file, fcntl.LOCK_SH)
            _fsync(file)

    os.fsync = _sync  # type: ignore[assignment]
