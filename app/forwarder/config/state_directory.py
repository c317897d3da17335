"""The state directory: created, locked, and the type of its file system."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from forwarder.errors import StateError

WITHOUT_LOCKS = {"cifs", "smb3", "smbfs", "nfs", "nfs4", "fuse.blobfuse2", "9p"}


@contextmanager
def state_directory(path: Path) -> Iterator[Path]:
    """Create and lock the directory; StateError if it cannot be written, or is in use."""
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
    """Return the type of the file system of a path according to /proc/mounts; "" if unknown."""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
        target = path.resolve()
    except OSError:
        return ""
    kinds = {where: kind for _, where, kind, *_rest in map(str.split, mounts)}
    return kinds.get(max(filter(target.is_relative_to, kinds), key=len, default=""), "")
