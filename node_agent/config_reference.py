"""Pure, but for `main`: the reference of the agent's config as tables and as a JSON Schema, from its types.

`python -m node_agent.config_reference` writes both into the project; a test keeps them equal.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from node_agent.config import AgentConfig
from sriov_cni.network_keys import NetworkKeys

PAGE, SCHEMA = Path("docs/configuration.md"), Path("manifests/config.schema.json")
BEGIN, END = "<!-- made by make docs-config -->", "<!-- end -->"

Node: TypeAlias = Mapping[str, Any]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REF = "#/$defs/{name}"
# The place of each struct in the file, in the order of the page.
_PLACES = {
    "AgentConfig": "",
    "PoolConfig": "pools[]",
    "Selector": "pools[].select",
    "VfsConfig": "pools[].vfs",
    "Limits": "pools[].limits",
    "Allocation": "pools[].allocation",
    "HealthPolicy": "pools[].health",
    "NetworkKeys": "networks[]",
    "KubernetesConfig": "kubernetes",
}


def config_schema() -> dict[str, Any]:
    """Of the whole file. Networks are read by hand, with the same code as a CNI configuration, so their keys
    are described by a struct of their own."""
    (top, network), structs = msgspec.json.schema_components((AgentConfig, NetworkKeys), ref_template=_REF)
    structs["AgentConfig"]["properties"]["networks"]["items"] = network
    texts = {name: _flat(struct) for name, struct in structs.items()}
    return {"$schema": _DIALECT, "title": "The config of sriov-agent", **top, "$defs": texts}


def render_schema() -> str:
    return json.dumps(config_schema(), indent=2) + "\n"


def render_tables() -> str:
    """A section with a table for each struct. One that has no place in the list comes last."""
    structs = {name: node for name, node in config_schema()["$defs"].items() if "properties" in node}
    order = [*_PLACES, *sorted(structs.keys() - _PLACES.keys())]
    return "\n".join(_section(name, structs) for name in order)


def fill_page(page: str) -> str:
    """The page with the tables between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{render_tables()}\n{END}{after}"


def _section(name: str, structs: Mapping[str, Node]) -> str:
    node, place = structs[name], _PLACES.get(name, name)
    required = node.get("required", ())
    rows = (_row(key, value, key in required, structs) for key, value in node["properties"].items())
    title = f"`{place}`" if place else "The file"
    table = ["| key | type, range | default | meaning |", "|---|---|---|---|", *rows]
    return "\n".join([f"### {title}", "", node["description"], "", *table, ""])


def _row(key: str, value: Node, required: bool, structs: Mapping[str, Node]) -> str:
    kind = " or ".join(_kinds(value, structs)) + _bounds(value)
    default = "required" if required else _default(value.get("default"))
    return f"| `{key}` | {kind} | {default} | {value['description']} |"


def _default(value: object) -> str:
    """Of a struct it is in the struct's own table."""
    return "" if value is None or isinstance(value, dict | list) else f"`{_word(value)}`"


def _word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _bounds(value: Node) -> str:
    match value.get("minimum"), value.get("maximum"):
        case None, None:
            return ""
        case low, None:
            return f" from {low}"
        case low, high:
            return f", {low}-{high}"


def _kinds(node: Node, structs: Mapping[str, Node]) -> Iterator[str]:
    """What may be there, in words. `null` is as if the key were not there, and is not told."""
    match node:
        case {"$ref": ref}:
            name = ref.rpartition("/")[2]
            yield from _kinds_of_ref(name, structs)
        case {"anyOf": members}:
            for member in sorted(members, key=lambda one: "items" in one):
                yield from _kinds(member, structs)
        case {"enum": values}:
            yield ", ".join(f"`{value}`" for value in values if value is not None)
        case {"type": "array", "items": items}:
            yield "list of " + " or ".join(_plural(kind) for kind in _kinds(items, structs))
        case {"type": "string"}:
            yield "text"
        case {"type": "integer"}:
            yield "integer"
        case {"type": "boolean"}:
            yield "`true`, `false`"
        case {"type": "object"}:
            yield "mapping"


def _kinds_of_ref(name: str, structs: Mapping[str, Node]) -> Iterator[str]:
    if name in structs:
        place = _PLACES.get(name, name)
        yield f"[mapping](#{_anchor(place)})"
    else:
        yield from _kinds(config_schema()["$defs"][name], structs)


def _plural(kind: str) -> str:
    return {"text": "texts", "integer": "integers"}.get(kind, kind.replace("mapping", "mappings"))


def _anchor(title: str) -> str:
    """As GitHub makes it of a heading."""
    return "".join(letter for letter in title.lower() if letter.isalnum() or letter in "-_ ").replace(
        " ", "-"
    )


def _flat(value: Any) -> Any:
    """Docstrings on one line."""
    match value:
        case dict():
            return {key: _flat(inner) for key, inner in value.items()}
        case list():
            return [_flat(inner) for inner in value]
        case str():
            return " ".join(value.split())
        case _:
            return value


def main(root: Path = Path()) -> None:
    (root / SCHEMA).write_text(render_schema())
    page = root / PAGE
    page.write_text(fill_page(page.read_text()))


if __name__ == "__main__":
    main()
