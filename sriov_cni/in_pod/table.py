"""Pure: the one table of a pod, put together from what is the same for every pod and what is its own."""

from collections.abc import Mapping

import msgspec

from vf_manager.kernel.nft import Chain, Elements, Table, Type
from vf_manager.model import IfName

TABLE = "sriov_underlay"
SERVICE_IFS = "service_ifs"
POLICY_IFS = "policy_ifs"


class Parts(msgspec.Struct, frozen=True):
    """Some of the sets and chains of a table."""

    sets: Mapping[str, Elements] = {}
    chains: Mapping[str, Chain] = {}


def assemble(
    service_ifs: frozenset[IfName], policy_ifs: frozenset[IfName], parts: tuple[Parts, ...]
) -> Table:
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
