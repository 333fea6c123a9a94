"""Orchestrator: CNI calls served in this process, on the running kernel, that fail or die at a chosen point.

A point is a checkpoint of the product, or the moment before a change of the kernel. A process that shall
die is a child of a fork server: `os._exit` then runs nothing more, as with SIGKILL, and it is forked from a
process that has imported everything and started no thread.
"""

import errno
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import structlog

from device_plugin.podresources import PodResources
from hw_tests.runtime import IFNAME, Conf, Pod, cni_environment
from sriov_cni.attach import Attacher
from sriov_cni.attachment import Attachment
from sriov_cni.handler import CniHandler
from sriov_cni.messages import CniReply, CniRequest
from sriov_cni.pod_attach import PodAttacher
from sriov_cni.pod_vfs import PodVfs
from vf_manager.errors import KernelError
from vf_manager.kernel.api import Kernel, Links, NetnsHandle
from vf_manager.kernel.linux import LinuxKernel
from vf_manager.locks import DeviceLocks
from vf_manager.model import PciAddress
from vf_manager.records import RecordStore

EXIT_DIED, EXIT_SURVIVED = 77, 0
_CHILD_TIMEOUT_S = 60.0
# Whatever else these have changes something, so that a method that is added counts without being named here.
_LINKS_READ = {"dump", "read", "name_taken", "addresses", "rules", "routes", "default_route_links"}
_KERNEL_READ = {"read_functions", "read_function", "eswitch_modes", "sick_reporters", "events"}
_KERNEL_READ |= {"netns", "netns_at", "host_netns", "links"}

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["hw_tests.crash", "pytest"])  # the second: each child imports our __main__


@dataclass
class Points:
    """Counts and names the points that are passed; does `accident` at the one with number `at`."""

    at: int | None
    accident: Callable[[str], None]

    def __post_init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, name: str) -> None:
        number = len(self.names)
        self.names.append(name)
        if number == self.at:
            self.accident(name)


def fail(name: str) -> None:
    raise KernelError(f"injected at {name}", errno.EIO)


def die(name: str) -> None:
    os._exit(EXIT_DIED)


class _Watched:
    """An object that passes a point before each call that changes something."""

    def __init__(self, inner: object, reads: set[str], point: Callable[[str], None]) -> None:
        self._inner = inner
        self._reads = reads
        self._point = point

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name in self._reads:
            return method

        def changing(*args: Any, **kwargs: Any) -> Any:
            self._point(name)
            return method(*args, **kwargs)

        return changing


class _WatchedKernel(_Watched):
    @contextmanager
    def links(self, netns: NetnsHandle | None = None) -> Iterator[Links]:
        with LinuxKernel().links(netns) as inner:
            yield cast(Links, _Watched(inner, _LINKS_READ, self._point))


@dataclass(frozen=True)
class Bench:
    """One VF (in `conf`), one pod, and the folders of an agent that is started anew for every call."""

    folder: Path
    pod: Pod
    conf: Conf

    @property
    def records(self) -> list[str]:
        return sorted(p.name for p in (self.folder / "attachments").iterdir())

    @property
    def lease_dir(self) -> Path:
        return self.folder / "leases"

    def recover(self) -> None:
        """What an agent does at its start."""
        self._attacher(_pass).recover()

    def call(self, command: str, points: Callable[[str], None] = lambda name: None) -> CniReply:
        env = cni_environment(command, self.pod, IFNAME)
        attacher = self._attacher(points)
        given = PodVfs(PodResources(self.folder / "no-kubelet.sock"), {}, _any_pool)
        pods = PodAttacher(attacher, given, _any_pool)
        handler = CniHandler(pods, attacher, None, lambda: None, structlog.get_logger())
        fd = os.open(self.pod.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return handler(CniRequest(env, json.dumps(self.conf).encode(), netns_fd=fd))
        finally:
            os.close(fd)

    def call_and_die(self, command: str, at: int) -> bool:
        """The same in a process that dies at a point; whether it did."""
        child = _forks.Process(target=_serve_and_die, args=(self, command, at))
        child.start()
        child.join(_CHILD_TIMEOUT_S)
        if child.exitcode not in (EXIT_DIED, EXIT_SURVIVED):
            child.kill()
            raise RuntimeError(f"{command}, to die at point {at}: the process ended with {child.exitcode}")
        return child.exitcode == EXIT_DIED

    def _attacher(self, points: Callable[[str], None]) -> Attacher:
        return Attacher(
            cast(Kernel, _WatchedKernel(LinuxKernel(), _KERNEL_READ, points)),
            RecordStore(self.folder / "attachments", Attachment),
            DeviceLocks(),
            _any_pool,
            structlog.get_logger(),
            boot_id="a-boot",
            lease_dir=self.lease_dir,
            checkpoint=points,
        )


def _any_pool(vf: PciAddress) -> tuple[str, ...]:
    return ("rig",)


def _pass(name: str) -> None:
    """Production."""


def _serve_and_die(bench: Bench, command: str, at: int) -> None:
    _quiet()
    bench.call(command, Points(at, die))
    os._exit(EXIT_SURVIVED)


def _quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
