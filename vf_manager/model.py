"""Pure: physical functions, virtual functions and their network interfaces, as immutable values.

Words are the kernel's: see Documentation/PCI/pci-iov-howto.rst (PF, VF) and include/uapi/linux/if_link.h
(IFLA_VF_*). Everything that crosses a module boundary about a NIC is one of these types.
"""

import re
from enum import StrEnum
from typing import Annotated, Any, NewType

import msgspec

from vf_manager.errors import InvalidInput

PciAddress = NewType("PciAddress", str)  # "0000:3b:02.1", lower case, with domain
IfName = NewType("IfName", str)  # 1-15 bytes, no '/', no white space (net/core/dev.c dev_valid_name)
Mac = NewType("Mac", str)  # "02:00:00:aa:bb:cc", lower case
U32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]  # of netlink; a record that says otherwise is corrupt

ZERO_MAC = Mac("00:00:00:00:00:00")

_PCI = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")
_IFNAME = re.compile(r"[^\s/:\x00-\x1f\x7f]{1,15}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_DOTTED_MAC = re.compile(r"[0-9a-f]{4}(\.[0-9a-f]{4}){2}")


class VlanProto(StrEnum):
    """Ethertype of the VLAN tag that the PF adds for its VF (IFLA_VF_VLAN_INFO.vlan_proto)."""

    DOT1Q = "802.1q"
    DOT1AD = "802.1ad"


class LinkState(StrEnum):
    """Virtual link of a VF (IFLA_VF_LINK_STATE)."""

    AUTO = "auto"
    ENABLE = "enable"
    DISABLE = "disable"


class VfAttributes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a PF holds about one VF (IFLA_VF_INFO), complete. Rates in Mbit/s, 0 = no limit.

    `None` where the driver does not report the attribute.
    """

    mac: Mac = ZERO_MAC  # administrative MAC; all zero = none set
    vlan: U32 = 0
    qos: U32 = 0
    proto: VlanProto = VlanProto.DOT1Q
    spoofchk: bool | None = None
    trust: bool | None = None
    min_tx_rate: U32 | None = None
    max_tx_rate: U32 | None = None
    link_state: LinkState | None = None


class VfChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Attributes of one VF to program through its PF. `None` = leave as it is.

    `vlan`, `qos` and `proto` travel together in one kernel attribute: all three set, or none.
    `min_tx_rate` and `max_tx_rate` likewise.
    """

    mac: Mac | None = None
    vlan: U32 | None = None
    qos: U32 | None = None
    proto: VlanProto | None = None
    spoofchk: bool | None = None
    trust: bool | None = None
    min_tx_rate: U32 | None = None
    max_tx_rate: U32 | None = None
    link_state: LinkState | None = None

    def is_empty(self) -> bool:
        return self == VfChange()

    def items(self) -> list[tuple[str, Any]]:
        """The attributes that are asked for, in the order of the struct."""
        return [
            (name, value) for name in self.__struct_fields__ if (value := getattr(self, name)) is not None
        ]


class Netdev(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A network interface as rtnetlink shows it (RTM_GETLINK)."""

    ifindex: U32
    name: IfName
    mac: Mac
    mtu: U32
    up: bool = False  # IFF_UP, administrative
    carrier: bool = False
    altnames: tuple[str, ...] = ()
    promisc: bool = False
    allmulti: bool = False


class Vf(msgspec.Struct, frozen=True, kw_only=True):
    """One virtual function. `netdev` is None when no interface of it is in the host's network namespace:
    it is in a pod, or the driver makes none (vfio-pci), or there is no driver.

    `pf_pci` None: its PF is not on this node. In a virtual machine that was given VFs each is a network
    function like any other, and nothing tells it from a NIC that is none.
    """

    pci: PciAddress
    pf_pci: PciAddress | None = None
    index: int = 0  # at its PF
    vendor: str  # "8086", four lower-case hex digits
    device: str  # "10ca"
    driver: str | None = None
    netdev: Netdev | None = None
    numa_node: int | None = None
    iommu_group: int | None = None
    attributes: VfAttributes | None = None  # None: the PF has no netdev or does not answer for its VFs
    unusable: str | None = None  # why it cannot be given to a pod: the host needs it
    acpi_index: int | None = None
    link_type: str | None = None  # "ether" | "infiniband"; of a VF without an interface its PF's
    pcie_root: str | None = None  # "pci0000:3a"
    rdma_devices: tuple[str, ...] = ()  # "mlx5_2"
    pkey: str | None = None  # "0xffff", InfiniBand's default partition key
    vfio_device: str | None = None  # "vfio3": /dev/vfio/devices/vfio3, since Linux 6.2
    uio_device: str | None = None  # "uio0"
    representor: IfName | None = None  # in switchdev mode, on the host


class Pf(msgspec.Struct, frozen=True, kw_only=True):
    """One physical function that can have VFs (sriov_totalvfs > 0)."""

    pci: PciAddress
    vendor: str
    device: str
    driver: str | None = None
    netdev: Netdev | None = None
    numa_node: int | None = None
    iommu_group: int | None = None
    total_vfs: int = 0
    num_vfs: int = 0
    autoprobe: bool = True  # sriov_drivers_autoprobe
    eswitch_mode: str | None = None  # "legacy" | "switchdev", by devlink; None: the driver has no devlink
    permanent_mac: Mac | None = None  # burnt in; that of `netdev` may be a bond's. None: not told
    acpi_index: int | None = None
    link_type: str | None = None
    pcie_root: str | None = None
    rdma_devices: tuple[str, ...] = ()
    sick_reporters: tuple[str, ...] = ()  # devlink health reporters whose state is "error"
    vfs: tuple[Vf, ...] = ()

    @property
    def label(self) -> str:
        """`ens1f0 (0000:3b:00.0)`, for messages."""
        return f"{self.netdev.name} ({self.pci})" if self.netdev else self.pci


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """All PFs and VFs of the node at one moment. `generation` grows by one at each change seen. `lone`: what
    may be VFs without a PF."""

    generation: int = 0
    pfs: tuple[Pf, ...] = ()
    lone: tuple[Vf, ...] = ()

    def vfs(self) -> list[Vf]:
        return [*(vf for pf in self.pfs for vf in pf.vfs), *self.lone]

    def find_vf(self, pci: str) -> Vf | None:
        return next((vf for vf in self.vfs() if vf.pci == pci), None)

    def find_pf(self, pci: str) -> Pf | None:
        return next((pf for pf in self.pfs if pf.pci == pci), None)


def parse_pci_address(value: Any, key: str = "pciAddress") -> PciAddress:
    """A PCI address in its long form (`0000:3b:02.1`; upper case is accepted). Raises InvalidInput."""
    if isinstance(value, str) and _PCI.fullmatch(value.lower()):
        return PciAddress(value.lower())
    raise InvalidInput(key, value, "a PCI address like 0000:3b:02.1")


def parse_ifname(value: Any, key: str = "ifname") -> IfName:
    """An interface name the kernel would take (net/core/dev.c dev_valid_name). Raises InvalidInput."""
    if (
        isinstance(value, str)
        and _IFNAME.fullmatch(value)
        and len(value.encode()) <= 15
        and value not in (".", "..")
    ):
        return IfName(value)
    raise InvalidInput(key, value, "an interface name of 1-15 characters without '/', ':' or white space")


def parse_mac(value: Any, key: str = "mac") -> Mac:
    """A unicast MAC that a station may have: six octets with ':' or '-', or three groups with '.' (all that
    Go's net.ParseMAC takes of this length). Raises InvalidInput."""
    text = value.lower() if isinstance(value, str) else ""
    if _DOTTED_MAC.fullmatch(text):
        text = ":".join(text.replace(".", "")[i : i + 2] for i in range(0, 12, 2))
    elif ":" not in text:
        text = text.replace("-", ":")
    if not _MAC.fullmatch(text) or text == ZERO_MAC:
        raise InvalidInput(key, value, "a MAC address like 02:00:00:aa:bb:cc")
    if int(text[:2], 16) & 1:
        raise InvalidInput(key, value, "a unicast MAC address (the lowest bit of the first octet is 0)")
    return Mac(text)
