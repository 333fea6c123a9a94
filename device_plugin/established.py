"""Pure: the configuration file of the established SR-IOV device plugin (`resourceList`), as pools.

What it passes over in silence is an error here: unknown keys, keys in the wrong place, ranges that do not
parse, resources without selectors.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from device_plugin.pools import Pool, PoolKeys, pool_mistakes, tells_a_nic
from device_plugin.selectors import Selector
from vf_manager.errors import InvalidInput
from vf_manager.mistakes import MistakesFound, type_mistakes

ESTABLISHED_PREFIX = "intel.com"  # what its own flag -resource-prefix has if it is not given

_KEYS = PoolKeys(name="resourceName", select="selectors")
_NET_DEVICE = "netDevice"
_ELSEWHERE = "leave this resource to the established device plugin, beside this agent, in a file of its own"
_NOT_SERVED = {
    "accelerator": f"{_NET_DEVICE}: accelerators are not served here; {_ELSEWHERE}",
    "auxNetDevice": f"{_NET_DEVICE}: subfunctions are not served here; {_ELSEWHERE}",
}
_REFUSED_KEYS = {
    "ddpProfiles": "no such key: DDP profiles are not looked at here; select by pfNames or devices instead",
    "vdpaType": f"no such key: vDPA devices are not served here; {_ELSEWHERE}",
    "auxTypes": f"no such key: it is for subfunctions, which are not served here; {_ELSEWHERE}",
}


class Selectors(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """One entry of `selectors`. An empty list means the same as none."""

    vendors: tuple[str, ...] | None = None
    devices: tuple[str, ...] | None = None
    drivers: tuple[str, ...] | None = None
    pci_addresses: tuple[str, ...] | None = None
    acpi_indexes: tuple[str, ...] | None = None
    pf_names: tuple[str, ...] | None = None
    root_devices: tuple[str, ...] | None = None
    link_types: tuple[str, ...] | None = None
    p_keys: tuple[str, ...] | None = None
    is_rdma: bool = False
    need_vhost_net: bool = False
    ddp_profiles: tuple[str, ...] | None = None
    vdpa_type: str | None = None
    aux_types: tuple[str, ...] | None = None

    def selector(self) -> Selector:
        return Selector(
            vendors=self.vendors or None,
            devices=self.devices or None,
            drivers=self.drivers or None,
            pci_addresses=self.pci_addresses or None,
            acpi_indexes=self.acpi_indexes or None,
            pf_names=self.pf_names or None,
            root_devices=self.root_devices or None,
            link_types=self.link_types or None,
            p_keys=self.p_keys or None,
            is_rdma=True if self.is_rdma else None,
        )

    def refused(self) -> list[tuple[str, Any]]:
        """What is asked for and not served here, by its key."""
        asked = {
            "ddpProfiles": self.ddp_profiles and list(self.ddp_profiles),
            "vdpaType": self.vdpa_type,
            "auxTypes": self.aux_types and list(self.aux_types),
        }
        return [(key, value) for key, value in asked.items() if value]


class Resource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """One entry of `resourceList`. An empty text means the same as none."""

    resource_name: str
    resource_prefix: str | None = None
    device_type: str | None = None
    exclude_topology: bool = False
    selectors: Selectors | tuple[Selectors, ...] | None = None
    additional_info: dict[str, dict[str, str]] | None = None

    def all_selectors(self) -> tuple[Selectors, ...]:
        return self.selectors if isinstance(self.selectors, tuple) else (self.selectors or Selectors(),)

    def pool(self, name: str) -> Pool:
        select = tuple(one.selector() for one in self.all_selectors())
        return Pool(
            name=name,
            resource=self.resource_name,
            prefix=self.resource_prefix or None,
            select=select,
            # One file serves nodes with PFs, and virtual machines which were given VFs.
            without_pf=None if all(map(tells_a_nic, select)) else False,
            exclude_topology=self.exclude_topology,
            vhost_net=any(one.need_vhost_net for one in self.all_selectors()),
            additional_info={device.lower(): info for device, info in (self.additional_info or {}).items()},
            hyphen_env=True,
        )


class Established(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    resource_list: tuple[Resource, ...]


def parse_established(text: str, prefix: str = ESTABLISHED_PREFIX) -> tuple[Pool, ...]:
    """The pools, in the order of the file. Raises MistakesFound, which has all mistakes that were found.
    What has a wrong type or an unknown key hides what has a wrong value."""
    raw = _read_json(text)
    if wrong := tuple(type_mistakes(raw, Established)):
        raise MistakesFound(*wrong)
    resources = msgspec.convert(raw, Established).resource_list
    if wrong := tuple(map(str, _mistakes(resources, prefix))):
        raise MistakesFound(*wrong)
    return _pools(resources, prefix)


def _read_json(text: str) -> object:
    """Raises MistakesFound. Python's decoder tells line and column and sees every key, and takes more than
    JSON allows: NaN, half a surrogate pair."""
    try:
        json.loads(text, object_pairs_hook=_object)
        return msgspec.json.decode(text)
    except (ValueError, RecursionError) as e:  # msgspec.DecodeError is a ValueError
        raise MistakesFound(f"not valid JSON: {e}") from e


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON lets the last of two equal keys win in silence; here it is an error."""
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise ValueError(f"the key {key!r} is there twice in one object")
    return dict(pairs)


def _pools(resources: Sequence[Resource], prefix: str) -> tuple[Pool, ...]:
    """Called by their resource names, with the prefix where two resources have the same."""
    count = Counter(one.resource_name for one in resources)
    return tuple(
        one.pool(
            one.resource_name
            if count[one.resource_name] == 1
            else f"{one.resource_prefix or prefix}/{one.resource_name}"
        )
        for one in resources
    )


def _mistakes(resources: Sequence[Resource], prefix: str) -> Iterator[InvalidInput]:
    if not resources:
        yield InvalidInput("resourceList", [], "at least one resource")
    for i, one in enumerate(resources):
        yield from _resource_mistakes(one, f"resourceList[{i}]")
    yield from pool_mistakes(_pools(resources, prefix), prefix, "resourceList", _KEYS)


def _resource_mistakes(one: Resource, key: str) -> Iterator[InvalidInput]:
    if one.device_type not in (None, "", _NET_DEVICE):
        expected = _NOT_SERVED.get(one.device_type, _NET_DEVICE)
        yield InvalidInput(f"{key}.deviceType", one.device_type, expected)
    if one.selectors is None:
        which = 'which VFs it has, like {"pfNames": ["ens1f0"]}, or a list of such; {} takes every VF'
        yield InvalidInput(f"{key}.selectors", None, which)
    selectors = one.all_selectors()
    for j, select in enumerate(selectors):
        place = f"{key}.selectors[{j}]" if isinstance(one.selectors, tuple) else f"{key}.selectors"
        for name, value in select.refused():
            yield InvalidInput(f"{place}.{name}", value, _REFUSED_KEYS[name])
        if select.need_vhost_net != selectors[0].need_vhost_net:
            same = f"as in {key}.selectors[0]: all devices of a resource are given the nodes, or none is"
            yield InvalidInput(f"{place}.needVhostNet", select.need_vhost_net, same)
