"""Orchestrator: what happens to what an attached pod sends to some destination, told to people.

Asked of the agent over its CNI socket, by a command that no runtime knows: only the agent has the cluster.
"""

import ipaddress
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import msgspec

from sriov_cni.attachment import Attachment, State
from sriov_cni.ground import opened_sandbox
from sriov_cni.in_pod.keeper import RuleKeeper
from sriov_cni.in_pod.model import Direction
from sriov_cni.in_pod.objects import Cluster, Proto
from sriov_cni.in_pod.rule_book import CLOSED, Ask, RuleBook
from sriov_cni.in_pod.trace import Fate, ServiceTrace, trace_service
from sriov_cni.in_pod.trace_policy import trace_policy
from sriov_cni.messages import CniReply, CniRequest
from vf_manager.errors import InvalidInput, NotFound, SriovError
from vf_manager.kernel.api import Kernel, Links

TRACE = "TRACE"


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """`pod`: namespace/name. `destination`: an address or the name of a service, with a port or without."""

    pod: str
    destination: str
    proto: Proto = Proto.TCP


class Leg(msgspec.Struct, frozen=True, kw_only=True):
    """One address that it may end at. `ifname` None: no route. `policy`: why it is let through or not."""

    address: str
    port: int | None = None
    ifname: str | None = None
    gateway: str | None = None
    passes: bool = True
    policy: str = ""


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """`first`: the way of the destination as it is, before any service. `service`: what services make of it,
    in lines. `legs`: where it may end then."""

    pod: str
    destination: str
    first: Leg
    service: tuple[str, ...] = ()
    legs: tuple[Leg, ...] = ()


class Tracer:
    def __init__(
        self, kernel: Kernel, keeper: RuleKeeper, attachments: Callable[[], Sequence[Attachment]]
    ) -> None:
        self._kernel = kernel
        self._keeper = keeper
        self._attachments = attachments

    def serve(self, request: CniRequest) -> CniReply:
        """`stdin`: a Question; the answer is a Trace, or an error as CNI has it."""
        try:
            trace = self.trace(msgspec.json.decode(request.stdin, type=Question))
        except (SriovError, msgspec.DecodeError) as e:
            return CniReply(1, json.dumps({"code": 999, "msg": str(e)}).encode())
        return CniReply(0, msgspec.json.encode(trace))

    def trace(self, question: Question) -> Trace:
        """Raises InvalidInput, NotFound and KernelError."""
        records = [
            record
            for record in self._attachments()
            if record.state is State.ATTACHED
            and record.pod is not None
            and f"{record.pod.namespace}/{record.pod.name}" == question.pod
        ]
        if not records:
            raise NotFound(f"pod {question.pod} has no VF of this node; sriovctl attachments shows who has")
        book, ask = self._keeper.book(), self._keeper.ask_of(question.pod) or Ask()
        address, port = find_destination(question.destination, book.cluster)
        with ExitStack() as stack:
            sandbox = stack.enter_context(opened_sandbox(self._kernel, None, records[0].sandbox))
            if sandbox is None:
                raise NotFound(f"the network namespace of pod {question.pod} is gone")
            links = stack.enter_context(self._kernel.links(sandbox))
            return _trace(question, address, port, _Pod(links, records, ask, book))


class _Pod:
    def __init__(self, links: Links, records: Sequence[Attachment], ask: Ask, book: RuleBook) -> None:
        self._links = links
        self.ask = ask
        self.book = book
        self.addresses = [
            ip.address.split("/")[0] for record in records if record.result for ip in record.result.ips
        ]

    def leg(self, address: str, port: int | None, proto: Proto) -> Leg:
        """The way of one address; no service is asked any more."""
        hop = self._links.find_hop(address)
        link = self._links.read(ifindex=hop.ifindex) if hop else None
        if hop is None or link is None:
            return Leg(address=address, port=port, passes=False)
        passes, why = self._policy(link.netdev.name, address, port, proto)
        return Leg(
            address=address,
            port=port,
            ifname=link.netdev.name,
            gateway=hop.gateway,
            passes=passes,
            policy=why,
        )

    def _policy(self, ifname: str, address: str, port: int | None, proto: Proto) -> tuple[bool, str]:
        if ifname not in self.ask.policy:
            return True, ""
        policy = self.book.policy_for(self.ask)
        found = trace_policy(policy, Direction.EGRESS, address, proto, port)
        if not found.isolated:
            return True, "no policy is about what this pod sends"
        if found.passages:
            return True, "; ".join(
                f"policy {p.policy}, egress rule {p.rule}: {p.why}" for p in found.passages
            )
        unknown = policy is CLOSED
        return False, "the pod or its policies are not known yet" if unknown else "no policy lets it through"


def _trace(question: Question, address: str, port: int | None, pod: _Pod) -> Trace:
    first = pod.leg(address, port, question.proto)
    if first.ifname is None or first.ifname not in pod.ask.services:
        return Trace(pod=question.pod, destination=question.destination, first=first, legs=(first,))
    traces = trace_service(pod.book.services, question.proto, address, port, pod.addresses)
    return Trace(
        pod=question.pod,
        destination=question.destination,
        first=first,
        service=tuple(line for one in traces for line in one.lines()),
        legs=tuple(leg for one in traces for leg in _legs(one, first, question.proto, pod)),
    )


def _legs(trace: ServiceTrace, first: Leg, proto: Proto, pod: _Pod) -> Iterator[Leg]:
    if trace.fate is Fate.UNTOUCHED:
        yield first
    elif trace.fate is Fate.TRANSLATED and trace.target is not None:
        for endpoint in trace.target.endpoints:
            yield pod.leg(endpoint.address, endpoint.port, proto)


def find_destination(text: str, cluster: Cluster) -> tuple[str, int | None]:
    """`10.96.0.10:53`, `[fd96::10]:53`, `web.ml:80`, `web.ml.svc.cluster.local`; the port may be left out."""
    host, port = _split_port(text)
    try:
        return str(ipaddress.ip_address(host)), port
    except ValueError:
        pass
    name, _, rest = host.partition(".")
    namespace = rest.partition(".")[0] or "default"
    service = cluster.services.get(f"{namespace}/{name}")
    if service is None:
        known = (
            f", one of {len(cluster.services)} services" if cluster.services else "; no service is known here"
        )
        raise InvalidInput("DESTINATION", text, f"an address, or NAME.NAMESPACE of a service{known}")
    return service.spec.cluster_ip, port


def _split_port(text: str) -> tuple[str, int | None]:
    host, colon, port = text.rpartition(":")
    if text.startswith("[") and text.endswith("]"):
        return text[1:-1], None
    if not colon or (":" in host and not host.startswith("[")):
        return text, None
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise InvalidInput("DESTINATION", text, "a port of 1-65535 after the colon")
    return host.removeprefix("[").removesuffix("]"), int(port)
