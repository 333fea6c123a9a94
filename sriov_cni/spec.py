"""Pure: the words of the CNI specification: versions, error codes, errors and results.

A result has one form in memory and is rendered in the form of the version that the caller asked for
(CNI SPEC.md, section "Result Types"; the older forms are in the same file at the tags spec-v0.3.1,
spec-v0.4.0 and spec-v1.0.0).
"""

import difflib
from collections.abc import Iterable
from enum import IntEnum
from typing import Any

import msgspec

from vf_manager.errors import (
    CorruptRecord,
    InvalidInput,
    KernelError,
    NotFound,
    Refused,
    SriovError,
    plain,
    shorten,
)

SUPPORTED_VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
NEWEST_VERSION = SUPPORTED_VERSIONS[-1]
OWN_NAMES = ("sriov-underlay", "sriov")  # under which the executable may be installed

_MOST_LETTERS = 4096  # of the message in an error


class ErrorCode(IntEnum):
    """Codes of a CNI error (SPEC.md, section "Error"). INVALID_NETNS and INTERNAL are the Go library's."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    UNDECODABLE = 6
    INVALID_CONFIG = 7
    INVALID_NETNS = 8
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50
    LIMITED_CONNECTIVITY = 51
    CHECK_FAILED = 100
    INTERNAL = 999


class UnsupportedField(InvalidInput):
    """A key that nobody here knows. `known` are the keys that would have been right in its place."""

    def __init__(self, key: str, value: object, known: Iterable[str]) -> None:
        super().__init__(key, value, f"one of {', '.join(sorted(known))}")
        hint = did_you_mean(key.rpartition(".")[2], known) or f"known here: {', '.join(sorted(known))}"
        self.args = (f"{plain(key)}: unknown key (its value is {shorten(value)}); {hint}",)


class BadEnvironment(InvalidInput):
    """A CNI_* variable is missing or malformed."""


class IncompatibleVersion(InvalidInput):
    """The config's cniVersion is not served, or is too old for the command."""


class Undecodable(InvalidInput):
    """What arrived on stdin is not a JSON object."""


class CheckFailed(SriovError):
    """The attachment is not as ADD left it. Names everything that is wrong."""


class NotReady(SriovError):
    """An ADD could not succeed now (STATUS)."""


class LimitedConnectivity(NotReady):
    """And the pods that are attached may be cut off, too."""


class PluginFailure(SriovError):
    """Another CNI plugin that we called did not do its work."""


class PluginError(PluginFailure):
    """It said why, with a CNI error. The reply to our own caller has the same code."""

    def __init__(self, plugin: str, code: int, msg: str, details: str = "") -> None:
        self.code = code
        self.msg = msg
        self.details = details
        super().__init__(f"plugin {plugin}: {msg}" + (f" ({details})" if details else ""))

    @property
    def transient(self) -> bool:  # type: ignore[override]
        return self.code == ErrorCode.TRY_AGAIN_LATER


class PluginMissing(PluginFailure):
    """No such executable in the directories of CNI_PATH."""


class PluginTimeout(PluginFailure):
    """It was killed, because it did not end in time."""

    transient = True


class PluginCrashed(PluginFailure):
    """It ended without saying why: killed by a signal, or with an exit code alone."""


class PluginGarbage(PluginFailure):
    """It printed what is neither a result nor an error, or more than anything sane."""


class Interface(msgspec.Struct, frozen=True, kw_only=True):
    """`sandbox`: the path of the pod's netns, empty for an interface of the host."""

    name: str
    mac: str = ""
    mtu: int | None = None
    sandbox: str = ""
    pci_id: str | None = None


class IpConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`address` has its prefix length ("10.0.0.5/24"). `interface`: an index into the result's interfaces."""

    address: str
    gateway: str | None = None
    interface: int | None = None

    @property
    def version(self) -> str:
        return "6" if ":" in self.address else "4"


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """`priority` is the kernel's metric (RTA_PRIORITY); `scope` a number of rtnetlink's rt_scope_t."""

    dst: str
    gw: str | None = None
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None


class Dns(msgspec.Struct, frozen=True, kw_only=True):
    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What ADD answers."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IpConfig, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Dns = Dns()


def code_of(error: SriovError) -> int:
    """The CNI code of an error. `transient` goes first: it is what tells the runtime to retry."""
    if isinstance(error, PluginError):
        return error.code
    if error.transient:
        return ErrorCode.TRY_AGAIN_LATER
    for family, code in _CODES:
        if isinstance(error, family):
            return code
    return ErrorCode.INTERNAL


_CODES: tuple[tuple[type[SriovError], ErrorCode], ...] = (
    (LimitedConnectivity, ErrorCode.LIMITED_CONNECTIVITY),
    (NotReady, ErrorCode.NOT_AVAILABLE),
    (PluginMissing, ErrorCode.INVALID_CONFIG),
    (PluginGarbage, ErrorCode.UNDECODABLE),
    (CheckFailed, ErrorCode.CHECK_FAILED),
    (IncompatibleVersion, ErrorCode.INCOMPATIBLE_VERSION),
    (UnsupportedField, ErrorCode.UNSUPPORTED_FIELD),
    (BadEnvironment, ErrorCode.INVALID_ENVIRONMENT),
    (Undecodable, ErrorCode.UNDECODABLE),
    (InvalidInput, ErrorCode.INVALID_CONFIG),
    (Refused, ErrorCode.INVALID_CONFIG),  # the config asks for what is not allowed here
    (NotFound, ErrorCode.INVALID_CONFIG),  # or for what is not there
    (KernelError, ErrorCode.IO_FAILURE),
    (CorruptRecord, ErrorCode.IO_FAILURE),
)


def error_json(cni_version: str, code: int, msg: str, details: str = "") -> bytes:
    """The error object that goes to stdout. Text that UTF-8 cannot carry is escaped, never an exception; and
    one that quotes half of its input is cut, so that the wire can carry it."""
    msg, details = _cut(msg), _cut(details)
    fields = {"cniVersion": _utf8(cni_version), "code": int(code), "msg": _utf8(msg)}
    return msgspec.json.encode(fields | ({"details": _utf8(details)} if details else {}))


def render_result(result: Result, cni_version: str) -> bytes:
    """The result in the form of `cni_version`, one of SUPPORTED_VERSIONS. What is empty is left out.

    Only 1.1.0 has mtu and pciID of interfaces, and routes with more than dst and gw; below 1.0.0 every
    address carries its IP version.
    """
    if cni_version not in SUPPORTED_VERSIONS:
        raise IncompatibleVersion("cniVersion", cni_version, f"one of {', '.join(SUPPORTED_VERSIONS)}")
    rich = cni_version == "1.1.0"
    tagged = cni_version.startswith("0.")
    out: dict[str, Any] = {
        "cniVersion": cni_version,
        "interfaces": [_render_interface(interface, rich) for interface in result.interfaces],
        "ips": [_render_ip(ip, tagged) for ip in result.ips],
        "routes": [_render_route(route, rich) for route in result.routes],
        "dns": _filled(msgspec.structs.asdict(result.dns)),
    }
    return msgspec.json.encode(_filled(out))


def is_at_least(version: str, since: str) -> bool:
    """Of two versions of the specification. One that is none counts as older than any."""
    try:
        return [int(part) for part in version.split(".")] >= [int(part) for part in since.split(".")]
    except ValueError:
        return False


def parse_plugin_name(value: str, key: str) -> str:
    """The file name of another plugin. Never a path (SPEC.md: "must not contain characters disallowed in file
    paths"), and never ours, which would call the agent from within the agent. Raises InvalidInput that names
    `key`."""
    if value in OWN_NAMES:
        raise InvalidInput(key, value, "the name of another CNI plugin")
    if not value or value.startswith(".") or len(value) > 255 or any(c in value for c in "/\\\0"):
        raise InvalidInput(key, value, "the file name of a CNI plugin, without a directory")
    return value


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did you mean 'max_tx_rate'?`, or "" when no known word is near."""
    folded = {_fold(candidate): candidate for candidate in sorted(known)}
    near = difflib.get_close_matches(_fold(word), folded, n=1, cutoff=0.75)
    return f"did you mean {folded[near[0]]!r}?" if near else ""


def _fold(word: str) -> str:
    return word.lower().replace("-", "").replace("_", "")


def _render_interface(interface: Interface, rich: bool) -> dict[str, Any]:
    out: dict[str, Any] = {"name": interface.name, "mac": interface.mac}
    if rich:
        out |= {"mtu": interface.mtu}
    out |= {"sandbox": interface.sandbox}
    if rich:
        out |= {"pciID": interface.pci_id}
    return _filled(out)


def _render_ip(ip: IpConfig, tagged: bool) -> dict[str, Any]:
    out: dict[str, Any] = {"version": ip.version} if tagged else {}
    return _filled(out | {"interface": ip.interface, "address": ip.address, "gateway": ip.gateway})


def _render_route(route: Route, rich: bool) -> dict[str, Any]:
    if rich:
        return _filled(msgspec.structs.asdict(route))
    return _filled({"dst": route.dst, "gw": route.gw})


def _filled(fields: dict[str, Any]) -> dict[str, Any]:
    """Without the fields that say nothing. A zero says something (interface 0, table 0)."""
    return {key: value for key, value in fields.items() if value not in (None, "", (), [], {})}


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_LETTERS else text[: _MOST_LETTERS - 3] + "..."


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
