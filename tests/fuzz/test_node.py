"""Calls that are almost right, at a whole agent over the in-memory kernel: every answer is well-formed, what
fails leaves nothing behind, and what succeeds is undone by DEL."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sriov_cni.chain import FallbackChain
from sriov_cni.chain_cache import ChainRecord, read_conflist
from sriov_cni.limits import Limits
from sriov_cni.messages import CniReply, CniRequest
from sriov_cni.netconf import decode_object
from sriov_cni.spec import Undecodable
from tests.cni_world import PF0, PF1, World, quiet_log
from tests.fuzz.calls import CONFIGS, ENVIRONMENT, configs, environments, error_in, stdins
from tests.fuzz.mutations import mutated
from tests.fuzz.pace import keep_trying, no_hang, round_of_examples
from vf_manager.records import RecordStore

POD = ("ml", "trainer")
NETWORKS: list[dict[str, Any]] = [
    {
        "name": "blue",
        "pools": ["pool"],
        "vlan": 100,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.7.0.0/29"}]], "routes": [{"dst": "::/0"}]},
    }
]
LIMITS = Limits(vlans=("0-200",), trust=False, mtu=1500)
IDENTITY = ("name", "cniVersion")


class Node:
    """A world in a folder of its own. No input reaches a path outside of it: the lease directory that a
    config names is moved below the folder, and CNI_PATH leads nowhere."""

    def __init__(
        self, root: Path, given: list[int] | None, networks: bool, limits: bool, fallback: bool
    ) -> None:
        self.root = root
        self.world = World(root)
        if fallback:
            self.world.fallback = _chain_without_plugins(root)
        self.world.networks = NETWORKS if networks else []
        self.world.limits = {"pool": LIMITS} if limits else {}
        if given is not None:
            vfs = [*self.world.vfs(PF0), *self.world.vfs(PF1)]
            self.world.kubelet.there = True
            self.world.kubelet.given[POD] = [vfs[index] for index in given]
        self.world.start_agent()
        self.netns = self.world.new_pod("a")

    def call(self, env: dict[str, str], stdin: bytes, netns: int | None) -> CniReply:
        request = CniRequest(env, self._tamed(stdin), netns_fd=netns, netns_errno=0 if netns else 2)
        with no_hang():
            reply = self.world.handler(request)
        if reply.exit_code:
            error_in(reply)
        return reply

    def footprint(self) -> tuple[object, ...]:
        files = (path.relative_to(self.root) for path in self.root.rglob("*") if path.is_file())
        kept = ("lock", "last_reserved_ip")
        left = sorted(str(path) for path in files if not path.name.startswith(kept))
        rules = {number: rules for number, rules in self.world.kernel.rules.items() if rules}
        return self.world.state(), left, rules

    def _tamed(self, stdin: bytes) -> bytes:
        try:
            config = json.loads(stdin)
        except (ValueError, RecursionError):
            return stdin if b"dataDir" not in stdin and b"\\u" not in stdin else b""
        ipam = config.get("ipam") if isinstance(config, dict) else None
        where = ipam.get("dataDir") if isinstance(ipam, dict) else None
        if not isinstance(where, str) or not where.startswith("/"):
            return stdin
        assert isinstance(ipam, dict)
        return json.dumps(config | {"ipam": ipam | {"dataDir": f"{self.root}/data{where}"}}).encode()


def _chain_without_plugins(root: Path) -> FallbackChain:
    path = root / "fallback.conflist"
    path.write_text(json.dumps({"cniVersion": "1.1.0", "name": "pods", "plugins": [{"type": "not-there"}]}))
    return FallbackChain(lambda: read_conflist(path), RecordStore(root / "chain", ChainRecord), quiet_log())


nodes = st.fixed_dictionaries(
    {
        "given": st.sampled_from([None, None, [], [0], [0, 3, 8]]),
        "networks": st.booleans(),
        "limits": st.booleans(),
        "fallback": st.booleans(),
    }
)


@contextmanager
def new_node(folder: Path, options: dict[str, Any]) -> Iterator[Node]:
    root = folder / "node"
    try:
        yield Node(root, **options)
    finally:
        shutil.rmtree(root)


def test_any_call_is_answered_and_a_failed_one_leaves_nothing(tmp_path: Path) -> None:
    @round_of_examples
    @given(nodes, environments(), stdins, st.booleans())
    def prop(options: dict[str, Any], env: dict[str, str], stdin: bytes, opened: bool) -> None:
        with new_node(tmp_path, options) as node:
            before = node.footprint()
            reply = node.call(env, stdin, node.netns if opened else None)
            if reply.exit_code or env.get("CNI_COMMAND") != "ADD":
                assert node.footprint() == before

    keep_trying(0.12, prop)


def test_what_is_attached_passes_check_and_is_taken_back(tmp_path: Path) -> None:
    """By a DEL whose options are wrong, as after a change of the config."""
    only_add = environments(("ADD",))

    @round_of_examples
    @given(nodes, only_add | st.just(ENVIRONMENT), mutated(CONFIGS, most=2), configs)
    def prop(
        options: dict[str, Any], env: dict[str, str], config: dict[str, Any], other: dict[str, Any]
    ) -> None:
        with new_node(tmp_path, options) as node:
            before = node.footprint()
            reply = node.call(env, json.dumps(config).encode(), node.netns)
            if reply.exit_code:
                assert node.footprint() == before
                return
            result = json.loads(reply.stdout)
            assert result["cniVersion"] == config["cniVersion"]
            assert result["interfaces"][0]["name"] == env["CNI_IFNAME"]
            if config["cniVersion"] != "0.3.1":
                stdin = json.dumps(config | {"prevResult": result}).encode()
                checked = node.call(env | {"CNI_COMMAND": "CHECK"}, stdin, node.netns)
                assert checked.exit_code == 0, checked.stdout
            last = json.dumps(_decodable(other) | {key: config[key] for key in IDENTITY}).encode()
            gone = node.call(env | {"CNI_COMMAND": "DEL"}, last, node.netns)
            assert gone.exit_code == 0, gone.stdout
            assert node.footprint() == before

    keep_trying(0.14, prop)


def _decodable(config: dict[str, Any]) -> dict[str, Any]:
    """Nothing if it is nested too deeply: such a config is none to DEL either."""
    try:
        return decode_object(json.dumps(config).encode())
    except Undecodable:
        return {}


moves = st.tuples(
    st.sampled_from(["ADD", "ADD", "ADD", "DEL", "CHECK", "GC", "STATUS", "restart", "die"]),
    st.sampled_from(["c1", "c2", "c3"]),
    st.sampled_from(["net1", "eth0"]),
    mutated(CONFIGS, most=1),
    st.integers(0, 3),
)
Move = tuple[str, str, str, dict[str, Any], int]


def test_any_order_of_calls_ends_with_nothing_left(tmp_path: Path) -> None:
    """Pods come, go and die, the agent is restarted; a DEL for each of them in the end."""

    @round_of_examples
    @given(nodes, st.lists(moves, max_size=10))
    def prop(options: dict[str, Any], script: list[Move]) -> None:
        with new_node(tmp_path, options) as node:
            pods = {name: node.world.new_pod(name) for name in ("c1", "c2", "c3")}
            before = node.footprint()
            for move in script:
                _do(node, pods, *move)
            for number in [*pods.values(), node.netns]:
                if number in node.world.kernel.namespaces:
                    node.world.kernel.destroy_netns(number)
            for container in pods:
                for ifname in ("net1", "eth0"):
                    env = ENVIRONMENT | {"CNI_CONTAINERID": container, "CNI_IFNAME": ifname}
                    stdin = json.dumps(CONFIGS[0]).encode()
                    gone = node.call(env | {"CNI_COMMAND": "DEL"}, stdin, None)
                    assert gone.exit_code == 0, gone.stdout
            assert _of_the_host(node.footprint()) == _of_the_host(before)

    keep_trying(0.14, prop)


def _do(
    node: Node, pods: dict[str, int], what: str, container: str, ifname: str, config: dict[str, Any], vf: int
) -> None:
    number = pods[container]
    alive = number in node.world.kernel.namespaces
    match what:
        case "restart":
            node.world.start_agent()
            node.world.attacher.recover()
        case "die":
            if alive:
                node.world.kernel.destroy_netns(number)
        case _:
            if "deviceID" in config and isinstance(config["deviceID"], str) and vf:
                config = config | {"deviceID": node.world.vfs(PF0)[vf]}
            env = ENVIRONMENT | {"CNI_COMMAND": what, "CNI_CONTAINERID": container, "CNI_IFNAME": ifname}
            node.call(env, json.dumps(config).encode(), number if alive else None)


def _of_the_host(footprint: tuple[object, ...]) -> tuple[object, ...]:
    """Without the pods, which are gone."""
    state, left, _ = footprint
    return state.functions, state.links[1], state.leases, state.records, left  # type: ignore[attr-defined]
