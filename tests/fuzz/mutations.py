"""Structure-aware input: valid values with a few things wrong, so that it gets past the first check."""

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

from tests.cni_world import PF0

VF = "0000:01:10.0"  # the first of PF0 in tests.cni_world
KEYS = (
    *("cniVersion", "name", "type", "ipam", "dns", "ipMasq", "args", "capabilities", "runtimeConfig"),
    *("prevResult", "deviceID", "pciBusID", "CNIDeviceInfoFile", "mac", "logLevel", "logFile", "vlan"),
    *("vlanQoS", "vlanProto", "spoofchk", "trust", "link_state", "min_tx_rate", "max_tx_rate", "mtu"),
    *("promisc", "allmulti", "subnet", "rangeStart", "rangeEnd", "gateway", "ranges", "routes", "dataDir"),
    *("resolvConf", "addresses", "address", "dst", "gw", "priority", "table", "scope", "advmss", "cni"),
    *("ips", "ipRanges", "nameservers", "domain", "search", "options", "interfaces", "sandbox", "interface"),
    *("cni.dev/valid-attachments", "cni.dev/attachments", "containerID", "ifname", "version", "pools"),
)
NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 67, 68, 100, 1500, 4094, 4095, 65535, 65536, 0.5, 1e308, 1e-300),
    *(2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1, 2**64, -(2**63) - 1, 10**400, [], {}, [[]], [{}], [None]),
    *("", " ", "\0", "\n", "x\n", "on", "off", "ON", "auto", "enable", "802.1q", "802.1AD", "0", "-1", "é✓"),
    *(
        "../../x",
        "/",
        "..",
        ".",
        "\u202e",
        "\U0001f600",
        "x" * 300,
        "é" * 200,
        "x" * 100_000,
        "-x",
        "a" * 255,
    ),
    *("0000:01:10.1", PF0, "0000:01:1f.7", "10000:01:10.0", "mlx5_core.sf.4", "01:10.0"),
    *("02:00:00:00:00:01", "0200.0000.0002", "01:00:5e:00:00:01", "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff"),
    *("10.0.0.0/8", "10.56.0.0/30", "10.56.0.0/31", "10.56.0.5/24", "10.56.0.5", "10.56.0.1", "0.0.0.0/0"),
    *(
        "::/0",
        "fd00::/8",
        "fd00:56::5",
        "fe80::1%eth0",
        "::ffff:10.0.0.1",
        "255.255.255.255/32",
        "1.2.3.4/33",
    ),
    *(
        "10.0.0.0/255.0.0.0",
        "010.0.0.1",
        "\u0661.2.3.4/8",
        "host-local",
        "static",
        "dhcp",
        "sriov",
        "whereabouts",
    ),
    *(
        "0.3.1",
        "0.4.0",
        "1.0.0",
        "1.1.0",
        "9.9.9",
        "net1",
        "eth0",
        "lo",
        "all",
        "default",
        "sixteen-letters-",
    ),
)

words = st.sampled_from([text for text in NASTY if isinstance(text, str)]) | st.text(max_size=20)
# Copies: what is drawn is changed later on.
json_values = st.recursive(
    st.sampled_from(NASTY).map(copy.deepcopy)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=5,
)

Place = tuple[Any, Any]  # a container and a key or index in it


def places(value: Any) -> list[Place]:
    return list(_places(value))


def _places(value: Any) -> Iterator[Place]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


@st.composite
def mutated(draw: st.DrawFn, bases: tuple[Any, ...], most: int = 3) -> Any:
    """One of these objects with up to `most` changes, each anywhere in it. Always a dict."""
    value = copy.deepcopy(draw(st.sampled_from(bases)))
    for _ in range(draw(st.integers(0, most))):
        found = places(value)
        if not found:
            break
        container, key = draw(st.sampled_from(found))
        draw(st.sampled_from(_CHANGES))(draw, value, container, key)
    return value


def _replace(draw: st.DrawFn, whole: Any, container: Any, key: Any) -> None:
    container[key] = draw(json_values)


def _remove(draw: st.DrawFn, whole: Any, container: Any, key: Any) -> None:
    del container[key]


def _rename(draw: st.DrawFn, whole: Any, container: Any, key: Any) -> None:
    if isinstance(container, dict):
        container[
            draw(
                st.sampled_from([key.upper(), f"{key}x", "", "\n\x1b[31m", key[:20] * 5000])
                | st.sampled_from(KEYS)
            )
        ] = container.pop(key)


def _add(draw: st.DrawFn, whole: Any, container: Any, key: Any) -> None:
    if isinstance(container, dict):
        container[draw(st.sampled_from(KEYS))] = draw(json_values)
    else:
        container.append(draw(json_values))


def _splice(draw: st.DrawFn, whole: Any, container: Any, key: Any) -> None:
    """Something of elsewhere in the same object: right in itself, in the wrong place."""
    other, other_key = draw(st.sampled_from(places(whole)))
    container[key] = copy.deepcopy(other[other_key])


def _wrap(draw: st.DrawFn, whole: Any, container: Any, key: Any) -> None:
    """Many of one thing, but not many of many of many."""
    most = 3 if isinstance(container[key], list) else 200
    container[key] = [container[key]] * draw(st.sampled_from([0, 1, 2, 3, most]))


def _nest(draw: st.DrawFn, whole: Any, container: Any, key: Any) -> None:
    for _ in range(draw(st.sampled_from([1, 10, 70]))):
        container[key] = {"a": container[key]}


def _nudge(draw: st.DrawFn, whole: Any, container: Any, key: Any) -> None:
    value = container[key]
    if isinstance(value, str):
        at = draw(st.integers(0, len(value)))
        container[key] = value[:at] + draw(st.sampled_from(["", "0", "x", "/", ":", " "])) + value[at + 1 :]
    elif isinstance(value, int):
        container[key] = value + draw(st.sampled_from([-1, 1, 2**32]))


_Change = Callable[[st.DrawFn, Any, Any, Any], None]
_CHANGES: tuple[_Change, ...] = (_replace, _remove, _rename, _add, _splice, _wrap, _nest, _nudge, _nudge)


_DEEP = st.sampled_from([b"[" * 5000, b'{"a":' * 5000])


@st.composite
def damaged(draw: st.DrawFn, contents: st.SearchStrategy[bytes]) -> bytes:
    """Sometimes with a few bytes changed, cut off, doubled or put in."""
    data = draw(contents)
    if draw(st.integers(0, 3)):
        return data
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["cut", "flip", "insert", "double"])):
            case "cut":
                data = data[:at]
            case "flip":
                data = data[:at] + draw(st.binary(min_size=1, max_size=1)) + data[at + 1 :]
            case "insert":
                data = data[:at] + draw(st.binary(max_size=8) | _DEEP) + data[at:]
            case _:
                data = data[:at] + data[at // 2 : at] + data[at:]
    return data


def as_json(values: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    return values.map(lambda value: json.dumps(value).encode())
