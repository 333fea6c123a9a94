"""Pure: networks of the agent's own config: what the VFs of a pool are given in pods.

A pod that comes without a `deviceID` has VFs of certain pools; each VF gets the options of the first network
that names its pool. A pool that no network names gets the options of the CNI configuration that was called.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from sriov_cni.attachment import Asked
from sriov_cni.environment import NAME, NAME_RULE
from sriov_cni.fields import Fields
from sriov_cni.ipam.config import IpamConf, IpRequest, parse_dns, parse_ipam
from sriov_cni.netconf import CniCall
from sriov_cni.network_keys import NetworkKeys
from sriov_cni.spec import Dns
from sriov_cni.vf_options import parse_vf_options
from vf_manager.errors import InvalidInput

_REQUESTS = ("runtimeConfig", "args")
_OF_ANY_NETWORK = ("cniVersion", "type", *_REQUESTS)
_KEYS = frozenset(field.encode_name for field in msgspec.structs.fields(NetworkKeys))


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """`ipam` as written: what it means may depend on the call (requested addresses, delegates)."""

    name: str
    pools: tuple[str, ...] = ()
    asked: Asked = Asked()
    ipam: dict[str, Any] | None = None
    dns: Dns = Dns()
    key: str = ""  # where it stands in the agent's config, for errors

    @property
    def is_of_call(self) -> bool:
        return not self.key

    def ipam_conf(self, call: CniCall, *, first: bool) -> IpamConf | None:
        """What the IPAM of this network is for one VF of a pod. Requests of the call (addresses, and all
        that a delegate reads in runtimeConfig and args) concern the pod's first VF alone."""
        if first and self.is_of_call:
            return call.conf.ipam
        if self.ipam is None:
            return None
        config = {
            key: value for key, value in call.config.items() if self.is_of_call or key in _OF_ANY_NETWORK
        }
        if not first:
            config = {key: value for key, value in config.items() if key not in _REQUESTS}
        config |= {"name": self.name, "ipam": self.ipam}
        env = call.env if first else msgspec.structs.replace(call.env, args=_without_requests(call.args))
        request = IpRequest(
            runtime=Fields(config.get("runtimeConfig") or {}, "runtimeConfig"),
            cni_args=Fields((config.get("args") or {}).get("cni") or {}, "args.cni"),
            env_args=env.args,
            config=msgspec.json.encode(config).decode(),
            env=env,
        )
        return parse_ipam(Fields(self.ipam, f"{self.key}ipam"), request)


def network_of_call(call: CniCall) -> Network:
    """The one that the CNI configuration describes."""
    conf = call.conf
    ipam = call.config["ipam"] if conf.ipam is not None else None
    return Network(name=conf.name, asked=conf.asked, ipam=ipam, dns=conf.dns)


def parse_networks(raw: Sequence[Mapping[str, Any]], pools: Iterable[str]) -> tuple[Network, ...]:
    """`networks` of the agent's config. Raises InvalidInput that names the key."""
    known = tuple(pools)
    networks: list[Network] = []
    for index, values in enumerate(raw):
        network = _parse_network(Fields(values, f"networks[{index}]"), known)
        if any(other.name == network.name for other in networks):
            raise InvalidInput(f"networks[{index}].name", network.name, "a name that no other network has")
        networks.append(network)
    return tuple(networks)


def networks_of_pool(networks: Sequence[Network], pool: str) -> tuple[Network, ...]:
    """The first is the pool's own; the others may be chosen."""
    return tuple(network for network in networks if pool in network.pools)


def _parse_network(raw: Fields, known_pools: tuple[str, ...]) -> Network:
    raw.refuse_unknown(_KEYS)
    name = raw.required_string("name")
    if not NAME.fullmatch(name):
        raise InvalidInput(raw.path_of("name"), name, NAME_RULE)
    pools = raw.strings("pools")
    for index, pool in enumerate(pools):
        if pool not in known_pools:
            raise InvalidInput(
                f"{raw.path_of('pools')}[{index}]", pool, f"one of the pools: {', '.join(known_pools)}"
            )
    if not pools:
        raise InvalidInput(raw.path_of("pools"), raw.values.get("pools"), "the name of at least one pool")
    dns, ipam = raw.child("dns"), raw.child("ipam")
    if ipam is not None and ipam.values.get("type") == "static":
        raise InvalidInput(ipam.path_of("type"), "static", "an IPAM with an address for each of many pods")
    parse_ipam(ipam, IpRequest())
    return Network(
        name=name,
        pools=pools,
        asked=parse_vf_options(raw),
        ipam=dict(ipam.values) if ipam and ipam.values else None,
        dns=parse_dns(dns) if dns else Dns(),
        key=f"{raw.path}.",
    )


def _without_requests(args: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in args.items() if key not in ("IP", "GATEWAY", "MAC")}
