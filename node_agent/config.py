"""Pure: the agent's config file. Strict: an unknown key, a wrong type or an impossible value is an error
that names its path."""

import re
from typing import Any

import msgspec

from device_plugin.pools import DEFAULT_PREFIX, Pool, check_pools
from device_plugin.selectors import PfRule, Selector, parse_selector
from node_agent import vfs_config
from node_agent.strict_yaml import YamlError, read_yaml
from node_agent.vfs_config import PoolsDisagree, PoolVfs, VfsConfig, check_vfs
from sriov_cni.limits import Limits, check_limits, refuse_beyond, refuse_what_needs_a_pf
from sriov_cni.network import Network, parse_networks
from vf_manager.errors import InvalidInput, Refused, SriovError, plain
from vf_manager.model import Inventory
from vf_manager.provision import PfPolicy


class ConfigError(SriovError):
    """The config file cannot be used. Says where and what would be right."""


class KubernetesConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to reach the API server. `kubeconfig`: None inside of a pod, with its service account."""

    kubeconfig: str | None = None


class PoolConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """`without_pf`: of VFs that a hypervisor gave to this machine, whose PF it has not."""

    name: str
    select: Selector
    without_pf: bool = False
    vfs: VfsConfig | None = None
    limits: Limits | None = None

    def pf_rules(self, key: str) -> tuple[PfRule, ...]:
        """The PFs that `select` names. Raises InvalidInput."""
        return parse_selector(self.select, f"{key}.select").pf_rules or ()


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    pools: tuple[PoolConfig, ...]
    resource_prefix: str = DEFAULT_PREFIX
    networks: tuple[dict[str, Any], ...] = ()
    fallback: str | None = None
    repair_drift: bool = False
    kubernetes: KubernetesConfig | None = None

    def resources(self) -> tuple[Pool, ...]:
        """The pools as the device plugin takes them."""
        return tuple(
            Pool(name=pool.name, select=pool.select, without_pf=pool.without_pf) for pool in self.pools
        )

    def pools_with_vfs(self) -> tuple[PoolVfs, ...]:
        """Those for which VFs are created."""
        return tuple(
            PoolVfs(key=f"pools[{i}]", name=pool.name, vfs=pool.vfs, pf_rules=pool.pf_rules(f"pools[{i}]"))
            for i, pool in enumerate(self.pools)
            if pool.vfs is not None
        )

    def pool_networks(self) -> tuple[Network, ...]:
        """`networks`, typed. Raises InvalidInput."""
        return parse_networks(self.networks, (pool.name for pool in self.pools))

    def limits(self) -> dict[str, Limits]:
        """By pool."""
        return {pool.name: pool.limits for pool in self.pools if pool.limits}


def parse_config(text: str) -> AgentConfig:
    """Raises ConfigError."""
    try:
        config = msgspec.convert(read_yaml(text), AgentConfig)
        check_pools(config.resources(), config.resource_prefix)
        for i, pool in enumerate(config.pools):
            if pool.without_pf:
                _check_without_pf(pool, f"pools[{i}]")
            if pool.limits:
                check_limits(pool.limits, f"pools[{i}].limits")
        for pool_vfs in config.pools_with_vfs():
            check_vfs(pool_vfs)
        _check_networks(config)
        if config.fallback is not None and not config.fallback.startswith("/"):
            raise InvalidInput(
                "fallback", config.fallback, "the absolute path of a network configuration list"
            )
    except YamlError as e:
        raise ConfigError(f"not valid YAML: {e}") from e
    except msgspec.ValidationError as e:
        raise ConfigError(_explain(str(e))) from e
    except InvalidInput as e:
        raise ConfigError(str(e)) from e
    return config


def pf_policies(config: AgentConfig, inventory: Inventory) -> tuple[tuple[PfPolicy, ...], tuple[str, ...]]:
    """What the pools ask of the PFs that exist, and a line about each name that no PF has.

    Raises ConfigError when two pools ask different things of one PF or of one VF.
    """
    try:
        return vfs_config.pf_policies(config.pools_with_vfs(), inventory)
    except PoolsDisagree as e:
        raise ConfigError(str(e)) from e


def _check_networks(config: AgentConfig) -> None:
    pools = {pool.name: pool for pool in config.pools}
    for index, network in enumerate(config.pool_networks()):
        for pool in (pools[name] for name in network.pools):
            try:
                if pool.limits:
                    refuse_beyond(pool.limits, network.asked, pool.name)
                if pool.without_pf:
                    refuse_what_needs_a_pf(network.asked.change, f"each VF of pool {pool.name}")
            except Refused as e:
                raise ConfigError(f"networks[{index}].{e}") from e


def _check_without_pf(pool: PoolConfig, key: str) -> None:
    """Only a PF makes VFs, and only a PF holds one to a VLAN or a rate."""
    beside = f"no such key beside {key}.withoutPf: it is for a PF, which this node has not"
    if pool.vfs is not None:
        raise InvalidInput(f"{key}.vfs", pool.vfs.count, beside)
    limits = pool.limits or Limits()
    if limits.vlans is not None:
        raise InvalidInput(f"{key}.limits.vlans", list(limits.vlans), beside)
    if limits.max_tx_rate_mbps is not None:
        raise InvalidInput(f"{key}.limits.maxTxRateMbps", limits.max_tx_rate_mbps, beside)


def _explain(message: str) -> str:
    """msgspec says `Object contains unknown field `x` - at `$.pools[0]``; the path goes first here."""
    found = re.fullmatch(r"(.*?)(?: - at `\$(.*)`)?", message, re.DOTALL)
    problem, path = (found[1], found[2] or "") if found else (message, "")
    path = path.lstrip(".")
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", problem, re.DOTALL):
        return f"{plain(f'{path}.{unknown[1]}'.lstrip('.'))}: unknown key"
    # 8086 is a number to YAML, 0000:01:10.0 one to the base of 60
    hint = "; put quotes around it" if re.search("Expected `str`, got `(int|float|bool)`", problem) else ""
    return f"{path or 'the file'}: {problem[:1].lower()}{problem[1:]}{hint}"
