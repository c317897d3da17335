"""Publishes events during a test: the cluster's own audit log, or sample events."""

import os
import threading
from pathlib import Path
from typing import Self

from e2e.world import World
from support.events import messages

_INTERVAL = 0.5  # seconds
# Requests through the API server's proxy are audited too: publishing them would never end.
_OWN = b'"subresource":"proxy"'


class Feed:
    """Publishes in the background until the block ends; `rate` is in sample events per second.

    With E2E_AUDIT_LOG and no rate, it publishes the events that kube-apiserver adds to that file.
    """

    def __init__(self, world: World, rate: int = 0) -> None:
        log = os.environ.get("E2E_AUDIT_LOG", "")
        self.path = Path(log) if log and not rate else None
        self.published: list[bytes] = []
        self._world = world
        self._rate = rate or 40
        self._stop = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._failed:
            raise self._failed

    def _run(self) -> None:
        try:
            if self.path:
                self._follow(self.path)
            else:
                self._make()
        except BaseException as error:  # noqa: BLE001 - raised where the block ends
            self._failed = error

    def _make(self) -> None:
        while not self._stop.wait(_INTERVAL):
            count = int(self._rate * _INTERVAL)
            self._publish([event for made in messages(count) for event in made.events])

    def _follow(self, path: Path) -> None:
        with path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            rest = b""
            stopped = False
            while not stopped:
                stopped = self._stop.wait(_INTERVAL)
                *lines, rest = (rest + log.read()).split(b"\n")
                self._publish([line for line in lines if line and _OWN not in line])

    def _publish(self, events: list[bytes]) -> None:
        if events:
            self._world.publish(events)
            self.published += events
