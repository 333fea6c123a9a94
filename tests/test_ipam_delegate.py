"""IPAM by another executable: what it is called with, what it may answer, and that nothing of it is lost."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from sriov_cni.attachment import Attachment, LeaseRef
from sriov_cni.environment import Command, Environment
from sriov_cni.exec import PluginRunner
from sriov_cni.fields import Fields
from sriov_cni.ipam.config import DelegateConf, IpamResult, IpRequest, parse_ipam, salvage_ipam
from sriov_cni.ipam.delegate import Delegate, parse_ipam_result, reachable
from sriov_cni.messages import CniReply
from sriov_cni.netconf import parse_call
from sriov_cni.spec import (
    Dns,
    IpConfig,
    NotReady,
    PluginCrashed,
    PluginError,
    PluginGarbage,
    Route,
    code_of,
)
from tests.cni_world import PF0, Died, World, conf_of, error_of, result_of
from tests.test_crash_sweep import OPTIONS, Point, die, fail
from tests.test_exec import env_of, write_plugin
from vf_manager.errors import InvalidInput
from vf_manager.kernel.api import NetnsId
from vf_manager.records import RecordStore

ANSWER = {
    "cniVersion": "1.0.0",
    "ips": [{"address": "10.7.0.9/24", "gateway": "10.7.0.1"}, {"address": "fd00:7::9/64"}],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.7.0.1"}],
    "dns": {"nameservers": ["10.7.0.2"]},
}
LEASING = """
lease=$(dirname "$0")/lease-$CNI_CONTAINERID-$CNI_IFNAME
case $CNI_COMMAND in
ADD) cat >"$lease"; cat "$(dirname "$0")/answer" ;;
DEL) rm -f "$lease" ;;
CHECK) [ -e "$lease" ] || { echo '{"code": 112, "msg": "no lease"}'; exit 1; } ;;
GC) cat >"$(dirname "$0")/gc" ;;
esac
"""


class Plugin:
    """An executable `pool`, called as the agent would; each call leaves its variables and its config."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config: dict[str, Any] = {
            "cniVersion": "1.1.0",
            "name": "net",
            "ipam": {"type": "pool"},
            "x": [1],
        }

    def write(self, body: str) -> None:
        calls = self.directory / "calls"
        note = f'env | grep ^CNI_ >>"{calls}"; cat >"{calls}.stdin"'
        write_plugin(self.directory, "pool", f"{note}\n{body}")

    def engine(self, **env: Any) -> Delegate:
        conf = DelegateConf(kind="pool", config=json.dumps(self.config), env=env_of(self.directory, **env))
        return Delegate(conf, PluginRunner(structlog.get_logger()))

    def calls(self) -> list[str]:
        text = (self.directory / "calls").read_text() if (self.directory / "calls").exists() else ""
        return [line.partition("=")[2] for line in text.splitlines() if line.startswith("CNI_COMMAND=")]

    def variables(self) -> dict[str, str]:
        lines = (self.directory / "calls").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def stdin(self) -> Any:
        return json.loads((self.directory / "calls.stdin").read_text())


@pytest.fixture
def plugin(tmp_path: Path) -> Plugin:
    return Plugin(tmp_path / "bin")


# --- the config ---


@pytest.mark.parametrize("kind", ["dhcp", "whereabouts", "my-ipam_2.0"])
def test_any_other_type_is_an_executable(kind: str) -> None:
    stdin = json.dumps(conf_of("0000:01:10.0", ipam={"type": kind, "any": {"option": 1}})).encode()
    env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/a", "CNI_IFNAME": "eth0"}
    call = parse_call(env | {"CNI_PATH": "/opt/cni/bin", "CNI_ARGS": "IgnoreUnknown=1;A=b"}, stdin)
    assert call.conf.ipam == DelegateConf(kind=kind, config=stdin.decode(), env=call.env)
    assert call.env.path == ("/opt/cni/bin",)


@pytest.mark.parametrize(
    "kind", ["../dhcp", "/bin/sh", "a/b", "..", ".x", "a\\b", "a\0b", "x" * 256, "sriov-underlay", "sriov"]
)
def test_a_type_names_neither_a_path_nor_ourselves(kind: str) -> None:
    with pytest.raises(InvalidInput, match=r"^ipam\.type: "):
        parse_ipam(Fields({"type": kind}, "ipam"), IpRequest())
    assert salvage_ipam({"type": kind}) is None


@pytest.mark.parametrize("command", ["DEL", "GC"])
def test_cleaning_reads_it_whatever_else_is_wrong(command: str) -> None:
    stdin = json.dumps(
        {"cniVersion": "1.1.0", "name": "net", "vlan": 5000, "ipam": {"type": "dhcp"}}
    ).encode()
    env = {"CNI_COMMAND": command, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin"}
    call = parse_call(env, stdin)
    assert call.conf.ipam == DelegateConf(kind="dhcp", config=stdin.decode(), env=call.env)


# --- its answer ---


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_the_answer_of_any_version(plugin: Plugin, version: str) -> None:
    answer = json.loads(json.dumps(ANSWER | {"cniVersion": version, "unheardOf": 1}))
    if version.startswith("0."):
        answer["ips"][0]["version"], answer["ips"][1]["version"] = "4", "6"
    plugin.write(f"echo '{json.dumps(answer)}'")
    assert plugin.engine().add("c1", "eth0") == IpamResult(
        ips=(IpConfig(address="10.7.0.9/24", gateway="10.7.0.1"), IpConfig(address="fd00:7::9/64")),
        routes=(Route(dst="0.0.0.0/0", gw="10.7.0.1"),),
        dns=Dns(nameservers=("10.7.0.2",)),
    )


def test_routes_of_1_1_and_on_link_gateways_of_dhcp() -> None:
    routes = [
        {"dst": "10.1.0.0/16", "gw": "10.7.0.3", "mtu": 1400, "priority": 50, "table": 100, "scope": 0},
        {"dst": "10.2.0.0/16", "gw": "0.0.0.0"},
        {"dst": "fd01::/64", "gw": "::"},
        {"dst": "10.3.0.0/16", "gw": ""},
    ]
    assert parse_ipam_result(ANSWER | {"routes": routes}).routes == (
        Route(dst="10.1.0.0/16", gw="10.7.0.3", mtu=1400, priority=50, table=100, scope=0),
        Route(dst="10.2.0.0/16"),
        Route(dst="fd01::/64"),
        Route(dst="10.3.0.0/16"),
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ips": []}, "ips: [] is not valid; expected at least one address"),
        ({"ips": None}, "ips: None is not valid"),
        ({"ips": {}}, "ips: {} is not valid; expected an array"),
        ({"ips": ["10.0.0.1/24"]}, "ips[0]: '10.0.0.1/24' is not valid; expected an object"),
        ({"ips": [{"address": "10.0.0.1"}]}, "ips[0].address: '10.0.0.1'"),
        ({"ips": [{"address": "10.0.0.1/33"}]}, "ips[0].address: "),
        ({"ips": [{"gateway": "10.0.0.1"}]}, "ips[0].address: None"),
        ({"ips": [{"address": "10.0.0.2/24", "gateway": "fd00::1"}]}, "ips[0].gateway: 'fd00::1'"),
        ({"ips": [{"address": "10.0.0.2/24", "version": "6"}]}, "ips[0].version: '6'"),
        ({"routes": [{"gw": "10.0.0.1"}]}, "routes[0].dst: None"),
        ({"routes": [{"dst": "10.0.0.0/8", "mtu": "big"}]}, "routes[0].mtu: 'big'"),
        ({"dns": {"nameservers": "10.0.0.1"}}, "dns.nameservers: '10.0.0.1'"),
    ],
)
def test_a_result_that_is_wrong_is_refused_and_named(
    plugin: Plugin, change: dict[str, Any], words: str
) -> None:
    plugin.write(f"echo '{json.dumps(ANSWER | change)}'")
    with pytest.raises(PluginGarbage) as caught:
        plugin.engine().add("c1", "eth0")
    assert words in str(caught.value)
    assert str(caught.value).startswith("plugin pool (ADD) gave a result that is wrong: ")
    assert code_of(caught.value) == 6


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["address", "gateway", "version", "dst", "gw", "mtu", "nameservers", "domain", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.sampled_from(["ips", "routes", "dns", "cniVersion"]), JSON))
def test_any_object_is_a_result_or_a_named_error(answer: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidInput):
        assert parse_ipam_result(answer).ips


# --- the calls ---


def test_it_gets_the_whole_config_and_the_variables_of_the_call(plugin: Plugin) -> None:
    plugin.write(f"echo '{json.dumps(ANSWER)}'")
    plugin.engine().add("c7", "net2")
    assert plugin.stdin() == plugin.config
    assert plugin.variables() == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c7",
        "CNI_NETNS": "/run/netns/a",
        "CNI_IFNAME": "net2",
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=p",
        "CNI_PATH": f"/nowhere:{plugin.directory}",
    }


def test_what_it_answers_to_del_and_check(plugin: Plugin) -> None:
    plugin.write("""echo '{"code": 107, "msg": "no"}'; exit 1""")
    for ask in (plugin.engine().delete, plugin.engine().check):
        with pytest.raises(PluginError, match="plugin pool: no") as caught:
            ask("c1", "eth0")
        assert code_of(caught.value) == 107
    plugin.write("exit 0")
    plugin.engine().delete("c1", "eth0")
    plugin.engine().check("c1", "eth0")
    assert plugin.calls() == ["DEL", "CHECK", "DEL", "CHECK"]


def test_del_of_a_container_it_does_not_know_is_success(plugin: Plugin) -> None:
    plugin.write("""echo '{"code": 3, "msg": "unknown container"}'; exit 1""")
    plugin.engine().delete("c1", "eth0")
    with pytest.raises(PluginError):
        plugin.engine().check("c1", "eth0")


def test_gc_gets_the_list_under_both_keys_and_no_container(plugin: Plugin) -> None:
    plugin.write("exit 0")
    plugin.config["cni.dev/attachments"] = "something old"
    plugin.engine().keep_only(lambda: {("b", "eth0"), ("a", "net1")})
    entries = [{"containerID": "a", "ifname": "net1"}, {"containerID": "b", "ifname": "eth0"}]
    lists = {"cni.dev/valid-attachments": entries, "cni.dev/attachments": entries}
    assert plugin.stdin() == plugin.config | lists
    given = {key: value for key, value in plugin.variables().items() if value}
    assert given == {"CNI_COMMAND": "GC", "CNI_PATH": f"/nowhere:{plugin.directory}"}


def test_status_is_asked_from_1_1_on(plugin: Plugin) -> None:
    plugin.write("""echo '{"code": 50, "msg": "daemon is away"}'; exit 1""")
    with pytest.raises(PluginError) as caught:
        plugin.engine().status()
    assert code_of(caught.value) == 50
    plugin.config["cniVersion"] = "1.0.0"
    plugin.engine().status()
    assert plugin.calls() == ["STATUS"]
    with pytest.raises(NotReady, match="no CNI plugin 'pool'"):
        plugin.engine(path=("/nowhere",)).status()


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_status_without_the_plugin(plugin: Plugin, version: str) -> None:
    plugin.config["cniVersion"] = version
    with pytest.raises(NotReady, match="no CNI plugin 'pool'") as caught:
        plugin.engine().status()
    assert code_of(caught.value) == 50


def test_the_namespace_is_reached_by_path_or_by_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "netns"
    path.touch()
    conf = DelegateConf(kind="pool", env=Environment(command=Command.ADD, netns=str(path)))

    def netns_of(fd: int | None, wanted: NetnsId | None, conf: DelegateConf = conf) -> str:
        found = reachable(conf, fd, wanted)
        assert isinstance(found, DelegateConf)
        return found.env.netns

    with path.open() as file:
        found = os.fstat(file.fileno())
        wanted = NetnsId(found.st_dev, found.st_ino)
        hidden = DelegateConf(kind="pool", env=Environment(command=Command.ADD, netns="/run/netns/hidden"))
        assert netns_of(file.fileno(), wanted) == str(path)
        assert netns_of(file.fileno(), wanted, hidden) == f"/proc/{os.getpid()}/fd/{file.fileno()}"
        assert netns_of(None, wanted, hidden) == ""
        assert netns_of(file.fileno(), None) == ""


# --- attachments ---


class Node:
    """The in-memory node, a VF, and the executable `pool`, which keeps one file per lease."""

    def __init__(self, root: Path) -> None:
        self.world = World(root / "node")
        self.bin = root / "bin"
        write_plugin(self.bin, "pool", LEASING)
        (self.bin / "answer").write_text(json.dumps(ANSWER))
        self.vf = self.world.vfs(PF0)[2]
        self.pod = self.world.new_pod("a")
        self.conf = conf_of(self.vf, ipam={"type": "pool", "any": {"option": 1}}, **OPTIONS)
        self.before = self.world.state()

    def call(self, command: str, conf: Any = None, **env: str) -> CniReply:
        env = {"CNI_PATH": str(self.bin)} | env
        return self.world.call(command, "c1", self.pod, self.conf if conf is None else conf, **env)

    def restart(self, point: Point | None = None) -> None:
        self.world.kernel.on_change = point or (lambda name: None)
        self.world.start_agent(point or (lambda name: None))

    def leases(self) -> list[str]:
        return sorted(path.name for path in self.bin.glob("lease-*"))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_an_attachment_has_the_addresses_of_the_plugin(node: Node) -> None:
    result = result_of(node.call("ADD"))
    assert result["ips"] == [ip | {"interface": 0} for ip in ANSWER["ips"]]  # type: ignore[operator]
    assert result["dns"] == ANSWER["dns"]
    inside = node.world.kernel.find("net1", node.pod)
    assert inside is not None
    assert inside.addresses == ["10.7.0.9/24", "fd00:7::9/64"]
    assert node.leases() == ["lease-c1-net1"]
    assert json.loads((node.bin / "lease-c1-net1").read_text()) == node.conf
    assert node.call("CHECK", node.conf | {"prevResult": result}) == CniReply(0, b"")
    assert node.call("DEL") == CniReply(0, b"")
    assert node.call("DEL") == CniReply(0, b"")
    assert (node.leases(), node.world.state()) == ([], node.before)


def test_check_passes_on_what_the_plugin_finds(node: Node) -> None:
    result = result_of(node.call("ADD"))
    (node.bin / "lease-c1-net1").unlink()
    assert error_of(node.call("CHECK", node.conf | {"prevResult": result})) == (112, "plugin pool: no lease")


def test_del_needs_nothing_but_the_record(node: Node) -> None:
    """Another process, and a call whose config names no IPAM, whose CNI_PATH is empty."""
    result_of(node.call("ADD"))
    assert isinstance(RecordStore(node.world.root / "attachments", Attachment).read("c1@net1"), Attachment)
    node.restart()
    bare = {"cniVersion": "1.1.0", "name": "underlay", "type": "sriov-underlay"}
    assert node.call("DEL", bare, CNI_PATH="") == CniReply(0, b"")
    assert (node.leases(), node.world.state()) == ([], node.before)


def test_a_record_of_before_delegation_is_read() -> None:
    old = b'{"kind":"host-local","data_dir":"/x"}'
    assert msgspec.json.decode(old, type=LeaseRef) == LeaseRef(kind="host-local", data_dir="/x")


def test_del_without_a_record_asks_the_plugin_all_the_same(node: Node) -> None:
    (node.bin / "lease-c1-net1").touch()
    assert node.call("DEL") == CniReply(0, b"")
    assert node.leases() == []


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("""echo '{"code": 117, "msg": "pool is empty"}'; exit 1""", 117, "plugin pool: pool is empty"),
        ("kill -9 $$", 999, "plugin pool (ADD) was killed by SIGKILL"),
        ("echo garbage", 6, "ended well but printed b'garbage"),
        ("""echo '{"ips": []}'""", 6, "expected at least one address"),
    ],
)
def test_a_failed_add_is_followed_by_del(node: Node, body: str, code: int, words: str) -> None:
    """Whatever the plugin had done by then."""
    lease = 'lease=$(dirname "$0")/lease-$CNI_CONTAINERID-$CNI_IFNAME'
    write_plugin(
        node.bin,
        "pool",
        f'{lease}\nif [ $CNI_COMMAND = DEL ]; then rm "$lease"; exit; fi\ntouch "$lease"\n{body}',
    )
    found = error_of(node.call("ADD"))
    assert found[0] == code
    assert words in found[1]
    assert (node.leases(), node.world.state()) == ([], node.before)


def test_a_missing_plugin_is_found_before_anything_is_begun(node: Node) -> None:
    (node.bin / "pool").unlink()
    code, message = error_of(node.call("ADD"))
    assert code == 7
    assert message.startswith(f"ipam.type: no CNI plugin 'pool' in {node.bin};")
    assert message.endswith("(host-local and static need none)")
    assert node.world.state() == node.before


def test_a_type_that_is_nearly_one_of_ours(node: Node) -> None:
    code, message = error_of(node.call("ADD", node.conf | {"ipam": {"type": "host_local"}}))
    assert code == 7
    assert message.endswith("(did you mean 'host-local'?)")


def test_a_del_that_the_plugin_refuses_is_tried_again(node: Node) -> None:
    result_of(node.call("ADD"))
    (node.bin / "pool").rename(node.bin / "away")
    code, message = error_of(node.call("DEL"))
    assert code == 7
    assert "no CNI plugin 'pool'" in message
    assert node.world.records.list_keys() == ["c1@net1"]
    assert node.world.kernel.find("ens0v2") is not None, "the VF came home all the same"
    (node.bin / "away").rename(node.bin / "pool")
    assert node.call("DEL") == CniReply(0, b"")
    assert (node.leases(), node.world.state()) == ([], node.before)


def test_gc_is_forwarded(node: Node) -> None:
    result_of(node.call("ADD"))
    valid = [{"containerID": "c1", "ifname": "net1"}]
    gc = {"cniVersion": "1.1.0", "name": "underlay", "type": "sriov-underlay", "ipam": {"type": "pool"}}
    assert node.call("GC", gc | {"cni.dev/valid-attachments": valid}) == CniReply(0, b"")
    assert json.loads((node.bin / "gc").read_text())["cni.dev/attachments"] == valid
    assert node.leases() == ["lease-c1-net1"]
    assert node.call("GC", gc | {"cni.dev/valid-attachments": []}) == CniReply(0, b"")
    assert (node.leases(), node.world.state()) == ([], node.before)


@pytest.mark.parametrize("accident", [fail, die])
@pytest.mark.parametrize("command", ["ADD", "DEL"])
@pytest.mark.parametrize("part", range(4))
def test_crash_sweep(tmp_path: Path, command: str, accident: Callable[[str], None], part: int) -> None:
    """Fail and die at every point of ADD and DEL: a restart and a DEL with a bare config end it."""
    count = Node(tmp_path / "count")
    if command == "DEL":
        result_of(count.call("ADD"))
    counter = Point(None, fail)
    count.restart(counter)
    assert count.call(command).exit_code == 0
    assert counter.passed > 20
    bare = {"cniVersion": "1.1.0", "name": "underlay", "type": "sriov-underlay"}
    for at in range(1 + part, counter.passed + 1, 4):
        node = Node(tmp_path / str(at))
        if command == "DEL":
            result_of(node.call("ADD"))
        node.restart(Point(at, accident))
        with contextlib.suppress(Died):
            node.call(command)
        node.restart()
        assert node.call("DEL", bare, CNI_PATH="").exit_code == 0, f"at {at}"
        assert (node.leases(), node.world.state()) == ([], node.before), f"at {at}"


# --- STATUS ---


def test_status_of_the_node_asks_the_ipam_of_the_config(node: Node) -> None:
    conf = DelegateConf(kind="pool", config='{"cniVersion": "1.1.0"}', env=env_of(node.bin))
    node.world.attacher.ask_ipam("underlay", None)
    node.world.attacher.ask_ipam("underlay", conf)
    write_plugin(node.bin, "pool", """echo '{"code": 51, "msg": "half of it is away"}'; exit 1""")
    with pytest.raises(PluginError) as caught:
        node.world.attacher.ask_ipam("underlay", conf)
    assert code_of(caught.value) == 51
    write_plugin(node.bin, "pool", "kill -9 $$")
    with pytest.raises(PluginCrashed):
        node.world.attacher.ask_ipam("underlay", conf)


def test_status_of_ranges_says_when_they_are_full(node: Node) -> None:
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.7.0.0/29"}], [{"subnet": "fd00:7::/64"}]]}
    conf = parse_ipam(Fields(ipam, "ipam"), IpRequest())
    node.world.attacher.ask_ipam("underlay", conf)
    assert not (node.world.root / "leases").exists(), "a question leaves nothing behind"
    for number in range(5):
        node.world.attacher.ask_ipam("underlay", conf)
        result_of(
            node.world.call(
                "ADD",
                f"c{number}",
                node.world.new_pod(f"p{number}"),
                conf_of(node.world.vfs(PF0)[number], ipam=ipam),
            )
        )
    with pytest.raises(
        NotReady, match=r"network underlay: no free address in 10\.7\.0\.1-10\.7\.0\.6$"
    ) as caught:
        node.world.attacher.ask_ipam("underlay", conf)
    assert code_of(caught.value) == 50
    (node.world.root / "leases/underlay/10.7.0.5").write_text("")  # nobody holds what a crash left empty
    node.world.attacher.ask_ipam("underlay", conf)
