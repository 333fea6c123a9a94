"""Pure: the agent's config file. Strict: an unknown key, a wrong type or an impossible value is an error
that names its path."""

import re
from typing import Any

import msgspec

from device_plugin.pools import DEFAULT_PREFIX, Pool, check_pools
from device_plugin.selectors import PfRule, Selector, parse_selector
from node_agent.strict_yaml import YamlError, read_yaml
from sriov_cni.limits import Limits, check_limits, refuse_beyond, refuse_what_needs_a_pf
from sriov_cni.network import Network, parse_networks
from vf_manager.errors import InvalidInput, Refused, SriovError, plain
from vf_manager.health import HealthPolicy
from vf_manager.model import Inventory, Pf
from vf_manager.provision import DriverKind, PfPolicy, VfPolicy


class ConfigError(SriovError):
    """The config file cannot be used. Says where and what would be right."""


class KubernetesConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to reach the API server. `kubeconfig`: None inside of a pod, with its service account."""

    kubeconfig: str | None = None


class VfsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`vfs` of a pool: VFs to create on each of its PFs. Without it, what exists is adopted as it is."""

    count: int
    mtu: int | None = None
    driver: DriverKind = DriverKind.KERNEL


class PoolConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """`without_pf`: of VFs that a hypervisor gave to this machine, whose PF it has not."""

    name: str
    select: Selector
    without_pf: bool = False
    vfs: VfsConfig | None = None
    limits: Limits | None = None
    health: HealthPolicy | None = None


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
            _check_vfs(pool, f"pools[{i}]")
            if pool.limits:
                check_limits(pool.limits, f"pools[{i}].limits")
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
    wanted: dict[str, PfPolicy] = {}
    missing = []
    for i, pool in enumerate(config.pools):
        if pool.vfs is None:
            continue
        for rule in parse_selector(pool.select).pf_rules or ():
            pfs = [pf for pf in inventory.pfs if rule.names(pf)]
            if not pfs:
                missing.append(f"pools[{i}] {pool.name}: no SR-IOV PF is called {rule.name!r} on this node")
            for pf in pfs:
                wanted[pf.pci] = _merge(wanted.get(pf.pci), pf, rule, pool.vfs, f"pools[{i}].vfs")
    return tuple(wanted[pci] for pci in sorted(wanted)), tuple(missing)


def _merge(known: PfPolicy | None, pf: Pf, rule: PfRule, vfs: VfsConfig, key: str) -> PfPolicy:
    if known is not None and known.count != vfs.count:
        raise ConfigError(
            f"{key}.count: {vfs.count} VFs are asked of {pf.label}, and {known.count} by another pool;"
            " give both the same count and divide the VFs by ranges like ens1f0#0-3"
        )
    ranges = rule.ranges or ((0, vfs.count - 1),)
    new = tuple(VfPolicy(first=a, last=b, mtu=vfs.mtu, driver=vfs.driver) for a, b in ranges)
    old = known.vfs if known else ()
    for policy in new:
        other = next((o for o in old if o.first <= policy.last and policy.first <= o.last), None)
        if other is not None and (other.mtu, other.driver) != (policy.mtu, policy.driver):
            first = max(other.first, policy.first)
            raise ConfigError(
                f"{key}: VF {first} of {pf.label} is given another mtu or driver by another pool"
            )
    return PfPolicy(pf=pf.pci, count=vfs.count, vfs=old + new)


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
    if pool.health is not None:
        raise InvalidInput(f"{key}.health", msgspec.to_builtins(pool.health), beside)
    limits = pool.limits or Limits()
    if limits.vlans is not None:
        raise InvalidInput(f"{key}.limits.vlans", list(limits.vlans), beside)
    if limits.max_tx_rate_mbps is not None:
        raise InvalidInput(f"{key}.limits.maxTxRateMbps", limits.max_tx_rate_mbps, beside)


def _check_vfs(pool: PoolConfig, key: str) -> None:
    if pool.vfs is None:
        return
    if pool.select.pf_names is None:
        raise InvalidInput(
            f"{key}.vfs", pool.vfs.count, f"{key}.select.pfNames beside it: on which PFs to create VFs"
        )
    if not 0 <= pool.vfs.count <= 65535:
        raise InvalidInput(f"{key}.vfs.count", pool.vfs.count, "a number of VFs, 0-65535")
    if pool.vfs.mtu is not None and not 68 <= pool.vfs.mtu <= 65535:
        raise InvalidInput(f"{key}.vfs.mtu", pool.vfs.mtu, "an MTU of 68-65535 bytes")


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
