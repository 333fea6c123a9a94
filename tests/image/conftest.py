"""The image is built once, and one node runs it; each test finds the node without an agent."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hw_tests.rig.agent_image import AgentImage, build_agent_image
from tests.image.node import ClusterNode, running_node
from tests.netns.namespaces import ip, private_host

_PROGRAMS = ("buildah", "containerd", "ctr", "debootstrap", "qemu-aarch64", "runc")


@pytest.fixture(scope="session", autouse=True)
def _tools() -> None:
    if os.geteuid() != 0:
        pytest.fail("these tests build and run containers and need root: make test-image", pytrace=False)
    if missing := [name for name in _PROGRAMS if shutil.which(name) is None]:
        pytest.fail(f"{' '.join(missing)}: not there; run `.ci/host-setup image netns`", pytrace=False)


@pytest.fixture(scope="session")
def image(_tools: None) -> AgentImage:
    return build_agent_image()


@pytest.fixture(scope="module")
def _kept_node(image: AgentImage) -> Iterator[ClusterNode]:
    """To give a runtime an image takes long. Not tmp_path: the path of a socket may have 107 bytes only. The
    thread is in a namespace without a network meanwhile, so other files of tests do not get it."""
    with tempfile.TemporaryDirectory(prefix="node-") as folder, private_host():
        ip("link", "set", "lo", "up")
        with running_node(Path(folder), image.archive, image.name) as node:
            yield node


@pytest.fixture
def node(_kept_node: ClusterNode) -> Iterator[ClusterNode]:
    yield _kept_node
    _kept_node.wipe()
