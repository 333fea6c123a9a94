"""Every test of this folder runs in a network namespace of its own, which stands for the host's."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.netns.namespaces import LinuxWorld, add_veth, private_host

_DEADLINE_S = 20.0


@pytest.fixture(autouse=True)
def stage() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.fail("these tests make network namespaces and need root: make test-netns", pytrace=False)
    fds, threads = open_fds(), threading.active_count()
    with private_host():
        yield
    assert_soon(lambda: open_fds() <= fds, "every descriptor is closed")
    assert_soon(lambda: threading.active_count() <= threads, "every thread has ended")


@pytest.fixture
def world(stage: None) -> Iterator[LinuxWorld]:
    """`spare0` on the host is one end of a veth pair; the other, `peer0`, is there too and up."""
    add_veth("spare0", "peer0")
    with LinuxWorld("spare0") as world:
        yield world


def open_fds() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def assert_soon(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"did not happen: {what}"
        time.sleep(0.002)
