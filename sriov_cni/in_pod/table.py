"""Pure: the one table of a pod, put together from what is the same for every pod and what is its own."""

from collections.abc import Iterable, Mapping

import msgspec

from sriov_cni.in_pod.render_policy import POLICY_IFS
from sriov_cni.in_pod.service_chains import SERVICE_IFS
from vf_manager.kernel.nft import Chain, Elements, Table, Type
from vf_manager.model import IfName

TABLE = "sriov_underlay"


class Parts(msgspec.Struct, frozen=True):
    """Some of the sets and chains of a table."""

    sets: Mapping[str, Elements] = {}
    chains: Mapping[str, Chain] = {}


def assemble(service_ifs: frozenset[IfName], policy_ifs: frozenset[IfName], parts: Iterable[Parts]) -> Table:
    """`service_ifs`, `policy_ifs`: the pod's interfaces that they are for."""
    sets: dict[str, Elements] = {}
    chains: dict[str, Chain] = {}
    for name, interfaces in ((SERVICE_IFS, service_ifs), (POLICY_IFS, policy_ifs)):
        if interfaces:
            entries = {ifname.encode().ljust(16, b"\0"): b"" for ifname in sorted(interfaces)}
            sets[name] = Elements(key=(Type.IFNAME,), entries=entries)
    for part in parts:
        sets |= part.sets
        chains |= part.chains
    return Table(name=TABLE, sets=sets, chains=chains)
