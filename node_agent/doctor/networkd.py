"""Pure: which .network file of systemd-networkd applies to an interface, and whether it leaves it alone.

As systemd.network(5) says it and src/shared/netif-util.c, src/network/networkd-network.c do it: files in the
order of their names, the first whose `[Match]` holds counts.
"""

import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

import msgspec

from vf_manager.model import Mac

_YES = ("1", "yes", "y", "true", "t", "on")  # src/basic/parse-util.c parse_boolean


class HostInterface(msgspec.Struct, frozen=True, kw_only=True):
    """The interface of a VF as udev and networkd know it. `names`: altnames too. `properties`: of udev."""

    names: tuple[str, ...]
    mac: Mac
    permanent_mac: Mac | None = None
    driver: str | None = None
    path: str = ""  # ID_PATH
    type: str = "ether"
    properties: Mapping[str, str] = {}


class NetworkFile(msgspec.Struct, frozen=True, kw_only=True):
    """`match`: the words of each key of `[Match]`."""

    name: str
    match: Mapping[str, tuple[str, ...]] = {}
    unmanaged: bool = False


def parse_network_file(name: str, texts: Iterable[str]) -> NetworkFile:
    """`texts`: of the file, then of its drop-ins."""
    match: dict[str, tuple[str, ...]] = defaultdict(tuple)
    unmanaged = False
    for text in texts:
        for section, key, value in _settings(text):
            if section == "Match":
                match[key] = (*match[key], *_words(key, value)) if value else ()
            elif (section, key) == ("Link", "Unmanaged"):
                unmanaged = value.lower() in _YES
    return NetworkFile(
        name=name, match={k: words for k, words in match.items() if words}, unmanaged=unmanaged
    )


def file_of(interface: HostInterface, files: Sequence[NetworkFile]) -> NetworkFile | None:
    """The one that applies. `files`: in the order of their names."""
    return next((file for file in files if matches(file, interface)), None)


def matches(file: NetworkFile, interface: HostInterface) -> bool:
    """One without `[Match]` is ignored (network_verify). One with a key that is not known here, like that of
    a host or a kernel, is taken to be for others."""
    return bool(file.match) and all(
        key in _TESTS and _TESTS[key](words, interface) for key, words in file.match.items()
    )


def _settings(text: str) -> Iterator[tuple[str, str, str]]:
    """(section, key, value) as systemd.syntax(7) has them."""
    section = ""
    for line in _lines(text):
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
        elif "=" in line:
            key, _, value = line.partition("=")
            yield section, key.strip(), value.strip()


def _lines(text: str) -> Iterator[str]:
    """Without comments, also among lines that a backslash joins."""
    joined = ""
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith(("#", ";")):
            continue
        joined += line
        if joined.endswith("\\"):
            joined = f"{joined[:-1]} "
            continue
        yield joined
        joined = ""


def _words(key: str, value: str) -> list[str]:
    """A `!` before the first word is for each of them (config_parse_match_strv)."""
    invert = "!" if value.startswith("!") and key not in _ADDRESSES else ""
    try:
        words = shlex.split(value.removeprefix(invert))
    except ValueError:  # a quote without its end
        return []
    return [invert + word for word in words]


def _holds(patterns: Sequence[str], value: str | None) -> bool:
    """Whether one applies and none with a `!` (net_condition_test_strv)."""
    refused = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")]
    if value is None:
        return not wanted
    if any(fnmatchcase(value, pattern) for pattern in refused):
        return False
    return not wanted or any(fnmatchcase(value, pattern) for pattern in wanted)


def _has_name(patterns: Sequence[str], interface: HostInterface) -> bool:
    return any(_holds(patterns, name) for name in interface.names)


def _has_properties(wanted: Sequence[str], interface: HostInterface) -> bool:
    """Each of them: they are `NAME=value`, with a glob for the value."""
    for words in wanted:
        name, _, pattern = words.removeprefix("!").partition("=")
        value = interface.properties.get(name)
        if (value is not None and fnmatchcase(value, pattern)) is words.startswith("!"):
            return False
    return True


def _is_among(addresses: Sequence[str], mac: Mac | None) -> bool:
    digits = {"".join(c for c in address.lower() if c not in ":-.") for address in addresses}
    return mac is not None and mac.replace(":", "") in digits


_ADDRESSES = ("MACAddress", "PermanentMACAddress")
_TESTS: Mapping[str, Callable[[Sequence[str], HostInterface], bool]] = {
    "Name": _has_name,
    "Driver": lambda words, interface: _holds(words, interface.driver),
    "Path": lambda words, interface: _holds(words, interface.path),
    "Type": lambda words, interface: _holds(words, interface.type),
    "Kind": lambda words, _: _holds(words, None),  # a VF has none (IFLA_INFO_KIND)
    "Property": _has_properties,
    "MACAddress": lambda words, interface: _is_among(words, interface.mac),
    "PermanentMACAddress": lambda words, interface: _is_among(words, interface.permanent_mac),
}
