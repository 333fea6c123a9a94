"""Counters of links in pods, on the running kernel."""

import os
import subprocess

from node_agent.vf_traffic import VfTraffic, read_traffic
from sriov_cni.attachment import Attachment, Original, Sandbox, State
from sriov_cni.spec import Interface, Result
from tests.kernel_contract import Space
from tests.netns.namespaces import LinuxWorld, add_veth, ip
from vf_manager.kernel.netns import Netns
from vf_manager.model import IfName, Inventory, Mac, Netdev, PciAddress
from vf_manager.vf_attributes import VfPort

VF = PciAddress("0000:01:10.0")
MAC = Mac("02:00:00:00:00:01")


def attachment(space: Space, ifname: str = "net1", vf: PciAddress = VF) -> Attachment:
    netns = Netns(space.fd)
    netns_id = netns.id
    netns.close()
    return Attachment(
        state=State.ATTACHED,
        config="underlay",
        network="underlay",
        primary=IfName(ifname),
        container_id="c1",
        ifname=IfName(ifname),
        sandbox=Sandbox(path=space.path, id=netns_id),
        port=VfPort(pci=vf, pf=None, index=0),
        original=Original(netdev=Netdev(ifindex=7, name=IfName("spare0"), mac=MAC, mtu=1500)),
        result=Result(interfaces=(Interface(name=ifname, mac=MAC, sandbox=space.path),)),
    )


def ping(space: Space, address: str) -> None:
    """Somebody sends through the pod's interface."""
    send = "import socket, sys; s = socket.socket(2, 2); s.sendto(bytes(1000), (sys.argv[1], 9))"
    command = ["nsenter", f"--net={space.path}", "python3", "-c", send, address]
    subprocess.run(command, check=True, env={"PATH": os.environ["PATH"]})


def test_a_pods_link_is_read_in_its_namespace(world: LinuxWorld) -> None:
    space = world.new_space()
    add_veth("far0", "net1", peer_space=space)
    ip("link", "set", "far0", "up")
    ip("link", "set", "net1", "up", space=space)
    ip("address", "add", "10.0.0.1/24", "dev", "net1", space=space)
    ip("neigh", "add", "10.0.0.2", "lladdr", MAC, "dev", "net1", space=space)
    before = read_traffic(world.kernel, Inventory(), [attachment(space)])[VF]
    ping(space, "10.0.0.2")
    after = read_traffic(world.kernel, Inventory(), [attachment(space)])[VF]
    assert after.name == "net1"
    assert after.tx_packets > before.tx_packets
    assert after.tx_bytes - before.tx_bytes >= 1042


def test_what_is_not_the_pods_any_more_is_left_out(world: LinuxWorld) -> None:
    gone, other = world.new_space(), world.new_space()
    records = [attachment(gone, "lo"), attachment(other, "net7", PciAddress("0000:01:10.2"))]
    assert set(read_traffic(world.kernel, Inventory(), records)) == {VF}
    world.delete_space(gone)
    assert read_traffic(world.kernel, Inventory(), records) == {}


def test_however_often_it_is_asked_the_kernel_is_asked_now_and_then(world: LinuxWorld) -> None:
    now = 100.0
    traffic = VfTraffic(world.kernel, clock=lambda: now)
    record = attachment(world.new_space(), "lo")
    first = traffic.read(Inventory(), [record])
    assert traffic.read(Inventory(), []) is first
    now += 5.0
    assert traffic.read(Inventory(), []) == {}
