"""YAML as configurations use it: PyYAML's safe loader without what can make a page of text grow."""

from typing import Any

import yaml

MAX_DEPTH = 16
"""Levels of lists and mappings: a configuration has three. PyYAML takes half a minute for 64 kiB of ``[``."""


class _Plain(yaml.SafeLoader):
    """No aliases (nine of them in nine levels are a billion values), no key twice, no ``<<``."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise _problem("aliases (*name) are not read; write the value out", self.peek_event())  # type: ignore[no-untyped-call]
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _problem("nested too deeply", self.peek_event())  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _problem(f"the key {key.value[:60]!r} stands twice", key)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _problem(text: str, where: Any) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=where.start_mark)


def parse_yaml(text: str) -> Any:
    """The document in `text`.

    Raises:
        yaml.YAMLError: whatever is wrong with it.
    """
    try:
        loader = _Plain(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError:
        raise
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except (ValueError, TypeError, OverflowError, AttributeError, LookupError) as error:  # of scalars: dates, numbers
        raise yaml.YAMLError(f"a value cannot be read: {error}") from None
