"""Pure: the result of a chain of plugins, as they made it.

It is passed on and kept as it is, with keys that nobody here knows. Changed are the version, where the caller
speaks another one, and the path of the pod's namespace, where the plugins were given another one.
"""

from collections.abc import Callable, Mapping
from typing import Any

from sriov_cni.chain_conflist import VERSIONS
from sriov_cni.spec import is_at_least
from vf_manager.errors import InvalidInput

RawResult = dict[str, Any]
_NEWER_INTERFACE_KEYS = ("mtu", "socketPath", "pciID")  # what libcni's conversion to 0.x leaves out


def parse_result(answer: Mapping[str, Any], version: str) -> RawResult:
    """What a plugin answered to ADD, in the version of the chain. Raises InvalidInput.

    One that does not say its version speaks that of its config.
    """
    result = dict(answer)
    given = result.get("cniVersion") or version
    if given not in VERSIONS:
        raise InvalidInput("cniVersion", given, f"one of {', '.join(VERSIONS)}")
    for key in ("interfaces", "ips", "routes"):
        value = result.get(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(v, dict) for v in value)):
            raise InvalidInput(key, value, "an array of objects")
    return convert_result(result | {"cniVersion": given}, version)


def convert_result(result: RawResult, version: str) -> RawResult:
    """In the form of `version`. Below 1.0.0 every address says its IP version, and interfaces are simpler;
    between 1.0.0 and 1.1.0 libcni changes nothing but the name of the version."""
    was_old, is_old = (not is_at_least(v, "1.0.0") for v in (result["cniVersion"], version))
    converted = result | {"cniVersion": version}
    if is_old and not was_old:
        converted |= _each(converted, "ips", _with_ip_version)
        converted |= _each(converted, "interfaces", lambda entry: _without(entry, *_NEWER_INTERFACE_KEYS))
    if was_old and not is_old:
        converted |= _each(converted, "ips", lambda entry: _without(entry, "version"))
    return converted


def replace_sandbox(result: RawResult, old: str, new: str) -> RawResult:
    """The same, with the pod's namespace under another path."""

    def replaced(interface: RawResult) -> RawResult:
        return interface | {"sandbox": new} if interface.get("sandbox") == old else interface

    return result | _each(result, "interfaces", replaced)


def _each(result: RawResult, key: str, change: Callable[[RawResult], RawResult]) -> RawResult:
    return {key: [change(entry) for entry in result[key]]} if result.get(key) else {}


def _with_ip_version(entry: RawResult) -> RawResult:
    return {"version": "6" if ":" in str(entry.get("address")) else "4"} | entry


def _without(entry: RawResult, *keys: str) -> RawResult:
    return {key: value for key, value in entry.items() if key not in keys}
