"""What `make install` and its like put into the folders of systemd and udev."""

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

PROJECT = Path(__file__).parent.parent
MANIFESTS = PROJECT / "manifests"
SERVICES = sorted(MANIFESTS.glob("*.service"))
BIN = "/opt/sriov-underlay/bin/"


def read_unit(path: Path) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(path.read_text())
    return unit


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_a_unit_is_one(path: Path, tmp_path: Path) -> None:
    """By systemd's own word, where there is one. What it starts is not installed here."""
    unit = read_unit(path)
    assert unit["Service"]["ExecStart"].startswith(BIN)
    assert "kubelet.service" in unit["Unit"]["Before"].split()
    assert unit["Install"]["WantedBy"] == "multi-user.target"
    if verify := shutil.which("systemd-analyze"):
        here = tmp_path / path.name
        here.write_text(re.sub(rf"{BIN}[a-z-]+", sys.executable, path.read_text()))
        done = subprocess.run(
            [verify, "verify", "--man=no", here], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_vfs_are_made_before_the_agent_starts() -> None:
    """Both at once would fight for the lock, and one of them give up."""
    once, agent = (read_unit(MANIFESTS / f"sriov-{name}.service") for name in ("vfs", "agent"))
    assert "sriov-agent.service" in once["Unit"]["Before"].split()
    assert "sriov-vfs.service" in agent["Unit"]["After"].split()
    assert once["Service"]["Type"] == "oneshot"
    assert once["Service"]["ExecStart"].split()[1:] == ["apply", "--once", "--wait", "30"]
    for key in ("RuntimeDirectory", "RuntimeDirectoryMode", "RuntimeDirectoryPreserve"):
        assert once["Service"][key] == agent["Service"][key]


def test_networkd_leaves_alone_what_udev_marks() -> None:
    network = read_unit(MANIFESTS / "10-sriov-vfs.network")
    assert network["Link"]["Unmanaged"] == "yes"
    key, value = network["Match"]["Property"].split("=")
    rules = udev_rules(MANIFESTS / "80-sriov-vfs.rules")
    assert rules[-2] == ['ENV{NM_UNMANAGED}="1"', f'ENV{{{key}}}="{value}"']


def test_udev_marks_the_interfaces_of_vfs_alone() -> None:
    rules = udev_rules(MANIFESTS / "80-sriov-vfs.rules")
    *conditions, _, end = rules
    assert end == ['LABEL="sriov_vfs_end"']
    assert all(goto == 'GOTO="sriov_vfs_end"' for _, goto in conditions)
    assert [condition for condition, _ in conditions] == [
        'ACTION=="remove"',
        'SUBSYSTEM!="net"',
        'TEST!="device/physfn"',
    ]


def udev_rules(path: Path) -> list[list[str]]:
    """Each rule as its parts; what is none of the grammar of udev(7) fails here."""
    part = re.compile(r'[A-Z]+(\{\w+\})?(==|!=|=|\+=|:=)"[^"]*"')
    rules = [line.split(", ") for line in path.read_text().splitlines() if line and line[0] != "#"]
    assert all(part.fullmatch(piece) for rule in rules for piece in rule)
    return rules


@pytest.mark.parametrize(
    ("target", "files"),
    [
        ("install-vfs-unit", ["unit/sriov-vfs.service"]),
        ("install-unmanaged", ["network/10-sriov-vfs.network", "rules/80-sriov-vfs.rules"]),
    ],
)
def test_what_is_only_installed_when_asked(tmp_path: Path, target: str, files: list[str]) -> None:
    folders = {"UNIT_DIR": "unit", "UDEV_DIR": "rules", "NETWORKD_DIR": "network"}
    into = [f"{name}={tmp_path / folder}" for name, folder in folders.items()]
    subprocess.run(["make", "-s", "-C", PROJECT, target, *into], check=True, capture_output=True)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == files
    for file in files:
        assert (tmp_path / file).read_text() == (MANIFESTS / Path(file).name).read_text()


@pytest.mark.parametrize("also", ["", "sriov"])
def test_uninstall_leaves_what_is_not_ours(tmp_path: Path, also: str) -> None:
    """The agent itself is a virtual environment, which takes long to make: here it is a folder like one."""
    node = Installed(tmp_path)
    (tmp_path / "cni").mkdir()
    (tmp_path / "cni/bridge").touch()
    before = node.files()
    node.make("install-vfs-unit", "install-unmanaged", "install-cni", f"ALSO_AS={also}")
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent/pyvenv.cfg").touch()
    (tmp_path / "run").mkdir()
    assert len(node.files()) == 6 + bool(also)
    assert node.make("uninstall", f"ALSO_AS={also}").returncode == 0
    assert node.files() == before
    assert not (tmp_path / "run").exists()
    assert node.make("uninstall").returncode == 0, "once more is no error"


def test_uninstall_waits_for_pods(tmp_path: Path) -> None:
    node = Installed(tmp_path)
    node.make("install-cni")
    (tmp_path / "run/attachments").mkdir(parents=True)
    (tmp_path / "run/attachments/4fa1@eth0.json").touch()
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent/bin").touch()  # no virtual environment: not ours to remove
    before = node.files()
    refused = node.make("uninstall")
    assert refused.returncode != 0
    assert "pods still have VFs" in refused.stderr
    assert "4fa1@eth0.json" in refused.stderr
    assert node.files() == before
    (tmp_path / "run/attachments/4fa1@eth0.json").unlink()
    assert node.make("uninstall").returncode == 0
    assert node.files() == ["agent/bin"]


class Installed:
    """The folders of a node, and `make` for them."""

    FOLDERS: ClassVar = {
        "PREFIX": "agent",
        "BIN_DIR": "bin",
        "CNI_BIN": "cni",
        "CONFIG_DIR": "config",
        "UNIT_DIR": "unit",
        "UDEV_DIR": "rules",
        "NETWORKD_DIR": "network",
        "RUN_DIR": "run",
    }

    def __init__(self, root: Path) -> None:
        self._root = root

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        into = [f"{name}={self._root / folder}" for name, folder in self.FOLDERS.items()]
        command = ["make", "-s", "-C", str(PROJECT), *into, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self._root)) for path in self._root.rglob("*") if path.is_file())
