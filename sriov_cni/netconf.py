"""Pure: one CNI call (environment and stdin) as a typed, validated value.

Every valid config of sriov-cni has the same meaning here. Where that plugin guesses in silence (unknown
keys, `spoofchk: "yes"`, a key in the wrong case, min above max) the call is refused with key and value.

Decisions:
- DEL and GC read only what identifies the call. Options are not validated: the record made by ADD says
  what to undo, and a config that became invalid must not keep a VF or an address from coming back.
- `runtimeConfig.deviceID`, `deviceID` and `pciBusID` must name the same device when several are given.
  sriov-cni reads only the second and host-device prefers the first: with two answers neither is safe.
- Unknown keys inside `runtimeConfig` and `args` are ignored: the runtime fills the first from the config's
  `capabilities`, which a chain shares, and the spec says so of the second.
- Of duplicate JSON keys the last one wins, as in the Go decoder of the runtimes that compose the config.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from sriov_cni.attachment import Asked
from sriov_cni.device_info import parse_device_info_path
from sriov_cni.environment import NAME, NAME_RULE, Command, Environment, Pod, parse_environment
from sriov_cni.fields import Fields, as_fields
from sriov_cni.ipam.config import IpamConf, IpRequest, parse_dns, parse_ipam, salvage_ipam
from sriov_cni.prev_result import parse_prev_result
from sriov_cni.spec import (
    NEWEST_VERSION,
    SUPPORTED_VERSIONS,
    Dns,
    IncompatibleVersion,
    Result,
    Undecodable,
)
from sriov_cni.vf_options import VF_KEYS, parse_vf_options
from vf_manager.errors import InvalidInput
from vf_manager.model import (
    IfName,
    Mac,
    PciAddress,
    parse_mac,
    parse_pci_address,
)

_SPEC_KEYS = frozenset(
    {
        *("cniVersion", "name", "type", "ipam", "dns", "ipMasq", "args"),
        *("capabilities", "runtimeConfig", "prevResult"),
    }
)
_OUR_KEYS = VF_KEYS | {"deviceID", "pciBusID", "CNIDeviceInfoFile", "mac", "logLevel", "logFile"}
_VALID_ATTACHMENTS = ("cni.dev/valid-attachments", "cni.dev/attachments")
_SINCE = {Command.CHECK: "0.4.0", Command.GC: "1.1.0", Command.STATUS: "1.1.0"}
_MOST_LEVELS = 64
_SHALLOW = f"a JSON object of fewer than {_MOST_LEVELS} levels"
_LOG_LEVELS = ("panic", "error", "warning", "info", "debug")


class NetConf(msgspec.Struct, frozen=True, kw_only=True):
    """A network config. `None` = not asked for."""

    cni_version: str
    name: str
    type: str = ""
    device_id: PciAddress | None = None
    asked: Asked = Asked()
    ipam: IpamConf | None = None
    dns: Dns = Dns()
    log_level: str | None = None
    log_file: str | None = None
    prev_result: Result | None = None
    valid_attachments: tuple[tuple[str, str], ...] | None = None  # GC: (container id, ifname); None: no list


class CniCall(msgspec.Struct, frozen=True, kw_only=True):
    """`container_id` is "" and `ifname` None for GC and STATUS. `config`: what was on stdin."""

    env: Environment
    conf: NetConf
    config: dict[str, Any] = {}

    @property
    def command(self) -> Command:
        return self.env.command

    @property
    def container_id(self) -> str:
        return self.env.container_id

    @property
    def ifname(self) -> IfName | None:
        return self.env.ifname

    @property
    def netns(self) -> str:
        return self.env.netns

    @property
    def args(self) -> dict[str, str]:
        return self.env.args

    @property
    def pod(self) -> Pod | None:
        return self.env.pod

    @property
    def names_device(self) -> bool:
        """Whether the call is about one VF, in the raw config: DEL does not validate it."""
        keys = ("deviceID", "pciBusID")
        return any(fields.get(key) for fields in (self.config, self.runtime_config) for key in keys)

    @property
    def runtime_config(self) -> dict[str, Any]:
        """As the runtime filled it in. {} for DEL and GC of a config where it is no object."""
        value = self.config.get("runtimeConfig")
        return value if isinstance(value, dict) else {}


def parse_call(env: Mapping[str, str], stdin: bytes) -> CniCall:
    """Raises InvalidInput or one of its kinds in `sriov_cni.spec`, each with its own CNI code."""
    environment = parse_environment(env)
    config = decode_object(stdin)
    top = Fields(config)
    version = _parse_version(top, environment.command)
    text = stdin.decode()
    if environment.command.cleans:
        ipam = salvage_ipam(config.get("ipam"), text, environment)
        conf = NetConf(cni_version=version, name=_parse_name(top), ipam=ipam)
        if environment.command is Command.GC:
            conf = msgspec.structs.replace(conf, valid_attachments=_parse_valid_attachments(top))
        return CniCall(env=environment, conf=conf, config=config)
    conf = _parse_conf(top, version, environment, text)
    return CniCall(env=environment, conf=conf, config=config)


def version_of(stdin: bytes) -> str:
    """The version to word an error in: the config's own if it is served, else the newest."""
    try:
        version = decode_object(stdin).get("cniVersion")
    except Undecodable:
        return NEWEST_VERSION
    return version if version in SUPPORTED_VERSIONS else NEWEST_VERSION


def decode_object(stdin: bytes) -> dict[str, Any]:
    """The JSON object on stdin. Raises Undecodable, for nesting beyond anything sane as well: whoever
    prints or walks the value later must not run out of stack."""
    try:
        value = msgspec.json.decode(stdin)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Undecodable("stdin", stdin[:80], f"a JSON object ({error})") from error
    except RecursionError:
        raise Undecodable("stdin", stdin[:80], _SHALLOW) from None
    if not isinstance(value, dict):
        raise Undecodable("stdin", stdin[:80], "a JSON object")
    if _is_deep(value):
        raise Undecodable("stdin", stdin[:80], _SHALLOW)
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_MOST_LEVELS):
        containers = [item for item in level if isinstance(item, dict | list)]
        if not containers:
            return False
        level = [
            child for item in containers for child in (item.values() if isinstance(item, dict) else item)
        ]
    return True


def _parse_version(top: Fields, command: Command) -> str:
    version = top.string("cniVersion") or "0.1.0"  # absent means 0.1.0: the key is younger than the spec
    if version not in SUPPORTED_VERSIONS:
        raise IncompatibleVersion("cniVersion", version, f"one of {', '.join(SUPPORTED_VERSIONS)}")
    since = _SINCE.get(command, SUPPORTED_VERSIONS[0])
    if SUPPORTED_VERSIONS.index(version) < SUPPORTED_VERSIONS.index(since):
        raise IncompatibleVersion("cniVersion", version, f"{since} or newer ({command} came with it)")
    return version


def _parse_name(top: Fields) -> str:
    name = top.required_string("name")
    if not NAME.fullmatch(name):
        raise InvalidInput("name", name, NAME_RULE)
    return name


def _parse_conf(top: Fields, version: str, env: Environment, config: str) -> NetConf:
    top.refuse_unknown(_SPEC_KEYS | _OUR_KEYS, tolerated_prefix="cni.dev/")
    top.child("capabilities")
    top.boolean("ipMasq")
    runtime = top.child("runtimeConfig") or Fields({}, "runtimeConfig")
    cni_args = _cni_args(top)
    mac = _parse_mac(top, runtime, cni_args, env.args)
    name = _parse_name(top)
    request = IpRequest(runtime=runtime, cni_args=cni_args, env_args=env.args, config=config, env=env)
    dns = top.child("dns")
    return NetConf(
        cni_version=version,
        name=name,
        type=top.required_string("type"),
        device_id=_parse_device_id(top, runtime),
        asked=msgspec.structs.replace(
            parse_vf_options(top, mac), device_info=_parse_device_info(top, runtime)
        ),
        ipam=parse_ipam(top.child("ipam"), request),
        dns=parse_dns(dns) if dns else Dns(),
        log_level=top.choice("logLevel", _LOG_LEVELS, fold=True),
        log_file=top.string("logFile"),
        prev_result=parse_prev_result(prev) if (prev := top.child("prevResult")) else None,
    )


def _parse_valid_attachments(top: Fields) -> tuple[tuple[str, str], ...] | None:
    """None if there is no list: then nothing may be removed. `null` is a list without entries (a Go nil).
    libcni sends the list under the key's early name as well; the right one counts where both are."""
    key = next((key for key in _VALID_ATTACHMENTS if key in top.values), None)
    if key is None:
        return None
    entries = top.children(key)
    return tuple((entry.required_string("containerID"), entry.required_string("ifname")) for entry in entries)


def _cni_args(top: Fields) -> Fields:
    """`args.cni`; the rest of `args` belongs to others."""
    args = top.child("args")
    found = args.child("cni") if args else None
    return found or as_fields({}, "args.cni")


def _parse_device_id(top: Fields, runtime: Fields) -> PciAddress | None:
    found: dict[str, PciAddress] = {}
    for fields, key in ((runtime, "deviceID"), (top, "deviceID"), (top, "pciBusID")):
        value = fields.string(key)
        if value is not None:
            found[fields.path_of(key)] = parse_pci_address(value, fields.path_of(key))
    if len(set(found.values())) > 1:
        (first, wanted), (second, other) = next(
            (a, b) for a in found.items() for b in found.items() if a[1] != b[1]
        )
        raise InvalidInput(second, other, f"the same device as {first} ({wanted})")
    return next(iter(found.values()), None)


def _parse_device_info(top: Fields, runtime: Fields) -> str | None:
    """Multus gives it by the capability of that name; a config that declares none may carry it at the top."""
    key = "CNIDeviceInfoFile"
    given = ((fields.string(key), fields.path_of(key)) for fields in (runtime, top))
    paths = [parse_device_info_path(value, path) for value, path in given]
    return next((path for path in paths if path), None)


def _parse_mac(top: Fields, runtime: Fields, cni_args: Fields, args: Mapping[str, str]) -> Mac | None:
    """runtimeConfig, then args.cni, then CNI_ARGS, then the config. All that are given must be valid."""
    given = (
        (runtime.string("mac"), "runtimeConfig.mac"),
        (cni_args.string("mac"), "args.cni.mac"),
        (args.get("MAC") or None, "CNI_ARGS MAC"),
        (top.string("mac"), "mac"),
    )
    macs = [parse_mac(value, key) for value, key in given if value is not None]
    return macs[0] if macs else None
