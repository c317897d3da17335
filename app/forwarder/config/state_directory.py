"""The state directory: checked and locked at the start, so that trouble shows then."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from forwarder.errors import StateError

WITHOUT_LOCKS = {"cifs", "smb3", "smbfs", "nfs", "nfs4", "fuse.blobfuse2", "9p"}


@contextmanager
def state_directory(path: Path) -> Iterator[Path]:
    """Hold the directory for this process alone; StateError if it cannot be written or is held."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StateError(f"StateDirectory '{path}' cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield path
    except BlockingIOError:
        raise StateError(f"StateDirectory '{path}' is in use by another forwarder") from None
    finally:
        os.close(lock)


def file_system(path: Path) -> str:
    """Return the type of the file system that holds a path, as in /proc/mounts, "" if unknown."""
    best = "", ""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
        target = path.resolve()
    except OSError:
        return ""
    for _, where, kind, *_rest in (line.split() for line in mounts):
        if target.is_relative_to(where) and len(where) >= len(best[0]):
            best = where, kind
    return best[1]
