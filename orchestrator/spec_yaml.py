"""YAML as specs are written: a key that stands twice in a mapping is refused, as in the API's JSON."""

from __future__ import annotations

from typing import Any

import yaml

_MERGE = "tag:yaml.org,2002:merge"


class DuplicateKey(yaml.MarkedYAMLError):
    """`problem` names the key, `problem_mark` is where it stands again."""

    @property
    def line(self) -> int:
        """Counts from 1."""
        return int(self.problem_mark.line) + 1 if self.problem_mark else 0


class _Loader(yaml.SafeLoader):
    """Looks at mappings before merges (`<<`) are written out, whose keys may well stand in the mapping too."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        found: dict[tuple[str, str], yaml.ScalarNode] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            first = found.setdefault((key.tag, key.value), key)
            if first is not key:
                name = " ".join(key.value[:64].split())  # in one line
                problem = f"the key '{name}' stands twice, first in line {first.start_mark.line + 1}"
                raise DuplicateKey(problem=problem, problem_mark=key.start_mark)
        return node


def load(text: str) -> Any:
    """As yaml.safe_load. Raises DuplicateKey too, which is a YAMLError."""
    return yaml.load(text, Loader=_Loader)  # a SafeLoader
