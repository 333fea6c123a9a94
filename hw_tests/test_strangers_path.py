"""The way of somebody who has the documentation and nothing else: every command as the pages show it, from
the first config to a pod with a VF that answers, and back to a clean node (hw_tests/playground/walk.py)."""

import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from hw_tests.nics import NET, Nic, ip_json, wait_until
from hw_tests.playground.node import PF_NAMES, Playground, install, playground
from hw_tests.playground.walk import (
    GETTING_STARTED,
    README,
    TROUBLESHOOTING,
    UPGRADE,
    VF_MANAGER,
    expected_of,
    steps,
    with_names,
)
from hw_tests.runtime import NETNS_DIR, PROJECT
from tests.docs_console import Command, File

pytestmark = pytest.mark.skipif(
    os.environ.get("RIG") != "emulated", reason="this fills the folders of the node: not those of a real one"
)

NAMES = {"NODE": socket.gethostname(), "POD": "trainer"}
PATIENCE_S = 60.0
POLL_S = 0.5
PLACES = ("/etc/cni/net.d", "/etc/systemd", "/etc/udev", "/opt", "/run/sriov-underlay", "/usr/local/bin")


@pytest.fixture(scope="module")
def ground(nics: tuple[Nic, ...]) -> Iterator[Playground]:
    with playground(nics) as ground:
        yield ground


def walk(ground: Playground, way: Sequence[Command | File]) -> Mapping[str, str]:
    """What each command said in the end."""
    said = {}
    for step in way:
        match step:
            case File():
                (PROJECT / step.path).write_text(step.content)
            case Command():
                said[step.text] = type_in(ground, step)
    return said


def type_in(ground: Playground, step: Command, **env: str) -> str:
    expected, deadline = expected_of(step.text), time.monotonic() + PATIENCE_S
    while True:
        code, said = ground.run(with_names(step.text, NAMES), **env)
        if code in expected.codes and re.search(expected.says, said, re.MULTILINE):
            return said
        if time.monotonic() > deadline or not expected.says:
            what = f"{step.page}, {step.section}: {step.text}"
            pytest.fail(f"{what}\nended with {code}, not {expected}; it said\n{said}")
        time.sleep(POLL_S)


def traces() -> dict[str, list[str]]:
    """Of pods and VFs, on the node."""
    return {
        "links": [link["ifname"] for link in ip_json("link", "show")],
        "namespaces": sorted(path.name for path in NETNS_DIR.iterdir()),
        "vfs": [(NET / name / "device/sriov_numvfs").read_text() for name in PF_NAMES],
    }


def files() -> list[str]:
    """Those of ours."""
    return [str(path) for place in PLACES for path in Path(place).rglob("*") if "sriov" in str(path)]


def test_from_the_first_config_to_a_clean_node(ground: Playground) -> None:
    found = traces()
    said = walk(ground, steps(GETTING_STARTED))
    (address,) = set(re.findall(r"192\.168\.50\.2\d\d", said["kubectl get pod trainer -o wide"]))
    inside = said["kubectl exec trainer -- ip -details address show eth0"]
    assert f"link/ether {ground.neighbour.neighbour(address)} " in inside, "the VF itself was on the wire"

    walk(ground, [*steps(TROUBLESHOOTING), *steps(VF_MANAGER)])
    ground.run("kubectl apply -f trainer.yaml; kubectl wait --for=condition=Ready pod/trainer")
    walk(ground, steps(UPGRADE))
    assert files() == []
    wait_until(lambda: traces() == found, f"node as it was found: {found}", PATIENCE_S)


def test_the_first_page(ground: Playground, tmp_path: Path) -> None:
    """The config and the commands of README.md. Its other pools and networks want more than two NICs."""
    (config,) = re.findall(r"```yaml\n(resourcePrefix:.*?)```", (PROJECT / README).read_text(), re.DOTALL)
    (tmp_path / "config.yaml").write_text(config)
    install()  # `make install` is not on the way here
    for step in steps(README):
        assert isinstance(step, Command)
        type_in(ground, step, EDITOR=f"cp {tmp_path / 'config.yaml'}")
    wait_until(lambda: "7 of 7 VFs" in ground.run("sriovctl vfs")[1], "seven VFs", PATIENCE_S)
