"""Orchestrator: CHECK of one attachment: record, kernel and the runtime's prevResult must agree.

Only what this plugin made is looked at, and a plugin later in the chain may have changed what prevResult
says of it: where the two differ, prevResult is what is expected.
"""

import ipaddress

from sriov_cni.attachment import Asked, Attachment
from sriov_cni.ground import Ground
from sriov_cni.host_link.plan import linked_of
from sriov_cni.host_link.step import find_link_drift
from sriov_cni.in_pod.step import missing_rules
from sriov_cni.ipam.config import IpamResult
from sriov_cni.routes import plan_routes
from sriov_cni.spec import Interface, Result
from vf_manager.discovery import read_vf
from vf_manager.kernel.api import Links, RouteSpec
from vf_manager.model import Netdev
from vf_manager.vf_attributes import difference

_MAIN_TABLE = 254  # RT_TABLE_MAIN, rtnetlink.h


def find_drift(record: Attachment, prev: Result, ground: Ground) -> list[str]:
    """One line for each thing that is not as it should be; empty if all is well."""
    made = record.result
    if made is None or ground.pod is None:
        return ["the attachment was never finished" if made is None else "the pod's namespace is gone"]
    problems = _attribute_drift(record, ground)
    if record.original.netdev is None:  # a userspace driver has the VF
        return problems
    netdev = ground.in_pod(record.port.pci)
    if netdev is None:
        return [*problems, f"VF {record.port.pci} is not in the pod"]
    mine = _own_interface(prev, record)
    if netdev.name != record.ifname:
        problems.append(f"the interface of VF {record.port.pci} is called {netdev.name}, not {record.ifname}")
    problems += _link_drift(netdev, mine or made.interfaces[0], made.interfaces[0])
    if (linked := linked_of(record)) is not None:
        problems += find_link_drift(ground, linked, given_by(made))
    if (missing := missing_rules(record, ground)) is not None:
        problems.append(f"the rules for {missing.ruled.options.describe()} are missing")
    problems += _address_drift(prev, made, mine, ground.pod.addresses(netdev.ifindex))
    return problems + _route_drift(prev, made, record.asked, ground.pod, netdev)


def _attribute_drift(record: Attachment, ground: Ground) -> list[str]:
    if record.asked.change.is_empty() or record.port.pf is None:  # then the MAC is the interface's alone
        return []
    now = read_vf(ground.kernel, ground.host, record.port.pci).attributes
    if now is None:
        return [f"PF {record.port.pf} does not answer for its VFs"]
    wrong = dict(difference(now, record.asked.change).items())
    asked = [key for key, value in record.asked.change.items() if key in wrong and getattr(now, key) != value]
    return [f"{key} of the VF is {getattr(now, key)}, not {wrong[key]}" for key in asked]


def _link_drift(netdev: Netdev, expected: Interface, made: Interface) -> list[str]:
    mac, mtu = expected.mac or made.mac, expected.mtu or made.mtu
    problems = [] if netdev.up else [f"{netdev.name} is down"]
    if netdev.mac != mac:
        problems.append(f"mac of {netdev.name} is {netdev.mac}, not {mac}")
    if netdev.mtu != mtu:
        problems.append(f"mtu of {netdev.name} is {netdev.mtu}, not {mtu}")
    return problems


def _address_drift(prev: Result, made: Result, mine: Interface | None, present: list[str]) -> list[str]:
    index = prev.interfaces.index(mine) if mine else None
    listed = {_cidr(ip.address) for ip in prev.ips if ip.interface in (None, index)}
    wanted = [ip.address for ip in made.ips if _cidr(ip.address) in listed]
    there = {_cidr(address) for address in present}
    return [f"address {address} is missing" for address in wanted if _cidr(address) not in there]


def _route_drift(prev: Result, made: Result, asked: Asked, pod: Links, netdev: Netdev) -> list[str]:
    listed = {_cidr(route.dst) for route in prev.routes}
    present = {_route_key(route) for route in pod.routes(netdev.ifindex)}
    planned = plan_routes(given_by(made), asked)
    wanted = [route for route in planned if _cidr(route.dst) in listed]
    return [
        f"route {route.dst}{f' via {route.gateway}' if route.gateway else ''} is missing"
        for route in wanted
        if _route_key(route) not in present
    ]


def given_by(made: Result) -> IpamResult:
    """What the IPAM gave when that result was made."""
    return IpamResult(ips=made.ips, routes=made.routes)


def _own_interface(prev: Result, record: Attachment) -> Interface | None:
    named = (record.ifname, record.sandbox.path)
    return next((i for i in prev.interfaces if (i.name, i.sandbox) == named), None)


def _route_key(route: RouteSpec) -> tuple[str, str | None, int]:
    gateway = str(ipaddress.ip_address(route.gateway)) if route.gateway else None
    return _cidr(route.dst), gateway, route.table or _MAIN_TABLE


def _cidr(text: str) -> str:
    """One spelling for each address: IPv6 has many. What is none stays as it is, and is found nowhere."""
    try:
        return str(ipaddress.ip_interface(text))
    except ValueError:
        return text
