"""What nobody sends a DEL for, on real drivers: found by itself and put back; what lives is left alone."""

from hw_tests.nics import ip, wait_until
from hw_tests.node import Node
from hw_tests.runtime import host_local, network
from hw_tests.snapshot import Snapshot, wait_for_same
from hw_tests.stage import Stage

CONF = network(
    "net",
    vlan=100,
    trust="on",
    mtu=1400,
    mac="02:00:00:00:cd:31",
    ipam=host_local({"subnet": "198.18.6.0/24"}),
)
_TWO_LOOKS_S = 120.0


def test_a_pod_gone_without_a_del_and_attributes_changed_by_hand(
    node: Node, stage: Stage, before: Snapshot
) -> None:
    """The first pod's namespace goes, and the kernel gives its VF back under the pod's name. The second pod
    lives; somebody changes the VLAN of its VF, which is said and not touched."""
    nic, start = node.nics[0], node.log.stat().st_size
    gone, lives = stage.pod("gone"), stage.pod("lives")
    stage.attach(gone, CONF, stage.allocate(gone, nic))
    vf = stage.allocate(lives, nic)
    answer = stage.attach(lives, CONF | {"mac": "02:00:00:00:cd:32"}, vf)
    ip("link", "set", nic.name, "vf", str(nic.vf_addresses().index(vf)), "vlan", "7")
    gone.destroy()

    wait_until(lambda: len(node.records()) == 1, "end of the lost attachment", _TWO_LOOKS_S)
    assert node.leases() == [f"net/{answer.address}"]

    def told() -> list[str]:
        return [
            event["found"] for event in node.log_events(start) if event.get("vf") == vf and "found" in event
        ]

    wait_until(lambda: told() == ["vlan 7 instead of 100"], "word of the changed VLAN", _TWO_LOOKS_S)
    stage.detach(lives)
    stage.detach(gone)
    assert wait_for_same(before, node.nics) == []
