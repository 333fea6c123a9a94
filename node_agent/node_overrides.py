"""Pure: one config for many nodes. `nodes` lists what is different on some, by the name of the node:

    nodes:
    - match: {node: "gpu-*"}
      pools: [{name: fast, select: {pfNames: [ens2f0, ens2f1]}}]

Entries that match are merged into the rest in their order: mappings key by key, `pools` and `networks` by the
`name` of their elements; anything else is replaced, and null takes a key away.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

from vf_manager.errors import InvalidInput

_KEY = "nodes"
_NAMED = ("pools", "networks")


def for_node(document: Any, node: str) -> Any:
    """The config of this node. Raises InvalidInput."""
    merged = _without_nodes(document)
    for number, (pattern, change) in enumerate(_entries(document)):
        if fnmatchcase(node, pattern):
            merged = _merge_document(merged, change, f"{_KEY}[{number}]")
    return merged


def variants(document: Any) -> Iterator[tuple[str, Any]]:
    """Each entry's path, and the config of a node that it alone matches: so every node sees its mistakes."""
    for number, (_, change) in enumerate(_entries(document)):
        key = f"{_KEY}[{number}]"
        yield key, _merge_document(_without_nodes(document), change, key)


def _without_nodes(document: Any) -> Any:
    if not isinstance(document, dict):
        return document
    return {key: value for key, value in document.items() if key != _KEY}


def _entries(document: Any) -> list[tuple[str, dict[str, Any]]]:
    entries = document.get(_KEY) if isinstance(document, dict) else None
    if not isinstance(entries, list | None):
        raise InvalidInput(_KEY, entries, "a list of mappings, each with `match`")
    return [_entry(entry, f"{_KEY}[{number}]") for number, entry in enumerate(entries or [])]


def _entry(entry: Any, key: str) -> tuple[str, dict[str, Any]]:
    if not isinstance(entry, dict) or _KEY in entry:
        raise InvalidInput(key, entry, "a mapping with `match` and keys of the config")
    match entry.get("match"):
        case {"node": str(pattern), **others} if pattern and not others:
            return pattern, {name: value for name, value in entry.items() if name != "match"}
        case found:
            raise InvalidInput(f"{key}.match", found, 'a pattern for the node\'s name, like {node: "gpu-*"}')


def _merge_document(document: Any, change: dict[str, Any], key: str) -> Any:
    if not isinstance(document, dict):
        return document
    lists = {name: change[name] for name in _NAMED if isinstance(change.get(name), list)}
    merged: dict[str, Any] = _merge(document, {k: v for k, v in change.items() if k not in lists})
    for name, elements in lists.items():
        merged[name] = _merge_named(document.get(name), elements, f"{key}.{name}")
    return merged


def _merge(old: Any, new: Any) -> Any:
    """JSON merge patch (RFC 7396)."""
    if not isinstance(new, dict):
        return new
    before = old if isinstance(old, dict) else {}
    kept = {k: v for k, v in before.items() if k not in new}
    return kept | {k: _merge(before.get(k), v) for k, v in new.items() if v is not None}


def _merge_named(old: Any, new: list[Any], key: str) -> list[Any]:
    merged = list(old) if isinstance(old, list) else []
    for number, element in enumerate(new):
        name = element.get("name") if isinstance(element, dict) else None
        if not isinstance(name, str):
            expected = "the name of one that is there, or of a new one"
            raise InvalidInput(f"{key}[{number}].name", name, expected)
        place = next((i for i, one in enumerate(merged) if _has_name(one, name)), len(merged))
        merged[place : place + 1] = [_merge(merged[place] if place < len(merged) else None, element)]
    return merged


def _has_name(element: Any, name: str) -> bool:
    return isinstance(element, dict) and element.get("name") == name
