"""Images have only the packages of app/requirements.txt, the environment of tests has more."""

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STORE = "azure-eventhub-checkpointstoreblob-aio"  # tests/e2e/Dockerfile adds it


def imported(statements: Iterator[ast.AST] | list[ast.stmt]) -> Iterator[str]:
    """Yield the imported modules."""
    for node in statements:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("image", ["forwarder", "tests/e2e"])
def test_an_image_has_every_package_that_it_imports(image: str) -> None:
    locked = (ROOT / "app" / "requirements.txt").read_text()
    installed = set(re.findall(r"^([a-z0-9-]+)==", locked, re.MULTILINE))
    found: set[str] = set()
    if image == "forwarder":
        for file in (ROOT / "app" / "forwarder").rglob("*.py"):
            found |= set(imported(ast.walk(ast.parse(file.read_text()))))
    else:
        installed.add(STORE)
        tests = ROOT / "tests"
        support = [*tests.glob("support/event*/*.py"), tests / "support" / "webhook.py"]
        for file in [*support, tests / "e2e" / "hub.py", tests / "e2e" / "old.py"]:
            found |= set(imported(ast.parse(file.read_text()).body))
    owners = {
        str(one.locate_file(path)): re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower()
        for one in distributions()
        for path in one.files or []
        if path.suffix in {".py", ".so"}
    }
    found = {name for name in found if name.split(".")[0] not in sys.stdlib_module_names}
    origins = {str((spec := find_spec(name)) and spec.origin) for name in found}
    used = {owners[origin] for origin in origins & owners.keys()}
    assert used - installed == set()
    assert "msgspec" in used
