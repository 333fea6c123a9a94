"""Pure: which VFs a selector takes.

A `Selector` is what the administrator wrote; `parse_selector` turns it into a `Rules` or says what is
wrong with it. Keys are joined by AND, the entries of one key by OR.
"""

import re
from collections.abc import Callable
from typing import TypeVar

import msgspec

from vf_manager.errors import InvalidInput
from vf_manager.model import Pf, Vf, parse_pci_address

T = TypeVar("T")

_ID = re.compile(r"(?:0x)?([0-9a-f]{4})")
_DRIVER = re.compile(r"[a-z0-9_-]{1,64}")
_PF_NAME = re.compile(r"[^\s/#\x00-\x1f\x7f]+")
_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")

_MAX_NAME_BYTES = 127  # ALTIFNAMSIZ - 1, include/uapi/linux/if.h
_MAX_INDEX = 65535  # NumVFs of the SR-IOV capability has 16 bits


class Selector(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel", omit_defaults=True
):
    """The `select` of a pool, as written. `None`: not asked for, any VF will do."""

    pf_names: tuple[str, ...] | None = None  # "ens1f0", "ens1f0#0-3,5"; altnames of the PF count too
    vendors: tuple[str, ...] | None = None  # "8086"
    devices: tuple[str, ...] | None = None  # "10ca", of the VF, not of its PF
    drivers: tuple[str, ...] | None = None  # of the VF: "igbvf", "vfio-pci"
    pci_addresses: tuple[str, ...] | None = None  # of the VF: "0000:3b:10.0"
    is_rdma: bool | None = None  # whether the VF has an RDMA device


class PfRule(msgspec.Struct, frozen=True):
    """One entry of `pfNames`: a PF, and the VF indexes of it as inclusive ranges (None: all)."""

    name: str
    ranges: tuple[tuple[int, int], ...] | None = None

    def names(self, pf: Pf) -> bool:
        """Whether the PF has this name or altname. Case does not count."""
        if pf.netdev is None:
            return False
        return self.name.lower() in (name.lower() for name in (pf.netdev.name, *pf.netdev.altnames))

    def takes(self, pf: Pf, vf: Vf) -> bool:
        return self.names(pf) and (
            self.ranges is None or any(first <= vf.index <= last for first, last in self.ranges)
        )

    def __str__(self) -> str:
        if self.ranges is None:
            return self.name
        return f"{self.name}#" + ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in self.ranges)


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed selector: every value in the form the inventory has it. `None`: any."""

    pf_rules: tuple[PfRule, ...] | None = None
    vendors: tuple[str, ...] | None = None
    devices: tuple[str, ...] | None = None
    drivers: tuple[str, ...] | None = None
    pci_addresses: tuple[str, ...] | None = None
    is_rdma: bool | None = None

    def takes(self, pf: Pf | None, vf: Vf) -> bool:
        """Whether this VF of this PF is selected; None: its PF is not on this node."""
        return (
            (self.pf_rules is None or (pf is not None and any(rule.takes(pf, vf) for rule in self.pf_rules)))
            and (self.vendors is None or vf.vendor in self.vendors)
            and (self.devices is None or vf.device in self.devices)
            and (self.drivers is None or (vf.driver is not None and _driver_key(vf.driver) in self.drivers))
            and (self.pci_addresses is None or vf.pci in self.pci_addresses)
            and (self.is_rdma is None or bool(vf.rdma_devices) == self.is_rdma)
        )


def parse_selector(selector: Selector, key: str = "select") -> Rules:
    """Raises InvalidInput that names the key below `key`, e.g. `pools[0].select.pfNames[1]`."""
    return Rules(
        pf_rules=_parse_all(selector.pf_names, f"{key}.pfNames", parse_pf_rule),
        vendors=_parse_all(selector.vendors, f"{key}.vendors", _parse_id),
        devices=_parse_all(selector.devices, f"{key}.devices", _parse_id),
        drivers=_parse_all(selector.drivers, f"{key}.drivers", _parse_driver),
        pci_addresses=_parse_all(selector.pci_addresses, f"{key}.pciAddresses", parse_pci_address),
        is_rdma=selector.is_rdma,
    )


def parse_pf_rule(text: str, key: str = "pfNames") -> PfRule:
    """`ens1f0` or `ens1f0#0-3,5`. Raises InvalidInput."""
    name, hash_sign, indexes = text.partition("#")
    if not _PF_NAME.fullmatch(name) or len(name.encode(errors="replace")) > _MAX_NAME_BYTES:
        raise InvalidInput(key, text, "the name of a PF, like ens1f0 or ens1f0#0-3,5")
    if not hash_sign:
        return PfRule(name)
    return PfRule(name, tuple(_parse_range(part, text, key) for part in indexes.split(",")))


def _parse_range(part: str, text: str, key: str) -> tuple[int, int]:
    found = _RANGE.fullmatch(part)
    if not found:
        raise InvalidInput(key, text, "VF indexes after '#' like 0-3,5 without white space")
    first = int(found[1])
    last = int(found[2] or first)
    if first > last:
        raise InvalidInput(key, text, f"a range that goes up, {last}-{first} instead of {part}")
    if last > _MAX_INDEX:
        raise InvalidInput(key, text, f"VF indexes up to {_MAX_INDEX}")
    return first, last


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


def _parse_all(
    values: tuple[str, ...] | None, key: str, parse: Callable[[str, str], T]
) -> tuple[T, ...] | None:
    if values is None:
        return None
    if not values:
        raise InvalidInput(key, [], "at least one entry; leave the key out to take any")
    return tuple(parse(value, f"{key}[{i}]") for i, value in enumerate(values))
