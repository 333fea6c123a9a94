"""The CNI words: error objects, error codes, results in the form of every version."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriov_cni.spec import (
    SUPPORTED_VERSIONS,
    BadEnvironment,
    Dns,
    ErrorCode,
    IncompatibleVersion,
    Interface,
    IpConfig,
    Result,
    Route,
    Undecodable,
    UnsupportedField,
    code_of,
    error_json,
    render_result,
)
from vf_manager import errors

RESULT = Result(
    interfaces=(
        Interface(
            name="eth0", mac="02:00:00:00:00:01", mtu=9000, sandbox="/run/netns/p", pci_id="0000:3b:02.1"
        ),
    ),
    ips=(
        IpConfig(address="10.0.0.5/24", gateway="10.0.0.1", interface=0),
        IpConfig(address="fd00::5/64", interface=0),
    ),
    routes=(
        Route(dst="0.0.0.0/0", gw="10.0.0.1", mtu=1400, advmss=1360, priority=0, table=100, scope=0),
        Route(dst="fd01::/64"),
    ),
    dns=Dns(nameservers=("10.0.0.2",), domain="example.org", search=("example.org",), options=("ndots:5",)),
)

DNS = {
    "nameservers": ["10.0.0.2"],
    "domain": "example.org",
    "search": ["example.org"],
    "options": ["ndots:5"],
}
PLAIN_INTERFACE = {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/p"}
PLAIN_ROUTES = [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}, {"dst": "fd01::/64"}]
PLAIN_IPS: list[dict[str, Any]] = [
    {"interface": 0, "address": "10.0.0.5/24", "gateway": "10.0.0.1"},
    {"interface": 0, "address": "fd00::5/64"},
]
TAGGED_IPS = [{"version": "4", **PLAIN_IPS[0]}, {"version": "6", **PLAIN_IPS[1]}]

GOLDEN: dict[str, dict[str, Any]] = {
    "0.3.1": {"interfaces": [PLAIN_INTERFACE], "ips": TAGGED_IPS, "routes": PLAIN_ROUTES, "dns": DNS},
    "0.4.0": {"interfaces": [PLAIN_INTERFACE], "ips": TAGGED_IPS, "routes": PLAIN_ROUTES, "dns": DNS},
    "1.0.0": {"interfaces": [PLAIN_INTERFACE], "ips": PLAIN_IPS, "routes": PLAIN_ROUTES, "dns": DNS},
    "1.1.0": {
        "interfaces": [{**PLAIN_INTERFACE, "mtu": 9000, "pciID": "0000:3b:02.1"}],
        "ips": PLAIN_IPS,
        "routes": [
            {
                "dst": "0.0.0.0/0",
                "gw": "10.0.0.1",
                "mtu": 1400,
                "advmss": 1360,
                "priority": 0,
                "table": 100,
                "scope": 0,
            },
            {"dst": "fd01::/64"},
        ],
        "dns": DNS,
    },
}


@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
def test_a_result_has_the_form_of_its_version(version: str) -> None:
    assert json.loads(render_result(RESULT, version)) == {"cniVersion": version, **GOLDEN[version]}


def test_the_bytes_of_a_result() -> None:
    result = Result(interfaces=(Interface(name="eth0"),), ips=(IpConfig(address="10.0.0.5/24", interface=0),))
    assert render_result(result, "0.4.0") == (
        b'{"cniVersion":"0.4.0","interfaces":[{"name":"eth0"}],'
        b'"ips":[{"version":"4","interface":0,"address":"10.0.0.5/24"}]}'
    )


def test_what_is_empty_is_left_out() -> None:
    assert render_result(Result(), "1.1.0") == b'{"cniVersion":"1.1.0"}'


def test_a_result_in_a_version_that_is_not_served_is_an_error() -> None:
    with pytest.raises(IncompatibleVersion, match=r"cniVersion: '0\.2\.0'"):
        render_result(RESULT, "0.2.0")


def test_an_error_object() -> None:
    assert error_json("1.0.0", ErrorCode.UNSUPPORTED_FIELD, "no", "why") == (
        b'{"cniVersion":"1.0.0","code":2,"msg":"no","details":"why"}'
    )
    assert error_json("1.0.0", 100, "no") == b'{"cniVersion":"1.0.0","code":100,"msg":"no"}'


@given(st.text(st.characters(codec=None)), st.text(st.characters(codec=None)))
def test_any_text_makes_a_well_formed_error(msg: str, details: str) -> None:
    decoded = msgspec.json.decode(error_json("1.1.0", 999, msg + "\udc80", details))
    assert decoded["code"] == 999


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (IncompatibleVersion("cniVersion", "9", "1.1.0"), 1),
        (UnsupportedField("a", 1, ["b"]), 2),
        (BadEnvironment("CNI_IFNAME", "", "a name"), 4),
        (errors.KernelError("move", 22), 5),
        (errors.CorruptRecord("x"), 5),
        (Undecodable("stdin", b"", "JSON"), 6),
        (errors.InvalidInput("vlan", 4095, "less"), 7),
        (errors.Refused("no"), 7),
        (errors.Busy("x"), 11),
        (errors.Exhausted("x"), 11),
        (errors.KernelError("move", 16), 11),
        (errors.NotFound("x"), 7),
    ],
)
def test_every_error_has_its_code(error: errors.SriovError, code: int) -> None:
    assert code_of(error) == code


def test_an_unknown_key_is_named_with_its_value_and_the_nearest_key() -> None:
    error = UnsupportedField("ipam.rangestart", "10.0.0.9", ["rangeStart", "rangeEnd"])
    assert str(error) == (
        "ipam.rangestart: unknown key (its value is '10.0.0.9'); did you mean 'rangeStart'?"
    )
    assert (
        str(UnsupportedField("zzz", 1, ["b", "a"])) == "zzz: unknown key (its value is 1); known here: a, b"
    )


def test_an_error_always_fits_on_the_wire() -> None:
    error = json.loads(error_json("1.1.0", 7, "x" * 2_000_000, "y" * 2_000_000))
    assert (len(error["msg"]), len(error["details"])) == (4096, 4096)
    assert error["msg"].endswith("x...")
