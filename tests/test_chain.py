"""Chains of CNI plugins: what each is given, what comes out, and that whatever a chain did is taken back."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sriov_cni.chain_run import Timeouts
from sriov_cni.environment import Command
from sriov_cni.spec import (
    CheckFailed,
    PluginCrashed,
    PluginError,
    PluginGarbage,
    PluginMissing,
    PluginTimeout,
    code_of,
)
from tests.chain_world import RUNTIME, Node, all_of, chain_node
from vf_manager.errors import SriovError


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with chain_node(tmp_path) as node:
        yield node


# --- ADD ---


def test_plugins_run_in_order_and_each_sees_the_result_before_it(node: Node) -> None:
    result = node.add()
    calls = node.calls()
    assert [(call.command, call.plugin) for call in calls] == all_of("ADD")
    seen = [[i["name"] for i in call.conf.get("prevResult", {}).get("interfaces", [])] for call in calls]
    assert seen == [[], ["one", "host-one"], ["two", "host-two"]]
    assert result == {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "three", "mtu": 1450, "sandbox": node.path}, {"name": "host-three"}],
    }
    assert node.held() == [f"chain {plugin} c1 eth0" for plugin in ("one", "three", "two")]
    assert node.chain.holds("c1", "eth0")
    assert not node.chain.holds("c1", "eth1")


def test_each_gets_its_own_object_made_to_the_letter(node: Node) -> None:
    """Name and version of the list, what it declared of runtimeConfig, and nothing that is the runtime's."""
    node.add()
    configs = [call.conf for call in node.calls()]
    for config in configs:
        config.pop("prevResult", None)
    common = {"cniVersion": "1.1.0", "name": "chain"}
    assert configs == [
        {"type": "one"} | common,
        {"type": "two", "runtimeConfig": {"portMappings": [{"hostPort": 80}]}} | common,
        {"type": "three", "opaque": {"deep": [1, None]}} | common,
    ]


def test_the_variables_are_those_of_the_call(node: Node) -> None:
    node.add()
    for call in node.calls():
        assert call[2:7] == ("c1", node.path, "eth0", "K8S_POD_NAME=p", str(node.bin))


def test_the_result_is_passed_on_with_what_nobody_here_knows(node: Node) -> None:
    answer = {"dns": {"nameservers": ["10.0.0.2"]}, "vendor": {"a": [1.5, 12345678901234567890123, None]}}
    node.answer("three", answer)
    assert node.add() == answer | {"cniVersion": "1.1.0"}


@pytest.mark.parametrize(
    ("declared", "caller", "ran"),
    [("0.4.0", "1.1.0", "0.4.0"), ("1.0.0", "0.3.1", "1.0.0"), ("0.3.0", "1.0.0", "0.3.0")],
)
def test_the_result_has_the_version_of_the_caller(node: Node, declared: str, caller: str, ran: str) -> None:
    node.list["cniVersion"] = declared
    tagged = {"version": "4", "address": "10.0.0.5/24"}
    plain = {"address": "10.0.0.5/24"}
    node.answer("three", {"cniVersion": ran, "ips": [tagged if ran < "1" else plain]})
    result = node.add(cni_version=caller)
    assert [call.conf["cniVersion"] for call in node.calls()] == [ran] * 3
    assert result == {"cniVersion": caller, "ips": [tagged if caller < "1" else plain]}
    assert node.delete()
    assert node.nothing_is_left()


def test_a_namespace_that_we_see_elsewhere_is_named_as_the_runtime_does(node: Node) -> None:
    """The plugins get a path that they can open; results, and the record, have the runtime's own."""
    node.path = "/run/netns/of-the-runtime"
    result = node.add()
    seen = {call.netns for call in node.calls()}
    assert len(seen) == 1
    assert seen.pop().startswith(f"/proc/{os.getpid()}/fd/")
    assert {interface.get("sandbox") for interface in result["interfaces"]} == {node.path, None}
    node.check()
    assert node.delete()
    for call in node.calls():
        sandboxes = {interface.get("sandbox") for interface in call.conf["prevResult"]["interfaces"]}
        assert sandboxes == {call.netns, None}
        assert call.netns.startswith("/proc/")


def test_a_missing_plugin_is_found_before_the_first_one_runs(node: Node) -> None:
    (node.bin / "three").unlink()
    with pytest.raises(PluginMissing, match="no CNI plugin 'three'"):
        node.add()
    assert node.calls() == []
    assert node.nothing_is_left()


# --- failure ---


FAILURES: dict[str, tuple[str | dict[str, Any], type[SriovError], int]] = {
    "error": ({"code": 117, "msg": "no address", "details": "full"}, PluginError, 117),
    "crash": ("kill -KILL $$", PluginCrashed, 999),
    "garbage": ("echo oops; exit 0", PluginGarbage, 6),
    "no result": ("""echo '{"ips": 1}'; exit 0""", PluginGarbage, 6),
    "hang": ("exec sleep 600", PluginTimeout, 11),
}


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_add_is_taken_back_at_once(node: Node, at: int, name: str) -> None:
    """All are asked, in reverse order, without a prevResult: there is none."""
    how, kind, code = FAILURES[name]
    node.on(node.plugins[at]["type"], "ADD", how)
    node.timeouts = Timeouts(add_s=0.4)
    node.restart()
    with pytest.raises(kind) as caught:
        node.add()
    assert code_of(caught.value) == code
    assert str(caught.value).startswith(f"plugin {node.plugins[at]['type']}")
    calls = node.calls()
    deletes = [(call.command, call.plugin) for call in calls if call.command == "DEL"]
    assert deletes == all_of("DEL", "three two one")
    assert all("prevResult" not in call.conf for call in calls if call.command == "DEL")
    assert node.nothing_is_left()


def test_what_a_failed_add_could_not_take_back_is_for_the_del(node: Node) -> None:
    node.on("three", "ADD", {"code": 100, "msg": "first"})
    node.on("three", "DEL", {"code": 101, "msg": "second"})
    with pytest.raises(PluginError, match="first"):
        node.add()
    assert node.records.list_keys() == ["c1@eth0"]
    with pytest.raises(PluginError, match="second"):
        node.delete()
    node.list["plugins"] = [{"type": "gone"}]
    node.restart()
    with pytest.raises(PluginError, match="second"):
        node.delete()
    (node.bin / "on.three.DEL").unlink()
    assert node.delete()
    assert node.nothing_is_left()


# --- DEL ---


def test_del_runs_backwards_with_the_final_result(node: Node) -> None:
    result = node.add()
    node.calls()
    assert node.delete()
    calls = node.calls()
    assert [(call.command, call.plugin) for call in calls] == all_of("DEL", "three two one")
    assert all(call.conf["prevResult"] == result for call in calls)
    assert calls[1].conf["runtimeConfig"] == {"portMappings": [{"hostPort": 80}]}
    assert node.nothing_is_left()
    assert not node.delete()
    assert node.calls() == []


def test_del_of_a_version_that_knows_no_prev_result(node: Node) -> None:
    node.list["cniVersion"] = "0.3.1"
    node.add()
    node.calls()
    assert node.delete()
    assert ["prevResult" in call.conf for call in node.calls()] == [False] * 3


def test_del_halts_at_an_error_and_begins_anew(node: Node) -> None:
    node.add()
    node.on("two", "DEL", {"code": 11, "msg": "not now"})
    node.calls()
    with pytest.raises(PluginError, match="plugin two: not now") as caught:
        node.delete()
    assert caught.value.transient
    assert node.verbs() == all_of("DEL", "three two")
    assert node.held() == ["chain one c1 eth0", "chain two c1 eth0"]
    assert node.records.list_keys() == ["c1@eth0"]
    with pytest.raises(CheckFailed):
        node.check()
    (node.bin / "on.two.DEL").unlink()
    assert node.delete()
    calls = node.calls()
    assert [(call.command, call.plugin) for call in calls] == all_of("DEL", "three two one")
    assert all("prevResult" in call.conf for call in calls)
    assert node.nothing_is_left()


def test_del_goes_by_the_record_whatever_became_of_list_and_namespace(node: Node) -> None:
    result = node.add()
    node.calls()
    node.list = {"name": "another", "cniVersion": "1.0.0", "plugins": [{"type": "other"}]}
    node.netns.rename(node.root / "old")
    node.netns.touch()
    node.restart()
    assert node.delete(with_netns=False)
    calls = node.calls()
    assert [(call.command, call.plugin) for call in calls] == all_of("DEL", "three two one")
    assert all(call.netns == "" for call in calls)
    assert all(call.conf["prevResult"] == result for call in calls)
    assert node.nothing_is_left()


def test_del_without_a_path_goes_by_that_of_the_add(node: Node) -> None:
    node.add()
    call = node.call(Command.DEL)
    env = msgspec.structs.replace(call.env, path=())
    assert node.chain.delete(msgspec.structs.replace(call, env=env), None)
    assert node.nothing_is_left()


def test_del_of_what_was_attached_before_there_were_records(node: Node) -> None:
    node.add()
    node.records.remove("c1@eth0")
    node.calls()
    with node.netns.open() as file:
        node.chain.delete_unknown(node.call(Command.DEL), RUNTIME, file.fileno())
    calls = node.calls()
    assert [(call.command, call.plugin) for call in calls] == all_of("DEL", "three two one")
    assert {call.netns for call in calls} == {node.path}
    assert node.nothing_is_left()
    node.chain.delete_unknown(node.call(Command.DEL), RUNTIME, None)
    assert {call.netns for call in node.calls()} == {""}


# --- a second ADD ---


def test_add_again_gives_the_same_result(node: Node) -> None:
    first = node.add()
    node.calls()
    assert node.add() == first
    assert node.verbs() == all_of("CHECK")


@pytest.mark.parametrize("what", ["check fails", "another namespace", "another namespace, no check"])
def test_add_again_when_it_does_not_stand_any_more(node: Node, what: str) -> None:
    node.list["disableCheck"] = what.endswith("no check")
    first = node.add()
    node.calls()
    if what == "check fails":
        (node.bin / "held/chain two c1 eth0").unlink()
    else:
        node.netns.rename(node.root / "old")
        node.netns.touch()
    assert node.add() == first
    verbs = [verb for verb in node.verbs() if verb[0] != "CHECK"]
    assert verbs == all_of("DEL", "three two one") + all_of("ADD")
    assert node.delete()
    assert node.nothing_is_left()


# --- CHECK ---


def test_check_runs_in_order_with_the_final_result(node: Node) -> None:
    result = node.add()
    node.calls()
    node.check()
    calls = node.calls()
    assert [(call.command, call.plugin) for call in calls] == all_of("CHECK")
    assert all(call.conf["prevResult"] == result for call in calls)
    (node.bin / "held/chain two c1 eth0").unlink()
    with pytest.raises(PluginError, match="plugin two: gone") as caught:
        node.check()
    assert code_of(caught.value) == 120


@pytest.mark.parametrize("keys", [{"disableCheck": True}, {"cniVersion": "0.3.1"}])
def test_check_is_not_run_where_it_is_not_allowed(node: Node, keys: dict[str, Any]) -> None:
    node.list |= keys
    node.add()
    node.calls()
    node.check()
    assert node.calls() == []


def test_check_of_what_is_not_attached_here(node: Node) -> None:
    with pytest.raises(CheckFailed, match="nothing of network underlay is attached as eth0"):
        node.check()
    node.add()
    with pytest.raises(CheckFailed, match="nothing of network other"):
        node.check(name="other")
    node.netns.rename(node.root / "old")
    node.netns.touch()
    with pytest.raises(CheckFailed, match="another network namespace"):
        node.check()
