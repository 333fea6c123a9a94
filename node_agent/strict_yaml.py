"""Pure: YAML for configuration: text, numbers, truth values, lists and mappings, and no surprise.

What YAML allows beyond that is an error: a key that is there twice or is not text, tags of other types,
aliases that make much of little. A date is text.
"""

from collections.abc import Hashable
from typing import Any

import yaml

from vf_manager.errors import shorten

_MOST_VALUES = 100_000
_CORE = ("null", "bool", "int", "float", "str", "seq", "map")


class YamlError(Exception):
    """The text is no YAML, or not of the part of it that is read here."""


def read_yaml(text: str) -> Any:
    """Raises YamlError."""
    try:
        value = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as e:
        raise YamlError(str(e)) from e
    except RecursionError:
        raise YamlError("it is nested too deeply") from None
    except (ValueError, ArithmeticError, LookupError) as e:  # what PyYAML itself stumbles over
        raise YamlError(f"a value that is none: {shorten(str(e))}") from e
    _refuse_strange(value)
    return value


def _refuse_strange(value: Any) -> None:
    """An alias may stand for a large part of the file, or for what it is itself in."""
    waiting = [value]
    for _ in range(_MOST_VALUES):
        if not waiting:
            return
        one = waiting.pop()
        if isinstance(one, dict):
            waiting += [*one, *one.values()]
        elif isinstance(one, list):
            waiting += one
        elif isinstance(one, str) and not _is_utf8(one):
            raise YamlError(f"{shorten(one)} is not text")
    raise YamlError(f"it has more than {_MOST_VALUES} values")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _StrictLoader(yaml.SafeLoader):
    """YAML lets the last of two equal keys win in silence; here it is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _key_error(f"the key {shorten(key)} is not text; put quotes around it", key_node)
            if key in seen:
                raise _key_error(f"the key {shorten(key)} is there twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _key_error(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_StrictLoader.yaml_constructors = {
    tag: construct
    for tag, construct in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in _CORE
}
_StrictLoader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
