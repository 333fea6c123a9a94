"""One CNI call from environment and stdin: what is taken, with which meaning, and what is refused."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sriov_cni.environment import Command, Pod, name_call, parse_cni_args
from sriov_cni.ipam.config import HostLocalConf, StaticConf
from sriov_cni.netconf import CniCall, NetConf, decode_object, parse_call, version_of
from sriov_cni.spec import (
    BadEnvironment,
    IncompatibleVersion,
    Undecodable,
    UnsupportedField,
    code_of,
)
from vf_manager.errors import InvalidInput, SriovError
from vf_manager.model import LinkState, VfChange, VlanProto

VF = "0000:3b:02.1"
RANGE = {"type": "host-local", "subnet": "10.0.0.0/24"}
DEVICE_INFO = "/var/run/k8s.cni.cncf.io/devinfo/cni/x"


def environment(command: str = "ADD", **changes: str | None) -> dict[str, str]:
    env: dict[str, str | None] = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/run/netns/c1",
        "CNI_IFNAME": "net1",
        "CNI_PATH": "/opt/cni/bin:/usr/lib/cni",
    }
    return {key: value for key, value in (env | changes).items() if value is not None}


def config(**options: Any) -> bytes:
    base = {"cniVersion": "1.1.0", "name": "fast", "type": "sriov-underlay"}
    return json.dumps(base | options).encode()


def parse(command: str = "ADD", *, env: dict[str, str | None] | None = None, **options: Any) -> CniCall:
    return parse_call(environment(command, **(env or {})), config(**options))


def conf(**options: Any) -> NetConf:
    return parse(**options).conf


# --- what is taken ---


def test_a_call_says_who_and_where() -> None:
    args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ml;K8S_POD_NAME=train-0;K8S_POD_UID=u-1;OTHER=x=y"
    call = parse(env={"CNI_ARGS": args})
    assert (call.command, call.container_id, call.ifname) == (Command.ADD, "c1", "net1")
    assert call.netns == "/run/netns/c1"
    assert call.pod == Pod(namespace="ml", name="train-0", uid="u-1")
    assert call.args["OTHER"] == "x=y"
    assert call.env.path == ("/opt/cni/bin", "/usr/lib/cni")


def test_without_pod_arguments_there_is_no_pod() -> None:
    assert parse().pod is None


def test_nothing_asked_for_is_nothing() -> None:
    assert conf() == NetConf(cni_version="1.1.0", name="fast", type="sriov-underlay")


def test_all_options_have_the_meaning_of_sriov_cni() -> None:
    parsed = conf(
        deviceID=VF.upper(),
        vlan=100,
        vlanQoS=3,
        vlanProto="802.1AD",
        mac="02-00-00-AA-BB-CC",
        mtu=9000,
        spoofchk="off",
        trust="on",
        link_state="enable",
        min_tx_rate=100,
        max_tx_rate=200,
        logLevel="debug",
        logFile="/var/log/x",
        ipam=RANGE,
        dns={"nameservers": ["10.0.0.2"]},
    )
    assert parsed.asked.change == VfChange(
        mac=parsed.asked.mac,
        vlan=100,
        qos=3,
        proto=VlanProto.DOT1AD,
        spoofchk=False,
        trust=True,
        link_state=LinkState.ENABLE,
        min_tx_rate=100,
        max_tx_rate=200,
    )
    assert (parsed.device_id, parsed.asked.mac, parsed.asked.mtu) == (VF, "02:00:00:aa:bb:cc", 9000)
    assert isinstance(parsed.ipam, HostLocalConf)
    assert parsed.dns.nameservers == ("10.0.0.2",)


@pytest.mark.parametrize("vlan", [0, 1, 4094])
def test_a_vlan_brings_its_priority_and_protocol(vlan: int) -> None:
    assert conf(vlan=vlan).asked.change == VfChange(vlan=vlan, qos=0, proto=VlanProto.DOT1Q)


def test_vlan_0_takes_the_explicit_defaults() -> None:
    assert conf(vlan=0, vlanQoS=0, vlanProto="802.1q").asked.change.vlan == 0


def test_one_rate_alone_would_be_a_guess() -> None:
    refused(7, "min_tx_rate: 10", "max_tx_rate beside it", min_tx_rate=10)
    refused(7, "max_tx_rate: 0", "min_tx_rate beside it", max_tx_rate=0)


def test_a_maximum_of_zero_is_no_limit() -> None:
    assert conf(min_tx_rate=10, max_tx_rate=0).asked.change.max_tx_rate == 0


def test_null_and_empty_strings_ask_for_nothing() -> None:
    empty = {"mac": "", "spoofchk": "", "trust": None, "vlan": None, "link_state": "", "deviceID": ""}
    assert conf(**empty, ipam={}) == conf()
    assert conf(ipam={"type": ""}, runtimeConfig=None, args=None) == conf()


@pytest.mark.parametrize(
    ("options", "env_args", "mac"),
    [
        (
            {
                "mac": "02:00:00:00:00:04",
                "args": {"cni": {"mac": "02:00:00:00:00:02"}},
                "runtimeConfig": {"mac": "02:00:00:00:00:01"},
            },
            "MAC=02:00:00:00:00:03",
            "01",
        ),
        (
            {"mac": "02:00:00:00:00:04", "args": {"cni": {"mac": "02:00:00:00:00:02"}}},
            "MAC=02:00:00:00:00:03",
            "02",
        ),
        ({"mac": "02:00:00:00:00:04"}, "MAC=02:00:00:00:00:03", "03"),
        ({"mac": "02:00:00:00:00:04"}, "MAC=", "04"),
    ],
)
def test_precedence_of_the_mac(options: dict[str, Any], env_args: str, mac: str) -> None:
    parsed = parse(env={"CNI_ARGS": env_args}, **options).conf
    assert parsed.asked.mac == parsed.asked.change.mac == f"02:00:00:00:00:{mac}"


def test_the_device_may_come_from_three_places() -> None:
    assert conf(deviceID=VF).device_id == VF
    assert conf(pciBusID=VF).device_id == VF
    assert conf(runtimeConfig={"deviceID": VF}).device_id == VF
    assert conf(runtimeConfig={"deviceID": VF.upper()}, deviceID=VF, pciBusID=VF).device_id == VF


def test_what_runtimes_add_is_taken() -> None:
    conf(
        capabilities={"mac": True},
        prevResult={"cniVersion": "1.1.0"},
        ipMasq=False,
        runtimeConfig={
            "portMappings": [],
            "CNIDeviceInfoFile": DEVICE_INFO,
            "infinibandGUID": "",
        },
        args={"cni": {"labels": []}, "other.example": 1},
    )
    parse_call(environment(), config(**{"cni.dev/valid-attachments": []}))


def test_of_duplicate_keys_the_last_wins() -> None:
    text = b'{"cniVersion":"1.1.0","name":"n","type":"t","vlan":1,"vlan":2}'
    assert parse_call(environment(), text).conf.asked.change.vlan == 2


# --- acceptance: one test for each wrong input; the answer names key and value ---


def refused(code: int, *fragments: str, command: str = "ADD", **options: Any) -> None:
    with pytest.raises(SriovError) as caught:
        parse(command, **options)
    assert code_of(caught.value) == code
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_vlan_4095() -> None:
    refused(7, "vlan", "4095", "4094", vlan=4095)


def test_qos_without_vlan() -> None:
    refused(7, "vlanQoS", "3", "vlan", vlanQoS=3)


def test_proto_without_vlan() -> None:
    refused(7, "vlanProto", "802.1q", vlanProto="802.1q")


def test_qos_on_vlan_0() -> None:
    refused(7, "vlanQoS", "3", vlan=0, vlanQoS=3)


def test_802_1ad_on_vlan_0() -> None:
    refused(7, "vlanProto", "802.1ad", vlan=0, vlanProto="802.1ad")


def test_spoofchk_yes() -> None:
    refused(7, "spoofchk", "'yes'", '"on" or "off"', spoofchk="yes")


def test_trust_true() -> None:
    refused(7, "trust", "True", trust=True)


def test_min_rate_above_max() -> None:
    refused(7, "min_tx_rate", "300", "200", min_tx_rate=300, max_tx_rate=200)


def test_mac_multicast() -> None:
    refused(7, "mac", "01:00:5e:00:00:01", "unicast", mac="01:00:5e:00:00:01")


def test_device_id_malformed() -> None:
    refused(7, "deviceID", "../../etc", deviceID="../../etc")
    refused(7, "runtimeConfig.deviceID", "mlx5_core.sf.4", runtimeConfig={"deviceID": "mlx5_core.sf.4"})


def test_two_different_devices() -> None:
    refused(7, "deviceID", "0000:3b:02.2", VF, deviceID="0000:3b:02.2", runtimeConfig={"deviceID": VF})
    refused(7, "pciBusID", "0000:3b:02.2", VF, pciBusID="0000:3b:02.2", deviceID=VF)


def test_unknown_key() -> None:
    options: dict[str, Any] = {"max-tx-rate": 200}
    refused(2, "max-tx-rate", "200", "did you mean 'max_tx_rate'?", **options)


def test_key_in_the_wrong_case() -> None:
    refused(2, "VLAN", "100", "did you mean 'vlan'?", VLAN=100)
    refused(2, "deviceId", VF, "did you mean 'deviceID'?", deviceId=VF)


@pytest.mark.parametrize("version", ["0.2.0", "1.2.0", "banana", None, ""])
def test_wrong_cni_version(version: str | None) -> None:
    refused(1, "cniVersion", version or "0.1.0", "0.3.1, 0.4.0, 1.0.0, 1.1.0", cniVersion=version)


def test_not_json() -> None:
    for stdin in (b"", b"vlan: 100", b'{"vlan": 100', b"\xff\xfe", b'{"a": NaN}', b'{"a":"\\ud800"}'):
        with pytest.raises(Undecodable) as caught:
            parse_call(environment(), stdin)
        assert code_of(caught.value) == 6


@pytest.mark.parametrize("stdin", [b"[]", b"null", b"1", b'"x"'])
def test_not_an_object(stdin: bytes) -> None:
    with pytest.raises(Undecodable, match="a JSON object"):
        parse_call(environment(), stdin)


@pytest.mark.parametrize("depth", [63, 200, 500, 900, 990, 1000, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [(b'{"a":', b"}"), (b"[", b"]")])
def test_deep_nesting_is_an_error_not_a_crash(depth: int, opening: bytes, closing: bytes) -> None:
    inner = opening * depth + b"1" + closing * depth
    stdin = b'{"cniVersion":"1.1.0","name":"n","type":"t","what":' + inner + b"}"
    with pytest.raises(InvalidInput):
        parse_call(environment(), stdin)
    assert version_of(stdin) == "1.1.0"


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("name", {"name": None}),
        ("name", {"name": "../x"}),
        ("name", {"name": 1}),
        ("type", {"type": None}),
        ("vlan", {"vlan": "100"}),
        ("vlan", {"vlan": True}),
        ("vlan", {"vlan": 1.0}),
        ("vlan", {"vlan": -1}),
        ("vlan", {"vlan": 2**64}),
        ("vlanQoS", {"vlan": 1, "vlanQoS": 8}),
        ("vlanProto", {"vlan": 1, "vlanProto": "802.1x"}),
        ("link_state", {"link_state": "on"}),
        ("min_tx_rate", {"min_tx_rate": -1}),
        ("max_tx_rate", {"max_tx_rate": 2**32}),
        ("max_tx_rate", {"max_tx_rate": False}),
        ("mtu", {"mtu": 67}),
        ("mtu", {"mtu": 65536}),
        ("mtu", {"mtu": "1500"}),
        ("mac", {"mac": "00:00:00:00:00:00"}),
        ("mac", {"mac": "02:00:00:00:00"}),
        ("mac", {"mac": 2}),
        ("runtimeConfig.mac", {"runtimeConfig": {"mac": "x"}}),
        ("args.cni.mac", {"args": {"cni": {"mac": "x"}}}),
        ("runtimeConfig", {"runtimeConfig": []}),
        ("runtimeConfig.CNIDeviceInfoFile", {"runtimeConfig": {"CNIDeviceInfoFile": "/etc/shadow"}}),
        ("CNIDeviceInfoFile", {"CNIDeviceInfoFile": "/run/k8s.cni.cncf.io/devinfo/../../x"}),
        ("ipam.probe", {"ipam": {"type": "host-local", "subnet": "10.0.0.0/24", "probe": "yes"}}),
        ("args", {"args": "x"}),
        ("args.cni", {"args": {"cni": 1}}),
        ("prevResult", {"prevResult": []}),
        ("ipMasq", {"ipMasq": "yes"}),
        ("capabilities", {"capabilities": []}),
        ("dns", {"dns": []}),
        ("dns.nameservers[1]", {"dns": {"nameservers": ["10.0.0.1", 2]}}),
        ("logLevel", {"logLevel": "loud"}),
        ("logFile", {"logFile": 1}),
        ("ipam", {"ipam": []}),
        ("ipam.type", {"ipam": {"subnet": "10.0.0.0/24"}}),
        ("ipam.type", {"ipam": {"type": "../whereabouts"}}),
        ("ipam.type", {"ipam": {"type": "sriov-underlay"}}),
    ],
)
def test_a_wrong_value_is_an_error_with_its_path(path: str, options: dict[str, Any]) -> None:
    refused(7, f"{path}: ", **options)


def test_unknown_keys_below_the_top_are_named_with_their_path() -> None:
    refused(2, "dns.nameserver", dns={"nameserver": []})
    refused(2, "ipam.Subnet", "did you mean 'subnet'?", ipam={"type": "host-local", "Subnet": "10.0.0.0/24"})


def test_a_huge_value_makes_a_short_message() -> None:
    with pytest.raises(InvalidInput) as caught:
        conf(mac="x" * 1_000_000)
    assert len(str(caught.value)) < 300


def test_a_huge_or_unprintable_key_makes_a_short_message() -> None:
    for key in ("x" * 1_000_000, "\x1b[31m\n", "\u202e"):
        options: dict[str, Any] = {key: 1}
        with pytest.raises(UnsupportedField) as caught:
            conf(**options)
        assert len(str(caught.value)) < 600
        assert str(caught.value).isprintable()


STATIC = {"type": "static"}
RANGES = [[{"subnet": f"{i:x}::/32"}] for i in range(1, 1002)]
ADDRESSES = [f"10.{i // 250}.{i % 250}.1/24" for i in range(1001)]


@pytest.mark.parametrize(
    ("path", "args", "options"),
    [
        ("ipam.ranges", "", {"ipam": {"type": "host-local", "ranges": RANGES}}),
        ("ips", "", {"ipam": RANGE, "runtimeConfig": {"ips": ADDRESSES}}),
        ("ipam.addresses", "", {"ipam": STATIC | {"addresses": [{"address": a} for a in ADDRESSES]}}),
        ("CNI_ARGS IP", "IP=" + ",".join(ADDRESSES), {"ipam": STATIC}),
        (
            "CNI_ARGS GATEWAY",
            "GATEWAY=" + ",".join(a[:-3] for a in ADDRESSES),
            {"ipam": STATIC | {"addresses": [{"address": "10.0.0.5/24"}]}},
        ),
    ],
)
def test_what_is_compared_each_with_each_is_bounded(path: str, args: str, options: dict[str, Any]) -> None:
    """20 000 ranges, which fit on stdin, took two minutes."""
    with pytest.raises(InvalidInput) as caught:
        parse(env={"CNI_ARGS": args}, **options)
    assert str(caught.value) == f"{path}: '1001 entries' is not valid; expected at most 1000"


def test_names_fit_into_file_names() -> None:
    long = "x" * 200
    assert parse(env={"CNI_CONTAINERID": long}, name=long).conf.name == long
    refused(7, "name", "at most 200", name=f"{long}x")
    for command in ("ADD", "DEL"):
        with pytest.raises(BadEnvironment, match=r"CNI_CONTAINERID: .* at most 200"):
            parse(command, env={"CNI_CONTAINERID": f"{long}x"})


# --- environment ---


@pytest.mark.parametrize(
    ("command", "variable", "value"),
    [
        ("ADD", "CNI_COMMAND", None),
        ("ADD", "CNI_COMMAND", "VERSION"),
        ("ADD", "CNI_COMMAND", "add"),
        ("ADD", "CNI_CONTAINERID", None),
        ("DEL", "CNI_CONTAINERID", "../x"),
        ("CHECK", "CNI_CONTAINERID", "-x"),
        ("ADD", "CNI_CONTAINERID", "a\n"),
        ("ADD", "CNI_NETNS", None),
        ("CHECK", "CNI_NETNS", ""),
        ("ADD", "CNI_IFNAME", None),
        ("DEL", "CNI_IFNAME", "a/b"),
        ("DEL", "CNI_IFNAME", ".."),
        ("ADD", "CNI_IFNAME", "sixteen-chars-xx"),
        ("ADD", "CNI_ARGS", "NOPAIR"),
        ("ADD", "CNI_ARGS", "FOO=bar"),
        ("CHECK", "CNI_ARGS", "FOO=bar;IgnoreUnknown=0"),
        ("ADD", "CNI_ARGS", "IgnoreUnknown=maybe"),
    ],
)
def test_a_bad_environment_is_named(command: str, variable: str, value: str | None) -> None:
    with pytest.raises(BadEnvironment) as caught:
        parse(command, env={variable: value})
    assert code_of(caught.value) == 4
    assert str(caught.value).startswith(f"{variable}: ")
    assert repr(value or "")[1:-1].partition(";")[0] in str(caught.value)


def test_unknown_arguments_pass_when_the_runtime_says_so() -> None:
    for word in ("1", "true", "TRUE"):
        assert parse_cni_args(f"IgnoreUnknown={word};FOO=bar")["FOO"] == "bar"
    assert parse_cni_args("K8S_POD_INFRA_CONTAINER_ID=x;IP=10.0.0.5;")["IP"] == "10.0.0.5"


@pytest.mark.parametrize("command", ["GC", "STATUS"])
def test_commands_without_a_container(command: str) -> None:
    env: dict[str, str | None] = {"CNI_CONTAINERID": None, "CNI_IFNAME": None, "CNI_NETNS": None}
    call = parse(command, env=env | {"CNI_PATH": None})
    assert (call.container_id, call.ifname, call.netns, call.pod) == ("", None, "", None)


@pytest.mark.parametrize(
    ("command", "version", "since"),
    [("CHECK", "0.3.1", "0.4.0"), ("GC", "1.0.0", "1.1.0"), ("STATUS", "1.0.0", "1.1.0")],
)
def test_a_command_newer_than_the_config(command: str, version: str, since: str) -> None:
    refused(1, version, since, command, command=command, cniVersion=version)
    assert parse(command, cniVersion=since).conf.cni_version == since


# --- DEL ---


WRONG_OPTIONS: dict[str, Any] = {
    "vlan": 4095,
    "spoofchk": "yes",
    "max-tx-rate": 1,
    "deviceID": "nonsense",
    "type": 7,
    "runtimeConfig": "x",
    "prevResult": 3,
    "mac": [],
}


@pytest.mark.parametrize("command", ["DEL", "GC"])
def test_cleaning_is_not_stopped_by_wrong_options(command: str) -> None:
    call = parse(command, env={"CNI_ARGS": "FOO=bar;NOPAIR"}, **WRONG_OPTIONS)
    assert (call.conf.name, call.conf.cni_version) == ("fast", "1.1.0")
    if command == "DEL":
        assert (call.container_id, call.ifname) == ("c1", "net1")


@pytest.mark.parametrize("netns", [None, ""])
def test_del_without_netns(netns: str | None) -> None:
    assert parse("DEL", env={"CNI_NETNS": netns}).netns == ""


@pytest.mark.parametrize(
    ("ipam", "data_dir"),
    [
        ({"type": "host-local", "subnet": "nonsense", "dataDir": "/x"}, "/x"),
        ({"type": "host-local", "what": 1}, None),
        ({"type": "host-local", "dataDir": 7}, None),
    ],
)
def test_del_still_knows_where_the_leases_are(ipam: dict[str, Any], data_dir: str | None) -> None:
    assert parse("DEL", ipam=ipam).conf.ipam == HostLocalConf(range_sets=(), data_dir=data_dir)


def test_del_with_an_ipam_that_is_broken() -> None:
    broken: list[Any] = [{"type": "../whereabouts"}, [], "x", {}, {"type": []}]
    for ipam in broken:
        assert parse("DEL", ipam=ipam).conf.ipam is None


def test_del_needs_what_identifies_it() -> None:
    refused(7, "name", command="DEL", name=None)
    refused(1, "cniVersion", command="DEL", cniVersion="0.2.0")


# --- requests for addresses reach the IPAM ---


def test_addresses_are_asked_for_in_three_places() -> None:
    sets = [[{"subnet": f"10.0.{i}.0/24"}] for i in range(3)]
    parsed = parse(
        env={"CNI_ARGS": "IP=10.0.0.5"},
        args={"cni": {"ips": ["10.0.1.5"]}},
        runtimeConfig={"ips": ["10.0.2.5/16"]},
        ipam={"type": "host-local", "ranges": sets},
    ).conf.ipam
    assert isinstance(parsed, HostLocalConf)
    assert [str(s.requested) for s in parsed.range_sets] == ["10.0.0.5", "10.0.1.5", "10.0.2.5"]


def test_static_addresses_of_the_call_replace_those_of_the_config() -> None:
    ipam = {"type": "static", "addresses": [{"address": "10.0.0.5/24", "gateway": "10.0.0.1"}]}

    def addresses(env_args: str = "", **options: Any) -> list[tuple[str, str | None]]:
        parsed = parse(env={"CNI_ARGS": env_args}, ipam=ipam, **options).conf.ipam
        assert isinstance(parsed, StaticConf)
        return [(ip.address, ip.gateway) for ip in parsed.addresses]

    assert addresses() == [("10.0.0.5/24", "10.0.0.1")]
    assert addresses("IP=10.1.0.5/24, fd00::5/64;GATEWAY=10.1.0.1,fd00::1") == [
        ("10.0.0.5/24", "10.0.0.1"),
        ("10.1.0.5/24", "10.1.0.1"),
        ("fd00::5/64", "fd00::1"),
    ]
    assert addresses("IP=10.1.0.5/24", args={"cni": {"ips": ["10.2.0.5/24"]}}) == [("10.2.0.5/24", None)]
    runtime = {"ips": ["10.3.0.5/24"]}
    assert addresses(args={"cni": {"ips": ["10.2.0.5/24"]}}, runtimeConfig=runtime) == [("10.3.0.5/24", None)]


# --- anything at all ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [
        *("vlan", "vlanQoS", "vlanProto", "mac", "mtu", "spoofchk", "trust", "link_state", "min_tx_rate"),
        *("max_tx_rate", "deviceID", "pciBusID", "ipam", "dns", "runtimeConfig", "args", "prevResult"),
        *("name", "type", "cniVersion", "logLevel"),
    ]
)
IPAM = st.fixed_dictionaries(
    {"type": st.sampled_from(["host-local", "static"])},
    optional={
        key: JSON | st.sampled_from(["10.0.0.0/24", "10.0.0.5", "fd00::/64", [[{"subnet": "10.9.0.0/24"}]]])
        for key in ("subnet", "rangeStart", "rangeEnd", "gateway", "ranges", "routes", "addresses", "dataDir")
    },
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(KEYS, JSON, max_size=4), st.none() | IPAM, st.sampled_from(list(Command)))
def test_any_object_parses_or_is_refused(options: dict[str, Any], ipam: Any, command: Command) -> None:
    try:
        parse(command, **(options | ({"ipam": ipam} if ipam else {})))
    except InvalidInput:
        pass  # anything else is a crash


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80), st.text(max_size=40))
def test_any_bytes_and_arguments_parse_or_are_refused(stdin: bytes, args: str) -> None:
    for command in Command:
        with pytest.raises(InvalidInput):
            parse_call(environment(command, CNI_ARGS=args), stdin)
    assert version_of(stdin) == "1.1.0"


def test_the_version_to_word_an_error_in() -> None:
    assert version_of(config(cniVersion="0.4.0", vlan=4095)) == "0.4.0"
    assert version_of(config(cniVersion=["x"])) == "1.1.0"


def test_exceptions_keep_their_kind() -> None:
    for kind in (BadEnvironment, IncompatibleVersion, Undecodable, UnsupportedField):
        assert issubclass(kind, InvalidInput)
    assert decode_object(b"{}") == {}


def test_a_call_is_named_for_the_log_however_wrong_it_is() -> None:
    args = "IgnoreUnknown=perhaps;K8S_POD_NAMESPACE=ml;K8S_POD_NAME=a;;=;x"
    assert name_call({"CNI_COMMAND": "AD\nD", "CNI_CONTAINERID": "", "CNI_ARGS": args}) == {
        "command": r"'AD\nD'",
        "pod": "ml/a",
    }
    assert name_call({}) == {}
    assert len(name_call({"CNI_CONTAINERID": "c" * 100_000})["container"]) == 320
