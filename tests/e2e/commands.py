"""Commands as a reader types them, from the text of the documentation."""

import os
import re
import textwrap

from docs.azcli import steps
from e2e.cluster import ROOT, run

IMAGE = os.environ.get("E2E_NEW", "")
"""The image under test, REPOSITORY:TAG."""

# Where the commands stand: file, heading, and a text that no other block there has.
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

# All in which these commands differ from the documentation: the image, for none is
# published, and an end for what would follow a log until Ctrl-C.
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
    """Return the `sh` blocks of a Markdown file between a heading and the next one."""
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


def type_in(command: str, namespace: str = "sysdig-agent", **variables: str) -> str:
    """Run commands in a shell at the repository's root; return all that they print."""
    repository, _, tag = IMAGE.rpartition(":")
    environment = {"REPOSITORY": repository, "TAG": tag, **variables}
    command = command.replace("--namespace sysdig-agent", f"--namespace {namespace}")
    return run("bash", "-euo", "pipefail", "-c", _PRELUDE + command, environment=environment)
