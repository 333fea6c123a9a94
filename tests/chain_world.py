"""A node with a chain of three plugins, and what the calls of a runtime make of it: for tests of chains."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from sriov_cni.chain import FallbackChain
from sriov_cni.chain_cache import ChainRecord
from sriov_cni.chain_conflist import parse_conflist
from sriov_cni.chain_run import Timeouts
from sriov_cni.environment import Command, Environment
from sriov_cni.executor import Checkpoint, no_checkpoint
from sriov_cni.netconf import CniCall, NetConf
from tests.test_exec import write_plugin
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


@contextlib.contextmanager
def chain_node(root: Path) -> Iterator[Node]:
    fds = len(os.listdir("/proc/self/fd"))
    yield Node(root)
    assert len(os.listdir("/proc/self/fd")) == fds


def all_of(command: str, order: str = "one two three") -> list[tuple[str, str]]:
    return [(command, plugin) for plugin in order.split()]
