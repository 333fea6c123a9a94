"""Orchestrator: all VFs of one CNI call: which they are, what is asked of them, and one answer for them.

Decisions:
- With a `deviceID` the call is about that VF, and its own options count. Without, it is about every VF that
  the kubelet gave to the pod: the first is CNI_IFNAME, the others are net1, net2, ...; each gets the options
  of the network of its pool. They come together or not at all, and go with one DEL.
- A pod with several VFs sends from each address by the VF that has it: one routing table per VF, chosen by
  the source address. The default route of the main table is the first VF's.
- What a call asks for one interface (a MAC, an address) is for the first VF.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

import msgspec

from sriov_cni.attach import Attacher
from sriov_cni.attachment import Asked, Attachment, Wanted
from sriov_cni.ipam.config import IpamConf, StaticConf
from sriov_cni.limits import Limits, refuse_beyond
from sriov_cni.netconf import CniCall
from sriov_cni.network import Network, network_of_call, networks_of_pool
from sriov_cni.pod_vfs import PodVfs
from sriov_cni.spec import CheckFailed, IpConfig, Result
from vf_manager.errors import InvalidInput, SriovError
from vf_manager.model import IfName, PciAddress

_FIRST_TABLE = 100  # of RT_TABLE_UNSPEC < n < RT_TABLE_COMPAT (rtnetlink.h); a pod's namespace has no other

ChooseNetwork = Callable[[CniCall, str, Sequence[Network]], Network]


def first_network(_: CniCall, pool: str, networks: Sequence[Network]) -> Network:
    return networks[0]


class PodAttacher:
    """`limits`: by pool. `choose`: which of the networks of a pool a pod gets."""

    def __init__(
        self,
        attacher: Attacher,
        given: PodVfs,
        pools_of: Callable[[PciAddress], tuple[str, ...]],
        networks: Sequence[Network] = (),
        limits: Mapping[str, Limits] | None = None,
        choose: ChooseNetwork = first_network,
    ) -> None:
        self._attacher = attacher
        self._given = given
        self._pools_of = pools_of
        self._networks = tuple(networks)
        self._limits = dict(limits or {})
        self._choose = choose

    def plan(self, call: CniCall) -> tuple[Wanted, ...]:
        """What an ADD is to attach; nothing if the pod requested no VF. Raises SriovError."""
        device = call.conf.device_id
        if device is not None:
            self._attacher.refuse_unusable(device)
            self._given.refuse_foreign(call.container_id, call.pod, device)
            wanted = self._wanted(call, device, network_of_call(call), 0, 1)
            self._refuse_beyond(self._pools_of(device), wanted)
            return (wanted,)
        if call.pod is None:
            return ()
        vfs = self._given.of(call.container_id, call.pod)
        networks = [self._network_of(call, vf.pool) for vf in vfs]
        _refuse_one_address_for_many(call, networks)
        planned = []
        for number, (vf, network) in enumerate(zip(vfs, networks, strict=True)):
            planned.append(self._wanted(call, vf.pci, network, number, len(vfs)))
            self._refuse_beyond([vf.pool], planned[-1])
        return tuple(planned)

    def add(self, call: CniCall, wanted: Sequence[Wanted], netns_fd: int) -> Result:
        """Attach all, or none. Raises SriovError with everything as it was before."""
        assert call.ifname is not None
        keys = {one.key for one in wanted}
        for standing in self._attacher.attachments_of(call.container_id, call.ifname):
            if standing.key not in keys:  # of an ADD before, for which the kubelet had other VFs
                self._attacher.delete(standing.container_id, standing.ifname, netns_fd)
        try:
            return merge_results([self._attacher.add(one, netns_fd) for one in wanted])
        except BaseException:
            if len(wanted) > 1:  # what cannot be taken back stays on record for DEL
                with suppress(SriovError):
                    self.delete(call, netns_fd)
            raise

    def delete(self, call: CniCall, netns_fd: int | None) -> bool:
        """Take back everything of this container that came by this interface name, past errors. Raises the
        first of them. False: there was nothing."""
        assert call.ifname is not None
        records = self._attacher.attachments_of(call.container_id, call.ifname)
        failures: list[SriovError] = []
        for record in reversed(records):
            try:
                self._attacher.delete(record.container_id, record.ifname, netns_fd)
            except SriovError as e:
                failures.append(e)
        if failures:
            raise failures[0]
        return bool(records)

    def check(self, call: CniCall, netns_fd: int) -> None:
        """Raises CheckFailed with everything that is not as ADD left it, or what the IPAM says."""
        prev = call.conf.prev_result
        if prev is None:
            raise InvalidInput("prevResult", None, "the result of the ADD (CHECK needs it)")
        assert call.ifname is not None
        records = self._attacher.attachments_of(call.container_id, call.ifname)
        if not records or records[0].config != call.conf.name:
            raise CheckFailed(f"nothing of network {call.conf.name} is attached as {call.ifname} here")
        problems = [p for record in records for p in self._attacher.find_drift(record, prev, netns_fd)]
        if problems:
            raise CheckFailed("; ".join(problems))
        for record in records:
            self._attacher.check_ipam(record, self._ipam_of(call, record), netns_fd)

    def _ipam_of(self, call: CniCall, record: Attachment) -> IpamConf | None:
        """None if the agent's config has that network no more."""
        networks = [*self._networks, network_of_call(call)]
        network = next((one for one in networks if one.name == record.network), None)
        return network.ipam_conf(call, first=record.ifname == record.primary) if network else None

    def ask_ipam(self, call: CniCall) -> None:
        """STATUS of the addresses of every network. Raises NotReady."""
        self._attacher.ask_ipam(call.conf.name, call.conf.ipam)
        for network in self._networks:
            self._attacher.ask_ipam(network.name, network.ipam_conf(call, first=False))

    def _network_of(self, call: CniCall, pool: str) -> Network:
        named = networks_of_pool(self._networks, pool)
        return self._choose(call, pool, named) if named else network_of_call(call)

    def _refuse_beyond(self, pools: Iterable[str], wanted: Wanted) -> None:
        """By the limits of each of the pools. Raises Refused."""
        for pool in pools:
            if pool in self._limits:
                refuse_beyond(self._limits[pool], wanted.asked, pool)

    def _wanted(self, call: CniCall, vf: PciAddress, network: Network, number: int, count: int) -> Wanted:
        assert call.ifname is not None
        asked = _asked_of(call, network, number, count)
        return Wanted(
            config=call.conf.name,
            network=network.name,
            primary=call.ifname,
            container_id=call.container_id,
            ifname=_ifname_of(call.ifname, number),
            netns=call.netns,
            pod=call.pod,
            device=vf,
            asked=asked,
            ipam=network.ipam_conf(call, first=number == 0),
            dns=network.dns,
        )


def merge_results(results: Sequence[Result]) -> Result:
    """One result of several: interfaces one after the other, and the default route of the first alone."""
    first, *others = results
    interfaces, ips, routes = list(first.interfaces), list(first.ips), list(first.routes)
    for other in others:
        ips += [_shifted(ip, len(interfaces)) for ip in other.ips]
        interfaces += other.interfaces
        routes += [route for route in other.routes if not route.dst.endswith("/0")]
    return msgspec.structs.replace(
        first, interfaces=tuple(interfaces), ips=tuple(ips), routes=tuple(dict.fromkeys(routes))
    )


def _shifted(ip: IpConfig, by: int) -> IpConfig:
    return msgspec.structs.replace(ip, interface=None if ip.interface is None else ip.interface + by)


def _asked_of(call: CniCall, network: Network, number: int, count: int) -> Asked:
    asked, mac = network.asked, call.conf.asked.mac if number == 0 else None
    change = msgspec.structs.replace(asked.change, mac=mac)
    return msgspec.structs.replace(
        asked,
        change=change,
        mac=mac,
        device_info=call.conf.asked.device_info if number == 0 else None,
        table=_FIRST_TABLE + number if count > 1 else None,
        secondary=number > 0,
    )


def _ifname_of(first: IfName, number: int) -> IfName:
    """net1, net2, ... without the one that is taken by the call's own name."""
    if number == 0:
        return first
    names = (name for n in range(1, number + 2) if (name := f"net{n}") != first)
    return IfName([*names][number - 1])


def _refuse_one_address_for_many(call: CniCall, networks: Sequence[Network]) -> None:
    own = [network for network in networks if network == network_of_call(call)]
    if len(own) > 1 and isinstance(call.conf.ipam, StaticConf):
        raise InvalidInput(
            "ipam.type", "static", f"an IPAM with addresses for {len(own)} VFs, which this pod has of it"
        )
