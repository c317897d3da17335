"""The list of mutations keeps up with the code."""

import pytest

from faults.mutations import MUTATIONS, Mutation
from support.process import APP


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS.keys())
def test_a_mutation_changes_one_place(mutation: Mutation) -> None:
    text = (APP / "forwarder" / mutation.module).read_text()
    assert text.count(mutation.text) == 1
    assert mutation.text != mutation.becomes
