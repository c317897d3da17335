"""YAML as Kubernetes accepts it: a duplicate field is an error."""

from collections import Counter
from typing import Any

import yaml
from yaml.constructor import ConstructorError


class _Strict(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - the library's signature
        names = Counter(str(key.value) for key, _ in node.value)
        if twice := [name for name, count in names.items() if count > 1]:
            raise ConstructorError(problem=f"'{twice[0]}' twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def read(text: str) -> Any:
    """Return the single YAML document in a text; ValueError, on one line, if it is invalid."""
    try:
        return yaml.load(text, _Strict)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"is not YAML: {' '.join(str(error).split())}") from None
