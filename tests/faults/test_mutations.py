"""The marks in the code, the table of mutations and the tests in it are consistent."""

import ast
from collections import Counter
from pathlib import Path

import pytest

from faults import mutations
from faults.mutations import MUTATIONS, ROOT, Mutation
from faults.test_scenarios import SCENARIOS
from support.process import APP


def test_each_mark_is_unique_and_has_a_mutation() -> None:
    marks = Counter(name for name, _ in mutations.guards(APP))
    assert marks == dict.fromkeys(map(mutations.guard_of, MUTATIONS), 1)


@pytest.mark.parametrize(("name", "mutation"), MUTATIONS.items(), ids=MUTATIONS)
def test_a_mutation_changes_its_line_and_is_valid_python(
    name: str, mutation: Mutation, tmp_path: Path
) -> None:
    guard = dict(mutations.guards(APP))[mutations.guard_of(name)]
    before = guard.module.read_text()
    copy = tmp_path / "module.py"
    copy.write_text(before)
    mutations.mutate(guard._replace(module=copy), mutation.replacement)
    assert ast.dump(ast.parse(copy.read_text())) != ast.dump(ast.parse(before))


@pytest.mark.parametrize("test", sorted({one.test for one in MUTATIONS.values()}))
def test_the_test_of_a_mutation_exists(test: str) -> None:
    path, _, function = test.partition("::")
    text = (ROOT / path).read_text()
    function, _, parameter = function.partition("[")
    assert not function or f"def {function.rpartition('::')[2]}(" in text
    assert not parameter or parameter.removesuffix("]") in SCENARIOS
