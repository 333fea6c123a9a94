"""Pure: the nftables chains for services, the same for every pod of a node.

What happens to a packet that leaves by one of the pod's `service_ifs`:

    service-guards      filter, output, -110   connections that exist pass; load balancers' source ranges;
                                               frontends without endpoints: `goto refuse`, or drop
    services            nat, output, -100      the frontend's verdict: `goto pick4-N` or `goto sticky4-N-T`
    service-leftovers   filter, output, 0      still to a cluster IP: no service has this port, `goto refuse`

The last could ask "not in `services4`" before the translation, but on many kernels a rule cannot look for a
key in a map (nft_lookup_init). Within one hook `oifname` is the interface from before the translation.

There is one `pick` chain for each number of endpoints, one `sticky` chain for each number and time, one
`guard` chain for each list of source ranges. No rule names a service.
"""

import hashlib
from functools import lru_cache
from ipaddress import collapse_addresses, ip_network
from socket import AF_INET, AF_INET6

import msgspec

from vf_manager.kernel.nft import (
    Base,
    Chain,
    CtState,
    Dnat,
    DnatRemembered,
    Elements,
    Field,
    Hook,
    In,
    Is,
    Key,
    Random,
    Reject,
    Rule,
    Statement,
    Type,
    Verdict,
    VerdictKind,
    VerdictMap,
)

SERVICE_IFS = "service_ifs"  # a set of the pod's own

ACCEPT, DROP = Verdict(VerdictKind.ACCEPT), Verdict(VerdictKind.DROP)
REFUSE = Verdict(VerdictKind.GOTO, "refuse")

_ESTABLISHED_OR_RELATED = CtState(2 | 4)  # NF_CT_STATE_BIT of IP_CT_ESTABLISHED and of IP_CT_RELATED


class Family(msgspec.Struct, frozen=True):
    """`digit`: at the end of the names of sets, and of chains before their numbers."""

    digit: str
    number: int
    nfproto: int
    address: Type
    saddr: Field
    daddr: Field

    @property
    def key(self) -> Key:
        """Of a frontend."""
        return Field.L4PROTO, self.daddr, Field.DPORT

    @property
    def key_types(self) -> tuple[Type, ...]:
        return Type.INET_PROTO, self.address, Type.INET_SERVICE

    @property
    def socket_types(self) -> tuple[Type, ...]:
        """Of an endpoint."""
        return self.address, Type.INET_SERVICE

    @property
    def is_it(self) -> Is:
        return Is(Field.NFPROTO, bytes((self.nfproto,)))


FOUR = Family("4", AF_INET, 2, Type.IPV4_ADDR, Field.SADDR4, Field.DADDR4)
SIX = Family("6", AF_INET6, 10, Type.IPV6_ADDR, Field.SADDR6, Field.DADDR6)


def family_of(address: str) -> Family:
    return SIX if ":" in address else FOUR


def pick_verdict(family: Family, count: int, affinity_s: int | None) -> Verdict:
    """To one of so many endpoints."""
    chain = f"pick{family.digit}-{count}"
    if affinity_s is not None:
        chain = f"sticky{family.digit}-{count}-{affinity_s}"
    return Verdict(VerdictKind.GOTO, chain)


def guard_verdict(family: Family, sources: tuple[str, ...]) -> Verdict:
    """Who is let through comes back."""
    return Verdict(VerdictKind.JUMP, f"guard{_guard(family, sources)}")


def sources_set(family: Family, sources: tuple[str, ...]) -> str:
    return f"sources{_guard(family, sources)}"


def _guard(family: Family, sources: tuple[str, ...]) -> str:
    """Named by the ranges: a list that comes or goes renames no other."""
    return f"{family.digit}-{hashlib.sha256(' '.join(sources).encode()).hexdigest()[:12]}"


@lru_cache(maxsize=1024)
def source_elements(family: Family, sources: tuple[str, ...]) -> Elements:
    merged = collapse_addresses(map(ip_network, sources))  # type: ignore[type-var]  # all of one family
    ranges = {network[0].packed: network[-1].packed for network in merged}
    return Elements(key=(family.address,), interval=True, entries=ranges)


@lru_cache(maxsize=4096)
def pick_chain(family: Family, count: int, affinity_s: int | None) -> Chain:
    """A packet may meet the rules of before with the endpoints of after, and so draw one that is gone: the
    first is always there."""
    key, random, endpoints = family.key, (*family.key, Random(count)), f"endpoints{family.digit}"
    first = (Dnat(family.number, (*family.key, Random(1)), endpoints),)
    if affinity_s is None:
        one_of = (Dnat(family.number, random, endpoints),)
        return Chain((one_of, first) if count > 1 else (one_of,))
    remember, live = f"sticky{family.digit}", f"sticky_live{family.digit}"
    again = DnatRemembered(family.number, key, remember, live, affinity_s)
    return Chain(((again,), (Dnat(family.number, random, endpoints, remember, affinity_s),), first))


@lru_cache(maxsize=1024)
def guard_chain(family: Family, sources: tuple[str, ...]) -> Chain:
    return Chain(((In((family.saddr,), sources_set(family, sources), negate=True), DROP),))


_ELSEWHERE: Rule = (In((Field.OIFNAME,), SERVICE_IFS, negate=True), ACCEPT)


def _by_map(name: str) -> tuple[Rule, ...]:
    return tuple((one.is_it, VerdictMap(one.key, name + one.digit)) for one in (FOUR, SIX))


def _to_cluster_ip(family: Family) -> Rule:
    found: Statement = In((family.daddr,), f"cluster_addresses{family.digit}")
    return family.is_it, found, REFUSE


# What is there whatever the services are.
FIXED_CHAINS = {
    "service-guards": Chain(
        (_ELSEWHERE, (_ESTABLISHED_OR_RELATED, ACCEPT), *_by_map("guarded"), *_by_map("unserved")),
        Base("filter", Hook.OUTPUT, -110),
    ),
    "services": Chain((_ELSEWHERE, *_by_map("services")), Base("nat", Hook.OUTPUT, -100)),
    "service-leftovers": Chain(
        (_ELSEWHERE, _to_cluster_ip(FOUR), _to_cluster_ip(SIX)), Base("filter", Hook.OUTPUT, 0)
    ),
    REFUSE.chain: Chain(((Is(Field.L4PROTO, b"\x06"), Reject(tcp_reset=True)), (Reject(),))),
}
