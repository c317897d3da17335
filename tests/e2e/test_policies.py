"""The forwarder's audit policy leaves what a kube-apiserver writes now under the same policies.

It is one of its own, for that of a cluster cannot be given another policy: `policies.record`.
"""

import shutil
import sys

import pytest

from e2e.cluster import ROOT, run
from e2e.conftest import Lap, Note

# Each matcher, and what is least expected of them; `policies.record --compare` alone takes all.
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


def test_policies_leave_what_the_api_server_writes(note: Note, lap: Lap) -> None:
    path = {"PYTHONPATH": f"{ROOT / 'app'}:{ROOT / 'tests'}"}
    run(sys.executable, "-m", "support.policies.record", "--compare", *NAMES, environment=path)
    note(f"audit policies: {len(NAMES)}, as a live API server's", lap())
