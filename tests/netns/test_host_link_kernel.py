"""What host links rely on, by the running kernel. It need have no 802.1q: VLANs are tried in hw_tests."""

from tests.host_link_contract import HostLinkContract


class TestContract(HostLinkContract):
    """The spare link is one end of a veth pair."""
