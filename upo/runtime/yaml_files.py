"""YAML in which no key stands twice: of two values the later one would count, without a word. None nests endlessly."""

from pathlib import Path
from typing import Any

import yaml

from upo.errors import UserError

MERGE = "tag:yaml.org,2002:merge"
DEEPEST, LARGEST = 50, 1_000_000
"""Lists and mappings within one another, and values of a file with all aliases written out."""


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses a key that stands twice in one mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        known = set()
        for key_node, _ in node.value:
            if key_node.tag == MERGE or not isinstance(key_node, yaml.ScalarNode):
                continue
            key = self.construct_object(key_node, deep=True)
            if key in known:
                problem = f"`{key}` stands twice in one mapping; keep one of them"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            known.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(file: Path) -> Any:
    """The content of a YAML file.

    Raises:
        UserError: it is none, or a key stands twice, with the line; or it nests without end.
    """
    try:
        return _of_finite_depth(yaml.load(file.read_text(encoding="utf-8"), Loader))
    except RecursionError:
        raise UserError(
            f"{file}: lists or mappings within themselves, or more than {DEEPEST} within one another; write them out"
        ) from None
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        hint = "; indent with spaces" if "'\\t'" in str(error.problem) else ""
        raise UserError(f"{file}{line} is no valid YAML: {error.problem}{hint}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # no text, no such date, a number of 5,000 digits
        raise UserError(f"{file} is no valid YAML: {str(error).splitlines()[0]}") from None


def _of_finite_depth(content: Any) -> Any:
    """The content, where it ends within `DEEPEST` and `LARGEST`."""
    level, number = [content], 0
    for _ in range(DEEPEST):
        level = [
            x
            for node in level
            for x in (node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())
        ]
        number += len(level)
        if not level:
            return content
        if number > LARGEST:
            break
    raise RecursionError
