"""Pure: the record of one attachment, and its interface in the pod as it was asked for.

Written before the first change and removed after the last one is undone: whatever happens in between, it
says what the VF was, what was asked, and who owns it.
"""

import re
from enum import StrEnum

import msgspec

from sriov_cni.device_info import parse_device_info_path
from sriov_cni.environment import NAME, NAME_RULE, Pod
from sriov_cni.host_link.options import HostLink
from sriov_cni.in_pod.options import InPod
from sriov_cni.ipam.config import DelegateConf, IpamConf
from sriov_cni.spec import Dns, Result
from vf_manager.errors import InvalidInput
from vf_manager.kernel.api import NetnsId
from vf_manager.model import (
    U32,
    IfName,
    Mac,
    Netdev,
    PciAddress,
    VfAttributes,
    VfChange,
    parse_ifname,
    parse_mac,
    parse_pci_address,
)
from vf_manager.vf_attributes import VfPort

_ANY_MAC = re.compile(r"([0-9a-f]{2}(:[0-9a-f]{2})*)?")  # InfiniBand has 20 octets


class State(StrEnum):
    INTENT = "intent"  # being set up, or failed half-way
    ATTACHED = "attached"


class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
    """The pod's network namespace: the path the runtime gave, and what identifies it."""

    path: str
    id: NetnsId


class Original(msgspec.Struct, frozen=True, kw_only=True):
    """The VF as it was found. `attributes` None: nothing of the PF's was asked for, so nothing was read."""

    driver: str | None = None
    netdev: Netdev | None = None
    attributes: VfAttributes | None = None


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What the network config asks of the VF. `mac` is set on the PF and on the VF's own interface.

    `probe`: ask the wire first whether the addresses are in use. `device_info`: a file that is to say which
    device it is. `table`: a routing table of the VF's own, for pods that have several: what is sent from its
    addresses leaves by it. `secondary`: the pod's default route is another VF's. `in_pod`: Services and
    policies in the pod's own namespace. `host_link`: a way between the node and the pod.
    """

    change: VfChange = VfChange()
    mac: Mac | None = None
    mtu: U32 | None = None
    promisc: bool | None = None
    allmulti: bool | None = None
    probe: bool = False
    device_info: str | None = None
    table: U32 | None = None
    secondary: bool = False
    in_pod: InPod | None = None
    host_link: HostLink | None = None


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """One VF to be one interface of a pod: everything a call or the agent's config says of it.

    `netns`: the path as the runtime names it; the namespace itself comes as a descriptor. `config`: the name
    of the CNI network configuration that was called; `network`: the one whose addresses are given. They
    differ where the agent's config says which network a pool's VFs belong to. `primary`: the interface name
    of the call; a pod's further VFs come and go with it.
    """

    config: str
    network: str
    primary: IfName
    container_id: str
    ifname: IfName
    netns: str
    pod: Pod | None = None
    device: PciAddress
    asked: Asked = Asked()
    ipam: IpamConf | None = None
    dns: Dns = Dns()

    @property
    def key(self) -> str:
        return attachment_key(self.container_id, self.ifname)


class LeaseRef(msgspec.Struct, frozen=True, kw_only=True):
    """What it takes to give the addresses back: the kind of IPAM and where its leases are, or all that an
    IPAM executable was called with."""

    kind: str
    data_dir: str | None = None
    delegate: DelegateConf | None = None


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """One VF, as one interface of one container."""

    version: int = 1
    state: State = State.INTENT
    config: str
    network: str
    primary: IfName
    container_id: str
    ifname: IfName
    sandbox: Sandbox
    pod: Pod | None = None
    port: VfPort
    original: Original
    asked: Asked = Asked()
    lease: LeaseRef | None = None
    result: Result | None = None

    def __post_init__(self) -> None:
        """Whoever reads a record acts on it as root. msgspec makes a ValidationError of a ValueError."""
        try:
            _check(self)
        except InvalidInput as e:
            raise ValueError(str(e)) from e

    @property
    def key(self) -> str:
        return attachment_key(self.container_id, self.ifname)


def _check(record: Attachment) -> None:
    for name in (record.container_id, record.config, record.network):
        if not NAME.fullmatch(name):
            raise InvalidInput("name", name, NAME_RULE)
    for ifname in (record.ifname, record.primary):
        parse_ifname(ifname)
    parse_pci_address(record.port.pci)
    if record.port.pf is not None:
        parse_pci_address(record.port.pf)
    if record.asked.mac is not None:
        parse_mac(record.asked.mac)
    parse_device_info_path(record.asked.device_info, "device_info")
    _check_original(record.original)
    if record.original.netdev is not None and record.result is not None and not record.result.interfaces:
        raise InvalidInput("interfaces", [], "the interface that was made of the VF")
    if "\0" in record.sandbox.path:
        raise InvalidInput("path", record.sandbox.path, "a path")


def _check_original(original: Original) -> None:
    netdev, attributes = original.netdev, original.attributes
    for mac in (netdev.mac if netdev else None, attributes.mac if attributes else None):
        if mac is not None and not _ANY_MAC.fullmatch(mac):
            raise InvalidInput("mac", mac, "a hardware address")
    if netdev is not None:
        for known_as in (netdev.name, *netdev.altnames):
            if not known_as or "\0" in known_as:
                raise InvalidInput("name", known_as, "the name of an interface")


def attachment_key(container_id: str, ifname: str) -> str:
    """The name of the record. '@' is in no container id, so two attachments never share a name."""
    return f"{container_id}@{ifname}"
