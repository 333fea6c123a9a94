"""`make install` and `make uninstall` on a node, in folders of the test. It is here since it takes packages
from an index, as the image does."""

import subprocess
from pathlib import Path

from tests.test_units import BIN, MANIFESTS, Installed, read_unit


def test_a_node_gets_all_that_the_pages_say(tmp_path: Path) -> None:
    node = Installed(tmp_path)
    done = node.make("install")
    assert done.returncode == 0, done.stderr
    for name in ("sriov-agent.service", "sriov-vfs.service"):
        program = read_unit(MANIFESTS / name)["Service"]["ExecStart"].split()[0]
        assert says_its_options(tmp_path / "agent/bin" / program.removeprefix(BIN))
    assert says_its_options(tmp_path / "bin/sriovctl")
    config = tmp_path / "config/config.yaml"
    assert config.read_text() == (MANIFESTS / "config.yaml").read_text()

    config.write_text("pools: []\n")
    assert node.make("install-node").returncode == 0
    assert config.read_text() == "pools: []\n", "what the administrator wrote stays"
    assert node.make("uninstall").returncode == 0
    assert node.files() == ["config/config.schema.json", "config/config.yaml"]


def says_its_options(program: Path) -> bool:
    return "--help" in subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
