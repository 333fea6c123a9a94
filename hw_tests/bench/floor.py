"""Adapter: the least that the kernel can be asked for: move and rename, address, up, route, each one message.

Packed by hand and sent by a process that is warm, over sockets that are open: nothing of the project is in
between, and what is measured is the kernel. man 7 netlink, man 7 rtnetlink.
"""

import ctypes
import os
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

_NEWLINK, _GETLINK, _NEWADDR, _NEWROUTE = 16, 18, 20, 24
_REQUEST, _ACK, _CREATE_EXCL = 0x1, 0x4, 0x600
_IFLA_IFNAME, _IFLA_NET_NS_FD, _IFA_ADDRESS, _IFA_LOCAL, _RTA_OIF, _RTA_GATEWAY = 3, 28, 1, 2, 4, 5
_IFF_UP = 1
_CLONE_NEWNET = 0x40000000

Parts = list[tuple[str, float]]


@dataclass
class FloorSocket:
    """An rtnetlink socket in the namespace at `path`, or in the caller's own."""

    path: Path | None = None
    _socket: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        if self.path is None:
            self._open()
            return
        thread = threading.Thread(target=self._open_inside, args=(self.path,))
        thread.start()
        thread.join()

    def close(self) -> None:
        self._socket.close()

    def ifindex(self, name: str) -> int:
        body = _ifinfo(0) + _attribute(_IFLA_IFNAME, name.encode() + b"\0")
        return int(struct.unpack_from("=i", self.ask(_GETLINK, 0, body), 20)[0])

    def move(self, ifindex: int, netns_fd: int, name: str) -> None:
        attributes = _attribute(_IFLA_NET_NS_FD, struct.pack("=I", netns_fd))
        attributes += _attribute(_IFLA_IFNAME, name.encode() + b"\0")
        self.ask(_NEWLINK, _ACK, _ifinfo(ifindex) + attributes)

    def set_up(self, ifindex: int) -> None:
        self.ask(_NEWLINK, _ACK, _ifinfo(ifindex, _IFF_UP))

    def add_address(self, ifindex: int, address: str, prefix: int) -> None:
        packed = socket.inet_aton(address)
        head = struct.pack("=BBBBI", socket.AF_INET, prefix, 0, 0, ifindex)
        body = head + _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
        self.ask(_NEWADDR, _ACK | _CREATE_EXCL, body)

    def add_default_route(self, ifindex: int, gateway: str) -> None:
        main, static, universe, unicast = 254, 4, 0, 1
        head = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, main, static, universe, unicast, 0)
        oif, via = struct.pack("=i", ifindex), socket.inet_aton(gateway)
        self.ask(
            _NEWROUTE, _ACK | _CREATE_EXCL, head + _attribute(_RTA_OIF, oif) + _attribute(_RTA_GATEWAY, via)
        )

    def ask(self, kind: int, flags: int, body: bytes) -> bytes:
        """One request and its answer. Raises OSError."""
        self._socket.send(struct.pack("=IHHII", 16 + len(body), kind, flags | _REQUEST, 1, 0) + body)
        answer = self._socket.recv(65536)
        if struct.unpack_from("=H", answer, 4)[0] == 2:  # NLMSG_ERROR, also an ack
            code = -struct.unpack_from("=i", answer, 16)[0]
            if code:
                raise OSError(code, f"floor: {os.strerror(code)}")
        return answer

    def _open_inside(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {path}")
        os.close(fd)
        self._open()

    def _open(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))


class Watch:
    """Splits the time of a call into parts."""

    def __init__(self) -> None:
        self.parts: Parts = []
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.parts.append((name, (now - self._last) * 1000))
        self._last = now


def floor_add(
    host: FloorSocket, pod: FloorSocket, ifindex: int, pod_fd: int, name: str, ip: str, gateway: str
) -> Parts:
    watch = Watch()
    host.move(ifindex, pod_fd, name)
    watch.lap("move and rename")
    inside = pod.ifindex(name)
    watch.lap("look up in the pod")
    pod.add_address(inside, ip, 24)
    watch.lap("address")
    pod.set_up(inside)
    watch.lap("up")
    pod.add_default_route(inside, gateway)
    watch.lap("route")
    return watch.parts


def floor_delete(pod: FloorSocket, host_fd: int, name: str, host_name: str) -> Parts:
    watch = Watch()
    inside = pod.ifindex(name)
    watch.lap("look up in the pod")
    pod.move(inside, host_fd, host_name)
    watch.lap("move back and rename")
    return watch.parts


def _ifinfo(ifindex: int, flags: int = 0) -> bytes:
    return struct.pack("=BBHiII", socket.AF_UNSPEC, 0, 0, ifindex, flags, flags)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
