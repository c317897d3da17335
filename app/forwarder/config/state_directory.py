"""The state directory: checked and locked at the start, so that trouble shows then."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from forwarder.errors import StateError

_WITHOUT_LOCKS = {"cifs", "smb3", "smbfs", "nfs", "nfs4", "fuse.blobfuse2", "9p"}


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


def without_locks(path: Path) -> str:
    """Return the type of the network file system that holds a path, "" if it is a local one."""
    best = "", ""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
        target = str(path.resolve())
    except OSError:
        return ""
    for _, where, kind, *_rest in (line.split() for line in mounts):
        inside = target == where or target.startswith(where.rstrip("/") + "/")
        if inside and len(where) >= len(best[0]):
            best = where, kind
    return best[1] if best[1] in _WITHOUT_LOCKS else ""
