"""Adapter: a container runtime reduced to what a CNI plugin sees of it.

Pods are named network namespaces; the executable that a node would have in /opt/cni/bin is called as the
CNI specification says: environment, config on stdin, result or error on stdout, exit code.
"""

import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hw_tests.nics import ip, ip_json, wait_until

PROJECT = Path(__file__).resolve().parent.parent
EXECUTABLE = PROJECT / "build/sriov-underlay"
NETNS_DIR = Path("/run/netns")
CNI_VERSION = "1.1.0"
IFNAME = "eth1"
_CALL_TIMEOUT_S = 90.0

Conf = dict[str, Any]


class CniError(Exception):
    """The plugin's own error: exit code not 0, and the error object of the specification on stdout."""

    def __init__(self, command: str, code: int, msg: str) -> None:
        super().__init__(f"{command}: code {code}: {msg}")
        self.code = code
        self.msg = msg


@dataclass(frozen=True)
class Answer:
    """What the plugin printed (empty for DEL and STATUS), and how long the call took for the runtime."""

    result: dict[str, Any]
    seconds: float

    @property
    def address(self) -> str:
        """The first address, without its prefix length."""
        return str(self.result["ips"][0]["address"]).split("/")[0]


@dataclass
class Pod:
    """A pod's sandbox. The container id is the pod's own; a second sandbox of a pod would have another."""

    name: str
    namespace: str = "rig"
    uid: str = "7d5a4f0e-0000-4000-8000-000000000001"
    args: dict[str, str] = field(default_factory=dict)

    @property
    def container_id(self) -> str:
        return f"sandbox-{self.name}"

    @property
    def netns(self) -> str:
        return f"{self.namespace}-{self.name}"

    @property
    def path(self) -> Path:
        return NETNS_DIR / self.netns

    @property
    def exists(self) -> bool:
        return self.path.exists()

    def create(self) -> "Pod":
        ip("netns", "add", self.netns)
        ip("-n", self.netns, "link", "set", "lo", "up")
        return self

    def destroy(self) -> None:
        """The kernel hands what is in it back a little later."""
        if self.exists:
            ip("netns", "delete", self.netns)

    def links(self) -> dict[str, dict[str, Any]]:
        """By name, as iproute2 shows them."""
        return {link["ifname"]: link for link in ip_json("-n", self.netns, "link", "show")}

    def addresses(self, ifname: str = IFNAME) -> list[str]:
        """Global ones, as CIDRs."""
        return [f"{info['local']}/{info['prefixlen']}" for info in self.address_infos(ifname)]

    def address_infos(self, ifname: str = IFNAME) -> list[dict[str, Any]]:
        """Global ones, with their flags."""
        links = ip_json("-n", self.netns, "address", "show", "dev", ifname, "scope", "global")
        return [info for link in links for info in link["addr_info"] if info]

    def neighbour(self, address: str) -> str:
        """The MAC that answered for an IPv4 address, "" if none did."""
        found = ip_json("-n", self.netns, "neighbour", "show", address)
        return next((str(entry["lladdr"]) for entry in found if "lladdr" in entry), "")

    def rules(self) -> list[dict[str, Any]]:
        """Policy rules, without the three that every namespace has."""
        families = [ip_json("-n", self.netns, family, "rule", "show") for family in ("-4", "-6")]
        own = ("local", "main", "default")
        return [rule for rules in families for rule in rules if rule.get("table") not in own]

    def routes(self) -> list[dict[str, Any]]:
        return ip_json("-n", self.netns, "route", "show")

    def command(self, *words: str) -> list[str]:
        """A command line that runs inside."""
        return ["ip", "netns", "exec", self.netns, *words]

    def pings(self, address: str, *options: str) -> bool:
        return pings(address, *options, prefix=self.command())


def pings(address: str, *options: str, prefix: list[str] | None = None) -> bool:
    """One echo request and its reply, within a second."""
    words = [*(prefix or []), "ping", "-n", "-q", "-c", "1", "-W", "1", *options, address]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def wait_for_ping(source: Pod | None, address: str, *options: str, timeout_s: float = 15.0) -> None:
    """From a pod, or from the host. A link that was just brought up needs its time for the carrier."""
    who = source.name if source else "the host"
    reach = source.pings if source else pings
    wait_until(lambda: reach(address, *options), f"answer to {who} from {address}", timeout_s, poll_s=0.1)


def none_answers(attempts: Sequence[tuple[Pod, str]]) -> bool:
    """No address is heard by its pod. Show first that each pod can reach somebody at all."""
    ping = ("ping", "-n", "-q", "-c", "4", "-i", "0.3", "-W", "1")
    running = [
        subprocess.Popen(pod.command(*ping, address), stdout=subprocess.DEVNULL) for pod, address in attempts
    ]
    return all(process.wait(30) == 1 for process in running)  # 1: no reply; 2 would be another error


@dataclass(frozen=True)
class Runtime:
    """`socket`: where the node agent listens. `plugin_dirs`: of other plugins."""

    socket: Path
    executable: Path = EXECUTABLE
    plugin_dirs: tuple[str, ...] = ()

    def add(self, pod: Pod, conf: Conf, vf: str | None, ifname: str = IFNAME) -> Answer:
        """Raises CniError."""
        return self.call("ADD", pod, with_device(conf, vf), ifname)

    def delete(self, pod: Pod, conf: Conf, vf: str | None = None, ifname: str = IFNAME) -> Answer:
        """Raises CniError. A netns that is gone is not named, as the specification allows."""
        return self.call("DEL", pod, with_device(conf, vf), ifname)

    def status(self) -> Answer:
        return self._run({"CNI_COMMAND": "STATUS"}, network("status"))

    def version(self) -> Answer:
        return self._run({"CNI_COMMAND": "VERSION"}, {"cniVersion": CNI_VERSION})

    def call(self, command: str, pod: Pod, conf: Conf | bytes, ifname: str = IFNAME) -> Answer:
        """A command about one attachment, with the config as it is."""
        return self._run(cni_environment(command, pod, ifname), conf)

    def _run(self, env: dict[str, str], conf: Conf | bytes) -> Answer:
        stdin = conf if isinstance(conf, bytes) else json.dumps(conf).encode()
        path = ":".join([str(self.executable.parent), *self.plugin_dirs])
        env = env | {"CNI_PATH": path, "SRIOV_UNDERLAY_SOCKET": str(self.socket)}
        began = time.monotonic()
        done = subprocess.run(
            [str(self.executable)],
            input=stdin,
            capture_output=True,
            check=False,
            env=env | {"PATH": os.environ.get("PATH", "")},
            timeout=_CALL_TIMEOUT_S,
        )
        seconds = time.monotonic() - began
        answer: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
        if done.returncode:
            raise CniError(env["CNI_COMMAND"], answer["code"], answer["msg"])
        return Answer(answer, seconds)


def network(name: str, **options: Any) -> Conf:
    """A network config of our type. Options with None are left out."""
    given = {key: value for key, value in options.items() if value is not None}
    return {"cniVersion": CNI_VERSION, "name": name, "type": "sriov-underlay", **given}


def host_local(*ranges: Conf, **options: Any) -> Conf:
    """IPAM with one range set for each range given."""
    return {"type": "host-local", "ranges": [[one] for one in ranges], **options}


def with_device(conf: Conf, vf: str | None) -> Conf:
    """The config with the device the kubelet allocated, by the capability that runtimes fill in."""
    if vf is None:
        return conf
    return conf | {"capabilities": {"deviceID": True}, "runtimeConfig": {"deviceID": vf}}


def cni_environment(command: str, pod: Pod, ifname: str) -> dict[str, str]:
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": pod.container_id,
        "CNI_NETNS": str(pod.path) if pod.exists else "",
        "CNI_IFNAME": ifname,
        "CNI_ARGS": _cni_args(pod),
    }


def _cni_args(pod: Pod) -> str:
    args = {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": pod.namespace,
        "K8S_POD_NAME": pod.name,
        "K8S_POD_INFRA_CONTAINER_ID": pod.container_id,
        "K8S_POD_UID": pod.uid,
    }
    return ";".join(f"{key}={value}" for key, value in (args | pod.args).items())
