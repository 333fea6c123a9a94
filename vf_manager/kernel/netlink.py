"""Adapter: a netlink socket: requests, answers, dumps and the kernel's words when it refuses.

Sources: man 7 netlink, net/netlink/af_netlink.c (netlink_dump, netlink_ack), include/uapi/linux/netlink.h.
Written by hand, since this is what most of the agent's work on an ADD consists of: a library that describes
every message in full took several times longer to make one than the kernel to answer it.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence

from vf_manager.kernel import attributes
from vf_manager.kernel.meter import Meter

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _MULTI, _ACK, _DUMP_INTR, _DUMP = 0x1, 0x2, 0x4, 0x10, 0x300
_CAPPED, _ACK_TLVS = 0x100, 0x200
_NLMSGERR_ATTR_MSG = 1
_SOL_NETLINK, _CAP_ACK, _EXT_ACK, _GET_STRICT_CHK = 270, 10, 11, 12
_MSG_TRUNC = int(socket.MSG_TRUNC)  # a flag of `socket` is an enum, slow to compute with
_MSG_DONTWAIT = int(socket.MSG_DONTWAIT)
BUFFER_SIZE = (
    128 * 1024
)  # a link with its VFs is one message, and its list of VFs one attribute: 64 KiB at most
_DUMP_ATTEMPTS = 8
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h
_SEND_BUFFER = 64 * 1024

CREATE = 0x400 | 0x200  # NLM_F_CREATE | NLM_F_EXCL
REPLACE = 0x400 | 0x100  # NLM_F_CREATE | NLM_F_REPLACE


class NetlinkRefusal(Exception):
    """The kernel's answer is an error. `said`: its own words (extended ack), "" if it has none."""

    def __init__(self, code: int, said: str = "") -> None:
        super().__init__(code, said)
        self.code = code
        self.said = said


class BatchRefusal(NetlinkRefusal):
    """`index`: of the request that was refused."""

    def __init__(self, code: int, said: str, index: int) -> None:
        super().__init__(code, said)
        self.index = index


def open_socket(protocol: int = socket.NETLINK_ROUTE) -> int:
    """A descriptor of a socket in the calling thread's namespace, which it stays in for its life."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    for option in (_CAP_ACK, _EXT_ACK, _GET_STRICT_CHK):
        made.setsockopt(_SOL_NETLINK, option, 1)
    return made.detach()


class Netlink:
    """For one thread at a time. The payloads that it takes and gives are without the netlink header."""

    def __init__(self, fd: int, meter: Meter | None = None) -> None:
        self._meter = meter or Meter()
        # The protocol is the descriptor's own, whatever is said here; left out, it would be asked for.
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE, fileno=fd)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def change(self, kind: int, payload: bytes, flags: int = 0) -> None:
        """A request that is answered by a bare acknowledgement. Raises NetlinkRefusal."""
        self._send(kind, _ACK | flags, payload)
        for _ in self._answer():
            pass

    def get(self, kind: int, payload: bytes) -> bytes:
        """A request for one object. Raises NetlinkRefusal."""
        self._send(kind, 0, payload)
        for found, _ in self._answer():
            return found
        raise NetlinkRefusal(errno.EPROTO, "an acknowledgement came instead of an answer")

    def dump(self, kind: int, payload: bytes) -> list[bytes]:
        """A request for a list of objects, made again if they changed while it was put together. Raises
        NetlinkRefusal; EAGAIN if they change each time."""
        for _ in range(_DUMP_ATTEMPTS):
            self._send(kind, _DUMP, payload)
            answer = list(self._answer())
            if not any(flags & _DUMP_INTR for _, flags in answer):
                return [found for found, _ in answer if found]
        raise NetlinkRefusal(errno.EAGAIN, "they kept changing meanwhile")

    def batch(self, requests: Sequence[tuple[int, int, bytes]]) -> None:
        """Requests (kind, flags, payload) as one datagram, done whole or not at all. When it is sent the
        kernel is through with it and has told what it refuses, and nothing else (nfnetlink.c
        nfnetlink_rcv_batch, nfnl_err_deliver). Raises BatchRefusal for the first."""
        first = self._sequence + 1
        self._sequence += len(requests)
        self._meter.netlink_requests += 1
        parts: list[bytes] = []
        for sequence, (kind, flags, payload) in enumerate(requests, start=first):
            header = (16 + len(payload), kind, _REQUEST | flags, sequence & 0xFFFFFFFF, 0)
            parts += (_HEADER.pack(*header), payload)
        datagram = b"".join(parts)
        self._make_room(len(datagram))
        self._socket.send(datagram)
        for kind, flags, sequence, payload in self._waiting():
            index = (sequence - first) & 0xFFFFFFFF
            if kind == _NLMSG_ERROR and index < len(requests):
                try:
                    _raise_refusal(kind, flags, payload)
                except NetlinkRefusal as e:
                    raise BatchRefusal(e.code, e.said, index) from None

    def _make_room(self, size: int) -> None:
        """A datagram longer than the buffer for sending is refused (EMSGSIZE). The kernel doubles what it is
        asked for (man 7 socket), which leaves room for what it needs itself."""
        if size > _SEND_BUFFER:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)

    def _waiting(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Every message that has come already."""
        while True:
            try:
                data, _, _, sender = self._socket.recvmsg(BUFFER_SIZE, 0, _MSG_DONTWAIT)
            except BlockingIOError:
                return
            if sender[0] == 0:
                yield from split_messages(data)

    def _send(self, kind: int, flags: int, payload: bytes) -> None:
        self._sequence += 1
        self._meter.netlink_requests += 1
        header = _HEADER.pack(16 + len(payload), kind, _REQUEST | flags, self._sequence & 0xFFFFFFFF, 0)
        self._socket.send(header + payload)

    def _answer(self) -> Iterator[tuple[bytes, int]]:
        """(payload, flags) of each message, up to the end of the answer. The message that ends a dump comes
        with an empty payload: it may be the one that says that the dump was interrupted."""
        while True:
            for kind, flags, sequence, payload in split_messages(self._receive()):
                if sequence != self._sequence & 0xFFFFFFFF:
                    continue  # of a request that was given up
                if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    _raise_refusal(kind, flags, payload)
                    if kind == _NLMSG_DONE:
                        yield b"", flags
                    return
                yield payload, flags
                if not flags & _MULTI:
                    return

    def _receive(self) -> bytes:
        data, _, flags, sender = self._socket.recvmsg(BUFFER_SIZE)
        if flags & _MSG_TRUNC:
            raise NetlinkRefusal(errno.EMSGSIZE, f"the answer is longer than {BUFFER_SIZE} bytes")
        return data if sender[0] == 0 else b""  # only the kernel has port 0


def split_messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Pure: (type, flags, sequence, payload) of each message in one datagram."""
    start, end = 0, len(data)
    while start + 16 <= end:
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, start)
        if length < 16 or start + length > end:
            raise NetlinkRefusal(errno.EPROTO, f"a message of {length} bytes in {end - start}")
        yield kind, flags, sequence, data[start + 16 : start + length]
        start += (length + 3) & ~3


def _raise_refusal(kind: int, flags: int, payload: bytes) -> None:
    """Unless the code is 0. A dump that fails half-way says so in the message that ends it."""
    code = -attributes.s32(payload) if len(payload) >= 4 else 0
    if code > 0:
        raise NetlinkRefusal(
            code, _words(payload, 4 if kind == _NLMSG_DONE else _end_of_error(flags, payload), flags)
        )


def _end_of_error(flags: int, payload: bytes) -> int:
    """Where the attributes of struct nlmsgerr begin: behind the header of the request, and behind all of it
    where the kernel did not cap it."""
    if flags & _CAPPED:
        return 20
    (length,) = struct.unpack_from("=I", payload, 4)
    return 4 + ((int(length) + 3) & ~3)


def _words(payload: bytes, start: int, flags: int) -> str:
    if not flags & _ACK_TLVS:
        return ""
    said = attributes.read(payload, start).get(_NLMSGERR_ATTR_MSG)
    return attributes.text(said) if said else ""


def strerror_or(said: str, code: int, otherwise: str) -> str:
    """The kernel's words if they say more than the number does."""
    return said if said and said != os.strerror(code) else otherwise
