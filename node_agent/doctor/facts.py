"""Pure: what `sriovctl doctor` has seen of a node, at one moment."""

from collections.abc import Mapping
from typing import Any

import msgspec

from node_agent.agent_socket import Answer
from node_agent.config import AgentConfig
from node_agent.status_file import AgentStatus
from sriov_cni.attachment import Attachment
from vf_manager.kernel.api import PciFunction
from vf_manager.model import Inventory, Mac, Netdev, PciAddress


class GroupMember(msgspec.Struct, frozen=True, kw_only=True):
    """A device of an IOMMU group."""

    pci: str
    driver: str | None


class CniFiles(msgspec.Struct, frozen=True, kw_only=True):
    """`configs`: plugin types by file name, in the order in which a runtime reads them. `version_answer`: of
    the executable; None: there is none. `is_shipped`: whether it is byte by byte the one that came with this
    command; None: none did. `plugins`: the names of the executables."""

    conf_dir: str = ""
    bin_dir: str = ""
    has_conf_dir: bool = True
    has_bin_dir: bool = True
    configs: tuple[tuple[str, tuple[str, ...]], ...] = ()
    plugins: frozenset[str] = frozenset()
    version_answer: Mapping[str, Any] | str | None = None  # str: why there was none
    is_shipped: bool | None = None
    fallback: str | None = None
    fallback_types: tuple[str, ...] = ()
    fallback_error: str | None = None


class PodLink(msgspec.Struct, frozen=True, kw_only=True):
    """The interface of an attachment as it is in its pod. `bypasses`: every default route of the pod goes by
    VFs. `holders`: who else has an address of it, by address; empty if the wire was not asked."""

    netdev: Netdev
    bypasses: bool = False
    holders: Mapping[str, Mac] = {}


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """`config` None: there is none that can be read (`config_error`). `records_error`: why the agent's folder
    cannot be read. `pods`: by VF."""

    inventory: Inventory = Inventory()
    functions: tuple[PciFunction, ...] = ()  # every NIC
    config: AgentConfig | None = None
    config_path: str = ""
    config_error: str | None = None
    has_iommu: bool = True
    groups: Mapping[int, tuple[GroupMember, ...]] = {}
    active_services: frozenset[str] = frozenset()
    services_held_off: frozenset[str] = frozenset()
    cni: CniFiles = CniFiles()
    kubelet_dir: str = ""
    has_registration: bool = True
    has_pod_resources: bool = True
    answer: Answer = Answer()
    status: AgentStatus | None = None
    run_dir: str = ""
    run_dir_mode: int = 0o700
    records_error: str | None = None
    attachments: tuple[Attachment, ...] = ()
    pods: Mapping[PciAddress, PodLink] = {}
