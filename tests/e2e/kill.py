"""Kill -9 the forwarder of a pod, by UID, from the node: in the pod, PID 1 ignores signals."""

import os
import signal
import sys
from pathlib import Path


def main(uid: str) -> None:
    """Find the process by its control group and its command, and kill it."""
    names = uid, uid.replace("-", "_")
    found = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            group, command = (process / "cgroup").read_text(), (process / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if any(name in group for name in names) and b"-m\0forwarder" in command:
            os.kill(int(process.name), signal.SIGKILL)
            found += 1
    sys.exit(found != 1)


if __name__ == "__main__":
    main(sys.argv[1])
