"""Pure: pools of VFs, the names under which Kubernetes and containers know them, and who is in which."""

import re
from collections.abc import Sequence

import msgspec

from device_plugin.allocation import Allocation
from device_plugin.selectors import Rules, Selector, parse_selector
from vf_manager.errors import InvalidInput
from vf_manager.model import Inventory, Pf, Vf

DEFAULT_PREFIX = "sriov-underlay.io"

# A qualified name: k8s.io/apimachinery/pkg/util/validation IsQualifiedName, IsDNS1123Subdomain.
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_PREFIX = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*")
_MAX_PREFIX = 253 - len("requests.")  # a quota names the resource `requests.<prefix>/<name>`


class Pool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """VFs that are advertised as one resource. `without_pf`: of those alone whose PF is not on this node.

    `prefix`: None is the node's. `shared`: a VF of this pool may be in other shared pools too.
    `additional_info`: what containers are told of a device besides what is known of it, by PCI address or "*".
    """

    name: str
    select: Selector
    without_pf: bool = False
    prefix: str | None = None
    shared: bool = False
    exclude_topology: bool = False
    vhost_net: bool = False
    additional_info: dict[str, dict[str, str]] = {}
    allocation: Allocation = Allocation()


def parse_pool_name(value: str, key: str = "name") -> str:
    """The part of an extended resource name after the slash. Raises InvalidInput."""
    if _NAME.fullmatch(value):
        return value
    raise InvalidInput(
        key, value, "1-63 letters, digits, '-', '_' or '.', with a letter or digit at both ends"
    )


def parse_prefix(value: str, key: str = "resourcePrefix") -> str:
    """The part of an extended resource name before the slash. Raises InvalidInput."""
    if not _PREFIX.fullmatch(value) or len(value) > _MAX_PREFIX:
        raise InvalidInput(
            key, value, f"a DNS name in lower case of at most {_MAX_PREFIX} characters, like {DEFAULT_PREFIX}"
        )
    # IsExtendedResourceName in kubernetes/pkg/apis/core/v1/helper
    if value.endswith("kubernetes.io") or value.startswith("requests."):
        raise InvalidInput(
            key, value, "a domain of your own: Kubernetes keeps *kubernetes.io and requests.* for itself"
        )
    return value


def check_pools(pools: Sequence[Pool], prefix: str, key: str = "pools") -> None:
    """Everything that can be wrong with pools before any VF is seen. Raises InvalidInput."""
    parse_prefix(prefix)
    owner_of_env: dict[str, int] = {}
    for i, pool in enumerate(pools):
        parse_pool_name(pool.name, f"{key}[{i}].name")
        first = owner_of_env.setdefault(env_name(prefix, pool.name), i)
        if first != i:
            # The kubelet drops the second of two equal variables, so a pod with both would miss VFs.
            raise InvalidInput(
                f"{key}[{i}].name",
                pool.name,
                f"a name that differs from {key}[{first}].name ({pools[first].name}) in letters or digits:"
                f" both become {env_name(prefix, pool.name)} in a container",
            )
        parse_selector(pool.select, f"{key}[{i}].select")
        if pool.without_pf:
            _check_without_pf(pool.select, f"{key}[{i}].select")


def _check_without_pf(select: Selector, key: str) -> None:
    """Nothing but the selector tells such a VF from any other NIC of the node."""
    others = "vendors, devices, drivers or pciAddresses"
    if select.pf_names is not None:
        raise InvalidInput(
            f"{key}.pfNames",
            list(select.pf_names),
            f"{others} instead: with withoutPf, the PF is not on this node and has no name here",
        )
    if select == Selector():
        raise InvalidInput(
            key, {}, f"{others}: with withoutPf, an empty one would take every NIC of the node"
        )


def assign(pools: Sequence[Pool], inventory: Inventory) -> dict[str, tuple[Vf, ...]]:
    """The VFs of each pool by its name, ordered by PF address and VF index, or by their own without a PF. The
    first pool that takes a VF has it alone; a pool that gets none is there with an empty tuple."""
    taken: dict[str, list[Vf]] = {pool.name: [] for pool in pools}
    for name, vf in _takers(pools, inventory):
        if vf.unusable is None:
            taken[name].append(vf)
    return {name: tuple(vfs) for name, vfs in taken.items()}


def held_back(pools: Sequence[Pool], inventory: Inventory) -> tuple[str, ...]:
    """A line about each device that a pool selects and does not get."""
    takers = _takers(pools, inventory)
    return tuple(f"pool {name} does not get {vf.pci}: {vf.unusable}" for name, vf in takers if vf.unusable)


def _takers(pools: Sequence[Pool], inventory: Inventory) -> list[tuple[str, Vf]]:
    """The pool that a VF is selected for, and the VF."""
    rules = [(pool, parse_selector(pool.select, f"pools[{i}].select")) for i, pool in enumerate(pools)]
    with_pf = [(pf, vf) for pf in inventory.pfs for vf in pf.vfs]
    with_pf.sort(key=lambda pair: (pair[0].pci, pair[1].index))
    lone = sorted(inventory.lone, key=lambda vf: vf.pci)
    all_vfs: list[tuple[Pf | None, Vf]] = [*with_pf, *((None, vf) for vf in lone)]
    return [(name, vf) for pf, vf in all_vfs if (name := _first_taker(rules, pf, vf)) is not None]


def _first_taker(rules: list[tuple[Pool, Rules]], pf: Pf | None, vf: Vf) -> str | None:
    fitting = ((pool, rule) for pool, rule in rules if pool.without_pf == (pf is None))
    return next((pool.name for pool, rule in fitting if rule.takes(pf, vf)), None)


def resource_of(pool: Pool, prefix: str) -> str:
    """Its full name; `prefix` is the node's."""
    return resource_name(pool.prefix or prefix, pool.name)


def envs_of(pool: Pool, prefix: str) -> tuple[str, ...]:
    """The variables that name a container its VFs."""
    return (env_name(pool.prefix or prefix, pool.name),)


def resource_name(prefix: str, pool: str) -> str:
    """`sriov-underlay.io/fast`"""
    return f"{prefix}/{pool}"


def env_name(prefix: str, pool: str) -> str:
    """`PCIDEVICE_SRIOV_UNDERLAY_IO_FAST`: the established variable, made a legal shell name."""
    return re.sub(r"[^A-Z0-9_]", "_", f"PCIDEVICE_{prefix}_{pool}".upper())
