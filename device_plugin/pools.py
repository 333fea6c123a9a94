"""Pure: pools of VFs, the names under which Kubernetes and containers know them, and who is in which."""

import re
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from device_plugin.allocation import Allocation
from device_plugin.selectors import Refusal, Rules, Selector, parse_selector, place_of, selector_mistakes
from vf_manager.errors import InvalidInput
from vf_manager.mistakes import caught
from vf_manager.model import Inventory, PciAddress, Pf, Vf, parse_pci_address

DEFAULT_PREFIX = "sriov-underlay.io"

# A qualified name: k8s.io/apimachinery/pkg/util/validation IsQualifiedName, IsDNS1123Subdomain.
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_PREFIX = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*")
# Any of these tells what NIC is meant; the others hold for many.
_TELL_A_NIC = ("vendors", "devices", "drivers", "pciAddresses", "acpiIndexes")
_MAX_PREFIX = 253 - len("requests.")  # a quota names the resource `requests.<prefix>/<name>`


class Pool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """VFs that are advertised as one resource. `select`: one of them is enough. `without_pf`: of those alone
    whose PF is not on this node; None: with or without.

    `resource`: the second part of the resource name if it is not `name`, which no two pools share. `prefix`:
    None is the node's. `shared`: a VF of this pool may be in other shared pools too.
    `additional_info`: what containers are told of a device besides what is known of it, by PCI address, or
    "*" for all.
    `hyphen_env`: containers get their VFs also in the variable that the established device plugin makes.
    """

    name: str
    select: tuple[Selector, ...]
    without_pf: bool | None = False
    resource: str | None = None
    prefix: str | None = None
    shared: bool = False
    exclude_topology: bool = False
    vhost_net: bool = False
    additional_info: dict[str, dict[str, str]] = {}
    hyphen_env: bool = False
    allocation: Allocation = Allocation()

    @property
    def wants_rdma(self) -> bool:
        """Whether containers get the RDMA nodes of the pool's VFs that have them."""
        return any(selector.is_rdma for selector in self.select)


class PoolKeys(msgspec.Struct, frozen=True, kw_only=True):
    """How a configuration calls these keys of a pool, for messages."""

    name: str = "name"
    prefix: str = "resourcePrefix"
    select: str = "select"


class PoolRules(msgspec.Struct, frozen=True):
    """A pool with its selectors parsed."""

    pool: Pool
    rules: tuple[Rules, ...]

    def may_have(self, pf: Pf | None) -> bool:
        """Whether VFs of this PF are meant; None: those whose PF is not on this node."""
        return self.pool.without_pf in (None, pf is None)

    def refusals(self, pf: Pf | None, vf: Vf) -> tuple[tuple[Refusal, ...], ...]:
        """Of each selector, the keys that do not take the VF. Of no use for one that the pool takes."""
        if not self.may_have(pf):
            asked = "true" if self.pool.without_pf else "false"
            return ((Refusal(key="withoutPf", wanted=(asked,), actual=place_of(pf, vf)),),)
        return tuple(tuple(rules.refusals(pf, vf)) for rules in self.rules)

    def takes(self, pf: Pf | None, vf: Vf) -> bool:
        return self.may_have(pf) and any(rules.takes(pf, vf) for rules in self.rules)

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


def check_pools(pools: Sequence[Pool], prefix: str) -> None:
    """Everything that can be wrong with pools before any VF is seen. Raises InvalidInput."""
    for mistake in pool_mistakes(pools, prefix):
        raise mistake


def pool_mistakes(
    pools: Sequence[Pool], prefix: str, key: str = "pools", keys: PoolKeys | None = None
) -> Iterator[InvalidInput]:
    """Each with the path of its key, e.g. `pools[0].select.pfNames[1]`."""
    keys = keys or PoolKeys()
    yield from caught(parse_prefix, prefix)
    for i, pool in enumerate(pools):
        yield from caught(parse_pool_name, _second_part(pool), f"{key}[{i}].{keys.name}")
        if pool.prefix is not None:
            yield from caught(parse_prefix, pool.prefix, f"{key}[{i}].{keys.prefix}")
        yield from _select_mistakes(pool, f"{key}[{i}].{keys.select}")
        yield from _info_mistakes(pool, f"{key}[{i}].additionalInfo")
    yield from _name_clashes(pools, prefix, key, keys)


def _name_clashes(pools: Sequence[Pool], prefix: str, key: str, keys: PoolKeys) -> Iterator[InvalidInput]:
    """Two pools may not have one name. Nor one variable: the kubelet drops the second of two equal ones, so a
    pod with both would miss VFs."""
    owner_of_name: dict[str, int] = {}
    owner_of_env: dict[str, int] = {}
    for i, pool in enumerate(pools):
        env = env_name(pool.prefix or prefix, _second_part(pool))
        by_name = owner_of_name.setdefault(pool.name, i)
        by_env = owner_of_env.setdefault(env, i)
        if by_env != i:
            other = _second_part(pools[by_env])
            clash = (
                f"a name that differs from {key}[{by_env}].{keys.name} ({other}) in letters or digits:"
                f" both become {env} in a container"
            )
        elif by_name != i:
            clash = f"a name that differs from {key}[{by_name}].{keys.name}"
        else:
            continue
        yield InvalidInput(f"{key}[{i}].{keys.name}", _second_part(pool), clash)


def _select_mistakes(pool: Pool, key: str) -> Iterator[InvalidInput]:
    if not pool.select:
        yield InvalidInput(key, [], "at least one selector; {} takes every VF")
    for i, select in enumerate(pool.select):
        place = key if len(pool.select) == 1 else f"{key}[{i}]"
        yield from selector_mistakes(select, place)
        if pool.without_pf:
            yield from _without_pf_mistakes(select, place)


def _without_pf_mistakes(select: Selector, key: str) -> Iterator[InvalidInput]:
    """Nothing but the selector tells such a VF from any other NIC of the node."""
    others = "vendors, devices, drivers or pciAddresses"
    of_pf = [(name, entries) for name, entries in select.items() if name in ("pfNames", "rootDevices")]
    for name, entries in of_pf:
        yield InvalidInput(
            f"{key}.{name}",
            list(entries),
            f"{others} instead: with withoutPf, the PF is not on this node and has no name here",
        )
    if not of_pf and not tells_a_nic(select):
        which = "this one" if select != Selector() else "an empty one"
        yield InvalidInput(
            key,
            {name: list(entries) for name, entries in select.items()},
            f"{others}: with withoutPf, {which} would take every NIC of the node",
        )


def tells_a_nic(select: Selector) -> bool:
    """Whether it tells the NICs that it means from all others of a node."""
    return any(name in _TELL_A_NIC for name, _ in select.items())


def _info_mistakes(pool: Pool, key: str) -> Iterator[InvalidInput]:
    for device in pool.additional_info:
        if device != "*":
            for _ in caught(parse_pci_address, device):
                yield InvalidInput(key, device, "a PCI address like 0000:3b:02.1, or * for every device")


def parse_pools(pools: Sequence[Pool]) -> tuple[PoolRules, ...]:
    """Raises InvalidInput."""
    return tuple(
        PoolRules(pool, tuple(parse_selector(select, f"pools[{i}].select") for select in pool.select))
        for i, pool in enumerate(pools)
    )


def assign(pools: Sequence[Pool], inventory: Inventory) -> dict[str, tuple[Vf, ...]]:
    """The VFs of each pool by its name, ordered by PF address and VF index, or by their own without a PF. A
    pool that gets none is there with an empty tuple."""
    taken: dict[str, list[Vf]] = {pool.name: [] for pool in pools}
    rules = parse_pools(pools)
    for pf, vf in devices_of(inventory):
        if vf.unusable is None:
            for pool in owners(rules, pf, vf):
                taken[pool.name].append(vf)
    return {name: tuple(vfs) for name, vfs in taken.items()}


def pools_by_vf(assigned: Mapping[str, Sequence[Vf]]) -> dict[PciAddress, tuple[str, ...]]:
    """The other way round: the names of the pools that a VF is in; several only if they are shared."""
    found: dict[PciAddress, list[str]] = {}
    for pool, vfs in assigned.items():
        for vf in vfs:
            found.setdefault(vf.pci, []).append(pool)
    return {pci: tuple(names) for pci, names in found.items()}


def held_back(pools: Sequence[Pool], inventory: Inventory) -> tuple[str, ...]:
    """A line about each device that a pool selects and does not get."""
    rules = parse_pools(pools)
    return tuple(
        f"pool {pool.name} does not get {vf.pci}: {vf.unusable}"
        for pf, vf in devices_of(inventory)
        if vf.unusable is not None
        for pool in owners(rules, pf, vf)
    )


def owners(pools: Sequence[PoolRules], pf: Pf | None, vf: Vf) -> tuple[Pool, ...]:
    """The first pool that takes the VF has it; alone, unless it and others are shared."""
    takers = (one.pool for one in pools if one.takes(pf, vf))
    first = next(takers, None)
    if first is None:
        return ()
    return (first, *(pool for pool in takers if pool.shared)) if first.shared else (first,)


def devices_of(inventory: Inventory) -> list[tuple[Pf | None, Vf]]:
    """What pools are made of: VFs in the order of PF addresses and indexes, then those without a PF."""
    with_pf = [(pf, vf) for pf in inventory.pfs for vf in pf.vfs]
    with_pf.sort(key=lambda pair: (pair[0].pci, pair[1].index))
    return [*with_pf, *((None, vf) for vf in sorted(inventory.lone, key=lambda vf: vf.pci))]


def resource_of(pool: Pool, prefix: str) -> str:
    """Its resource name; `prefix`: the node's."""
    return resource_name(pool.prefix or prefix, _second_part(pool))


def envs_of(pool: Pool, prefix: str) -> tuple[str, ...]:
    """The variables that carry the PCI addresses of a container's devices of this pool."""
    of_pool = (pool.prefix or prefix, _second_part(pool))
    names = (env_name(*of_pool), established_env_name(*of_pool))
    return names if pool.hyphen_env and names[0] != names[1] else names[:1]


def _second_part(pool: Pool) -> str:
    return pool.resource or pool.name


def resource_name(prefix: str, pool: str) -> str:
    """`sriov-underlay.io/fast`"""
    return f"{prefix}/{pool}"


def env_name(prefix: str, pool: str) -> str:
    """`PCIDEVICE_SRIOV_UNDERLAY_IO_FAST`: the established variable, made a legal shell name."""
    return re.sub(r"[^A-Z0-9_]", "_", f"PCIDEVICE_{prefix}_{pool}".upper())


def established_env_name(prefix: str, pool: str) -> str:
    """The same with the hyphens left in, as the established device plugin has it."""
    return re.sub(r"[^A-Z0-9_-]", "_", f"PCIDEVICE_{prefix}_{pool}".upper())
