"""Pure: the VFs of a pool as CDI devices (Container Device Interface, version 0.5.0 of its specification).

The kubelet hands a container only the name of such a device, and the runtime looks up its nodes in the spec
file at each start: so a container that starts again after a reboot gets the nodes that there are then.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from device_plugin.nodes import Node
from vf_manager.errors import InvalidInput
from vf_manager.model import PciAddress

# The least that has all that is used here: 0.5.0 brought hostPath, and names that begin with a digit.
VERSION = "0.5.0"
_FILE_PREFIX = "sriov-underlay_"

# tags.cncf.io/container-device-interface pkg/parser: validateVendorOrClassName
_VENDOR = re.compile(r"[A-Za-z](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?")


class CdiNode(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """`host_path`: None if it has the same path there. The runtime reads type and number from it."""

    path: str
    host_path: str | None = None
    permissions: str = ""


class CdiEdits(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    device_nodes: tuple[CdiNode, ...]


class CdiDevice(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    name: str
    container_edits: CdiEdits


class CdiSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One file."""

    cdi_version: str
    kind: str
    devices: tuple[CdiDevice, ...]


def cdi_kind(resource: str, key: str = "resourcePrefix") -> str:
    """`sriov-underlay.io/vf-fast` of `sriov-underlay.io/fast`. A class has to begin with a letter and, before
    version 0.6.0 of the specification, has no dots.

    Raises InvalidInput where the prefix cannot be the name of a vendor."""
    prefix, _, name = resource.partition("/")
    if not _VENDOR.fullmatch(prefix):
        raise InvalidInput(key, prefix, "a name that begins with a letter, for a pool with allocation.cdi")
    return f"{prefix}/vf-{name.replace('.', '_')}"


def cdi_name(kind: str, vf: PciAddress) -> str:
    """`sriov-underlay.io/vf-fast=0000:3b:02.1`"""
    return f"{kind}={vf}"


def spec_file_name(resource: str) -> str:
    """`sriov-underlay_example.com_fast.json`"""
    return f"{_FILE_PREFIX}{resource.replace('/', '_')}.json"


def is_spec_file(name: str) -> bool:
    """Whether it is one of ours, be it of a pool that is no more."""
    return name.startswith(_FILE_PREFIX) and name.endswith(".json")


def make_devices(nodes: Mapping[PciAddress, Sequence[Node]]) -> list[CdiDevice]:
    """None of a VF without nodes: a device without edits is not valid."""
    return [CdiDevice(name=vf, container_edits=_edits(of_vf)) for vf, of_vf in nodes.items() if of_vf]


def render_spec(kind: str, devices: Iterable[CdiDevice]) -> bytes | None:
    """None if there are no devices: a spec without any is not valid."""
    spec = CdiSpec(cdi_version=VERSION, kind=kind, devices=tuple(devices))
    return msgspec.json.encode(spec) if spec.devices else None


def parse_spec(data: bytes) -> CdiSpec | None:
    """Of a file of ours. None if somebody has damaged it."""
    try:
        return msgspec.json.decode(data, type=CdiSpec)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _edits(nodes: Iterable[Node]) -> CdiEdits:
    return CdiEdits(
        device_nodes=tuple(
            CdiNode(
                path=node.container,
                host_path=None if node.host == node.container else node.host,
                permissions="rw",
            )
            for node in nodes
        )
    )
