"""Files that come to the node and go: by rename, and with what stood there before kept."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node_agent.install import Placement, check_conflist, put, take_away
from vf_manager.errors import InvalidInput, KernelError

OURS = b"an executable that names /run/sriov-underlay/cni.sock"
CONFLIST = {"cniVersion": "1.0.0", "name": "underlay", "plugins": [{"type": "sriov-underlay"}]}


@pytest.fixture
def placement(tmp_path: Path) -> Placement:
    (tmp_path / "image").mkdir()
    (tmp_path / "node").mkdir()
    source = tmp_path / "image/sriov-underlay"
    source.write_bytes(OURS)
    source.chmod(0o755)
    return Placement(source, tmp_path / "node/sriov")


def names(placement: Placement) -> list[str]:
    return sorted(path.name for path in placement.target.parent.iterdir())


def test_it_comes_with_its_mode_and_goes(placement: Placement) -> None:
    assert put(placement)
    assert placement.target.read_bytes() == OURS
    assert placement.target.stat().st_mode & 0o777 == 0o755
    assert names(placement) == ["sriov"]
    assert take_away(placement)
    assert names(placement) == []
    assert not take_away(placement)


def test_the_same_is_not_touched(placement: Placement) -> None:
    put(placement)
    before = placement.target.stat()
    assert not put(placement)
    assert placement.target.stat() == before


def test_a_new_one_takes_the_place_of_one_that_is_being_read(placement: Placement) -> None:
    put(placement)
    with placement.target.open("rb") as old:
        placement.source.write_bytes(OURS + b", newer")
        assert put(placement)
        assert old.read() == OURS
    assert placement.target.read_bytes() == OURS + b", newer"
    assert names(placement) == ["sriov"]


def test_what_was_there_before_comes_back(placement: Placement) -> None:
    placement.target.write_bytes(b"sriov-cni")
    placement.target.chmod(0o700)
    for content in (OURS, OURS + b", newer"):
        placement.source.write_bytes(content)
        put(placement)
    assert placement.target.read_bytes() == OURS + b", newer"
    assert names(placement) == [".sriov.before-sriov-underlay", "sriov"]
    assert take_away(placement)
    assert (placement.target.read_bytes(), placement.target.stat().st_mode & 0o777) == (b"sriov-cni", 0o700)
    assert names(placement) == ["sriov"]


def test_somebody_elses_by_now_stays(placement: Placement) -> None:
    put(placement)
    placement.target.unlink()
    placement.target.write_bytes(b"sriov-cni")
    assert not take_away(placement)
    assert placement.target.read_bytes() == b"sriov-cni"


def test_what_a_crash_left_is_no_obstacle(placement: Placement) -> None:
    (placement.target.parent / ".sriov.new").write_bytes(b"half")
    put(placement)
    assert names(placement) == ["sriov"]


def test_an_error_names_both_files(placement: Placement) -> None:
    placement.target.parent.rmdir()
    with pytest.raises(KernelError, match=r"install .*/node/sriov from .*/image/sriov-underlay: ENOENT"):
        put(placement)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "/c: .* is not valid; expected a JSON object"),
        ("{}", "/c: cniVersion: None is not valid; expected a string"),
        (json.dumps(CONFLIST | {"plugins": [{"type": "bridge"}]}), r"plugins: \['bridge'\] is not valid"),
        (json.dumps(CONFLIST | {"plugins": [{}]}), r"plugins\[0\].type: None is not valid"),
    ],
)
def test_a_configuration_that_no_runtime_could_use_is_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    placement = Placement(tmp_path / "c", tmp_path / "d")
    placement.source.write_text(content)
    with pytest.raises(InvalidInput, match=message):
        check_conflist(placement)


def test_a_configuration_of_ours_is_fine(tmp_path: Path) -> None:
    placement = Placement(tmp_path / "c", tmp_path / "d")
    with pytest.raises(KernelError, match=r"read .*/c: ENOENT"):
        check_conflist(placement)
    placement.source.write_text(json.dumps(CONFLIST))
    check_conflist(placement)


# -- by the command


class Command:
    """`sriov-agent` on folders of its own. It sees no NIC of the machine: its config has no pool."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        (folder / "net.d").mkdir()
        (folder / "kubelet/device-plugins").mkdir(parents=True)
        (folder / "executable").write_bytes(OURS)
        (folder / "c.conflist").write_text(json.dumps(CONFLIST))
        (folder / "config.yaml").write_text("pools: []")
        self.executable, self.conflist = folder / "bin/sriov-underlay", folder / "net.d/00-c.conflist"

    @contextlib.contextmanager
    def running(self, *more: str) -> Iterator["subprocess.Popen[str]"]:
        with subprocess.Popen(self.words(*more), stderr=subprocess.PIPE, text=True) as process:
            reader = threading.Thread(target=self._read, args=(process,))
            self.lines: list[str] = []
            reader.start()
            try:
                yield process
                process.send_signal(signal.SIGTERM)
                assert process.wait(10) == 0, self.lines
            finally:
                process.kill()
                reader.join()

    def wait_for(self, event: str) -> None:
        eventually(lambda: any(f'"event": "{event}"' in line for line in self.lines), event)

    def words(self, *more: str) -> list[str]:
        folder = self.folder
        install = ["--install", folder / "executable", self.executable]
        when_ready = ["--install-when-ready", folder / "c.conflist", self.conflist]
        places = ["--run-dir", folder / "run", "--kubelet-dir", folder / "kubelet"]
        options = ["--config", folder / "config.yaml", *places, *install, *when_ready, *more]
        return [sys.executable, "-m", "node_agent.main", *map(str, options)]

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stderr is not None
        self.lines.extend(iter(process.stderr.readline, ""))


def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"did not happen: {what}"
        time.sleep(0.005)


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


def test_the_agent_installs_and_leaves_what_it_installed(command: Command) -> None:
    with command.running():
        eventually(command.conflist.exists, "the configuration is there")
        assert command.executable.read_bytes() == OURS
    assert command.conflist.exists()
    assert command.executable.exists()


def test_uninstalled_there_is_nothing_left(command: Command) -> None:
    with command.running():
        eventually(command.conflist.exists, "the configuration is there")
    with command.running("--uninstall"):
        command.wait_for("uninstalled")
        assert not command.conflist.exists()
        assert not command.executable.exists()
        assert list((command.folder / "run").iterdir()) == []


def test_a_configuration_that_cannot_be_used_is_said_at_the_start(command: Command) -> None:
    (command.folder / "c.conflist").write_text("{}")
    done = subprocess.run(command.words(), capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 2
    assert done.stderr.startswith("sriov-agent: --install-when-ready: ")
    assert not command.executable.exists()
