"""Chains of CNI plugins: the list, and the results of plugins."""

import json
from pathlib import Path
from typing import Any

import pytest

from sriov_cni.chain_cache import read_conflist
from sriov_cni.chain_conflist import Conflist, parse_conflist
from sriov_cni.chain_result import convert_result, parse_result
from sriov_cni.spec import IncompatibleVersion
from vf_manager.errors import InvalidInput, KernelError

# --- the list ---


def conflist(**keys: Any) -> Conflist:
    base = {"cniVersion": "1.0.0", "name": "chain", "plugins": [{"type": "bridge"}]}
    return parse_conflist(json.dumps(base | keys).encode())


def test_what_the_runtime_must_know() -> None:
    assert conflist(
        cniVersions=["0.4.0", "1.1.0", "9.0.0"], disableCheck=True, disableGC="TRUE", vendor=1
    ) == (
        Conflist(
            name="chain",
            versions=("0.4.0", "1.0.0", "1.1.0"),
            plugins=({"type": "bridge"},),
            disable_check=True,
            disable_gc=True,
        )
    )


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"name": ""}, "name: ''"),
        ({"name": "a/b"}, "name: 'a/b'"),
        ({"name": 1}, "name: 1"),
        ({"plugins": []}, "plugins: [] is not valid; expected at least one plugin"),
        ({"plugins": {}}, "plugins: {}"),
        ({"plugins": None}, "plugins: None"),
        ({"plugins": None, "type": "bridge"}, "this is the configuration of a single plugin"),
        ({"plugins": ["bridge"]}, "plugins[0]: 'bridge'"),
        ({"plugins": [{"type": "a"}, {}]}, "plugins[1].type: None"),
        ({"plugins": [{"type": "../a"}]}, "plugins[0].type: '../a'"),
        ({"plugins": [{"type": "sriov-underlay"}]}, "plugins[0].type: 'sriov-underlay'"),
        ({"plugins": [{"type": "a", "capabilities": {"mac": "yes"}}]}, "plugins[0].capabilities.mac: 'yes'"),
        ({"plugins": [{"type": "a", "capabilities": ["mac"]}]}, "plugins[0].capabilities: ['mac']"),
        ({"disableCheck": "no"}, "disableCheck: 'no'"),
        ({"disableGC": 0}, "disableGC: 0"),
        ({"loadOnlyInlinedPlugins": []}, "loadOnlyInlinedPlugins: []"),
        ({"cniVersion": 1}, "cniVersion: 1"),
        ({"cniVersions": "1.0.0"}, "cniVersions: '1.0.0'"),
        ({"cniVersions": [1]}, "cniVersions[0]: 1"),
    ],
)
def test_a_list_that_is_wrong_is_refused_and_named(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        conflist(**keys)
    assert words in str(caught.value)


@pytest.mark.parametrize("version", [None, "", "0.2.0", "2.0.0", "new"])
def test_a_list_of_a_version_that_nobody_serves(version: str | None) -> None:
    with pytest.raises(IncompatibleVersion):
        conflist(cniVersion=version)


@pytest.mark.parametrize(
    ("declared", "wanted", "chosen"),
    [
        (["1.1.0"], "1.1.0", "1.1.0"),
        (["0.4.0", "1.0.0"], "0.4.0", "0.4.0"),
        (["0.4.0", "1.0.0"], "1.1.0", "1.0.0"),
        (["0.4.0", "1.0.0"], "0.3.1", "1.0.0"),
        (["0.3.0"], "1.1.0", "0.3.0"),
    ],
)
def test_the_version_of_the_call_if_the_list_has_it(declared: list[str], wanted: str, chosen: str) -> None:
    assert conflist(cniVersion=declared[0], cniVersions=declared).version_for(wanted) == chosen


def test_a_file_is_read_anew_with_the_plugins_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "10-chain.conflist"
    text = {"cniVersion": "1.0.0", "name": "chain", "plugins": [{"type": "bridge"}]}
    path.write_text(json.dumps(text))
    assert read_conflist(path).types == ("bridge",)
    path.write_text(json.dumps(text | {"plugins": [{"type": "ptp"}]}))
    assert read_conflist(path).types == ("ptp",)
    (tmp_path / "chain").mkdir()
    (tmp_path / "chain/b.conf").write_text('{"type": "tuning"}')
    (tmp_path / "chain/a.conf").write_text('{"type": "portmap"}')
    (tmp_path / "chain/README").write_text("not one")
    assert read_conflist(path).types == ("ptp", "portmap", "tuning")
    path.write_text(json.dumps(text | {"loadOnlyInlinedPlugins": True}))
    assert read_conflist(path).types == ("bridge",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "fallback.conflist: b'{' is not valid; expected a JSON object"),
        ('{"name": "a", "cniVersion": "1.0.0", "plugins": [{}]}', "fallback.conflist: plugins[0].type: None"),
        (" " * 2_000_000, "fallback.conflist: b'   "),
    ],
)
def test_a_file_that_is_wrong_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "fallback.conflist"
    path.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        read_conflist(path)
    assert words in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"read .*/none\.conflist: ENOENT"):
        read_conflist(tmp_path / "none.conflist")


# --- results ---


NEW = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "eth0", "mtu": 1450, "pciID": "x", "socketPath": "/s", "vendor": 1}],
    "ips": [{"address": "10.0.0.5/24", "vendor": 2}, {"address": "fd00::5/64"}],
    "routes": [{"dst": "0.0.0.0/0", "mtu": 1400}],
    "vendor": {"deep": [None]},
}


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0"])
def test_a_result_for_an_older_caller(version: str) -> None:
    old = {
        "cniVersion": version,
        "interfaces": [{"name": "eth0", "vendor": 1}],
        "ips": [
            {"version": "4", "address": "10.0.0.5/24", "vendor": 2},
            {"version": "6", "address": "fd00::5/64"},
        ],
        "routes": NEW["routes"],
        "vendor": {"deep": [None]},
    }
    assert convert_result(NEW, version) == old
    back = convert_result(old, "1.1.0")
    assert back["ips"] == NEW["ips"]
    assert back["interfaces"] == [{"name": "eth0", "vendor": 1}]


def test_a_result_for_a_caller_of_the_same_kind() -> None:
    assert convert_result(NEW, "1.0.0") == NEW | {"cniVersion": "1.0.0"}
    assert convert_result({"cniVersion": "0.3.1", "ips": None}, "1.1.0") == {
        "cniVersion": "1.1.0",
        "ips": None,
    }


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"cniVersion": "0.2.0"}, "cniVersion"),
        ({"cniVersion": 1}, "cniVersion"),
        ({"ips": {}}, "ips"),
        ({"ips": [1]}, "ips"),
        ({"interfaces": "eth0"}, "interfaces"),
        ({"routes": [[]]}, "routes"),
    ],
)
def test_what_is_no_result(change: dict[str, Any], key: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{key}: "):
        parse_result(NEW | change, "1.1.0")


def test_a_result_of_another_version_than_the_config_is_converted() -> None:
    assert parse_result(
        {"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.0.0.5/24"}]}, "1.0.0"
    ) == {
        "cniVersion": "1.0.0",
        "ips": [{"address": "10.0.0.5/24"}],
    }
    assert parse_result({}, "1.0.0") == {"cniVersion": "1.0.0"}
