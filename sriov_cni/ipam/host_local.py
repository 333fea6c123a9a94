"""Orchestrator: addresses from ranges, leased in a directory of this node.

May serve a network side by side with the reference host-local plugin: see `lease_dir` for the format.
"""

from contextlib import ExitStack

from sriov_cni.ipam.config import HostLocalConf, IpamResult, Valid
from sriov_cni.ipam.lease_dir import LeaseDir, Leases
from sriov_cni.ipam.ranges import AddressRange, RangeSet, parse_address
from sriov_cni.ipam.resolv_conf import read_resolv_conf
from sriov_cni.spec import Dns, IpConfig, NotReady
from vf_manager.errors import Busy, Exhausted, NotFound


class HostLocal:
    def __init__(self, conf: HostLocalConf, *, network: str, directory: LeaseDir) -> None:
        self._conf = conf
        self._network = network
        self._directory = directory

    def add(self, container_id: str, ifname: str) -> IpamResult:
        """One address per range set, all or none; those that the caller holds already are given again.

        Raises Exhausted, Busy (a requested address is taken, or the lock is), KernelError.
        """
        dns = read_resolv_conf(self._conf.resolv_conf) if self._conf.resolv_conf else Dns()
        owner = _owner(container_id, ifname)
        with self._directory.locked() as leases, ExitStack() as undo:
            leases.sweep()
            held = leases.owned_by(owner)
            ips = tuple(
                self._held(range_set, held) or self._lease(leases, index, owner, undo)
                for index, range_set in enumerate(self._conf.range_sets)
            )
            undo.pop_all()
        return IpamResult(ips=ips, routes=self._conf.routes, dns=dns)

    def delete(self, container_id: str, ifname: str) -> None:
        """Release what the caller holds. Nothing held is success; past an error the rest is released too."""
        if not self._directory.exists():
            return
        owner = _owner(container_id, ifname)
        with self._directory.locked() as leases, ExitStack() as releases:
            held = [(name, owner) for name in leases.owned_by(owner)]
            held = held or [(name, owner) for name in leases.owned_by(owner, use_cache=False)]
            # Old versions of the reference plugin wrote the container id alone.
            held = held or [(name, container_id) for name in leases.owned_by(container_id)]
            for name, content in held:
                releases.callback(leases.remove, name, content)

    def check(self, container_id: str, ifname: str) -> None:
        """Raises NotFound unless the caller holds an address of every range set."""
        held: list[str] = []
        if self._directory.exists():
            with self._directory.locked() as leases:
                held = leases.owned_by(_owner(container_id, ifname))
        for range_set in self._conf.range_sets:
            if self._held(range_set, held) is None:
                wanted = f"{container_id} {ifname} holds no address of {range_set}"
                raise NotFound(f"network {self._network}: {wanted}")

    def keep_only(self, valid: Valid) -> None:
        """Release every lease of this network, ours or the reference plugin's, whose owner is not valid."""
        if not self._directory.exists():
            return
        with self._directory.locked() as leases, ExitStack() as releases:
            entries = valid()
            owners = {_owner(*entry) for entry in entries} | {container_id for container_id, _ in entries}
            for name, content in leases.owners(use_cache=False).items():
                if content not in owners:
                    releases.callback(leases.remove, name, content)

    def status(self) -> None:
        """Raises NotReady if a range has no free address, after a look for leases that nobody holds."""
        if not self._directory.exists():
            return
        with self._directory.locked() as leases:
            for force in (False, True):
                leases.sweep(force=force)
                full = [str(range_set) for range_set in self._conf.range_sets if _is_full(leases, range_set)]
                if not full:
                    return
        raise NotReady(f"network {self._network}: no free address in {'; '.join(full)}")

    def _held(self, range_set: RangeSet, held: list[str]) -> IpConfig | None:
        for name in held:
            address = parse_address(name)
            span = range_set.range_of(address) if address else None
            if span and range_set.requested in (None, address):
                return _ip_config(name, span)
        return None

    def _lease(self, leases: Leases, index: int, owner: str, undo: ExitStack) -> IpConfig:
        range_set = self._conf.range_sets[index]
        if range_set.requested is not None:
            name, span = self._take_requested(leases, range_set, owner, undo)
        else:
            name, span = self._take_next(leases, index, owner, undo)
        leases.write_last(index, name)
        return _ip_config(name, span)

    def _take_requested(
        self, leases: Leases, range_set: RangeSet, owner: str, undo: ExitStack
    ) -> tuple[str, AddressRange]:
        name = str(range_set.requested)
        span = range_set.range_of(range_set.requested) if range_set.requested else None
        if span is None or not _take(leases, name, owner, undo):
            raise Busy(f"network {self._network}: the requested address {name} is not free")
        return name, span

    def _take_next(self, leases: Leases, index: int, owner: str, undo: ExitStack) -> tuple[str, AddressRange]:
        """The next free address; if there is none, again after a sweep, which may find empty files."""
        range_set = self._conf.range_sets[index]
        last = parse_address(leases.read_last(index))
        for attempt in range(2):
            if attempt:
                leases.sweep(force=True)
            for name, span in range_set.candidates(last):
                if _take(leases, name, owner, undo):
                    return name, span
        raise Exhausted(f"network {self._network}: no free address in {range_set}")


def _take(leases: Leases, name: str, owner: str, undo: ExitStack) -> bool:
    """The undo is there before the lease: it removes what is the owner's, and only that."""
    if name in leases:
        return False
    undo.callback(leases.remove, name, owner)
    return leases.publish(name, owner)


def _is_full(leases: Leases, range_set: RangeSet) -> bool:
    return all(name in leases for name, _ in range_set.candidates(None))


def _owner(container_id: str, ifname: str) -> str:
    return f"{container_id}\r\n{ifname}"


def _ip_config(name: str, span: AddressRange) -> IpConfig:
    return IpConfig(address=span.with_prefix(name), gateway=str(span.gateway))
