"""The documentation agrees with the code, the chart and itself."""

import os
import re
import subprocess
from dataclasses import fields
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import yaml

from docs import causes
from docs.azcli import steps
from e2e import commands
from forwarder import __version__
from forwarder.config.settings import Settings
from support import ROOT, chart
from support.documents import PAGES, anchors, page, prose, section

BLOCKS = [
    (document.relative_to(ROOT).as_posix(), step)
    for document in PAGES
    for step in steps.blocks(document.read_text())
]
# Example values for the variables in commands.
EXAMPLES = {
    "CONNECTION_STRING": "Endpoint=sb://a.servicebus.windows.net/;SharedAccessKeyName=a;"
    "SharedAccessKey=YQ==;EntityPath=insights-logs-kube-audit",
    "STORAGE_CONNECTION_STRING": "AccountName=a;AccountKey=YQ==",
    "STORAGE_ID": "/a",
    **dict.fromkeys(("NAMESPACE", "REPOSITORY", "STORAGE"), "a"),
    "CONTAINER": "checkpoints",
    "CLIENT_ID": "00000000-0000-0000-0000-000000000000",
}


def shown(default: object) -> str:
    """Format a setting's default as a user would type it."""
    match default:
        case None | ():
            return ""
        case bool():
            return str(default).lower()
        case frozenset():
            return ",".join(sorted(default))
        case float():
            return f"{default:g}"
        case datetime() | timedelta():
            raise AssertionError(default)
    return str(default)


def test_settings_table_has_every_variable_with_its_default() -> None:
    table = section(page("app/README.md"), "Settings")
    rows = dict(re.findall(r"^\| `(\w+)` \| (?:`([^`]*)`)? ?\|", table, re.MULTILINE))
    assert {
        item.metadata["variable"]: shown(item.default) for item in fields(Settings) if item.metadata
    } == rows


def test_the_front_page_is_short_and_links_to_all_pages() -> None:
    assert page("README.md").count("\n") < 300
    mentioned = {ROOT / path for path in re.findall(r"\]\(([^):#]+)", page("README.md"))}
    assert {one for one in PAGES if one.is_relative_to(ROOT / "chart" / "docs")} <= mentioned


def test_the_table_of_causes_matches_the_code() -> None:
    text = page("operations.md")
    assert causes.written(text) == text, "run make docs"


def test_pages_are_not_in_the_packaged_chart() -> None:
    assert "/docs/" in (chart.CHART / ".helmignore").read_text().splitlines()


def test_version_matches_the_chart_and_has_a_changelog_entry() -> None:
    found = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    assert __version__ == found["appVersion"]
    assert f"\n## [{found['version']}]" in (ROOT / "CHANGELOG.md").read_text()
    text = "".join(document.read_text() for document in PAGES)
    assert set(re.findall(r"--image aks-audit:(\S+)", text)) == {found["appVersion"]}


@pytest.mark.parametrize("document", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_point_to_files_and_headings(document: Path) -> None:
    links = re.findall(r"\]\(([^):]+)\)", prose(document.read_text()))
    missing = []
    for link in links:
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert missing == []
    assert links


def test_every_target_of_make_that_is_named_exists() -> None:
    made = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = "\n".join(document.read_text() for document in PAGES)
    named = set(re.findall(r"(?:`|^|[A-Z]+=\S+ )make ([a-z][a-z0-9-]*)", text, re.MULTILINE))
    assert {"demo", "test", "azure"} <= named
    assert named - made == set()


def test_every_value_and_variable_that_is_named_exists() -> None:
    values = yaml.safe_load((chart.CHART / "values.yaml").read_text())
    variables = {item.metadata["variable"] for item in fields(Settings) if item.metadata}
    first = "|".join({one[0] for name in variables if (one := re.findall("[A-Z][a-z]+", name))})
    known = variables | {f"{one}_FILE" for one in variables} | {"EventList"}
    unknown = []
    text = "\n".join(prose(document.read_text()) for document in PAGES)
    for word in re.findall(r"`([^`\n]+)`", text):
        name = word.partition("=")[0]
        if re.fullmatch(rf"(?:{first})[A-Z]\w+", name) and name not in known:
            unknown.append(name)
        path, at = name.split("."), values
        if len(path) > 1 and path[0] in values and re.fullmatch(r"[\w.]+", name):
            for part in path:
                if not isinstance(at, dict) or part not in at:
                    unknown.append(name)
                    break
                at = at[part]
    assert unknown == []


def test_promises_name_tests_that_exist() -> None:
    table = section(page("app/README.md"), "What it promises")
    table += section(page("security.md"), "Attacks that were tried")
    promised = re.findall(r"`(\w+)::([^`]+)`", table)
    assert len(promised) >= 10
    tests = {path.stem: path for path in (ROOT / "tests").rglob("test_*.py")}
    for file, name in promised:
        text = tests[file if file in tests else f"test_{file}"].read_text()
        assert re.search(rf'def {name}\(|^    "{name}": ', text, re.MULTILINE), f"{file}::{name}"


def test_the_commands_that_are_run_on_a_cluster_are_documented() -> None:
    assert all(commands.block(name) for name in commands.BLOCKS)
    assert len(commands.blocks(*commands.MIGRATION)) == 6


@pytest.mark.parametrize("part", steps.PARTS)
@pytest.mark.parametrize("ask", [True, False])
def test_make_azure_prints_a_program_that_bash_can_parse(part: str, *, ask: bool) -> None:
    program = steps.program(
        steps.of(page("azure.md"), part), {"GROUP": "mine", "HOME": "/"}, ask=ask
    )
    assert "\nGROUP=mine  " in program
    parsed = subprocess.run(
        ["bash", "-n"], input=program, capture_output=True, text=True, check=True
    )
    assert parsed.stderr == ""


def test_make_azure_stops_when_a_step_that_costs_money_is_declined(tmp_path: Path) -> None:
    (tmp_path / "az").write_text('#!/bin/sh\necho "$*" >>"$0.called"\n')
    (tmp_path / "az").chmod(0o755)
    subprocess.run(
        ["make", "azure", "RUN=1"],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        input="n\nn\n",  # no cluster, no hub
        capture_output=True,
        text=True,
        check=True,
    )
    assert (tmp_path / "az.called").read_text() == "account show --query id --output tsv\n"


def test_make_azure_asks_before_it_deletes() -> None:
    program = steps.program(steps.of(page("azure.md"), "down"), {}, ask=True)
    before, _, deleted = program.partition("diagnostic-settings delete")
    assert "deletes what the steps above created" in before
    assert "az group delete" in deleted


def helm_commands() -> list[tuple[str, str]]:
    """Return the document and text of each command that installs this chart."""
    return [
        (name, line.strip())
        for name, step in BLOCKS
        for line in step.commands.replace("\\\n", "").splitlines()
        if re.search(r"^\s*helm (?:install|upgrade) .*\./chart", line)
    ]


@pytest.mark.parametrize(("document", "command"), helm_commands())
def test_the_chart_renders_what_every_helm_command_sets(document: str, command: str) -> None:
    """With `--reuse-values`, together with the values of the first command."""
    expanded = subprocess.run(
        ["bash", "-euc", f"printf '%s\\0' {command}"],
        env={"PATH": os.environ["PATH"], **EXAMPLES},
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout.split("\0")[:-1]
    arguments = expanded[expanded.index("./chart") + 1 :]
    kept = {"--set": 2, "--values": 2}
    given = [
        arguments[index : index + kept[one]] for index, one in enumerate(arguments) if one in kept
    ]
    before = (
        ["--set", f"eventHub.connectionString={EXAMPLES['CONNECTION_STRING']}"]
        if any("reuse-values" in one for one in arguments)
        else []
    )
    assert chart.render(*before, *(word for pair in given for word in pair)), document


def test_the_artifact_hub_annotations_match_the_changelog() -> None:
    found = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    annotations = {name: yaml.safe_load(text) for name, text in found["annotations"].items()}
    changelog = (ROOT / "CHANGELOG.md").read_text()
    section = changelog.partition(f"## [{found['version']}]")[2].partition("\n## ")[0]
    entries = [
        {"kind": part.split("\n")[0].lower(), "description": line[2:].replace("`", "")}
        for part in section.split("\n### ")[1:]
        for line in part.splitlines()
        if line.startswith("- ")
    ]
    assert annotations["artifacthub.io/changes"] == entries
    values = yaml.safe_load((chart.CHART / "values.yaml").read_text())
    (image,) = annotations["artifacthub.io/images"]
    assert image["image"] == f"{values['image']['repository']}:{found['appVersion']}"
    for link in annotations["artifacthub.io/links"]:
        address, _, anchor = link["url"].partition("#")
        path = address.removeprefix(f"{found['home']}/blob/main/")
        assert anchor in anchors(ROOT / path)


def test_examples_for_argo_cd_and_flux_set_values_of_the_chart(tmp_path: Path) -> None:
    text = (chart.CHART / "README.md").read_text()
    blocks = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    objects = {one["kind"]: one for block in blocks for one in yaml.safe_load_all(block)}
    assert set(objects) == {"Application", "GitRepository", "HelmRelease"}
    application, release = objects["Application"]["spec"], objects["HelmRelease"]["spec"]
    for values in (application["source"]["helm"]["valuesObject"], release["values"]):
        (file := tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
        (container,) = chart.pod(chart.render("--values", file))["containers"]
        assert container["image"] == f"registry.example.com/aks-audit:{__version__}"
    paths = application["source"]["path"], release["chart"]["spec"]["chart"]
    assert {(ROOT / path).resolve() for path in paths} == {chart.CHART}
    assert release["install"]["disableWait"]
    assert release["upgrade"]["disableWait"]
    source = release["chart"]["spec"]["sourceRef"]
    assert source == {"kind": "GitRepository", "name": objects["GitRepository"]["metadata"]["name"]}


def test_values_in_the_documentation_are_values_of_the_chart(tmp_path: Path) -> None:
    text = "".join(page(name) for name in ("sinks.md", "audit-policy.md"))
    found = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found
    for number, text in enumerate(found):
        (file := tmp_path / f"{number}.yaml").write_text(text)
        assert chart.render("--values", chart.CHART / "ci" / "default-values.yaml", "-f", file)
