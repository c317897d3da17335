"""README and changelog say what is so."""

import re
from dataclasses import fields
from datetime import datetime, timedelta
from pathlib import Path

import yaml

from e2e.commands import BLOCKS, MIGRATION, block, blocks
from forwarder import __version__
from forwarder.settings import Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ROWS = dict(re.findall(r"^\| `(\w+)` \| (?:`([^`]*)`)? ?\|", README, re.MULTILINE))


def shown(default: object) -> str:
    """Write a setting's default as a user would type it."""
    match default:
        case None | ():
            return ""
        case frozenset():
            return ",".join(sorted(default))
        case float():
            return f"{default:g}"
        case datetime() | timedelta():
            raise AssertionError(default)
    return str(default)


def test_settings_table_has_every_variable_with_its_default() -> None:
    assert {item.metadata["variable"]: shown(item.default) for item in fields(Settings)} == ROWS


def test_version_is_that_of_the_chart_and_has_a_changelog_entry() -> None:
    chart = yaml.safe_load((ROOT / "chart" / "Chart.yaml").read_text())
    assert __version__ == chart["appVersion"]
    assert f"\n## [{chart['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_relative_links_lead_to_files() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_promises_name_tests_that_exist() -> None:
    promised = re.findall(r"`(tests/[\w/]+\.py)::([^`]+)`", README)
    assert len(promised) >= 10
    missing = [
        (file, name)
        for file, name in promised
        if not re.search(rf'def {name}\(|^    "{name}": ', (ROOT / file).read_text(), re.MULTILINE)
    ]
    assert missing == []


def test_the_commands_that_are_typed_on_a_cluster_stand_in_the_readmes() -> None:
    assert all(block(name) for name in BLOCKS)
    assert len(blocks(*MIGRATION)) == 6
