"""Pure: which VFs a selector takes, and which of its keys refuse one.

A `Selector` is what the administrator wrote; `parse_selector` turns it into `Rules` or says what is
wrong with it. Keys are joined by AND, the entries of one key by OR.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated

import msgspec

from device_plugin.selector_keys import VALUE_KEYS
from vf_manager.errors import InvalidInput
from vf_manager.meaning import meaning
from vf_manager.model import Pf, Vf, parse_pci_address

_PF_NAME = re.compile(r"[^\s/#\x00-\x1f\x7f]+")
_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")

_MAX_NAME_BYTES = 127  # ALTIFNAMSIZ - 1, include/uapi/linux/if.h
_OF_PF = ("pfNames", "rootDevices", "withoutPf")
_TRUTHS = ("isRdma", "withoutPf")
_MAX_INDEX = 65535  # NumVFs of the SR-IOV capability has 16 bits


class Selector(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel", omit_defaults=True
):
    """Which VFs a pool takes. All keys must hold; of the entries of one key, one is enough. A key that is
    left out takes any."""

    pf_names: Annotated[
        tuple[str, ...] | None,
        meaning("its PF, by name or altname: `ens1f0`; `ens1f0#0-3,5` for the VFs of these indexes"),
    ] = None
    root_devices: Annotated[
        tuple[str, ...] | None, meaning("its PF, by PCI address: `0000:3b:00.0`, `0000:3b:00.0#0-3,5`")
    ] = None
    vendors: Annotated[tuple[str, ...] | None, meaning('PCI vendor of the VF: `"8086"`')] = None
    devices: Annotated[
        tuple[str, ...] | None, meaning('PCI device id of the VF, not of its PF: `"10ca"`')
    ] = None
    drivers: Annotated[
        tuple[str, ...] | None, meaning("the driver it is bound to now: `igbvf`, `vfio-pci`")
    ] = None
    pci_addresses: Annotated[tuple[str, ...] | None, meaning("its own address: `0000:3b:02.1`")] = None
    acpi_indexes: Annotated[
        tuple[int | str, ...] | None, meaning("the number that firmware gave it: `101`")
    ] = None
    link_types: Annotated[tuple[str, ...] | None, meaning("`ether`, `infiniband`")] = None
    p_keys: Annotated[
        tuple[str, ...] | None, meaning('the default partition key of InfiniBand: `"0x8001"`')
    ] = None
    numa_nodes: Annotated[tuple[int, ...] | None, meaning("its NUMA node: `0`")] = None
    pcie_roots: Annotated[
        tuple[str, ...] | None, meaning('the root of its PCI hierarchy: `"pci0000:3a"`')
    ] = None
    is_rdma: Annotated[bool | None, meaning("whether it has an RDMA device")] = None

    def items(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """The keys that are asked for, as they are written, each with its entries."""
        for name, key in _FIELDS:
            value = getattr(self, name)
            if isinstance(value, bool):
                yield key, (str(value).lower(),)
            elif value is not None:
                yield key, tuple(map(str, value))


_FIELDS = tuple((field.name, field.encode_name) for field in msgspec.structs.fields(Selector))


class PfRule(msgspec.Struct, frozen=True):
    """One entry of `pfNames` or `rootDevices`: a PF by its name or its PCI address, and the VF indexes of it
    as inclusive ranges (None: all)."""

    name: str
    ranges: tuple[tuple[int, int], ...] | None = None

    def names(self, pf: Pf) -> bool:
        """Whether the PF has this address, name or altname. Case does not count."""
        known = (pf.pci, pf.netdev.name, *pf.netdev.altnames) if pf.netdev else (pf.pci,)
        return self.name.lower() in (name.lower() for name in known)

    def takes(self, pf: Pf, vf: Vf) -> bool:
        return self.names(pf) and (
            self.ranges is None or any(first <= vf.index <= last for first, last in self.ranges)
        )

    def __str__(self) -> str:
        if self.ranges is None:
            return self.name
        return f"{self.name}#" + ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in self.ranges)


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """A key that does not take a device: it wants one of `wanted`, as written, and the device has `actual`
    (None: nothing of the kind)."""

    key: str
    wanted: tuple[str, ...]
    actual: str | None

    def __str__(self) -> str:
        """`vendors ["15b3"], this device has 8086`"""
        if self.key in _OF_PF:
            actual = f"is {self.actual}" if self.actual else "has no PF on this node"
        else:
            actual = f"has {self.actual or 'none'}"
        wanted = self.wanted[0] if self.key in _TRUTHS else json.dumps(self.wanted, ensure_ascii=False)
        return f"{self.key} {wanted}, this device {actual}"


class PfCondition(msgspec.Struct, frozen=True):
    """`pfNames` or `rootDevices`, parsed."""

    key: str
    rules: tuple[PfRule, ...]

    def takes(self, pf: Pf | None, vf: Vf) -> bool:
        """Every entry counts, also if several name one PF."""
        return pf is not None and any(rule.takes(pf, vf) for rule in self.rules)

    def refusal(self, pf: Pf | None, vf: Vf) -> Refusal:
        return Refusal(key=self.key, wanted=tuple(map(str, self.rules)), actual=place_of(pf, vf))


class ValueCondition(msgspec.Struct, frozen=True):
    """Any other key, parsed: `values` in the form that they are compared in."""

    key: str
    written: tuple[str, ...]
    values: tuple[str, ...]

    def takes(self, vf: Vf) -> bool:
        row = VALUE_KEYS[self.key]
        return row.comparable(row.actual(vf)) in self.values

    def refusal(self, vf: Vf) -> Refusal:
        return Refusal(key=self.key, wanted=self.written, actual=VALUE_KEYS[self.key].actual(vf))


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed selector: all conditions must hold."""

    of_pf: tuple[PfCondition, ...] = ()
    of_value: tuple[ValueCondition, ...] = ()

    def takes(self, pf: Pf | None, vf: Vf) -> bool:
        """Whether this VF of this PF is selected; None: its PF is not on this node."""
        return all(one.takes(vf) for one in self.of_value) and all(one.takes(pf, vf) for one in self.of_pf)

    def refusals(self, pf: Pf | None, vf: Vf) -> Iterator[Refusal]:
        """One of each key that does not take it."""
        yield from (one.refusal(pf, vf) for one in self.of_pf if not one.takes(pf, vf))
        yield from (one.refusal(vf) for one in self.of_value if not one.takes(vf))


def place_of(pf: Pf | None, vf: Vf) -> str | None:
    """`VF 3 of ens1f0 (0000:3b:00.0)`; None without a PF on this node."""
    return None if pf is None else f"VF {vf.index} of {pf.label}"


def parse_selector(selector: Selector, key: str = "select") -> Rules:
    """Raises InvalidInput that names the key below `key`, e.g. `pools[0].select.pfNames[1]`."""
    for mistake in selector_mistakes(selector, key):
        raise mistake
    of_pf, of_value = [], []
    for name, entries in selector.items():
        if name in _PF_PARSERS:
            of_pf.append(PfCondition(name, tuple(_PF_PARSERS[name](entry, name) for entry in entries)))
        else:
            values = tuple(VALUE_KEYS[name].parse(entry, name) for entry in entries)
            of_value.append(ValueCondition(name, entries, values))
    return Rules(of_pf=tuple(of_pf), of_value=tuple(of_value))


def selector_mistakes(selector: Selector, key: str) -> Iterator[InvalidInput]:
    """Everything that is wrong with it."""
    for name, entries in selector.items():
        if not entries:
            yield InvalidInput(f"{key}.{name}", [], "at least one entry; leave the key out to take any")
        parse: Callable[[str, str], object] = _PF_PARSERS.get(name) or VALUE_KEYS[name].parse
        for i, entry in enumerate(entries):
            try:
                parse(entry, f"{key}.{name}[{i}]")
            except InvalidInput as e:
                yield e


def pf_rules(selectors: Iterable[Selector]) -> tuple[PfRule, ...]:
    """Every PF that they name, by name or address. Raises InvalidInput."""
    parsed = [parse_selector(selector) for selector in selectors]
    return tuple(rule for rules in parsed for condition in rules.of_pf for rule in condition.rules)


def parse_pf_rule(text: str, key: str = "pfNames") -> PfRule:
    """`ens1f0` or `ens1f0#0-3,5`. Raises InvalidInput."""
    name, hash_sign, indexes = text.partition("#")
    if _is_pci_address(name):
        raise InvalidInput(key, text, "the name of a PF; PCI addresses of PFs belong into rootDevices")
    if not _PF_NAME.fullmatch(name) or len(name.encode(errors="replace")) > _MAX_NAME_BYTES:
        raise InvalidInput(key, text, "the name of a PF, like ens1f0 or ens1f0#0-3,5")
    return PfRule(name, _parse_ranges(indexes, text, key) if hash_sign else None)


def parse_root_device(text: str, key: str = "rootDevices") -> PfRule:
    """`0000:3b:00.0` or `0000:3b:00.0#0-3,5`. Raises InvalidInput."""
    address, hash_sign, indexes = text.partition("#")
    if not _is_pci_address(address):
        raise InvalidInput(key, text, "the PCI address of a PF, like 0000:3b:00.0 or 0000:3b:00.0#0-3,5")
    return PfRule(address.lower(), _parse_ranges(indexes, text, key) if hash_sign else None)


def _is_pci_address(text: str) -> bool:
    try:
        parse_pci_address(text)
    except InvalidInput:
        return False
    return True


_PF_PARSERS: dict[str, Callable[[str, str], PfRule]] = {
    "pfNames": parse_pf_rule,
    "rootDevices": parse_root_device,
}


def _parse_ranges(indexes: str, text: str, key: str) -> tuple[tuple[int, int], ...]:
    return tuple(_parse_range(part, text, key) for part in indexes.split(","))


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
