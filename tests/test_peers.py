"""Whom a policy finds by the addresses that the API server tells."""

from sriov_cni.in_pod.objects import Cluster, Meta, Namespace, Pod, PodIp, PodStatus
from sriov_cni.in_pod.peers import PeerIndex


def test_a_pod_with_something_that_is_no_address_is_no_peer_by_it() -> None:
    """A NUL, too, for which the C library's wrapper has an error of its own."""
    ips = tuple(PodIp(ip=text) for text in ("10.0.0.1\0", "nonsense", "", "10.0.0.2", "2001:DB8::1"))
    pod = Pod(metadata=Meta(name="a", namespace="x"), status=PodStatus(phase="Running", pod_ips=ips))
    cluster = Cluster(pods={"x/a": pod}, namespaces={"x": Namespace(metadata=Meta(name="x"))})
    assert PeerIndex(cluster).addresses(frozenset({"x/a"})) == {"10.0.0.2", "2001:db8::1"}
