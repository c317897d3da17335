"""chart-testing installs and tests every values file in chart/ci that does not need Azure."""

import shutil
from pathlib import Path

import pytest

from e2e.cluster import ROOT, run
from e2e.commands import IMAGE
from e2e.conftest import Lap, Note
from e2e.world import World

NAMESPACE = "aks-audit-values"
# The others need Microsoft Entra ID, CRDs, or an existing sink.
OWN_DISK = ("audit-policy", "default", "falco", "sysdig-agent", "sysdig-shield")
SHARED = ("blob-replicas",)

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("names", [OWN_DISK, SHARED], ids=["own disk", "shared storage"])
def test_value_files_can_be_installed(
    world: World, note: Note, lap: Lap, tmp_path: Path, names: tuple[str, ...]
) -> None:
    chart = tmp_path / "chart"
    shutil.copytree(ROOT / "chart", chart)
    for file in (chart / "ci").glob("*-values.yaml"):
        if file.name.removesuffix("-values.yaml") not in names:
            file.unlink()
    repository, _, tag = IMAGE.rpartition(":")
    values = [
        f"image.repository={repository},image.tag={tag}",
        f"eventHub.connectionString={world.hub}",
        f"webhook.url=http://sink.{NAMESPACE}.svc:7765/k8s_audit",
        *([f"blobStorage.connectionString={world.storage}"] if names == SHARED else []),
    ]
    output = run(
        "ct", "install", "--config", "ct.yaml", "--charts", str(chart),
        "--helm-extra-set-args", " ".join(f"--set={value}" for value in values),
    )  # fmt: skip
    for name in names:
        assert f"{name}-values.yaml" in output
    note(f"chart-testing: {len(names)} value file(s)", lap())
