"""Pure: what a run measured of services and policies inside of pods. Times are in milliseconds."""

import msgspec

from hw_tests.bench.in_pod_cluster import Scale
from hw_tests.bench.results import percentile

WITHOUT, WITH = "without", "with services and policy"
TCP_ENDPOINT, UDP_ENDPOINT = "an endpoint of TCP", "an endpoint of UDP: flows to it are looked for"
POLICY = "a policy about all of them"

# Ways to one server. The first two name its own address.
BARE, RULED = "its own address, no rules in the pod", "its own address, rules in the pod"
IN_POD, BY_HOST = "ClusterIP, translated in the pod", "ClusterIP, by a veth: DNAT and masquerade on the host"
WAYS = (BARE, RULED, IN_POD, BY_HOST)

ONE_FLOW, MANY_FLOWS = "1 flow, Gbit/s", "8 flows, Gbit/s"
QUESTION, CONNECTION = "question and answer, us", "the same with connect, us"
KINDS = (ONE_FLOW, MANY_FLOWS, QUESTION, CONNECTION)

Path = dict[str, dict[str, list[float]]]  # kind -> way -> one number per round


class AgentMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Resident set, MiB. `knowing`: the cluster, with one pod attached."""

    at_start: float
    knowing: float
    attached: float
    in_the_end: float


class InPodRules(msgspec.Struct, frozen=True, kw_only=True):
    """`first_ms`: the ADD that has to wait until the cluster is listed. `step_ms`: what the rules take of an
    ADD, inside of the agent; `bare_step_ms`: the same messages sent by a process that has them ready."""

    scale: Scale
    kernel: str
    cpus: int
    load: float
    first_ms: float
    add: dict[str, list[float]]
    delete: dict[str, list[float]]
    step_ms: list[float]
    bare_step_ms: list[float]
    changes: dict[str, list[float]]
    memory: AgentMemory
    kernel_kib_per_pod: float
    path: Path


class Range(msgspec.Struct, frozen=True):
    low: float
    median: float
    high: float


def ratios(path: Path, kind: str, way: str) -> Range:
    """To the server's own address without rules, round by round."""
    found = [one / bare for one, bare in zip(path[kind][way], path[kind][BARE], strict=True)]
    return Range(min(found), percentile(found, 50), max(found))
