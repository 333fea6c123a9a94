"""Pure: what `sriovctl doctor` has seen of a node, at one moment."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from node_agent.agent_socket import Answer
from node_agent.config import AgentConfig
from node_agent.doctor.networkd import HostInterface, NetworkFile
from node_agent.status_file import AgentStatus
from sriov_cni.attachment import Attachment
from vf_manager.kernel.api import LinkTraffic, PciFunction
from vf_manager.model import Inventory, Mac, Netdev, PciAddress


class GroupMember(msgspec.Struct, frozen=True, kw_only=True):
    """A device of an IOMMU group."""

    pci: str
    driver: str | None


class CniFiles(msgspec.Struct, frozen=True, kw_only=True):
    """`configs`: plugin types by file name, in the order in which a runtime reads them. `version_answer`: of
    the executable; None: there is none. `is_shipped`: whether it is byte by byte the one that came with this
    command; None: none did. `plugins`: the names of the executables. `is_image`: what
    is seen is the root of the agent's own image, where the node's configurations need not be mounted."""

    conf_dir: str = ""
    bin_dir: str = ""
    is_image: bool = False
    has_conf_dir: bool = True
    has_bin_dir: bool = True
    configs: tuple[tuple[str, tuple[str, ...]], ...] = ()
    plugins: frozenset[str] = frozenset()
    version_answer: Mapping[str, Any] | str | None = None  # str: why there was none
    is_shipped: bool | None = None
    fallback: str | None = None
    fallback_types: tuple[str, ...] = ()
    fallback_error: str | None = None


class WayOut(StrEnum):
    """How packets leave a pod for what is beyond its own subnets."""

    NONE = "none"
    VF = "vf"  # by the VF of this attachment alone
    OTHER_VF = "other-vf"
    CLUSTER = "cluster"  # also, or only, by an interface that is no PCI device


class PodLink(msgspec.Struct, frozen=True, kw_only=True):
    """The interface of an attachment as it is in its pod. `holders`: who else has an address of it, by
    address. `silent_gateways`: those that do not answer. Both are empty if the wire was not asked."""

    netdev: Netdev
    way_out: WayOut = WayOut.CLUSTER
    counted: LinkTraffic | None = None
    holders: Mapping[str, Mac] = {}
    silent_gateways: tuple[str, ...] = ()
    has_rules: bool = False  # a table for services or policy


class HostNetwork(msgspec.Struct, frozen=True, kw_only=True):
    """What configures interfaces of the host. `services`: those that run; without any there is nothing else
    here. `network_files`: in the order in which networkd reads them. `interfaces`: of VFs."""

    services: frozenset[str] = frozenset()
    has_unmanaged_devices: bool = False  # in a file of NetworkManager
    network_files: tuple[NetworkFile, ...] = ()
    interfaces: tuple[HostInterface, ...] = ()


class TokenTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Of the service account's token, in seconds since 1970."""

    issued_s: float
    expires_s: float


class ClockFacts(msgspec.Struct, frozen=True, kw_only=True):
    """`now_s`: since 1970. `newest_s`: when `newest`, a file of the agent, was written. `token` None: none is
    used, or it cannot be read."""

    now_s: float = 0.0
    is_synchronised: bool = True
    newest: str = ""
    newest_s: float = 0.0
    token: TokenTimes | None = None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """`config` None: there is none that can be read (`config_error`). `records_error`: why the agent's folder
    cannot be read. `pods`: by VF. `unwritable`: why, by folder."""

    inventory: Inventory = Inventory()
    functions: tuple[PciFunction, ...] = ()  # every NIC
    config: AgentConfig | None = None
    config_path: str = ""
    config_error: str | None = None
    has_iommu: bool = True
    groups: Mapping[int, tuple[GroupMember, ...]] = {}
    host: HostNetwork = HostNetwork()
    clock: ClockFacts = ClockFacts()
    cni: CniFiles = CniFiles()
    kubelet_dir: str = ""
    has_registration: bool = True
    has_pod_resources: bool = True
    answer: Answer = Answer()
    status: AgentStatus | None = None
    run_dir: str = ""
    run_dir_mode: int = 0o700
    socket: str = ""
    socket_mode: int = 0o600
    unwritable: Mapping[str, str] = {}
    records_error: str | None = None
    attachments: tuple[Attachment, ...] = ()
    pods: Mapping[PciAddress, PodLink] = {}
