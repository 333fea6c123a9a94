"""docs/configuration.md and manifests/config.schema.json say what the config's types and parser do."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from node_agent import config_reference
from node_agent.config import ConfigError, parse_config
from node_agent.config_reference import PAGE, SCHEMA, config_schema, fill_page, render_schema

PROJECT = Path(__file__).parent.parent
STRUCTS: dict[str, Any] = {
    name: node for name, node in config_schema()["$defs"].items() if "properties" in node
}
# A config with one struct more, and keys that must be beside its own.
BESIDE: dict[str, dict[str, Any]] = {
    "VfsConfig": {"count": 7},
    "Limits": {},
    "NetworkKeys": {"name": "blue", "pools": ["fast"]},
}
NEEDS: dict[str, dict[str, Any]] = {
    "vlanQoS": {"vlan": 5},
    "vlanProto": {"vlan": 5},
    "min_tx_rate": {"max_tx_rate": 0},
    "max_tx_rate": {"min_tx_rate": 0},
    "syncTimeout": {"services": "in-pod"},
    "unsynced": {"policy": "in-pod"},
}


def config_with(struct: str, key: str, value: object) -> str:
    inner = BESIDE[struct] | NEEDS.get(key, {}) | {key: value}
    pool: dict[str, Any] = {"name": "fast", "select": {"pfNames": ["ens1f0"]}}
    config: dict[str, Any] = {"pools": [pool]}
    match struct:
        case "VfsConfig":
            pool["vfs"] = inner
        case "Limits":
            pool["limits"] = inner
        case _:
            config |= {"networks": [inner], "kubernetes": {}}
    return msgspec.json.encode(config).decode()  # which is YAML, too


def bounds() -> Iterator[Any]:
    for struct, node in STRUCTS.items():
        for key, value in node["properties"].items():
            for bound, beyond in (("minimum", -1), ("maximum", 1)):
                if bound in value:
                    limit = value[bound]
                    yield pytest.param(struct, key, limit, limit + beyond, id=f"{struct}.{key}-{bound}")


def test_the_page_and_the_schema_are_as_made() -> None:
    """`make docs-config` makes them."""
    page = (PROJECT / PAGE).read_text()
    assert page == fill_page(page)
    assert (PROJECT / SCHEMA).read_text() == render_schema()


def test_they_are_written_where_they_are_read(tmp_path: Path) -> None:
    for path in (PAGE, SCHEMA):
        (tmp_path / path).parent.mkdir()
    (tmp_path / PAGE).write_text(f"before\n{config_reference.BEGIN}\nold\n{config_reference.END}\nafter\n")
    config_reference.main(tmp_path)
    assert (tmp_path / SCHEMA).read_text() == render_schema()
    page = (tmp_path / PAGE).read_text()
    assert config_reference.render_tables() in page
    assert page.startswith("before\n")
    assert page.endswith("\nafter\n")
    assert "old" not in page.split()


def test_every_key_has_a_meaning_and_every_struct_a_place() -> None:
    for struct, node in STRUCTS.items():
        assert struct in config_reference._PLACES
        assert node["description"]
        assert not [key for key, value in node["properties"].items() if "description" not in value]


@pytest.mark.parametrize(("struct", "key", "limit", "beyond"), list(bounds()))
def test_bounds_are_those_that_are_checked(struct: str, key: str, limit: int, beyond: int) -> None:
    parse_config(config_with(struct, key, limit))
    with pytest.raises(ConfigError, match=key):
        parse_config(config_with(struct, key, beyond))


@pytest.mark.parametrize("key", list(STRUCTS["NetworkKeys"]["properties"]))
def test_choices_of_a_network_are_those_that_are_taken(key: str) -> None:
    node = STRUCTS["NetworkKeys"]["properties"][key]
    for choice in choices(node):
        if choice is not None:
            parse_config(config_with("NetworkKeys", key, choice))
    if choices(node):
        with pytest.raises(ConfigError, match=key):
            parse_config(config_with("NetworkKeys", key, "perhaps"))


def choices(node: dict[str, Any]) -> list[Any]:
    if "$ref" in node:
        return choices(config_schema()["$defs"][node["$ref"].rpartition("/")[2]])
    return [*node.get("enum", []), *(one for member in node.get("anyOf", []) for one in choices(member))]
