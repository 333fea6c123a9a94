"""What rules do to packets: a pod with one interface, and a node at its other end that has every address that
the pod sends to. Nobody needs a thread: the kernel answers for sockets that listen."""

import contextlib
import os
import re
import select
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import msgspec
import pytest

from tests.kernel_contract import Space
from tests.netns.conftest import assert_soon
from tests.netns.namespaces import LinuxWorld, add_veth, ip
from tests.nft_tables import (
    ACCEPT,
    DROP,
    FAMILY,
    INPUT,
    KEY,
    OUTPUT,
    POSTROUTING,
    TCP,
    UDP,
    Socket,
    address,
    filter_table,
    interfaces,
    joined,
    key,
    key_types,
    port,
    ranges,
    service_table,
)
from vf_manager.kernel.api import Flow, FlowSide
from vf_manager.kernel.conntrack import read_flows
from vf_manager.kernel.linux import LinuxKernel
from vf_manager.kernel.meter import Meter
from vf_manager.kernel.netns import Netns, own
from vf_manager.kernel.nft import (
    Chain,
    CtState,
    Elements,
    Field,
    In,
    Is,
    Reject,
    Rule,
    Table,
    Type,
    VerdictMap,
    Within,
)

SERVICE, POD = {4: "10.96.0.1", 6: "fd96::1"}, {4: "10.1.0.9", 6: "fd01::9"}
NODES = {4: ("10.1.0.1", "10.1.0.2", "10.1.0.3"), 6: ("fd01::1", "fd01::2", "fd01::3")}
NODAD: dict[int, tuple[str, ...]] = {4: (), 6: ("nodad",)}
KINDS = {TCP: socket.SOCK_STREAM, UDP: socket.SOCK_DGRAM}
ESTABLISHED_RELATED = 2 | 4  # NF_CT_STATE_BIT
SOON_S, SHORT_S = 2.0, 0.15
REPLACEMENTS = 1000


class Stage:
    """`kernel` and the pod it is about; sockets on either side, closed at the end."""

    def __init__(self, kernel: LinuxKernel, space: Space, netns: Netns, stack: ExitStack) -> None:
        self.kernel = kernel
        self.space = space
        self.netns = netns
        self._stack = stack
        self._now: Table | None = None

    def apply(self, table: Table) -> None:
        self.kernel.apply_nft(self.netns, self._now, table)
        self._now = table

    def nft(self, *words: str) -> str:
        command = ["nsenter", f"--net={self.space.path}", "nft", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def expires_ms(self) -> int | None:
        """When what is remembered is forgotten, as nft lists it; None: nothing is remembered."""
        found = re.search(
            r"expires (?:(\d+)s)?(?:(\d+)ms)?", self.nft("list", "map", "inet", "test", "sticky")
        )
        return int(found[1] or 0) * 1000 + int(found[2] or 0) if found else None

    def client(self, protocol: int = UDP, version: int = 4) -> socket.socket:
        made = self.netns.run(lambda: socket.socket(FAMILY[version], KINDS[protocol]))
        made.settimeout(SOON_S)
        return self._stack.enter_context(made)

    def server(self, at: Socket, protocol: int = UDP, *, in_pod: bool = False) -> socket.socket:
        def listen() -> socket.socket:
            made = socket.socket(socket.AF_INET6 if ":" in at[0] else socket.AF_INET, KINDS[protocol])
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(at)
            made.setblocking(False)
            if protocol == TCP:
                made.listen()
            return made

        return self._stack.enter_context(self.netns.run(listen) if in_pod else listen())


@pytest.fixture
def pod(world: LinuxWorld) -> Iterator[Stage]:
    space = world.new_space()
    add_veth("node0", "eth0", peer_space=space)
    for name, where in (("node0", None), ("eth0", space)):
        ip("link", "set", name, "addrgenmode", "none", "up", space=where)
    for where in (space, None):
        ip("link", "set", "lo", "up", space=where)
    for version, length in ((4, 24), (6, 64)):
        ip("address", "add", f"{POD[version]}/{length}", "dev", "eth0", *NODAD[version], space=space)
        for one in NODES[version]:
            ip("address", "add", f"{one}/{length}", "dev", "node0", *NODAD[version])
    assert_soon(lambda: is_ready(space) and is_ready(None), "addresses can be used")
    for version in (4, 6):
        ip(f"-{version}", "route", "add", "default", "via", NODES[version][0], space=space)
    netns = Netns(space.fd)
    with ExitStack() as stack:
        yield Stage(world.kernel, space, netns, stack)
    netns.close()


def is_ready(space: Space | None) -> bool:
    """A link that came up a moment ago has no address for IPv6 before it is seen to have a carrier."""
    enter = ["nsenter", f"--net={space.path}"] if space else []
    return not subprocess.run(
        [*enter, "ip", "-6", "address", "show", "tentative"], capture_output=True
    ).stdout


def meets(client: socket.socket, to: Socket, servers: list[socket.socket]) -> int:
    """Sends to there, says which server it came to, and sees that the answer comes from there."""
    if client.type == socket.SOCK_STREAM:
        client.connect(to)
    else:
        client.sendto(b"question", to)
    ready, _, _ = select.select(servers, [], [], SOON_S)
    assert len(ready) == 1, "nothing came, or twice"
    if client.type == socket.SOCK_STREAM:
        connection, peer = ready[0].accept()
        with connection:
            connection.sendall(b"answer")
            assert client.recv(10) == b"answer"
            assert client.getpeername()[:2] == to
    else:
        _, peer = ready[0].recvfrom(10)
        ready[0].sendto(b"answer", peer)
        data, sender = client.recvfrom(10)
        assert (data, sender[:2]) == (b"answer", to)
    assert peer[0] in (*POD.values(),), "the address of who asked is kept"
    return servers.index(ready[0])


def arrives(client: socket.socket, to: Socket, server: socket.socket) -> bool:
    """Whether a datagram does."""
    try:
        client.sendto(b"question", to)
    except PermissionError:  # dropped on the way out
        return False
    ready, _, _ = select.select([server], [], [], SHORT_S)
    return bool(ready and server.recv(10))


class TestServices:
    @pytest.mark.parametrize("version", [4, 6])
    @pytest.mark.parametrize("protocol", [TCP, UDP])
    def test_each_endpoint_has_its_share(self, pod: Stage, version: int, protocol: int) -> None:
        at = (SERVICE[version], 80)
        targets = [(one, 8080) for one in NODES[version]]
        servers = [pod.server(target, protocol) for target in targets]
        pod.apply(service_table({(protocol, at): targets}, version=version))
        seen = Counter(meets(pod.client(protocol, version), at, servers) for _ in range(60))
        assert set(seen) == {0, 1, 2}
        assert min(seen.values()) >= 5  # of 20; less is seen once in 100 000 runs

    def test_a_connection_stays_where_it_is(self, pod: Stage) -> None:
        at, targets = (SERVICE[4], 53), [(one, 5353) for one in NODES[4]]
        servers = [pod.server(target) for target in targets]
        pod.apply(service_table({(UDP, at): targets}))
        client = pod.client()
        first = meets(client, at, servers)
        assert {meets(client, at, servers) for _ in range(20)} == {first}

    def test_what_is_no_service_and_other_interfaces_are_not_touched(self, pod: Stage) -> None:
        at = (NODES[4][1], 8080)
        direct, elsewhere = pod.server(at), pod.server((NODES[4][0], 8080))
        table = service_table({(UDP, at): [(NODES[4][0], 8080)]})
        assert meets(pod.client(), at, [direct, elsewhere]) == 0
        pod.apply(table)
        assert meets(pod.client(), at, [direct, elsewhere]) == 1
        pod.apply(msgspec.structs.replace(table, sets={**table.sets, "ifs": interfaces("net1")}))
        assert meets(pod.client(), at, [direct, elsewhere]) == 0

    @pytest.mark.parametrize("version", [4, 6])
    @pytest.mark.parametrize("protocol", [TCP, UDP])
    def test_a_pod_that_is_its_own_endpoint(self, pod: Stage, version: int, protocol: int) -> None:
        at, own = (SERVICE[version], 80), (POD[version], 8080)
        server = pod.server(own, protocol, in_pod=True)
        pod.apply(service_table({(protocol, at): [own]}, version=version))
        assert meets(pod.client(protocol, version), at, [server]) == 0


@pytest.mark.parametrize("version", [4, 6])
class TestAffinity:
    """Seven endpoints, of which chance would take another one soon."""

    def table(self, version: int, ports: range, sticky_s: int = 60) -> Table:
        targets = [(NODES[version][0], number) for number in ports]
        return service_table({(UDP, (SERVICE[version], 80)): targets}, sticky_s=sticky_s, version=version)

    def choices(self, pod: Stage, version: int, ports: range, count: int) -> list[int]:
        servers = [pod.server((NODES[version][0], number)) for number in ports]
        found = [
            ports[meets(pod.client(UDP, version), (SERVICE[version], 80), servers)] for _ in range(count)
        ]
        for server in servers:
            server.close()
        return found

    def test_the_first_choice_is_remembered(self, pod: Stage, version: int) -> None:
        pod.apply(self.table(version, range(8001, 8008)))
        assert len(set(self.choices(pod, version, range(8001, 8008), 20))) == 1

    def test_it_is_remembered_through_changes_and_a_restart(self, pod: Stage, version: int) -> None:
        before, after = range(8001, 8008), range(8001, 8012)
        pod.apply(self.table(version, before))
        chosen = set(self.choices(pod, version, before, 2))
        pod.apply(self.table(version, after))
        assert set(self.choices(pod, version, after, 10)) == chosen
        pod.kernel.apply_nft(pod.netns, None, self.table(version, before))
        assert set(self.choices(pod, version, before, 10)) == chosen

    def test_an_endpoint_that_is_gone_is_forgotten(self, pod: Stage, version: int) -> None:
        """And when it is back it is one of many."""
        ports = range(8001, 8008)
        pod.apply(self.table(version, ports))
        (first,) = set(self.choices(pod, version, ports, 2))
        left = range(first + 1, first + 8)
        pod.apply(self.table(version, left))
        (second,) = set(self.choices(pod, version, left, 10))
        pod.apply(self.table(version, range(first, first + 8)))
        assert set(self.choices(pod, version, range(first, first + 8), 5)) == {second} != {first}

    def test_the_mark_of_a_packet_stays(self, pod: Stage, version: int) -> None:
        """Rules with a memory take it for a moment."""
        rules = "add table inet own; add chain inet own out { type filter hook output priority 0; }"
        pod.nft(f"{rules}; add rule inet own out meta mark 7 udp dport 8001 counter")
        pod.apply(self.table(version, range(8001, 8002)))
        server = pod.server((NODES[version][0], 8001))
        for _ in range(3):
            client = pod.client(UDP, version)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 7)
            assert meets(client, (SERVICE[version], 80), [server]) == 0
        assert "counter packets 3 " in pod.nft("list", "chain", "inet", "own", "out")

    def test_it_is_remembered_for_its_time(self, pod: Stage, version: int) -> None:
        ports = range(8001, 8008)
        pod.apply(self.table(version, ports, sticky_s=1))
        assert len(set(self.choices(pod, version, ports, 5))) == 1
        assert_soon(lambda: pod.expires_ms() is None, "it is forgotten")

    def test_every_connection_begins_the_time_anew(self, pod: Stage, version: int) -> None:
        ports = range(8001, 8008)
        pod.apply(self.table(version, ports))
        self.choices(pod, version, ports, 1)
        assert_soon(lambda: (pod.expires_ms() or 0) < 59_900, "some time is over")
        self.choices(pod, version, ports, 1)
        assert (pod.expires_ms() or 0) > 59_900


@pytest.mark.parametrize("version", [4, 6])
class TestRejections:
    """By an ICMP error instead of a reset a connection over IPv6 is refused when it is tried again, after a
    second: whoever sends holds the socket that the error is for (tcp_v6_err)."""

    def table(self, version: int) -> Table:
        at = (SERVICE[version], 80)
        entries = {key(protocol, at): b"" for protocol in (TCP, UDP)}
        sets = {"rejected": Elements(key=key_types(version), entries=entries)}
        reset: Rule = (Is(Field.L4PROTO, bytes([TCP])), In(KEY[version], "rejected"), Reject(tcp_reset=True))
        refuse: Rule = (In(KEY[version], "rejected"), Reject())
        return filter_table(OUTPUT, reset, refuse, sets=sets)

    def test_a_connection_is_refused_at_once(self, pod: Stage, version: int) -> None:
        pod.apply(self.table(version))
        with pytest.raises(ConnectionRefusedError):
            pod.client(TCP, version).connect((SERVICE[version], 80))

    def test_a_datagram_is_refused_at_once(self, pod: Stage, version: int) -> None:
        pod.apply(self.table(version))
        client = pod.client(UDP, version)
        client.connect((SERVICE[version], 80))
        with pytest.raises(PermissionError):
            client.send(b"question")
        with pytest.raises(ConnectionRefusedError):
            client.recv(10)

    def test_other_ports_are_not(self, pod: Stage, version: int) -> None:
        pod.apply(self.table(version))
        at = (NODES[version][0], 81)
        assert meets(pod.client(TCP, version), at, [pod.server(at, TCP)]) == 0


class TestPolicy:
    """Seen from the node, which sends to the pod from each of its addresses."""

    def judged(self, pod: Stage, rules: list[Rule], sets: dict[str, Elements]) -> list[bool]:
        """Whether what each of the three addresses sends arrives."""
        pod.apply(filter_table(INPUT, *rules, (DROP,), sets={"ifs": interfaces("eth0"), **sets}))
        server, found = pod.server((POD[4], 9000), in_pod=True), []
        for one in NODES[4]:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.bind((one, 0))
                found.append(arrives(client, (POD[4], 9000), server))
        return found

    def test_a_set(self, pod: Stage) -> None:
        peers = Elements(key=(Type.IPV4_ADDR,), entries={address(NODES[4][1]): b""})
        assert self.judged(pod, [(In((Field.SADDR4,), "peers"), ACCEPT)], {"peers": peers}) == [0, 1, 0]

    def test_what_is_not_in_a_set(self, pod: Stage) -> None:
        peers = Elements(key=(Type.IPV4_ADDR,), entries={address(NODES[4][1]): b""})
        rule: Rule = (In((Field.SADDR4,), "peers", negate=True), ACCEPT)
        assert self.judged(pod, [rule], {"peers": peers}) == [1, 0, 1]

    def test_a_set_of_ranges(self, pod: Stage) -> None:
        blocks = ranges({"10.1.0.0": "10.1.0.1", "10.1.0.3": "10.1.0.3"})
        rule: Rule = (In((Field.SADDR4,), "blocks"), ACCEPT)
        assert self.judged(pod, [rule], {"blocks": blocks}) == [1, 0, 1]

    def test_a_verdict_map(self, pod: Stage) -> None:
        entries = {
            joined(address(NODES[4][0]), port(9000)): DROP,
            joined(address(NODES[4][1]), port(9000)): ACCEPT,
        }
        decide = Elements(key=(Type.IPV4_ADDR, Type.INET_SERVICE), value=(Type.VERDICT,), entries=entries)
        rules: list[Rule] = [(VerdictMap((Field.SADDR4, Field.DPORT), "decide"),), (ACCEPT,)]
        assert self.judged(pod, rules, {"decide": decide}) == [0, 1, 1]

    @pytest.mark.parametrize(("low", "high", "passes"), [(8999, 9000, 1), (9000, 9000, 1), (9001, 9999, 0)])
    def test_a_range_of_ports(self, pod: Stage, low: int, high: int, passes: int) -> None:
        rule: Rule = (Is(Field.L4PROTO, bytes([UDP])), Within(Field.DPORT, port(low), port(high)), ACCEPT)
        assert self.judged(pod, [rule], {}) == [passes] * 3

    def test_what_is_of_another_family_is_not_read_as_of_this(self, pod: Stage) -> None:
        """Where IPv6 has its source is something else in IPv4."""
        assert self.judged(pod, [(Is(Field.SADDR6, bytes(16), negate=True), ACCEPT)], {}) == [0, 0, 0]

    def test_other_interfaces(self, pod: Stage) -> None:
        away: Rule = (In((Field.IIFNAME,), "ifs", negate=True), ACCEPT)
        assert self.judged(pod, [away], {}) == [0, 0, 0]
        assert self.judged(pod, [away], {"ifs": interfaces("net1")}) == [1, 1, 1]

    def test_what_answers_a_connection_is_let_through(self, pod: Stage) -> None:
        """And neighbour discovery, without which there is none."""
        state: Rule = (CtState(ESTABLISHED_RELATED), ACCEPT)
        neighbours: Rule = (Within(Field.ICMPV6_TYPE, bytes([133]), bytes([137])), ACCEPT)
        pod.apply(filter_table(INPUT, state, neighbours, (DROP,)))
        for version in (4, 6):
            at = (NODES[version][0], 8080)
            assert meets(pod.client(TCP, version), at, [pod.server(at, TCP)]) == 0

    def test_policy_sees_where_a_service_leads(self, pod: Stage) -> None:
        at, targets = (SERVICE[4], 80), [(one, 8080) for one in NODES[4][:2]]
        servers = [pod.server(target) for target in targets]
        allowed = Elements(key=(Type.IPV4_ADDR,), entries={address(NODES[4][1]): b""})
        rules: tuple[Rule, ...] = ((In((Field.DADDR4,), "allowed"), ACCEPT), (DROP,))
        table = service_table({(UDP, at): targets})
        chains = {**table.chains, "policy-out": Chain(rules, POSTROUTING)}
        pod.apply(Table(name="test", sets={**table.sets, "allowed": allowed}, chains=chains))
        assert {arrives(pod.client(), at, servers[1]) for _ in range(30)} == {True, False}
        assert select.select(servers, [], [], 0)[0] == []


class TestFlows:
    def test_a_flow_says_where_it_really_goes_and_is_forgotten(self, pod: Stage) -> None:
        """Until then it goes on to an endpoint that is no more."""
        at, old, new = (SERVICE[4], 53), (NODES[4][0], 5353), (NODES[4][1], 5353)
        servers = [pod.server(old), pod.server(new)]
        pod.apply(service_table({(UDP, at): [old]}))
        client = pod.client()
        assert meets(client, at, servers) == 0
        pod.apply(service_table({(UDP, at): [new]}))
        assert meets(client, at, servers) == 0
        (flow,) = pod.kernel.udp_flows(pod.netns)
        source = (POD[4], client.getsockname()[1])
        assert flow == Flow(UDP, FlowSide(*source, *at), FlowSide(*old, *source), dnat=True)
        pod.kernel.delete_flows(pod.netns, [flow, flow])
        assert pod.kernel.udp_flows(pod.netns) == ()
        assert meets(client, at, servers) == 1

    def test_of_either_family_and_udp_alone(self, pod: Stage) -> None:
        for version in (4, 6):
            at = (NODES[version][0], 5353)
            pod.apply(service_table({(UDP, (SERVICE[version], 1)): [at]}, version=version))
            for protocol in (TCP, UDP):
                meets(pod.client(protocol, version), at, [pod.server(at, protocol)])
        flows = sorted(pod.kernel.udp_flows(pod.netns), key=lambda flow: ":" in flow.original.source)
        assert [(flow.original.destination, flow.protocol) for flow in flows] == [
            (NODES[version][0], UDP) for version in (4, 6)
        ]
        assert not any(flow.dnat or flow.snat for flow in flows)
        assert read_flows(own(pod.netns), UDP, Meter(), few=0) == tuple(flows), "where there are many"
        pod.kernel.delete_flows(pod.netns, flows)
        assert pod.kernel.udp_flows(pod.netns) == ()


def test_a_change_under_traffic_loses_nothing(pod: Stage) -> None:
    """Every datagram is a connection of its own, and is translated by the rules of one state or the other."""
    at, targets = (SERVICE[4], 80), [(NODES[4][0], 8080 + n) for n in range(4)]
    servers = [pod.server(target) for target in targets]
    other = {(UDP, (SERVICE[4], number)): targets[:number] for number in (2, 4)}
    few = service_table({(UDP, at): targets[:2], **other})
    states = [few, service_table({(UDP, at): targets, **other})]
    pod.apply(few)
    stop = threading.Event()
    failures: list[BaseException] = []

    def keep_changing() -> None:
        try:
            while not stop.is_set():
                for state in reversed(states):
                    pod.apply(state)
        except BaseException as e:  # noqa: BLE001 - looked at below
            failures.append(e)

    changing = threading.Thread(target=keep_changing)
    changing.start()
    received = 0
    for _ in range(1000):
        with pod.client() as client:
            client.sendto(b"question", at)
            ready, _, _ = select.select(servers, [], [], SOON_S)
            received += len([server.recv(10) for server in ready])
    stop.set()
    changing.join()
    assert failures == []
    assert received == 1000


def test_what_is_forbidden_stays_so_while_the_table_is_replaced(pod: Stage) -> None:
    """As an agent does that was started again: it does not know what is there."""
    closed = (In((Field.OIFNAME,), "ifs", negate=True), ACCEPT)
    at = (NODES[4][0], 8080)
    server = pod.server(at)
    table = filter_table(POSTROUTING, closed, (DROP,), sets={"ifs": interfaces("eth0")})
    pod.apply(table)
    stop = threading.Event()

    def keep_sending() -> None:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        client = pod.client()
        while not stop.is_set():
            with contextlib.suppress(PermissionError):
                client.sendto(b"forbidden", at)

    sending = threading.Thread(target=keep_sending)
    sending.start()
    for _ in range(REPLACEMENTS):
        pod.kernel.apply_nft(pod.netns, None, table)
    stop.set()
    sending.join()
    assert select.select([server], [], [], 0)[0] == []
