"""Renders the chart with Helm, and reads the environment of its pod."""

import shutil
import subprocess
from base64 import b64decode
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "chart"
HOME = "https://github.com/aks-audit/aks-audit"
DEFAULT = CHART / "ci" / "default-values.yaml"
CI_VALUES = sorted((CHART / "ci").glob("*-values.yaml"))

# APIs of the Prometheus Operator and KEDA: `helm template` does not connect to a cluster.
APIS = (
    "monitoring.coreos.com/v1/PodMonitor",
    "monitoring.coreos.com/v1/PrometheusRule",
    "monitoring.coreos.com/v1/ServiceMonitor",
    "keda.sh/v1alpha1/ScaledObject",
)

Manifest: TypeAlias = dict[str, Any]


def find_helm() -> str | None:
    """Return the path of helm: the pinned one, or the one on PATH."""
    return shutil.which(ROOT / ".bin" / "helm") or shutil.which("helm")


def helm(*arguments: str | Path) -> str:
    """Run helm, return its standard output; CalledProcessError has its standard error."""
    command = [find_helm() or "helm", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def template(*arguments: str | Path, chart: Path = CHART) -> str:
    """Render the release aks-audit as text; arguments as for `helm template`."""
    release = ("aks-audit", chart, "--namespace", "sysdig-agent", "--api-versions", ",".join(APIS))
    return helm("template", *release, *arguments)


def render(*arguments: str | Path, chart: Path = CHART) -> list[Manifest]:
    """Render the release aks-audit as manifests; arguments as for `helm template`."""
    text = template(*arguments, chart=chart)
    return [manifest for manifest in yaml.safe_load_all(text) if manifest]


def of_kind(manifests: Iterable[Manifest], kind: str) -> list[Manifest]:
    """Return the manifests of one kind."""
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def pod(manifests: Iterable[Manifest]) -> Manifest:
    """Return the spec of the Deployment's pod."""
    (deployment,) = of_kind(manifests, "Deployment")
    spec: Manifest = deployment["spec"]["template"]["spec"]
    return spec


def environment(
    manifests: Iterable[Manifest], existing: Mapping[str, Mapping[str, str]] | None = None
) -> dict[str, str]:
    """Resolve the container's environment as the kubelet does: the last source of a name wins.

    `existing` has the Secrets that the chart does not create: data by name.
    """
    manifests = list(manifests)
    config = {item["metadata"]["name"]: item["data"] for item in of_kind(manifests, "ConfigMap")}
    secrets = dict(existing or {}) | {
        item["metadata"]["name"]: {
            key: b64decode(text).decode() for key, text in item["data"].items()
        }
        for item in of_kind(manifests, "Secret")
    }
    (container,) = pod(manifests)["containers"]
    found: dict[str, str] = {}
    for source in container["envFrom"]:
        if reference := source.get("configMapRef"):
            found |= config[reference["name"]]
        else:
            found |= secrets[source["secretRef"]["name"]]
    return found | {item["name"]: item["value"] for item in container.get("env", [])}


def mounted_files(manifests: Iterable[Manifest]) -> list[str]:
    """Return the paths of all files mounted from Secrets, existing ConfigMaps and a CSI driver.

    The chart does not know which files the driver mounts: their paths come from the settings.
    """
    manifests = list(manifests)
    spec = pod(manifests)
    (container,) = spec["containers"]
    mount_paths = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    projected = [
        f"{mount_paths[volume['name']]}/{item['path']}"
        for volume in spec["volumes"]
        for source in volume.get("projected", {}).get("sources", [])
        for kind in ("secret", "configMap")
        for item in source.get(kind, {}).get("items", [])
    ]
    driven = [f"{mount_paths[volume['name']]}/" for volume in spec["volumes"] if "csi" in volume]
    (config,) = (one for one in of_kind(manifests, "ConfigMap") if "ConsumerGroup" in one["data"])
    return projected + [
        text for text in config["data"].values() for path in driven if text.startswith(path)
    ]


def mounted_config(manifests: Iterable[Manifest]) -> dict[str, str]:
    """Return path and content of all files mounted from ConfigMaps."""
    manifests = list(manifests)
    config = {item["metadata"]["name"]: item["data"] for item in of_kind(manifests, "ConfigMap")}
    (container,) = pod(manifests)["containers"]
    mount_paths = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    return {
        f"{mount_paths[volume['name']]}/{key}": text
        for volume in pod(manifests)["volumes"]
        if "configMap" in volume
        for key, text in config[volume["configMap"]["name"]].items()
    }
