"""Pure: the keys of a selector that compare one value of a VF, and how each is written."""

import re
from collections.abc import Callable

import msgspec

from vf_manager.errors import InvalidInput
from vf_manager.model import Vf, parse_pci_address

_ID = re.compile(r"(?:0x)?([0-9a-f]{4})")
_DRIVER = re.compile(r"[a-z0-9_-]{1,64}")
_NUMBER = re.compile(r"[0-9]{1,10}")
_PKEY = re.compile(r"(?:0x)?([0-9a-f]{1,4})")
_PCIE_ROOT = re.compile(r"pci[0-9a-f]{4,8}:[0-9a-f]{2}")
_LINK_TYPES = ("ether", "infiniband")


def _same(actual: str | None) -> str | None:
    return actual


class ValueKey(msgspec.Struct, frozen=True):
    """`parse` turns an entry into what `comparable` makes of the `actual` value of a VF (None: it has none);
    it raises InvalidInput."""

    parse: Callable[[str, str], str]
    actual: Callable[[Vf], str | None]
    comparable: Callable[[str | None], str | None] = _same


def _parse_id(text: str, key: str) -> str:
    found = _ID.fullmatch(text.lower())
    if not found:
        raise InvalidInput(key, text, "a PCI id of four hex digits, like 8086")
    return found[1]


def _parse_driver(text: str, key: str) -> str:
    if not _DRIVER.fullmatch(text.lower()):
        raise InvalidInput(key, text, "the name of a driver, like igbvf or vfio-pci")
    return _driver_key(text)


def _driver_key(name: str) -> str:
    """`vfio_pci` names the same as `vfio-pci`, as it does for modprobe."""
    return name.lower().replace("_", "-")


def _parse_acpi_index(text: str, key: str) -> str:
    if not _NUMBER.fullmatch(text):
        raise InvalidInput(key, text, "a number, as in the acpi_index file of the device in sysfs")
    return str(int(text))


def _parse_link_type(text: str, key: str) -> str:
    if text.lower() not in _LINK_TYPES:
        raise InvalidInput(key, text, " or ".join(_LINK_TYPES))
    return text.lower()


def _parse_pkey(text: str, key: str) -> str:
    found = _PKEY.fullmatch(text.lower())
    if not found:
        raise InvalidInput(key, text, "a partition key of up to four hex digits, like 0x8001")
    return f"0x{int(found[1], 16):04x}"


def _parse_numa_node(text: str, key: str) -> str:
    if not _NUMBER.fullmatch(text):
        raise InvalidInput(key, int(text), "a NUMA node, 0 or more")
    return text


def _parse_pcie_root(text: str, key: str) -> str:
    if not _PCIE_ROOT.fullmatch(text.lower()):
        raise InvalidInput(key, text, "the root of a PCI hierarchy, like pci0000:3a")
    return text.lower()


def _parse_truth(text: str, key: str) -> str:
    return text


def _number(value: int | None) -> str | None:
    return None if value is None else str(value)


VALUE_KEYS: dict[str, ValueKey] = {
    "vendors": ValueKey(_parse_id, lambda vf: vf.vendor),
    "devices": ValueKey(_parse_id, lambda vf: vf.device),
    "drivers": ValueKey(
        _parse_driver, lambda vf: vf.driver, lambda name: _driver_key(name) if name else None
    ),
    "pciAddresses": ValueKey(parse_pci_address, lambda vf: vf.pci),
    "acpiIndexes": ValueKey(_parse_acpi_index, lambda vf: _number(vf.acpi_index)),
    "linkTypes": ValueKey(_parse_link_type, lambda vf: vf.link_type),
    "pKeys": ValueKey(_parse_pkey, lambda vf: vf.pkey),
    "numaNodes": ValueKey(_parse_numa_node, lambda vf: _number(vf.numa_node)),
    "pcieRoots": ValueKey(_parse_pcie_root, lambda vf: vf.pcie_root),
    "isRdma": ValueKey(
        _parse_truth, lambda vf: ",".join(vf.rdma_devices) or None, lambda names: "true" if names else "false"
    ),
}
