"""A namespace with hub, sink and storage account; tracks published and delivered events."""

import json
import os
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any

from e2e.cluster import Proxy, run, until
from support.azurite import Azurite
from support.eventhubs import Server
from support.events import Key, envelope, key

TOOLS = os.environ.get("E2E_TOOLS", "")
"""The image of hub, sink and storage account."""
_PER_MESSAGE = 22
_MESSAGE_BYTES = 200_000
_RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
_ARGUMENTS = {
    "eventhubs": ["python", "-m", "e2e.hub"],
    "sysdig-agent": ["python", "-m", "support.webhook", "--host", "0.0.0.0", "--port", "7765"],
    "azurite": [
        "/azurite/node", "/azurite/node_modules/azurite/dist/src/blob/main.js",
        "--blobHost", "0.0.0.0", "--blobPort", "10000",
        "--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--disableTelemetry",
        "--disableProductStyleUrl",
    ],
}  # fmt: skip
_PORTS = {"eventhubs": [5672, 8080], "sysdig-agent": [7765], "azurite": [10000]}


class World:
    """A namespace that enforces the restricted standard, with hub, sink and storage account."""

    def __init__(self, namespace: str, proxy: Proxy) -> None:
        self.namespace = namespace
        self.proxy = proxy
        self._lock = threading.Lock()
        self._published: dict[Key, str] = {}
        self._before: Counter[Key] = Counter()
        self._wrong: set[Key] = set()

    @property
    def hub(self) -> str:
        """Connection string of the Event Hubs namespace."""
        server = Server({}, host=f"eventhubs.{self.namespace}.svc", port=5672)
        return server.connection_string()

    @property
    def storage(self) -> str:
        """Connection string of the storage account."""
        address = f"http://azurite.{self.namespace}.svc:10000"
        return Azurite(0, 0).connection_string.replace("http://127.0.0.1:0", address)

    def create(self) -> None:
        """Delete the namespace if it exists; create it with hub, sink and storage account."""
        self.remove()
        labels = {"name": self.namespace, "labels": _RESTRICTED}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": labels})
        for name, arguments in _ARGUMENTS.items():
            self.apply(*program(name, arguments, ports=_PORTS[name]))
        for name in _ARGUMENTS:
            self.kubectl("rollout", "status", "deployment", name, "--timeout=120s")

    def remove(self) -> None:
        """Delete the namespace."""
        run(
            "kubectl", "delete", "namespace", self.namespace, "--ignore-not-found", "--timeout=120s"
        )

    def apply(self, *manifests: dict[str, Any]) -> None:
        """Create or update objects."""
        self.kubectl("apply", "--filename=-", given="\n---\n".join(map(json.dumps, manifests)))

    def kubectl(self, *arguments: str, given: str = "") -> str:
        """Run kubectl in this namespace."""
        return run("kubectl", "--namespace", self.namespace, *arguments, given=given)

    def get(self, *arguments: str) -> Any:
        """Return an object, or the list of them, as JSON."""
        found = json.loads(self.kubectl("get", *arguments, "--output=json"))
        return found["items"] if found["kind"].endswith("List") else found

    def pods(self) -> list[Any]:
        """Return the forwarder's pods that are not being deleted, the newest first."""
        found = self.get("pods", "--selector=app=aks-audit-log-forwarder")
        alive = [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]
        return sorted(
            alive, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), reverse=True
        )

    def pod(self) -> Any:
        """Return the forwarder's only pod."""
        until("one pod", lambda: len(self.pods()) == 1)
        return self.pods()[0]

    def ready(self) -> bool:
        """Tell whether there is one pod, and it is ready."""
        pods = self.pods()
        return len(pods) == 1 and all(one["ready"] for one in containers(pods[0]))

    def rolled(self) -> None:
        """Wait until the rollout of the Deployment is complete."""
        self.kubectl("rollout", "status", "deployment", "aks-audit", "--timeout=180s")

    def probe(self, pod: str, path: str) -> tuple[int, str]:
        """Request a path of a forwarder's HTTP port; return status and body."""
        status, body = self.proxy.request(
            f"/api/v1/namespaces/{self.namespace}/pods/{pod}:5000/proxy{path}"
        )
        return status, body.decode()

    def metric(self, pod: str, name: str) -> float:
        """Return the sum of a metric's samples in a pod; NaN while the pod does not answer."""
        status, text = self.probe(pod, "/metrics")
        if status != 200:
            return float("nan")
        lines = [line for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def publish(self, events: Sequence[bytes]) -> None:
        """Publish events as AKS does, and record them."""
        with self._lock:
            self._published |= {key(event): sha256(event).hexdigest() for event in events}
        bodies = b"\n".join(envelope(chunk) for chunk in _chunks(events))
        status, content = self.proxy.request(self._service("eventhubs:8080", "/"), bodies)
        assert status == 200, content

    def stats(self) -> Any:
        """Return the sink's counts."""
        return self.proxy.get(self._service("sysdig-agent:7765", "/stats"))

    def keep_counts(self) -> None:
        """Keep the counts of the sink, which is about to be stopped."""
        self._before = self.accepted()

    def accepted(self) -> Counter[Key]:
        """Return how often each event was accepted, by all sinks so far."""
        events = self.proxy.get(self._service("sysdig-agent:7765", "/events"))
        with self._lock:
            changed = {
                (audit_id, stage)
                for audit_id, stage, _, digest in events
                if self._published.get((audit_id, stage)) != digest
            }
        assert not changed, f"events that were not published, or changed: {changed}"
        counts = Counter({(audit_id, stage): count for audit_id, stage, count, _ in events})
        return self._before + counts

    def wait_until_settled(self, timeout: float = 90) -> int:
        """Wait until the sink has all events published so far; return their number."""
        with self._lock:
            published = set(self._published)
        missing: set[Key] = set()

        def none_missing() -> bool:
            nonlocal missing
            missing = published - self.accepted().keys()
            return not missing

        try:
            until("all events at the sink", none_missing, timeout)
        except TimeoutError as error:
            raise TimeoutError(f"{error}: {len(missing)} of {len(published)} missing") from None
        return len(published)

    def duplicates(self) -> int:
        """Return the number of repeated deliveries of events."""
        return sum(count - 1 for count in self.accepted().values())

    def _service(self, service: str, path: str) -> str:
        name = service.replace("sysdig-agent", "sink")
        return f"/api/v1/namespaces/{self.namespace}/services/{name}/proxy{path}"


def containers(pod: Any) -> list[Any]:
    """Return the status of a pod's containers; empty if there is none yet."""
    found: list[Any] = pod["status"].get("containerStatuses", [])
    return found


def program(
    name: str, arguments: Sequence[str], *, ports: Sequence[int] = (), **environment: str
) -> Iterable[dict[str, Any]]:
    """Return Deployment and Service of a program of the tests' image.

    The Service of the sink is named `sink`: the Service `sysdig-agent` belongs to the chart.
    """
    labels = {"app": name}
    container = {
        "name": name,
        "image": TOOLS,
        "imagePullPolicy": "IfNotPresent",
        "command": arguments,
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    if ports:
        container["readinessProbe"] = {"tcpSocket": {"port": ports[-1]}, "periodSeconds": 1}
    yield {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "strategy": {"type": "Recreate"},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "containers": [container],
                    "terminationGracePeriodSeconds": 1,
                    "automountServiceAccountToken": False,
                    "securityContext": {
                        "runAsNonRoot": True,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                },
            },
        },
    }
    if ports:
        yield {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "sink" if name == "sysdig-agent" else name},
            "spec": {
                "selector": labels,
                "ports": [{"name": f"port-{port}", "port": port} for port in ports],
            },
        }


def _chunks(events: Sequence[bytes]) -> Iterable[Sequence[bytes]]:
    """Split events into chunks of one message each."""
    chunk: list[bytes] = []
    for event in events:
        if len(chunk) == _PER_MESSAGE or sum(map(len, chunk)) + len(event) > _MESSAGE_BYTES:
            yield chunk
            chunk = []
        chunk.append(event)
    if chunk:
        yield chunk
