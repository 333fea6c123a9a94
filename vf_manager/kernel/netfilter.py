"""Adapter: a socket to netfilter in one network namespace, open no longer than a call: it would keep the
namespace from going, and its VF from coming back."""

from collections.abc import Callable
from typing import TypeVar

from vf_manager.kernel.meter import Meter
from vf_manager.kernel.netlink import Netlink, open_socket
from vf_manager.kernel.netns import Netns

NETLINK_NETFILTER = 12

Answer = TypeVar("Answer")


def inside(netns: Netns, ask: Callable[[Netlink], Answer], meter: Meter) -> Answer:
    """Asked over a socket in that namespace. To close any such socket may take the kernel some 10 ms, after
    something of nftables was deleted; nobody waits for that (nft_rcv_nl_event)."""

    def call() -> tuple[Netlink, Answer]:
        netlink = Netlink(open_socket(NETLINK_NETFILTER), meter)
        try:
            return netlink, ask(netlink)
        except BaseException:
            netlink.close()
            raise

    return netns.run(call, afterwards=lambda result: result[0].close())[1]
