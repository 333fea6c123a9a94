"""Chains of CNI plugins: GC and STATUS, and a node whose list is gone."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from sriov_cni.chain import FallbackChain
from sriov_cni.chain_cache import read_conflist
from sriov_cni.chain_conflist import parse_conflist
from sriov_cni.environment import Command
from sriov_cni.spec import NotReady, PluginError, PluginFailure, code_of
from tests.chain_world import Node, all_of, chain_node


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with chain_node(tmp_path) as node:
        yield node


# --- GC ---


def test_gc_takes_back_what_is_not_valid_and_forwards_the_list(node: Node) -> None:
    for container in ("c1", "c2", "c3"):
        node.add(container)
    (node.bin / "held/chain one lost eth0").touch()
    node.calls()
    node.collect("c1", "c3")
    calls = node.calls()
    verbs = [(call.command, call.plugin) for call in calls]
    assert verbs == all_of("DEL", "three two one") + all_of("GC")
    entries = [{"containerID": container, "ifname": "eth0"} for container in ("c1", "c3")]
    for call in calls[3:]:
        assert call.conf["cni.dev/valid-attachments"] == call.conf["cni.dev/attachments"] == entries
        assert not {"prevResult", "runtimeConfig", "capabilities"} & call.conf.keys()
        assert call[2:7] == ("", "", "", "", str(node.bin))
    assert node.held() == [f"chain {p} {c} eth0" for p in ("one", "three", "two") for c in ("c1", "c3")]
    assert node.records.list_keys() == ["c1@eth0", "c3@eth0"]


def test_gc_spares_what_other_networks_made_with_the_same_list(node: Node) -> None:
    node.add("c1")
    node.add("c2", name="other")
    held = node.held()
    node.collect("c1")
    assert node.held() == held
    node.collect()
    assert node.held() == [name for name in held if " c2 " in name]
    assert node.records.list_keys() == ["c2@eth0"]


def test_gc_goes_on_past_errors_and_names_all(node: Node) -> None:
    node.on("two", "DEL", {"code": 5, "msg": "stuck"})
    node.on("two", "GC", {"code": 5, "msg": "dirty"})
    node.add("c1")
    node.add("c2")
    node.calls()
    with pytest.raises(PluginFailure) as caught:
        node.collect()
    assert str(caught.value) == "plugin two: stuck; plugin two: stuck; plugin two: dirty"
    assert node.verbs() == all_of("DEL", "three two") * 2 + all_of("GC")
    assert node.records.list_keys() == ["c1@eth0", "c2@eth0"]


@pytest.mark.parametrize(
    ("keys", "verbs"),
    [
        ({"disableGC": True}, []),
        ({"cniVersion": "1.0.0"}, all_of("DEL", "three two one")),
    ],
)
def test_gc_where_it_is_not_allowed(node: Node, keys: dict[str, Any], verbs: list[tuple[str, str]]) -> None:
    node.add()
    node.calls()
    node.list |= keys
    node.collect()
    assert node.verbs() == verbs


# --- STATUS ---


def test_status_asks_each_plugin_and_passes_on_the_first_error(node: Node) -> None:
    node.status()
    calls = node.calls()
    assert [(call.command, call.plugin) for call in calls] == all_of("STATUS")
    assert not {"prevResult", "runtimeConfig", "capabilities"} & calls[1].conf.keys()
    node.on("two", "STATUS", {"code": 51, "msg": "daemon is away"})
    with pytest.raises(PluginError, match="daemon is away") as caught:
        node.status()
    assert code_of(caught.value) == 51


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_status_when_a_plugin_is_missing(node: Node, version: str) -> None:
    node.list["cniVersion"] = version
    node.status()
    (node.bin / "three").unlink()
    node.calls()
    with pytest.raises(NotReady, match="no CNI plugin 'three'"):
        node.status()
    assert node.calls() == []


def test_status_below_1_1_only_looks(node: Node) -> None:
    node.list["cniVersion"] = "1.0.0"
    node.status()
    assert node.calls() == []


def test_status_without_a_list_that_can_be_read(node: Node) -> None:
    node.list["plugins"] = []
    with pytest.raises(NotReady, match="at least one plugin"):
        node.status()
    chain = FallbackChain(
        lambda: read_conflist(node.root / "none.conflist"), node.records, structlog.get_logger()
    )
    with pytest.raises(NotReady, match="ENOENT"):
        chain.status(node.call(Command.STATUS))


def test_without_a_list_what_was_attached_can_still_be_taken_back(node: Node) -> None:
    """The administrator takes `fallback` out of the config while pods have what it made."""
    for container in ("c1", "c2", "c3"):
        node.add(container)
    node.calls()
    node.chain = node.chain.with_list(None)
    assert not node.chain.has_list
    node.status()
    node.check("c1")
    assert node.delete("c1")
    node.collect("c3")
    assert node.held() == [f"chain {plugin} c3 eth0" for plugin in ("one", "three", "two")]
    node.chain = node.chain.with_list(lambda: parse_conflist(json.dumps(node.list).encode()))
    assert node.delete("c3")
    assert node.nothing_is_left()
