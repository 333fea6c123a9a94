"""What arrives with a call, parsed: a value or an error of ours, never anything else."""

import json
from contextlib import suppress
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from device_plugin.explain import explain
from device_plugin.pools import check_pools
from node_agent.config import ConfigError, parse_config
from node_agent.drop_in import parse_drop_in
from sriov_cni.chain_conflist import parse_conflist, render_config
from sriov_cni.environment import parse_cni_args
from sriov_cni.messages import CniReply
from sriov_cni.netconf import CniCall, parse_call, version_of
from sriov_cni.spec import code_of, error_json
from tests.fuzz.calls import ENVIRONMENT, cni_args, configs, environments, error_in, stdins
from tests.fuzz.mutations import as_json, damaged, mutated
from tests.fuzz.pace import keep_trying, no_hang, round_of_examples
from vf_manager.errors import InvalidInput
from vf_manager.model import Inventory


def parsed(env: dict[str, str], stdin: bytes) -> CniCall | None:
    """None if it is refused, with an error that can be printed."""
    try:
        with no_hang():
            return parse_call(env, stdin)
    except InvalidInput as e:
        error_in(CniReply(1, error_json(version_of(stdin), code_of(e), str(e))))
        return None


def test_environment_and_stdin() -> None:
    @round_of_examples
    @given(environments(), stdins)
    def prop(env: dict[str, str], stdin: bytes) -> None:
        parsed(env, stdin)

    keep_trying(0.06, prop)


def test_what_add_takes_everything_else_takes() -> None:
    """A DEL in particular must not fail for an ADD that was served."""

    @round_of_examples
    @given(configs)
    def prop(config: dict[str, Any]) -> None:
        stdin = json.dumps(config).encode()
        call = parsed(ENVIRONMENT, stdin)
        if call is None:
            return
        since = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
        for command in ("DEL", "CHECK", "GC", "STATUS"):
            if call.conf.cni_version < since.get(command, "0"):
                continue
            if command == "GC" and any(key.startswith("cni.dev/") for key in config):
                continue  # a list that only GC reads
            again = parsed(ENVIRONMENT | {"CNI_COMMAND": command}, stdin)
            assert again is not None
            assert again.conf.name == call.conf.name

    keep_trying(0.06, prop)


def test_cni_args() -> None:
    @round_of_examples
    @given(cni_args, st.booleans())
    def prop(text: str, strict: bool) -> None:
        message = ""
        try:
            found = parse_cni_args(text, strict=strict)
        except InvalidInput as e:
            message, found = str(e), {}
        assert all(f"{key}={value}" in text for key, value in found.items())
        assert not message or (strict and message.startswith("CNI_ARGS: "))

    keep_trying(0.02, prop)


CONFLIST = {
    "cniVersion": "1.0.0",
    "cniVersions": ["0.4.0", "1.1.0"],
    "name": "pods",
    "disableCheck": False,
    "plugins": [
        {"type": "bridge", "bridge": "cni0", "ipam": {"type": "host-local", "subnet": "10.1.0.0/24"}},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}


def test_conflist() -> None:
    @round_of_examples
    @given(damaged(as_json(mutated((CONFLIST,)))))
    def prop(text: bytes) -> None:
        try:
            with no_hang():
                conflist = parse_conflist(text)
        except InvalidInput:
            return
        for plugin in conflist.plugins:
            stdin = render_config(
                conflist, plugin, conflist.versions[-1], runtime_config={"portMappings": []}
            )
            assert json.loads(stdin)["name"] == conflist.name

    keep_trying(0.04, prop)


AGENT: dict[str, Any] = {
    "resourcePrefix": "x.io",
    "pools": [
        {
            "name": "fast",
            "select": {"pfNames": ["ens1f0#0-3,5"], "vendors": ["8086"], "pciAddresses": ["0000:01:10.0"]},
            "vfs": {"count": 7, "mtu": 1500, "driver": "kernel"},
            "limits": {"vlans": ["100-199", 300], "trust": False, "spoofchkOff": False, "mac": False},
        },
        {"name": "adopted", "select": {"drivers": ["vfio-pci"], "devices": ["10ca"]}},
        {
            "name": "many",
            "resourcePrefix": "y.io",
            "select": [
                {"rootDevices": ["0000:02:00.0#1"], "isRdma": True, "acpiIndexes": [1, "2"]},
                {"linkTypes": ["ether"], "pKeys": ["0x1"], "numaNodes": [0], "pcieRoots": ["pci0000:3a"]},
            ],
            "shared": True,
            "excludeTopology": True,
            "vhostNet": True,
            "additionalInfo": {"*": {"a": "b"}},
        },
    ],
    "networks": [
        {
            "name": "blue",
            "pools": ["fast"],
            "vlan": 100,
            "mtu": 1400,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.7.0.0/24"}]]},
            "dns": {"nameservers": ["10.7.0.1"]},
        },
        {"name": "red", "pools": ["adopted"], "ipam": {"type": "whereabouts", "range": "10.6.0.0/24"}},
    ],
    "fallback": "/etc/cni/net.d/fallback.conflist",
    "repairDrift": True,
}
_SNIPPETS = (
    *("&a ", "*a", "!!binary ", "!!set ", "!!timestamp ", "!!omap ", "!!python/object:os.system ", "!x "),
    *("2001-99-99", "2001-01-01", "0x", "0b", "1:60:99", "<<: ", "=", "? ", "- ", "{", "[", "]", "}", ": "),
    *(
        "|",
        ">",
        "%YAML 9.9\n",
        "---\n",
        "...\n",
        "\t",
        "\x00",
        "\x85",
        "\ufeff",
        '"\\ud800"',
        '"\\UFFFFFFFF"',
    ),
    *(
        "9" * 5000,
        "[" * 400,
        "&a [*a]",
        "{&a a: *a}",
        ".nan",
        ".inf",
        "null",
        "~",
        "yes",
        "!!int x",
        "!!float x",
    ),
)


@st.composite
def agent_texts(draw: st.DrawFn) -> str:
    """JSON is YAML; and YAML has traps of its own."""
    text = json.dumps(draw(mutated((AGENT,))), indent=draw(st.sampled_from([None, 1])))
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.sampled_from(_SNIPPETS)) + text[at:]
    return text


def test_agent_config() -> None:
    @round_of_examples
    @given(
        agent_texts() | st.text(max_size=40) | st.lists(st.sampled_from(_SNIPPETS), max_size=6).map("".join)
    )
    def prop(text: str) -> None:
        with no_hang(), suppress(ConfigError):
            parse_config(text)

    keep_trying(0.07, prop)


ESTABLISHED: dict[str, Any] = {
    "resourceList": [
        {
            "resourceName": "dpdk",
            "resourcePrefix": "example.com",
            "deviceType": "netDevice",
            "selectors": [
                {"vendors": ["8086"], "devices": ["154c"], "drivers": ["vfio-pci"], "pfNames": ["a#0-3,7"]},
                {"rootDevices": ["0000:86:00.0#0-1"], "pciAddresses": ["0000:03:02.0"], "acpiIndexes": ["1"]},
            ],
            "excludeTopology": True,
        },
        {
            "resourceName": "rdma",
            "selectors": {"isRdma": True, "needVhostNet": True, "linkTypes": ["ether"], "pKeys": ["0x1"]},
            "additionalInfo": {"*": {"a": "b"}, "0000:3b:00.2": {"a": "c"}},
        },
    ]
}


def test_established_config() -> None:
    """And what is taken can be used."""

    @round_of_examples
    @given(damaged(as_json(mutated((ESTABLISHED,)))) | as_json(mutated((ESTABLISHED,))))
    def prop(stdin: bytes) -> None:
        with no_hang(), suppress(ConfigError, UnicodeDecodeError):
            config = parse_drop_in(stdin.decode())
            check_pools(config.resources(), config.resource_prefix)
            explain(config.resources(), config.resource_prefix, Inventory())

    keep_trying(0.03, prop)
