"""Adapter: the agent's metrics for Prometheus. docs/observability.md has the table of them.

What is counted elsewhere, or can be looked up, is read when somebody asks (metrics_state.py, metrics_ipam.py,
metrics_api.py). Here is what has to be measured when it happens: how long calls and steps take.
"""

import platform
import time
from importlib import metadata

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from sriov_cni.environment import Command
from sriov_cni.executor import Way
from sriov_cni.messages import CniReply, CniRequest, Handler

CONTENT_TYPE = CONTENT_TYPE_LATEST
_CALL_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_STEP_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_OTHER = "other"


class _Error(msgspec.Struct):
    """Of a CNI error what counts here."""

    code: int = 999


class Metrics:
    """`registry`: gets all of them. `states`: what is read when somebody asks."""

    def __init__(self, registry: CollectorRegistry, *states: Collector) -> None:
        self._registry = registry
        self._calls = Histogram(
            "sriov_underlay_cni_call_duration_seconds",
            "CNI calls, from the request to the reply.",
            ("command", "result"),
            buckets=_CALL_S,
            registry=registry,
        )
        for command in Command:  # a series that begins with its first failure shows no increase
            for result in ("success", "error"):
                self._calls.labels(command, result)
        self._errors = Counter(
            "sriov_underlay_cni_errors",
            "CNI calls that failed, by the code of the error.",
            ("command", "code"),
            registry=registry,
        )
        self._steps = Histogram(
            "sriov_underlay_step_duration_seconds",
            "Steps of attachments, done and undone.",
            ("step", "way", "result"),
            buckets=_STEP_S,
            registry=registry,
        )
        build = Gauge(
            "sriov_underlay_build_info", "The agent; always 1.", ("version", "python"), registry=registry
        )
        build.labels(_version(), platform.python_version()).set(1)
        ProcessCollector(registry=registry)
        for state in states:
            registry.register(state)

    def serve(self, handler: Handler, request: CniRequest) -> CniReply:
        """One CNI call. What no handler expects comes out as it is, and counts as a failure."""
        command = request.env.get("CNI_COMMAND", "")
        command = command if command in set(Command) else _OTHER
        began, result = time.perf_counter(), "error"
        try:
            reply = handler(request)
            if reply.exit_code == 0:
                result = "success"
            else:
                self._errors.labels(command, _code(reply)).inc()
            return reply
        finally:
            self._calls.labels(command, result).observe(time.perf_counter() - began)

    def observe_step(self, step: str, way: Way, seconds: float, *, failed: bool) -> None:
        self._steps.labels(step, way, "error" if failed else "success").observe(seconds)

    def render(self) -> str:
        """In Prometheus' text format, `CONTENT_TYPE`."""
        return generate_latest(self._registry).decode()


def _code(reply: CniReply) -> int:
    return msgspec.json.decode(reply.stdout, type=_Error).code


def _version() -> str:
    """Of the package that is installed; a checkout that is run as it is has none."""
    try:
        return metadata.version("sriov-underlay")
    except metadata.PackageNotFoundError:
        return "unknown"
