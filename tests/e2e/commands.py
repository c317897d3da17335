"""Runs commands as they are in the documentation."""

import os
import re
import textwrap

from docs.azcli import steps
from e2e.cluster import ROOT, run

IMAGE = os.environ.get("E2E_NEW", "")
"""The image under test, REPOSITORY:TAG."""

# Where the commands are: file, heading, and a text that is unique among the blocks there.
BLOCKS = {
    "install": ("README.md", "Quick start", "helm install"),
    "see": ("README.md", "Quick start", "kubectl logs"),
    "level": ("README.md", "Quick start", "verboseLevel=3"),
    "check": ("chart/docs/operations.md", "The check", "forwarder check"),
    "dead letters": ("chart/docs/operations.md", "Dead letters", "replay --dry-run"),
    "replicas": ("chart/README.md", "Variations", "replicaCount=3"),
    "uninstall": ("chart/README.md", "Uninstall", "helm uninstall"),
}
MIGRATION = ("chart/docs/migration.md", "From sysdiglabs/aks-audit-log-forwarder")

# The only differences to the documentation: the image, because none is published, and a
# time limit for commands that follow a log until Ctrl-C.
_PRELUDE = """
helm() {
  case $1 in
    install | upgrade) command helm "$@" --set image.repository="$REPOSITORY",image.tag="$TAG" ;;
    *) command helm "$@" ;;
  esac
}
kubectl() {
  case "$1 $* " in
    logs*\\ -f\\ *) timeout 5 kubectl "$@" || [ $? = 124 ] ;;
    *) command kubectl "$@" ;;
  esac
}
"""


def blocks(file: str, heading: str) -> list[str]:
    """Return the `sh` blocks of a Markdown file below a heading."""
    found = steps.blocks((ROOT / file).read_text())
    return [textwrap.dedent(step.commands) for step in found if step.heading == heading]


def block(name: str) -> str:
    """Return the one block that BLOCKS names."""
    file, heading, text = BLOCKS[name]
    found = [each for each in blocks(file, heading) if text in each]
    if len(found) != 1:
        raise ValueError(f"{file}, '{heading}': {len(found)} blocks have '{text}'")
    return found[0]


def notes(release: str, namespace: str) -> list[str]:
    """Return the commands that NOTES.txt prints."""
    text = run("helm", "get", "notes", release, "--namespace", namespace)
    return re.findall(r"^  ((?:kubectl|helm) .*)$", text, re.MULTILINE)


def run_in_shell(command: str, namespace: str = "sysdig-agent", **variables: str) -> str:
    """Run commands in a shell at the repository's root; return their output."""
    repository, _, tag = IMAGE.rpartition(":")
    environment = {"REPOSITORY": repository, "TAG": tag, **variables}
    command = command.replace("--namespace sysdig-agent", f"--namespace {namespace}")
    return run("bash", "-euo", "pipefail", "-c", _PRELUDE + command, environment=environment)
