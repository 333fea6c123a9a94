"""What is different on some nodes."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.config import ConfigError, parse_config
from node_agent.config_file import ConfigFile
from node_agent.config_source import choose_source
from node_agent.node_overrides import for_node
from vf_manager.errors import InvalidInput

CONFIG = """
resourcePrefix: example.com
pools:
- {name: fast, select: {pfNames: [ens1f0]}, vfs: {count: 7, mtu: 9000}}
- {name: slow, select: {pfNames: [ens2f0]}}
networks:
- {name: blue, pools: [fast], vlan: 100}
nodes:
- match: {node: "gpu-*"}
  pools:
  - {name: fast, select: {pfNames: [ens4f0, ens4f1]}, vfs: {count: 16, mtu: null}}
  - {name: rail, select: {pfNames: [ens5f0]}}
- match: {node: "gpu-[12]"}
  networks:
  - {name: blue, vlan: 101, pools: [slow]}
  repairDrift: true
"""


def test_a_node_that_nothing_matches_has_the_rest() -> None:
    plain = parse_config(CONFIG.partition("nodes:")[0])
    assert parse_config(CONFIG, "web-1") == parse_config(CONFIG) == plain


def test_a_match_changes_elements_by_name_and_adds_others() -> None:
    config = parse_config(CONFIG, "gpu-7")
    assert [pool.name for pool in config.pools] == ["fast", "slow", "rail"]
    (fast, slow, _) = config.pools
    assert fast.vfs is not None
    assert (fast.vfs.count, fast.vfs.mtu) == (16, None)
    assert slow == parse_config(CONFIG).pools[1]
    assert "ens4f1" in str(fast.select)
    assert "ens1f0" not in str(fast.select)
    assert config.pool_networks()[0].asked.change.vlan == 100
    assert not config.repair_drift


def test_the_last_match_counts() -> None:
    config = parse_config(CONFIG, "gpu-1")
    assert len(config.pools) == 3
    (network,) = config.pool_networks()
    assert (network.pools, network.asked.change.vlan) == (("slow",), 101)
    assert config.repair_drift
    assert config.resource_prefix == "example.com"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{match: {node: a}, pool: []}", r"nodes\[0\]: pool: unknown key .*"),
        (
            "{match: {node: a}, pools: [{name: p, vfs: {count: -1}}]}",
            r"nodes\[0\]: pools\[0\]\.vfs\.count: -1 is not valid; .*",
        ),
        ("{match: {node: a}, pools: [{select: {}}]}", r"nodes\[0\]\.pools\[0\]\.name: None is not valid; .*"),
        ("{match: {label: a}}", r"nodes\[0\]\.match: \{'label': 'a'\} is not valid; expected a pattern .*"),
        ("{match: {node: a, label: b}}", r"nodes\[0\]\.match: .*"),
        ("{pools: []}", r"nodes\[0\]\.match: None is not valid; .*"),
        ("{match: {node: a}, nodes: []}", r"nodes\[0\]: .* is not valid; expected a mapping with `match` .*"),
        ("a", r"nodes\[0\]: 'a' is not valid; .*"),
    ],
)
def test_a_mistake_shows_on_every_node(entry: str, message: str) -> None:
    text = f"{{pools: [{{name: p, select: {{pfNames: [ens1]}}}}], nodes: [{entry}]}}"
    with pytest.raises(ConfigError, match=f"^{message}$"):
        parse_config(text, "another")


def test_all_mistakes_are_told_and_none_twice() -> None:
    text = """
pools: [{name: p, select: {}, vfs: {count: -1}}]
nodes:
- {match: {node: a}, resourcePrefix: A}
- match: {node: b}
  pools: [{name: p, vfs: {count: -2}}, {name: q, select: {}, vfs: {count: x}}]
"""
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "another")
    assert [mistake.partition(" ")[0] for mistake in caught.value.mistakes] == [
        "pools[0].vfs:",
        "nodes[0]:",
        "nodes[1]:",
    ]
    assert "pools[1].vfs.count" in caught.value.mistakes[2]


def test_an_agent_that_runs_follows_the_part_of_its_node(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    source = choose_source(path, None, None, "gpu-1")
    file = ConfigFile(source.path, source.parse)
    assert len(file.read().pools) == 3
    assert file.read() == source.read() == parse_config(CONFIG, "gpu-1")
    path.write_text(CONFIG.replace("vlan: 101", "vlan: 102"))
    assert file.poll() is None
    changed = file.poll()
    assert changed is not None
    assert changed.pool_networks()[0].asked.change.vlan == 102


def test_nodes_is_a_list() -> None:
    with pytest.raises(ConfigError, match=r"^nodes: \{\} is not valid; expected a list"):
        parse_config("{pools: [], nodes: {}}")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("ab", max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "name", "pools"]), inner)
    ),
    max_leaves=8,
)
mappings = st.dictionaries(st.sampled_from(["a", "b", "pools", "networks"]), values, max_size=3)


@given(mappings, mappings)
def test_merging_is_done_once_and_changes_nothing_else(rest: dict[str, Any], change: dict[str, Any]) -> None:
    document = rest | {"nodes": [{"match": {"node": "n*"}} | change]}
    before = repr(document)
    try:
        merged = for_node(document, "n1")
    except InvalidInput:
        return
    assert repr(document) == before
    assert "nodes" not in merged
    assert for_node(document, "other") == rest
    assert for_node(merged | {"nodes": document["nodes"]}, "n1") == merged
    for key, value in change.items():
        if value is None:
            assert key not in merged
        elif key not in ("pools", "networks") and not isinstance(value, dict):
            assert merged[key] == value
