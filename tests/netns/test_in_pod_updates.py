"""A pod whose services, policies and labels change all the time, by the real agent, while it calls others and
is called without a pause."""

import errno
import json
import os
import random
import selectors
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count, cycle
from pathlib import Path
from typing import Any

from sriov_cni.in_pod.table import TABLE
from tests.api_double import ApiDouble, api_double
from tests.cluster_objects import pod as pod_object
from tests.kernel_contract import Space
from tests.netns.conftest import assert_soon
from tests.netns.namespaces import LinuxWorld, entered, ip
from tests.netns.rounds import Arrival, Round, find_astray
from tests.netns.segment import Call
from tests.netns.underlay import GATEWAY, IFNAME, WIRE, Underlay, UnderlayPod, running_underlay
from tests.netns.updates import JUDGE, PORTS, PROTOS, WITNESS, Updates, marks, plural, witness_of

UPDATES = 1000
LONGEST_WAVE = 16  # updates that are made without waiting until they are in force
RESTARTS = 4
HOSTS = {"far0": "10.56.0.11", "far1": "10.56.0.12", "far2": "10.56.0.20"}
_MARKER_PORT = 1009
_MARKERS = 7  # each takes a hop; a handshake three, of two each
_DEADLINE_S = 5.0
_PAUSE_S = 0.002  # so that flows are some thousands, and not all there can be
_ABORT = struct.pack("ii", 1, 0)  # struct linger: a connection ends at once, and leaves nothing behind
_KINDS = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}
_CONNECTING = (0, errno.EINPROGRESS, errno.EPERM, errno.ECONNREFUSED)


class Traffic:
    """On another CPU than most else, if there is one. `put` and `done`: the last update that was put into the
    API server, and the last that is known to be in force."""

    def __init__(self, spaces: dict[str, Space], updates: Updates, stack: ExitStack) -> None:
        self.put = self.done = 0
        self.rounds: list[Round] = []
        self._spaces, self._updates = spaces, updates
        self._stack = stack
        self._selector = stack.enter_context(selectors.DefaultSelector())
        self._ports = cycle(range(10_000, 60_000))  # no call looks like one that has been tracked
        self._senders = {address: self._bound(address, "UDP", 9999) for address in spaces}
        for address in spaces:
            for port in PORTS:
                for proto in PROTOS:
                    self._serve(address, proto, port)
        self._host = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._marked = self._bound(updates.own, "UDP", _MARKER_PORT)
        self._marked.settimeout(_DEADLINE_S)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        stack.callback(self.stop)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _serve(self, address: str, proto: str, port: int) -> None:
        server = self._bound(address, proto, port)
        if proto == "TCP":
            server.listen(1024)
        self._selector.register(server, selectors.EVENT_READ, (proto, address, port))

    def _bound(self, address: str, proto: str, port: int) -> socket.socket:
        with entered(self._spaces[address]):
            made = self._stack.enter_context(socket.socket(socket.AF_INET, _KINDS[proto]))
        made.bind((address, port))
        made.setblocking(False)
        return made

    def _run(self) -> None:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        for number in count():
            if self._stop.wait(_PAUSE_S):
                return
            first = self.done
            with ExitStack() as opened:
                asked = dict(self._make_calls(f"{number}", opened))
                self._wait(f"{number}")
                arrived = frozenset(self._arrivals(f"{number}", asked))
                last = self.put
            self.rounds.append(Round(first, last, frozenset(asked.values()), arrived))

    def _make_calls(self, text: str, opened: ExitStack) -> Iterator[tuple[tuple[Any, ...], Call]]:
        """With what its packets are known by: to a service by their source alone."""
        for call in self._updates.straight_calls:
            if call.proto == "UDP":
                _send(self._senders[call.source], text, call)
                yield (call.proto, call.source, 9999, call.destination, call.port), call
        some = random.sample([c for c in self._updates.straight_calls if c.proto == "TCP"], 2)
        for call in (*self._updates.vip_calls, *some):
            port = next(self._ports)
            with entered(self._spaces[call.source]):
                caller = opened.enter_context(socket.socket(socket.AF_INET, _KINDS[call.proto]))
            caller.bind((call.source, port))
            caller.setblocking(False)
            if call.proto == "UDP":
                _send(caller, text, call)
            else:
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
                assert caller.connect_ex((call.destination, call.port)) in _CONNECTING
            yield (call.proto, call.source, port), call

    def _wait(self, text: str) -> None:
        """The thread stays on one CPU, whose queue hands packets on in the order in which they were sent:
        what has not arrived when the last of these has was dropped."""
        for _ in range(_MARKERS):
            self._host.sendto(text.encode(), (self._updates.own, _MARKER_PORT))
            assert self._marked.recv(16) == text.encode()

    def _arrivals(self, text: str, asked: dict[tuple[Any, ...], Call]) -> Iterator[Arrival]:
        for key, _ in self._selector.select(0):
            proto, address, port = key.data
            assert isinstance(key.fileobj, socket.socket)
            for data, peer in _received(key.fileobj, proto):
                assert data in ("", text), "a packet came when it had been given up"
                call = asked.get((proto, *peer)) or asked[(proto, *peer, address, port)]
                yield Arrival(call, address, port)


def _send(sender: socket.socket, text: str, call: Call) -> None:
    with suppress(PermissionError):  # the pod's own rules have dropped it
        sender.sendto(text.encode(), (call.destination, call.port))


def _received(server: socket.socket, proto: str) -> Iterator[tuple[str, tuple[str, int]]]:
    with suppress(BlockingIOError):
        while True:
            if proto == "UDP":
                data, peer = server.recvfrom(16)
                yield data.decode(), peer
            else:
                connection, peer = server.accept()
                with connection:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
                yield "", peer


class Scene:
    """`judge` and `witness` are pods with rules, and so is `near`, of which no policy is; the others are
    hosts that stand for pods of other nodes."""

    def __init__(self, underlay: Underlay, api: ApiDouble, seed: int, stack: ExitStack) -> None:
        self.underlay, self.api = underlay, api
        hosts = {name: (underlay.new_host(address), address) for name, address in HOSTS.items()}
        self.pods = {name: self._attach(name) for name in (JUDGE, "near", WITNESS)}
        ends = hosts | {name: (one.space, one.address) for name, one in self.pods.items()}
        know_each_other(dict(ends.values()))
        del ends[WITNESS]
        self.updates = Updates(seed, {name: address for name, (_, address) in ends.items()}, GATEWAY[0])
        for one in (*self.updates.fixed, *self.updates.first, *witness_of(self.pods[WITNESS].address)):
            api.put(plural(one), one)
        self._marks = count()
        self.settle()
        self.traffic = Traffic({address: space for space, address in ends.values()}, self.updates, stack)

    def _attach(self, name: str) -> UnderlayPod:
        where = "default" if name == "near" else name
        self.api.put("pods", pod_object(name, namespace=where))
        return self.underlay.attach(self.underlay.new_pod(name, where))

    def update(self) -> None:
        resource, key, found = self.updates.make()
        self.traffic.put = len(self.updates)
        if found is None:
            self.api.delete(resource, key)
        else:
            self.api.put(resource, found)

    def settle(self) -> None:
        """Until all there is is in force. A pod that was attached after another gets its rules after it."""
        wanted = marks(next(self._marks))
        for one in wanted.values():
            self.api.put(plural(one), one)

        def is_seen() -> bool:
            listed = nft(self.pods[WITNESS], "list", "ruleset")
            return all(address in listed for address in wanted)

        assert_soon(is_seen, "what was put last is in force")

    def done(self) -> None:
        """And some calls were made while nothing changed."""
        self.settle()
        self.traffic.done = self.traffic.put
        before = len(self.traffic.rounds)
        assert_soon(lambda: len(self.traffic.rounds) > before + 2, "the traffic goes on")

    def rules(self) -> Counter[str]:
        """Those of the witness follow marks."""
        pods = {name: pod for name, pod in self.pods.items() if name != WITNESS}
        return Counter(f"{name}: {line}" for name, pod in pods.items() for line in rules_of(pod))

    def assert_all_well(self) -> None:
        self.traffic.stop()
        assert find_astray(self.traffic.rounds, self.updates.expect) == ([], [])
        moving = sum(r.last > r.first for r in self.traffic.rounds)
        assert moving > 100, "few packets met a change"
        assert moving < len(self.traffic.rounds), "none met a state that was known"


def know_each_other(spaces: dict[Space, str]) -> None:
    """A packet that waits for a neighbour would be overtaken by a marker."""
    macs = {address: mac_of(space) for space, address in spaces.items()}
    for address, mac in macs.items():
        ip("neigh", "replace", address, "lladdr", mac, "dev", WIRE, "nud", "permanent")
        for space, own in spaces.items():
            if own != address:
                words = ("neigh", "replace", address, "lladdr", mac, "dev", IFNAME, "nud", "permanent")
                ip(*words, space=space)


def mac_of(space: Space) -> str:
    command = ["nsenter", f"--net={space.path}", "ip", "-j", "link", "show", IFNAME]
    (found,) = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return str(found["address"])


def nft(pod: UnderlayPod, *words: str) -> str:
    command = ["nsenter", f"--net={pod.space.path}", "nft", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@contextmanager
def running_scene(world: LinuxWorld, folder: Path, seed: int) -> Iterator[Scene]:
    print(f"seed {seed}")
    with ExitStack() as stack:
        api = stack.enter_context(api_double())
        for one in Updates(0, {JUDGE: ""}, GATEWAY[0]).fixed:
            api.put(plural(one), one)
        kubernetes = {"kubeconfig": api.kubeconfig(folder).kubeconfig}
        options = {"services": "in-pod", "policy": "in-pod"}
        underlay = stack.enter_context(running_underlay(world, options, kubernetes=kubernetes))
        yield Scene(underlay, api, seed, stack)


def test_no_packet_goes_astray_while_all_changes(world: LinuxWorld, tmp_path: Path) -> None:
    with running_scene(world, tmp_path, seed=1) as scene:
        luck = random.Random(1)
        while len(scene.updates) < UPDATES:
            for _ in range(luck.randint(1, LONGEST_WAVE)):
                scene.update()
            scene.done()
        scene.assert_all_well()


def test_an_agent_that_dies_and_an_api_server_that_goes(world: LinuxWorld, tmp_path: Path) -> None:
    """At random moments of such changes. In the end there is what an agent makes that finds nothing."""
    with running_scene(world, tmp_path, seed=2) as scene:
        luck = random.Random(2)
        for _ in range(RESTARTS):
            _change_for_a_while(scene, luck)
            scene.underlay.node.kill()
            _change_for_a_while(scene, luck)
            scene.underlay.start_again()
            _change_for_a_while(scene, luck)
            scene.api.go_away()
            _change_for_a_while(scene, luck)
            if luck.random() < 0.5:
                scene.api.forget_history()
            scene.api.come_back()
            scene.done()
        scene.assert_all_well()
        before = scene.rules()
        scene.underlay.node.kill()
        for pod in scene.pods.values():
            nft(pod, "delete", "table", "inet", TABLE)
        scene.underlay.start_again()
        scene.settle()
        after = scene.rules()
        assert (before - after, after - before) == (Counter(), Counter())


def _change_for_a_while(scene: Scene, luck: random.Random) -> None:
    for _ in range(luck.randint(1, LONGEST_WAVE)):
        scene.update()
        time.sleep(luck.uniform(0, 0.03))


def rules_of(pod: UnderlayPod) -> Iterator[str]:
    """Without what is remembered, and without marks. How much a set can remember is said from the first rule
    on that made it do so (nft_dynset_init)."""
    for one in json.loads(nft(pod, "-j", "list", "table", "inet", TABLE))["nftables"]:
        ((kind, body),) = one.items()
        if kind == "metainfo":
            continue
        for key in ("handle", "size"):
            body.pop(key, None)
        elements = [json.dumps(e) for e in body.pop("elem", []) if "timeout" not in body.get("flags", [])]
        body["elem"] = sorted(e for e in elements if "198.1" not in e and "198.20" not in e)
        yield json.dumps({kind: body})
