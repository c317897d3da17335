"""The cluster that KUBECONFIG points at, through kubectl."""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parents[2]
T = TypeVar("T")


def run(*command: str, given: str = "", environment: Mapping[str, str] | None = None) -> str:
    """Run a command at the repository's root and return its output; it must succeed."""
    done = subprocess.run(
        command,
        input=given,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
        check=False,
    )
    if done.returncode:
        raise CommandError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


class CommandError(Exception):
    """A command failed; the text includes its output."""


def until(what: str, condition: Callable[[], T], timeout: float = 90) -> T:
    """Wait until the condition returns a true value, and return it."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout:g} s: {what}")
        time.sleep(0.2)
    return found


class Proxy:
    """The API server's HTTP proxy to Services and pods, through one `kubectl proxy`."""

    def __init__(self, port: int) -> None:
        self._port = port

    def request(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Send a GET, or a POST with a body; return status and body of the response."""
        connection = HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request("GET" if body is None else "POST", path, body)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        """Get JSON; retry while the cluster's network is still being set up."""

        def content() -> bytes:
            status, body = self.request(path)
            return body if status == 200 else b""

        return json.loads(until(f"GET {path}", content, 30))


@contextmanager
def proxy() -> Iterator[Proxy]:
    """Run `kubectl proxy` on a free port."""
    process = subprocess.Popen(
        ("kubectl", "proxy", "--port=0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
        found = re.search(r":(\d+)$", line.strip())
        assert found, line
        yield Proxy(int(found[1]))
    finally:
        process.terminate()
        process.wait()
