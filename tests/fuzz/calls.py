"""CNI calls that are almost right, and what must hold for the answer to any of them."""

import json
from typing import Any

from hypothesis import strategies as st

from sriov_cni.messages import CniReply
from sriov_cni.spec import SUPPORTED_VERSIONS, ErrorCode
from tests.cni_world import IPAM
from tests.fuzz.mutations import VF, as_json, damaged, json_values, mutated, words

POD_ARGS = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ml;K8S_POD_NAME=trainer;K8S_POD_UID=u1"
_BASE = {"cniVersion": "1.1.0", "name": "underlay", "type": "sriov-underlay", "deviceID": VF}
_STATIC = {"type": "static", "addresses": [{"address": "10.9.0.5/24", "gateway": "10.9.0.1"}]}
_ROUTES = [{"dst": "10.0.0.0/8", "gw": "10.9.0.9", "mtu": 1400, "priority": 5, "table": 7, "scope": 0}]
_PREV = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "net1", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/a", "mtu": 1500}],
    "ips": [{"interface": 0, "address": "10.56.0.2/24", "gateway": "10.56.0.1"}],
    "routes": [{"dst": "0.0.0.0/0"}],
}
CONFIGS: tuple[dict[str, Any], ...] = (
    _BASE | {"ipam": IPAM},
    _BASE | {"cniVersion": "0.3.1", "type": "sriov", "ipam": {"type": "host-local", "subnet": "10.8.0.0/24"}},
    _BASE
    | {"cniVersion": "0.4.0", "ipam": _STATIC | {"routes": _ROUTES, "dns": {"nameservers": ["10.9.0.1"]}}},
    _BASE
    | {
        "vlan": 100,
        "vlanQoS": 3,
        "vlanProto": "802.1q",
        "mac": "02:00:00:00:00:99",
        "min_tx_rate": 0,
        "max_tx_rate": 200,
    }
    | {
        "spoofchk": "off",
        "trust": "on",
        "mtu": 1400,
        "promisc": "on",
        "allmulti": "off",
        "logLevel": "debug",
    },
    _BASE | {"vlan": 0, "min_tx_rate": 0, "max_tx_rate": 10, "link_state": "auto", "ipam": {}},
    _BASE | {"ipam": {"type": "dhcp", "provide": [{"option": "12"}]}, "logFile": "/x", "pciBusID": VF},
    _BASE
    | {"ipam": IPAM, "runtimeConfig": {"mac": "02:00:00:00:00:98", "ips": ["10.56.0.9/24"], "deviceID": VF}}
    | {"args": {"cni": {"mac": "02:00:00:00:00:97", "ips": ["fd00:56::9"]}}, "capabilities": {"mac": True}},
    {key: value for key, value in _BASE.items() if key != "deviceID"} | {"ipam": IPAM, "vlan": 7},
    _BASE | {"ipam": IPAM, "prevResult": _PREV},
    _BASE | {"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "net1"}], "ipam": IPAM},
)
ENVIRONMENT = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/a",
    "CNI_IFNAME": "net1",
    "CNI_PATH": "/nowhere",
    "CNI_ARGS": POD_ARGS,
}
COMMANDS = ("ADD", "DEL", "CHECK", "GC", "STATUS")
_ARGS_KEYS = (
    "IgnoreUnknown",
    "MAC",
    "IP",
    "GATEWAY",
    "K8S_POD_NAMESPACE",
    "K8S_POD_NAME",
    "K8S_POD_UID",
    "X",
)

configs = mutated(CONFIGS)
stdins = damaged(as_json(configs)) | st.binary(max_size=60) | as_json(json_values)
_pairs = st.tuples(st.sampled_from(_ARGS_KEYS) | words, st.sampled_from(["=", "=", "=", "", "=="]), words)
cni_args = st.lists(_pairs.map("".join), max_size=6).map(";".join) | words | st.just(POD_ARGS)


@st.composite
def environments(draw: st.DrawFn, commands: tuple[str, ...] = COMMANDS) -> dict[str, str]:
    """As the wire can carry them: any text but NUL. CNI_PATH leads nowhere."""
    env = ENVIRONMENT | {"CNI_COMMAND": draw(st.sampled_from(commands))}
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2, 3]))):
        key = draw(st.sampled_from(sorted(ENVIRONMENT)))
        match draw(st.integers(0, 3)):
            case 0:
                env.pop(key, None)
            case 1:
                env["CNI_ARGS"] = draw(cni_args)
            case 2:
                env[draw(words)] = draw(words)
            case _:
                env[key] = draw(words)
    env["CNI_PATH"] = "/nowhere"
    return {key: value.replace("\0", "") for key, value in env.items() if "\0" not in key}


def error_in(reply: CniReply) -> dict[str, Any]:
    """The error of a reply, well-formed: cniVersion, code and msg, and nothing else but details."""
    assert reply.exit_code == 1
    error: dict[str, Any] = json.loads(reply.stdout)
    assert {"cniVersion", "code", "msg"} <= error.keys() <= {"cniVersion", "code", "msg", "details"}
    assert error["cniVersion"] in SUPPORTED_VERSIONS
    assert error["code"] in set(ErrorCode) - {ErrorCode.INTERNAL}
    assert isinstance(error["msg"], str)
    assert 0 < len(error["msg"]) < 5000
    assert "\0" not in error["msg"]
    return error
