"""A kube-apiserver with a policy, and an etcd, as processes on loopback; both come from PATH."""

import contextlib
import http.client
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import trustme

from support.harness import free_port
from support.policies.requests import USERS, Request, token

_NEEDED = ("kube-apiserver", "etcd")
_START = 120.0  # seconds
_READY = Request("", "GET", "/readyz")
_FIRST = Request("", "GET", "/api/v1/namespaces/kube-system")


class Etcd:
    """A running etcd. The API server of each policy has a key prefix of its own."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.url = url

    def audit_log(self, policy: Path, requests: Iterable[Request]) -> bytes:
        """Start an API server with an empty store, send the requests, and return its audit log."""
        directory = self.directory / policy.stem
        directory.mkdir()
        log = directory / "audit.log"
        with (
            _api_server(self, directory, policy, log) as server,
            ThreadPoolExecutor() as watches,
        ):
            for request in requests:
                if request.lasts:
                    watches.submit(server.send, request)
                    continue
                server.send(request)
                if request.then:
                    user, path = request.then
                    server.wait(Request("", "GET", path, user))
        return log.read_bytes()


class _Server:
    """Sends requests to a running API server, one after another."""

    def __init__(
        self, port: int, context: ssl.SSLContext, process: subprocess.Popen[bytes]
    ) -> None:
        self._address = ("127.0.0.1", port)
        self._context = context
        self._process = process

    def send(self, request: Request) -> int:
        """Send a request, read the whole response, and return its status."""
        headers = {"User-Agent": "policies", **request.headers}
        if request.audit_id:
            headers["Audit-ID"] = request.audit_id
        if request.user:
            headers["Authorization"] = f"Bearer {token(request.user)}"
        connection = http.client.HTTPSConnection(*self._address, timeout=60, context=self._context)
        with contextlib.closing(connection):
            connection.request(request.method, request.path, request.body or None, headers)
            response = connection.getresponse()
            response.read()
        return response.status

    def wait(self, request: Request) -> None:
        """Repeat a request until the response is 200."""
        deadline = time.monotonic() + _START
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if self.send(request) == http.HTTPStatus.OK:
                    return
            time.sleep(0.1)
        raise RuntimeError(f"kube-apiserver does not answer {request.path} as it should")


@contextmanager
def etcd(directory: Path) -> Iterator[Etcd]:
    """Start an empty etcd and stop it on exit; RuntimeError if a program is missing."""
    if missing := [name for name in _NEEDED if not shutil.which(name)]:
        raise RuntimeError(f"not found on PATH: {', '.join(missing)}")
    url, peers = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    command = [
        "etcd", "--unsafe-no-fsync", "--data-dir", str(directory / "etcd"), "--log-level", "error",
        "--listen-client-urls", url, "--advertise-client-urls", url,
        "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers,
        "--initial-cluster", f"default={peers}",
    ]  # fmt: skip
    with _running(command, directory / "etcd.log"):
        yield Etcd(directory, url)


@contextmanager
def _api_server(etcd: Etcd, directory: Path, policy: Path, log: Path) -> Iterator[_Server]:
    """Start it, wait until it is ready; stop it gracefully on exit to complete its log."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    chain, key = directory / "server.crt", directory / "server.key"
    certificate.cert_chain_pems[0].write_to_path(chain)
    certificate.private_key_pem.write_to_path(key)
    tokens = directory / "tokens.csv"
    tokens.write_text(
        "".join(
            f"{token(short)},{name},uid-of-{short}" + (f',"{groups}"' if groups else "") + "\n"
            for short, (name, groups) in USERS.items()
        )
    )
    port = free_port()
    options = {
        "etcd-servers": etcd.url,
        "etcd-prefix": f"/{policy.stem}",
        "bind-address": "127.0.0.1",
        "secure-port": port,
        "tls-cert-file": chain,
        "tls-private-key-file": key,
        "service-account-issuer": "https://kubernetes.default.svc",
        "service-account-key-file": key,
        "service-account-signing-key-file": key,
        "service-cluster-ip-range": "10.96.0.0/16",
        "advertise-address": "192.0.2.1",  # unused: it must not be a loopback address
        "endpoint-reconciler-type": "none",
        "authorization-mode": "Node,RBAC",
        "token-auth-file": tokens,
        "audit-policy-file": policy,
        "audit-log-path": log,
    }
    context = ssl.create_default_context()
    authority.configure_trust(context)
    command = ["kube-apiserver", *(f"--{name}={value}" for name, value in options.items())]
    with _running(command, directory / "server.log") as process:
        server = _Server(port, context, process)
        server.wait(_READY)
        server.wait(_FIRST)
        yield server


@contextmanager
def _running(command: list[str], output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program; terminate or kill it on exit; add its output to a RuntimeError."""
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,  # Ctrl-C must reach only the parent
        )
    try:
        yield process
    except RuntimeError as error:
        error.add_note(output.read_text()[-2000:])
        raise
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
