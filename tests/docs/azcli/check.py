"""azure-cli itself parses every az command in the repository: make test-azure."""

import ast
import json
import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from docs.azcli import steps
from support import ROOT
from support.documents import PAGES, page, prose

AZURE = page("azure.md")
AZ = ROOT / ".bin" / "az" / "bin" / "python"
_OTHERS = (
    "STORAGE_CONNECTION_STRING=\nOUTBOUND_ADDRESS=192.0.2.1\nMIRROR=a\n"
    "WORKSPACE_ID=/a\nACTION_GROUP_ID=/b\n"
)
"""Variables that only other blocks use."""
_LONGEST = 300  # seconds; the first command of a group compiles its modules
# Replaces az, kubectl and helm while the documented programs run: records the arguments of each
# call, and prints the output that the programs wait for.
_RECORDER = """#!/bin/bash
[[ $* != *"--filename -" ]] || cat >/dev/null
printf '%s\\0' "${0##*/}" "$@" >>"$RECORD"; printf '\\n' >>"$RECORD"
[[ $* != logs* ]] || echo pods/exec
[[ $* != *"--output tsv"* ]] || echo 00000000-0000-0000-0000-000000000000
"""


def parsed(commands: Sequence[Sequence[str]], home: Path) -> dict[str, str]:
    """Return the errors of az for commands (without `az`), by command; `home` is its home."""
    quiet = {"AZURE_EXTENSION_USE_DYNAMIC_INSTALL": "no", "AZURE_CORE_COLLECT_TELEMETRY": "no"}
    done = subprocess.run(
        [AZ, Path(__file__).with_name("parse.py")],
        input=json.dumps(commands),
        env={**os.environ, **quiet, "AZURE_CONFIG_DIR": str(home)},
        capture_output=True,
        timeout=_LONGEST,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    errors = zip(commands, json.loads(done.stdout), strict=True)
    return {shlex.join(command): error for command, error in errors if error}


def recorded(program: str, home: Path, answers: str = "") -> list[list[str]]:
    """Run a bash program; return its calls of az, kubectl and helm with expanded variables."""
    for name in ("az", "kubectl", "helm"):
        (home / name).write_text(_RECORDER)
        (home / name).chmod(0o755)
    record = home / "record"
    record.write_text("")
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", program],
        input=answers,
        env={"PATH": f"{home}:/usr/bin:/bin", "RECORD": str(record)},
        capture_output=True,
        timeout=60,
        check=False,
        text=True,
        cwd=home,
    )
    assert ended.returncode == 0, ended.stderr
    return [line.split("\0")[:-1] for line in record.read_text().splitlines()]


def of_az(calls: Sequence[Sequence[str]]) -> list[list[str]]:
    return [list(arguments) for name, *arguments in calls if name == "az"]


@pytest.mark.timeout(_LONGEST)
@pytest.mark.parametrize("part", steps.PARTS)
def test_az_accepts_every_command_of_azure_md(part: str, tmp_path: Path) -> None:
    program = steps.program(steps.of(AZURE, part), {"CLUSTER": "it's prod"}, ask=True)
    calls = of_az(recorded(program, tmp_path, "y\n" * 20))
    assert len(calls) >= 5
    assert any("it's prod" in call for call in calls)
    assert parsed(calls, tmp_path) == {}


@pytest.mark.timeout(_LONGEST)
def test_az_accepts_every_command_of_other_blocks(tmp_path: Path) -> None:
    calls = []
    names = steps.of(AZURE, "down")[0].commands + _OTHERS
    azure_steps = {step.commands for part in steps.PARTS for step in steps.of(AZURE, part)}
    for file in PAGES:
        for step in steps.blocks(file.read_text()):
            if step.commands not in azure_steps and re.search(
                r"^ *az ", step.commands, re.MULTILINE
            ):
                calls += of_az(recorded(names + step.commands, tmp_path))
    assert ["acr", "build"] in [call[:2] for call in calls]
    assert parsed(calls, tmp_path) == {}


@pytest.mark.timeout(_LONGEST)
def test_az_accepts_every_command_in_a_text(tmp_path: Path) -> None:
    commands = [command for text in texts() for command in named(text)]
    assert ["eventhubs", "eventhub", "consumer-group", "create"] in [one[:4] for one in commands]
    assert ["monitor", "diagnostic-settings", "list"] in [one[:3] for one in commands]
    assert len(commands) > 12
    assert parsed(commands, tmp_path) == {}


@pytest.mark.timeout(_LONGEST)
def test_az_rejects_invalid_commands(tmp_path: Path) -> None:
    invalid = [
        ["eventhubs", "eventhub", "create", "-g", "a", "--namespace-name", "b", "--name", "c"],
        ["eventhubs", "hub", "create"],
        ["storage", "account", "show-connection-string"],
    ]
    invalid[0] += ["--message-retention", "7"]  # its name until azure-cli 2.49
    assert len(parsed(invalid, tmp_path)) == len(invalid)


def texts() -> Iterator[str]:
    """Yield the texts that contain commands: documents, strings of the package, its causes."""
    for file in PAGES:
        yield from re.findall(r"`(az [^`]+)`", prose(file.read_text()))
    for file in (*ROOT.glob("chart/templates/*"), *ROOT.glob("chart/**/*.yaml")):
        if file.is_file():
            yield from file.read_text().splitlines()
    for file in (*ROOT.glob("app/**/*.py"), *ROOT.glob("tests/demo/*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
    yield from leaves(tomllib.loads((ROOT / "app/forwarder/diagnosis/causes.toml").read_text()))


def leaves(node: object) -> Iterator[str]:
    match node:
        case dict():
            for one in node.values():
                yield from leaves(one)
        case list():
            for one in node:
                yield from leaves(one)
        case str():
            yield node


def named(text: str) -> Iterator[list[str]]:
    """Yield the arguments of each command in a text.

    A command ends at the end of the text or at a semicolon; without flags, at the first punctuation
    mark. Placeholders, {name} or N, are replaced with valid values. For a command without flags,
    the help is requested: it must exist.
    """
    for found in re.findall(r"\baz ([a-z][a-z-]+ .*?)(?:; |$)", text, re.DOTALL):
        command = re.sub(r"\{(\w+)\}", r"\1", found).replace("level", "namespace")
        command = command.replace("which", "").replace(" N", " 2")
        if " --" in command:
            yield shlex.split(command)
        else:
            yield [*re.split(r"[^\w -]", command)[0].split(), "--help"]
