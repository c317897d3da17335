"""The forwarder's audit policies give the same events as those of a live kube-apiserver.

The test starts its own kube-apiserver (`support.policies.record`): that of a cluster cannot change
its policy.
"""

import shutil
import sys

import pytest

from e2e.cluster import ROOT, run
from e2e.conftest import Lap, Note

# Each matcher and its edge cases; `support.policies.record --compare` compares all policies.
NAMES = (
    "gke", "impersonation", "kubeadm", "managed-fields", "namespaces", "paths", "resource-names",
    "stages-of-policy", "stages-of-rules", "subresources", "users-and-groups", "verbs",
)  # fmt: skip

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not (shutil.which("kube-apiserver") and shutil.which("etcd")),
        reason="needs kube-apiserver and etcd on PATH",
    ),
]


def test_policies_match_the_api_server(note: Note, lap: Lap) -> None:
    path = {"PYTHONPATH": f"{ROOT / 'app'}:{ROOT / 'tests'}"}
    run(sys.executable, "-m", "support.policies.record", "--compare", *NAMES, environment=path)
    note(f"audit policies: {len(NAMES)}, as a live API server's", lap())
