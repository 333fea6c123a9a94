"""Pure: the agent's config file. Strict: an unknown key, a wrong type or an impossible value is an error
that names its path."""

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec

from device_plugin.allocation import Allocation
from device_plugin.cdi import cdi_kind
from device_plugin.pools import DEFAULT_PREFIX, Pool, pool_mistakes, resource_of
from device_plugin.selectors import Selector, pf_rules
from node_agent import vfs_config
from node_agent.node_overrides import for_node, variants
from node_agent.strict_yaml import YamlError, read_yaml
from node_agent.vfs_config import PoolsDisagree, PoolVfs, VfsConfig, check_vfs
from sriov_cni.in_pod.options import IN_POD
from sriov_cni.limits import Limits, check_limits, refuse_beyond, refuse_what_needs_a_pf
from sriov_cni.network import Network, parse_networks
from vf_manager.errors import InvalidInput, Refused, SriovError
from vf_manager.health import HealthPolicy
from vf_manager.meaning import meaning
from vf_manager.mistakes import MistakesFound, caught, type_mistakes
from vf_manager.model import Inventory
from vf_manager.provision import PfPolicy
from vf_manager.provision_steps import DriverKind


class ConfigError(MistakesFound):
    """The config file cannot be used. Says where and what would be right."""


class KubernetesConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to reach the API server. Everything but what asks for it works without one."""

    kubeconfig: Annotated[
        str | None, meaning("path of a kubeconfig; left out inside of a pod, which has a service account")
    ] = None


class PoolConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """VFs that are one resource of the node."""

    name: Annotated[str, meaning("second part of the resource name; no two pools have the same")]
    select: Annotated[
        Selector | tuple[Selector, ...],
        meaning("which VFs: one selector, or a list of which one is enough; `{}` takes every VF"),
    ]
    resource_prefix: Annotated[str | None, meaning("first part of the resource name, if not the node's")] = (
        None
    )
    without_pf: Annotated[
        bool, meaning("of VFs that a hypervisor gave to this machine, whose PF it has not")
    ] = False
    shared: Annotated[bool, meaning("whether a VF of this pool may also be in other pools that say so")] = (
        False
    )
    exclude_topology: Annotated[bool, meaning("whether the kubelet is not told the NUMA nodes")] = False
    vhost_net: Annotated[bool, meaning("whether containers get `/dev/vhost-net` and `/dev/net/tun`")] = False
    additional_info: Annotated[
        dict[str, dict[str, str]],
        meaning(
            "what containers are told of a device besides what is known of it: by PCI address, or `*` for all"
        ),
    ] = {}
    vfs: Annotated[
        VfsConfig | None,
        meaning("VFs to create. Left out: those that exist are taken as they are, and none is made"),
    ] = None
    limits: Annotated[Limits | None, meaning("what a network may ask of these VFs. Left out: anything")] = (
        None
    )
    allocation: Annotated[Allocation, meaning("how containers get these VFs")] = Allocation()
    health: Annotated[
        HealthPolicy | None, meaning("what the PF's state means for its VFs. Left out: its defaults")
    ] = None

    def selectors(self) -> tuple[Selector, ...]:
        return self.select if isinstance(self.select, tuple) else (self.select,)

    def resource(self) -> Pool:
        """The pool as the device plugin takes it."""
        return Pool(
            name=self.name,
            select=self.selectors(),
            prefix=self.resource_prefix,
            without_pf=self.without_pf,
            shared=self.shared,
            exclude_topology=self.exclude_topology,
            vhost_net=self.vhost_net,
            additional_info={device.lower(): info for device, info in self.additional_info.items()},
            allocation=self.allocation,
        )

    def pool_vfs(self, key: str) -> PoolVfs | None:
        """The VFs to create, on the PFs that are named if each selector names some. `key`: its place in the
        config. Raises InvalidInput."""
        if self.vfs is None:
            return None
        named = all(select.pf_names or select.root_devices for select in self.selectors())
        rules = pf_rules(self.selectors()) if named else ()
        return PoolVfs(key=key, name=self.name, vfs=self.vfs, pf_rules=rules)


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """The file as a whole."""

    pools: Annotated[
        tuple[PoolConfig, ...],
        meaning("the resources of this node. A VF belongs to the first pool of the list that takes it"),
    ]
    resource_prefix: Annotated[
        str, meaning("first part of the resource names: pods request `sriov-underlay.io/fast`")
    ] = DEFAULT_PREFIX
    networks: Annotated[
        tuple[dict[str, Any], ...],
        meaning("what the VFs of pools are given in pods that come without a `deviceID`"),
    ] = ()
    fallback: Annotated[
        str | None,
        meaning("absolute path of a network configuration list for pods that requested no VF"),
    ] = None
    repair_drift: Annotated[
        bool,
        meaning(
            "whether a VF in a pod gets the attributes back that somebody else changed; else they are logged"
        ),
    ] = False
    kubernetes: Annotated[
        KubernetesConfig | None,
        meaning("how to reach the API server; `{}` inside of a pod. Left out: it is not asked"),
    ] = None

    def resources(self) -> tuple[Pool, ...]:
        """The pools as the device plugin takes them."""
        return tuple(pool.resource() for pool in self.pools)

    def pools_with_vfs(self) -> tuple[PoolVfs, ...]:
        """Those for which VFs are created."""
        found = (pool.pool_vfs(f"pools[{i}]") for i, pool in enumerate(self.pools))
        return tuple(pool_vfs for pool_vfs in found if pool_vfs is not None)

    def pool_networks(self) -> tuple[Network, ...]:
        """`networks`, typed. Raises InvalidInput."""
        return parse_networks(self.networks, (pool.name for pool in self.pools))

    def limits(self) -> dict[str, Limits]:
        """By pool."""
        return {pool.name: pool.limits for pool in self.pools if pool.limits}


def parse_config(text: str, node: str = "") -> AgentConfig:
    """`node`: whose config; "": that of a node which no entry of `nodes` matches. A mistake in any entry is
    told on every node. Raises ConfigError."""
    try:
        raw = read_yaml(text)
        if isinstance(raw, dict) and "resourceList" in raw:
            raise ConfigError(
                "resourceList: this is a config of sriov-network-device-plugin; sriov-agent and sriovctl take"
                " such a file by --device-plugin-config"
            )
        if wrong := tuple(_document_mistakes(raw)):
            raise ConfigError(*wrong)
        return _parse_document(for_node(raw, node))
    except YamlError as e:
        raise ConfigError(f"not valid YAML: {e}") from e
    except InvalidInput as e:
        raise ConfigError(str(e)) from e


def _document_mistakes(raw: Any) -> Iterator[str]:
    """Of what all nodes have, then what each entry of `nodes` adds to them. Raises InvalidInput: an entry
    cannot be merged."""
    common = _mistakes_of(for_node(raw, ""))
    yield from common
    for key, variant in variants(raw):
        yield from (f"{key}: {line}" for line in _mistakes_of(variant) if line not in common)


def _mistakes_of(document: Any) -> tuple[str, ...]:
    try:
        _parse_document(document)
    except ConfigError as e:
        return e.mistakes
    return ()


def _parse_document(raw: Any) -> AgentConfig:
    """What has a wrong type or an unknown key hides what has a wrong value."""
    if wrong := tuple(type_mistakes(raw, AgentConfig)):
        raise ConfigError(*wrong)
    config = msgspec.convert(raw, AgentConfig)
    if wrong := tuple(map(str, _mistakes(config))):
        raise ConfigError(*wrong)
    return config


def _mistakes(config: AgentConfig) -> Iterator[SriovError]:
    yield from pool_mistakes(config.resources(), config.resource_prefix)
    for i, pool in enumerate(config.pools):
        if pool.without_pf:
            yield from caught(_check_without_pf, pool, f"pools[{i}]")
        else:
            yield from _vfs_mistakes(pool, f"pools[{i}]")
        if pool.limits:
            yield from caught(check_limits, pool.limits, f"pools[{i}].limits")
    yield from _allocation_mistakes(config)
    yield from _network_mistakes(config)
    if config.fallback is not None and not config.fallback.startswith("/"):
        yield InvalidInput("fallback", config.fallback, "the absolute path of a network configuration list")


def pf_policies(config: AgentConfig, inventory: Inventory) -> tuple[tuple[PfPolicy, ...], tuple[str, ...]]:
    """What the pools ask of the PFs that exist, and a line about each name that no PF has.

    Raises ConfigError when two pools ask different things of one PF or of one VF.
    """
    try:
        return vfs_config.pf_policies(config.pools_with_vfs(), inventory)
    except PoolsDisagree as e:
        raise ConfigError(str(e)) from e


def _vfs_mistakes(pool: PoolConfig, key: str) -> Iterator[SriovError]:
    try:
        pool_vfs = pool.pool_vfs(key)
    except InvalidInput:  # of `select`: that is told already
        return
    if pool_vfs is not None:
        yield from caught(check_vfs, pool_vfs)


def _network_mistakes(config: AgentConfig) -> Iterator[SriovError]:
    wrong = list(caught(config.pool_networks))
    yield from wrong or _asked_in_vain(config)
    if not wrong and config.kubernetes is None:
        for index, network in enumerate(config.pool_networks()):
            if network.asked.in_pod is not None:
                key = f"networks[{index}].{network.asked.in_pod.describe().split()[0]}"
                yield InvalidInput(key, IN_POD, "the key kubernetes beside networks: the API server is asked")


def _asked_in_vain(config: AgentConfig) -> Iterator[SriovError]:
    """What a network asks of a pool that will not give it. Limits that are wrong are told elsewhere."""
    pools = {pool.name: pool for pool in config.pools}
    for index, network in enumerate(config.pool_networks()):
        for pool in (pools[name] for name in network.pools):
            try:
                if pool.limits and not list(caught(check_limits, pool.limits, "")):
                    refuse_beyond(pool.limits, network.asked, pool.name)
                if pool.without_pf:
                    refuse_what_needs_a_pf(network.asked.change, f"each VF of pool {pool.name}")
            except Refused as e:
                yield Refused(f"networks[{index}].{e}")


def _check_without_pf(pool: PoolConfig, key: str) -> None:
    """Only a PF makes VFs, and only a PF holds one to a VLAN or a rate."""
    beside = f"no such key beside {key}.withoutPf: it is for a PF, which this node has not"
    if pool.vfs is not None:
        raise InvalidInput(f"{key}.vfs", pool.vfs.count, beside)
    if pool.health is not None:
        raise InvalidInput(f"{key}.health", msgspec.to_builtins(pool.health), beside)
    limits = pool.limits or Limits()
    if limits.vlans is not None:
        raise InvalidInput(f"{key}.limits.vlans", list(limits.vlans), beside)
    if limits.max_tx_rate_mbps is not None:
        raise InvalidInput(f"{key}.limits.maxTxRateMbps", limits.max_tx_rate_mbps, beside)


def _allocation_mistakes(config: AgentConfig) -> Iterator[SriovError]:
    for i, (written, pool) in enumerate(zip(config.pools, config.resources(), strict=True)):
        if pool.allocation.cdi:
            key = f"pools[{i}].resourcePrefix" if pool.prefix else "resourcePrefix"
            yield from caught(cdi_kind, resource_of(pool, config.resource_prefix), key)
        if pool.allocation.reset_vfio and written.vfs and written.vfs.driver is DriverKind.KERNEL:
            beside = f"pools[{i}].vfs.driver: vfio-pci beside it: VFs with a kernel driver are not reset"
            yield InvalidInput(f"pools[{i}].allocation.resetVfio", True, beside)
