"""Chains of CNI plugins: what each is given, what comes out, and that whatever a chain did is taken back."""

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import structlog

from sriov_cni.chain import FallbackChain
from sriov_cni.chain_cache import ChainRecord, read_conflist
from sriov_cni.chain_conflist import Conflist, parse_conflist
from sriov_cni.chain_result import convert_result, parse_result
from sriov_cni.chain_run import Timeouts
from sriov_cni.environment import Command, Environment
from sriov_cni.executor import Checkpoint, no_checkpoint
from sriov_cni.netconf import CniCall, NetConf
from sriov_cni.spec import (
    CheckFailed,
    IncompatibleVersion,
    NotReady,
    PluginCrashed,
    PluginError,
    PluginFailure,
    PluginGarbage,
    PluginMissing,
    PluginTimeout,
    code_of,
)
from tests.cni_world import Died
from tests.test_exec import wait_for, write_plugin
from vf_manager.errors import InvalidInput, KernelError, SriovError
from vf_manager.model import IfName
from vf_manager.records import RecordStore

# A plugin that keeps one file per attachment, writes down each call, and runs the file on.<plugin>.<command>
# if there is one. What it answers to ADD is its own two interfaces, or the file answer.<plugin>.
PLUGIN = """
me=${0##*/} root=${0%/*}
IFS= read -r conf
printf '%s\\t%s\\t%s\\t%s\\t%s\\t%s\\t%s\\t%s\\n' "$me" "$CNI_COMMAND" "$CNI_CONTAINERID" "$CNI_NETNS" \\
    "$CNI_IFNAME" "$CNI_ARGS" "$CNI_PATH" "$conf" >>"$root/calls"
name=${conf#*\\"name\\":\\"} version=${conf#*\\"cniVersion\\":\\"}
name=${name%%\\"*} version=${version%%\\"*}
held="$root/held/$name $me $CNI_CONTAINERID $CNI_IFNAME"
set -C
[ $CNI_COMMAND != ADD ] || : >"$held" || exit 1
[ ! -e "$root/on.$me.$CNI_COMMAND" ] || . "$root/on.$me.$CNI_COMMAND"
case $CNI_COMMAND in
ADD)
    case $me$conf in
    one* | *'"prevResult":{'*) ;;
    *) echo '{"code": 7, "msg": "must be called after another plugin"}'; exit 1 ;;
    esac
    inside='{"name": "'$me'", "mtu": 1450, "sandbox": "'$CNI_NETNS'"}'
    answer='{"cniVersion": "'$version'", "interfaces": ['$inside', {"name": "host-'$me'"}]}'
    [ ! -e "$root/answer.$me" ] || IFS= read -r answer <"$root/answer.$me"
    echo "$answer" ;;
DEL) rm -f "$held" ;;
CHECK) [ -e "$held" ] || { echo '{"code": 120, "msg": "gone"}'; exit 1; } ;;
GC)
    for held in "$root/held/$name $me "*; do
        owner=${held#"$root/held/$name $me "}
        valid='{"containerID":"'${owner% *}'","ifname":"'${owner#* }'"}'
        case $conf in *"$valid"*) ;; *) rm -f "$held" ;; esac
    done ;;
esac
"""
CAPABLE = {"portMappings": True, "bandwidth": False, "ips": True}
RUNTIME = {"portMappings": [{"hostPort": 80}], "bandwidth": {"ingressRate": 1}, "mac": "02:00:00:00:00:09"}


class Store(RecordStore[ChainRecord]):
    """Counts as a place to die, before and after each change on disk."""

    def __init__(self, directory: Path, on_change: Checkpoint) -> None:
        super().__init__(directory, ChainRecord)
        self._on_change = on_change

    def write(self, key: str, record: ChainRecord) -> None:
        self._on_change("write record")
        super().write(key, record)
        self._on_change("record written")

    def remove(self, key: str) -> None:
        self._on_change("remove record")
        super().remove(key)
        self._on_change("record removed")


class Called(NamedTuple):
    """One call of a plugin, as it saw it."""

    plugin: str
    command: str
    container: str
    netns: str
    ifname: str
    args: str
    path: str
    stdin: str

    @property
    def conf(self) -> dict[str, Any]:
        conf: dict[str, Any] = json.loads(self.stdin)
        return conf


class Node:
    """Three plugins, a list of them, and what the calls of a runtime make of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "bin"
        for name in ("one", "two", "three"):
            write_plugin(self.bin, name, PLUGIN)
        (self.bin / "held").mkdir()
        self.plugins: list[dict[str, Any]] = [
            {"type": "one"},
            {"type": "two", "capabilities": CAPABLE, "cni.dev/old": 1},
            {"type": "three", "opaque": {"deep": [1, None]}, "runtimeConfig": {"x": 1}},
        ]
        self.list: dict[str, Any] = {"cniVersion": "1.1.0", "name": "chain", "plugins": self.plugins}
        self.netns = root / "netns"
        self.netns.touch()
        self.path = str(self.netns)
        self.timeouts = Timeouts()
        self.restart()

    def restart(self, checkpoint: Checkpoint = no_checkpoint) -> None:
        """Another process: only files stay."""
        self.records = Store(self.root / "records", checkpoint)
        self.chain = FallbackChain(
            lambda: parse_conflist(json.dumps(self.list).encode()),
            self.records,
            structlog.get_logger(),
            timeouts=self.timeouts,
            checkpoint=checkpoint,
        )

    def call(self, command: Command, container: str = "c1", **conf: Any) -> CniCall:
        known: dict[str, Any] = {"cni_version": "1.1.0", "name": "underlay"}
        env = Environment(command=command, path=(str(self.bin),))
        if command.has_container:
            env = Environment(
                command=command,
                container_id=container,
                ifname=IfName("eth0"),
                netns=self.path,
                path=(str(self.bin),),
                args={"K8S_POD_NAME": "p"},
            )
        return CniCall(env=env, conf=NetConf(**(known | conf)))

    def add(self, container: str = "c1", **conf: Any) -> dict[str, Any]:
        with self.netns.open() as file:
            return self.chain.add(self.call(Command.ADD, container, **conf), RUNTIME, file.fileno())

    def delete(self, container: str = "c1", *, with_netns: bool = True) -> bool:
        with self.netns.open() as file:
            fd = file.fileno() if with_netns else None
            return self.chain.delete(self.call(Command.DEL, container), fd)

    def check(self, container: str = "c1", **conf: Any) -> None:
        with self.netns.open() as file:
            self.chain.check(self.call(Command.CHECK, container, **conf), file.fileno())

    def collect(self, *valid: str, **conf: Any) -> None:
        self.chain.collect(self.call(Command.GC, **conf), {(container, "eth0") for container in valid})

    def status(self, **conf: Any) -> None:
        self.chain.status(self.call(Command.STATUS, **conf))

    def on(self, plugin: str, command: str, body: str | dict[str, Any]) -> None:
        """From now on: an error to answer, or a piece of shell to run."""
        text = body if isinstance(body, str) else f"echo '{json.dumps(body)}'; exit 1"
        (self.bin / f"on.{plugin}.{command}").write_text(text)

    def answer(self, plugin: str, result: dict[str, Any]) -> None:
        (self.bin / f"answer.{plugin}").write_text(json.dumps(result) + "\n")

    def calls(self) -> list[Called]:
        """Those since the last look."""
        path = self.bin / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [Called(*line.split("\t", 7)) for line in lines]

    def verbs(self) -> list[tuple[str, str]]:
        return [(call.command, call.plugin) for call in self.calls()]

    def held(self) -> list[str]:
        return sorted(os.listdir(self.bin / "held"))

    def nothing_is_left(self) -> bool:
        return self.held() == [] and self.records.list_keys() == []


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    fds = len(os.listdir("/proc/self/fd"))
    yield Node(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == fds


def all_of(command: str, order: str = "one two three") -> list[tuple[str, str]]:
    return [(command, plugin) for plugin in order.split()]


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


# --- crashes, and calls at once ---


class Point:
    """Dies at the checkpoint of this number; counts them."""

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.passed = 0

    def __call__(self, name: str) -> None:
        self.passed += 1
        if self.passed == self.at:
            raise Died(name)


@pytest.mark.parametrize("recovery", ["recover", "del", "add again"])
@pytest.mark.parametrize("command", ["ADD", "DEL"])
@pytest.mark.parametrize("part", range(3))
def test_crash_sweep(tmp_path: Path, command: str, recovery: str, part: int) -> None:
    """The process dies at every point of ADD or DEL; another one ends what it had begun."""
    node = Node(tmp_path)
    work: dict[str, Callable[[], object]] = {"ADD": node.add, "DEL": node.delete}

    def until(at: int | None) -> int:
        node.restart()
        if command == "DEL":
            node.add()
        point = Point(at)
        node.restart(point)
        with contextlib.suppress(Died):
            work[command]()
        node.restart()
        return point.passed

    total = until(None)
    node.delete()
    assert total >= 11
    for at in range(1 + part, total + 1, 3):
        assert until(at) == at
        if node.held():
            assert node.records.list_keys() == ["c1@eth0"], f"at {at}: held, and nobody knows"
        if recovery == "recover":
            node.chain.recover()
            record = node.records.read("c1@eth0")
            assert (record is not None and record.attached) or node.nothing_is_left(), f"at {at}"
        if recovery == "add again":
            assert node.add()["interfaces"][0]["name"] == "three"
        node.delete()
        assert node.nothing_is_left(), f"at {at}"


def test_recovery_spares_what_stands_and_keeps_what_resists(node: Node) -> None:
    node.add("c1")
    node.on("three", "ADD", {"msg": "no"})
    node.on("three", "DEL", {"msg": "no"})
    with pytest.raises(PluginError):
        node.add("c2")
    node.restart()
    node.chain.recover()
    assert node.records.list_keys() == ["c1@eth0", "c2@eth0"]
    assert "chain one c1 eth0" in node.held()


def test_what_nobody_will_send_a_del_for_is_taken_back(node: Node) -> None:
    """A runtime whose configuration is another one by now sends the DEL by that."""
    node.add()
    node.calls()
    node.netns.unlink()
    node.restart()
    node.chain.recover()
    calls = node.calls()
    assert [(call.command, call.plugin) for call in calls] == all_of("DEL", "three two one")
    assert {call.netns for call in calls} == {""}
    assert node.nothing_is_left()


def test_a_namespace_that_cannot_be_seen_is_not_taken_for_gone(node: Node) -> None:
    elsewhere = node.root / "run"
    elsewhere.mkdir()
    node.netns = node.netns.rename(elsewhere / "netns")
    node.path = str(node.netns)
    node.add()
    node.netns.rename(node.root / "hidden")
    (elsewhere / "netns").touch()  # what another mount namespace may show in its place
    node.chain.recover()
    (elsewhere / "netns").unlink()
    elsewhere.rmdir()
    node.chain.recover()
    assert node.records.list_keys() == ["c1@eth0"]


def test_a_del_waits_for_the_add_it_follows(node: Node) -> None:
    """A runtime gives up on an ADD and sends the DEL while the agent is still at it."""
    gate = node.bin / "gate"
    node.on("two", "ADD", f"while [ ! -e '{gate}' ]; do sleep 0.01; done")
    adding = threading.Thread(target=node.add)
    deleting = threading.Thread(target=node.delete)
    adding.start()
    wait_for(lambda: len(node.held()) == 2, "the second plugin runs")
    deleting.start()
    gate.touch()
    adding.join()
    deleting.join()
    verbs = node.verbs()
    assert verbs == all_of("ADD") + all_of("DEL", "three two one")
    assert node.nothing_is_left()


def test_pods_do_not_wait_for_each_other(node: Node) -> None:
    threads = [threading.Thread(target=node.add, args=(f"c{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(node.held()) == 12
    assert node.records.list_keys() == [f"c{number}@eth0" for number in range(4)]
    for number in range(4):
        assert node.delete(f"c{number}")
    assert node.nothing_is_left()
