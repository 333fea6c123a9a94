"""Hosts on one network segment, each a namespace, and packets between all of them.

Who got what is known without waiting for what does not come. The thread stays on one CPU, whose queue hands
packets on in the order in which they were sent, whatever way they take (net/core/dev.c,
enqueue_to_backlog); so what has not arrived when a marker has, which was sent later, was dropped.
"""

import errno
import os
import selectors
import socket
import struct
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle
from types import TracebackType
from typing import NamedTuple, Self

from tests.kernel_contract import Space
from tests.netns.namespaces import LinuxWorld, add_veth, entered, ip, private_host

PORTS = (80, 81)
_MARKER_PORT = 9
_MARKERS = 7  # each takes a hop at least; a handshake takes three ways of two
_DEADLINE_S = 5.0
_AGAIN_S = 0.2  # until a marker that has not come is sent once more
_ABORT = struct.pack("ii", 1, 0)  # struct linger: a connection ends at once, and leaves nothing behind


class Call(NamedTuple):
    source: str
    destination: str
    proto: str  # TCP or UDP
    port: int


class Segment:
    """The first host is the namespace that has the bridge; the others have `net1`. Each has all of its
    addresses, and finds every other host on the link."""

    def __init__(self, hosts: Mapping[str, Sequence[str]]) -> None:
        self._hosts = hosts
        self._first = next(iter(hosts))
        self.spaces: dict[str, Space] = {}
        self._selector = selectors.DefaultSelector()
        self._round = 0
        self._ports: defaultdict[str, Iterator[int]] = defaultdict(_fresh_ports)
        self._got: set[Call] = set()
        self._marked: set[str] = set()
        self._asked: dict[tuple[str, int, str, int], Call] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.cpus = stack.enter_context(_one_cpu())
            stack.enter_context(private_host())
            stack.enter_context(self._selector)
            self._home = Space(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC), "")
            stack.callback(os.close, self._home.fd)
            self._wire(stack.enter_context(LinuxWorld()))
            for host in self._hosts:
                with entered(self.space(host)):
                    self._serve(host, stack)
            self._wait_until_up()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def space(self, host: str) -> Space:
        return self.spaces.get(host, self._home)

    def _wire(self, world: LinuxWorld) -> None:
        ip("link", "add", "bridge0", "address", _mac(0), "type", "bridge")
        self._configure(self._home, "bridge0", self._first)
        for at, host in enumerate(list(self._hosts)[1:], 1):
            space = self.spaces[host] = world.new_space()
            add_veth(f"port{at}", "net1", peer_space=space)
            ip("link", "set", f"port{at}", "master", "bridge0", "up")
            ip("link", "set", "net1", "address", _mac(at), space=space)
            self._configure(space, "net1", host)

    def _configure(self, space: Space, interface: str, host: str) -> None:
        """Neighbours are known: a packet that waits for one would be overtaken by the marker."""
        lines = ["link set lo up", f"link set {interface} up"]
        for at, (other, addresses) in enumerate(self._hosts.items()):
            for address in addresses:
                length, nodad = ("128", "nodad") if ":" in address else ("32", "")
                if other == host:
                    lines.append(f"address add {address}/{length} dev {interface} {nodad}")
                else:
                    lines.append(f"route add {address}/{length} dev {interface}")
                    lines.append(f"neigh add {address} lladdr {_mac(at)} dev {interface} nud permanent")
        enter = ["nsenter", f"--net={space.path}"] if space.path else []
        subprocess.run([*enter, "ip", "-batch", "-"], input="\n".join(lines).encode(), check=True)

    def _serve(self, host: str, stack: ExitStack) -> None:
        for address in self._hosts[host]:
            for port in (*PORTS, _MARKER_PORT):
                receiver = stack.enter_context(_bound(address, socket.SOCK_DGRAM, port))
                self._selector.register(receiver, selectors.EVENT_READ, (address, "UDP", port))
            for port in PORTS:
                listener = stack.enter_context(_bound(address, socket.SOCK_STREAM, port))
                listener.listen(1024)
                self._selector.register(listener, selectors.EVENT_READ, (address, "TCP", port))

    def _wait_until_up(self) -> None:
        """A link that has just been set up drops what it is given, until a worker of the kernel has seen that
        it has a carrier (net/core/link_watch.c)."""
        firsts = self._hosts[self._first]
        others = [address for host in self.spaces for address in self._hosts[host]]
        pairs = [(own, other) for own in firsts for other in others if (":" in own) == (":" in other)]
        calls = {Call(*ends, "UDP", PORTS[0]) for pair in pairs for ends in (pair, pair[::-1])}
        deadline = time.monotonic() + _DEADLINE_S
        while self.ask(calls) != calls:
            assert time.monotonic() < deadline, "the links do not come up"

    # -- questions

    def ask(self, calls: Iterable[Call]) -> set[Call]:
        """Makes all of these calls at once; those that arrived, from the address that made them."""
        self._round += 1
        self._got, self._asked = set(), {}
        by_source: defaultdict[str, list[Call]] = defaultdict(list)
        for call in calls:
            by_source[call.source].append(call)
        with ExitStack() as opened:
            for host, addresses in self._hosts.items():
                with entered(self.space(host)):
                    for address in addresses:
                        self._call(address, by_source[address], opened)
            with entered(self._home):
                for number in range(_MARKERS):
                    self._mark(number)
            return self._got

    def _call(self, source: str, calls: list[Call], opened: ExitStack) -> None:
        ports = self._ports[source]
        sender = opened.enter_context(_bound(source, socket.SOCK_DGRAM, next(ports)))
        for call in calls:
            if call.proto == "UDP":
                self._note(sender, call)
                _send(sender, f"{self._round}", (call.destination, call.port))
            else:
                caller = opened.enter_context(_bound(source, socket.SOCK_STREAM, next(ports)))
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
                self._note(caller, call)
                assert caller.connect_ex((call.destination, call.port)) in (errno.EINPROGRESS, errno.EPERM)

    def _note(self, socket_: socket.socket, call: Call) -> None:
        address, port = socket_.getsockname()[:2]
        self._asked[address, port, call.destination, call.port] = call

    def _mark(self, number: int) -> None:
        """From the first host, which may send to every other whatever policies they have."""
        self._marked = set()
        missing = {address for host in self.spaces for address in self._hosts[host]}
        deadline = time.monotonic() + _DEADLINE_S
        while missing:
            self._send_markers(f"{self._round}.{number}", missing)
            while ready := self._selector.select(0 if missing <= self._marked else _AGAIN_S):
                for key, _ in ready:
                    assert isinstance(key.fileobj, socket.socket)
                    self._receive(key.fileobj, *key.data, marker=f"{self._round}.{number}")
            missing -= self._marked
            assert time.monotonic() < deadline, f"no marker comes to {missing}"

    def _send_markers(self, text: str, to: set[str]) -> None:
        for own in self._hosts[self._first]:
            with _bound(own, socket.SOCK_DGRAM, 0) as sender:
                for address in to:
                    if (":" in address) == (":" in own):
                        _send(sender, text, (address, _MARKER_PORT))

    def _receive(self, server: socket.socket, address: str, proto: str, port: int, *, marker: str) -> None:
        for text, peer in _arrivals(server) if proto == "UDP" else _connections(server):
            if port == _MARKER_PORT:
                if text == marker:
                    self._marked.add(address)
                continue
            assert text in ("", f"{self._round}"), "a packet came when it had been given up"
            self._got.add(self._asked[peer[0], peer[1], address, port])


def _arrivals(server: socket.socket) -> Iterator[tuple[str, tuple[str, int]]]:
    while True:
        try:
            data, peer = server.recvfrom(64)
        except BlockingIOError:
            return
        yield data.decode(), peer[:2]


def _connections(server: socket.socket) -> Iterator[tuple[str, tuple[str, int]]]:
    while True:
        try:
            connection, peer = server.accept()
        except BlockingIOError:
            return
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        connection.close()
        yield "", peer[:2]


def _fresh_ports() -> Iterator[int]:
    """No call looks like one that has been tracked."""
    return cycle(range(10_000, 60_000))


def _bound(address: str, kind: socket.SocketKind, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    made.bind((address, port))
    return made


def _send(sender: socket.socket, text: str, to: tuple[str, int]) -> None:
    try:
        sender.sendto(text.encode(), to)
    except PermissionError:
        pass  # the sender's own rules have dropped it (ip_output)


def _mac(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"


@contextmanager
def _one_cpu() -> Iterator[set[int]]:
    """The calling thread on one of those that it may have."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield allowed
    finally:
        os.sched_setaffinity(0, allowed)
