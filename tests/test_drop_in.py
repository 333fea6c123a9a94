"""The agent with a configuration of the established device plugin in the place of its own."""

import json
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from device_plugin.allocator import Places
from node_agent.agent import Agent, Roots
from node_agent.config_source import CONFIG, ConfigSource, choose_source
from node_agent.main import main
from tests.cni_world import PF0, PF1, new_kernel, quiet_log
from tests.stub_kubelet import StubKubelet
from vf_manager.errors import InvalidInput

FILE = {
    "resourceList": [
        {"resourceName": "first", "selectors": {"pfNames": ["ens0#0-2", "ens1#6"]}},
        {"resourceName": "first", "resourcePrefix": "example.com", "selectors": [{"devices": ["10CA"]}]},
        {"resourceName": "on-demand", "selectors": {"drivers": ["vfio-pci"]}},
    ]
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not tmp_path: the path of a socket may have 107 bytes only."""
    with tempfile.TemporaryDirectory(prefix="drop-in-") as path:
        yield Path(path)


def write(folder: Path, content: object = FILE) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(content))
    return path


def test_its_resources_are_advertised_and_the_vfs_stay_as_they_are(folder: Path) -> None:
    kernel = new_kernel()
    for name in ("ens0", "ens1"):
        link = kernel.find(name)
        assert link is not None
        link.netdev = msgspec.structs.replace(link.netdev, up=True, carrier=True)
    before = kernel.snapshot()
    config = ConfigSource(write(folder), "openshift.io").read()
    with StubKubelet(folder / "kubelet") as kubelet:
        agent = Agent(
            config,
            kernel,
            quiet_log(),
            roots=Roots(
                run_dir=folder / "run",
                kubelet_dir=folder / "kubelet",
                lease_dir=folder / "leases",
                places=Places(*(folder / name for name in ("dev", "sys", "cdi", "device-info"))),
            ),
        )
        results: list[str | None] = []
        thread = threading.Thread(target=lambda: results.append(agent.run()))
        thread.start()
        try:
            first = kubelet.wait_devices("openshift.io/first", 4)
            rest = kubelet.wait_devices("example.com/first", 10)
            assert kubelet.wait_devices("openshift.io/on-demand", 0) == {}
        finally:
            agent.stop()
            thread.join()
    assert results == [None]
    assert kernel.snapshot() == before
    vfs = {pf: [pci for _, pci in kernel.functions[pf].function.virtfns] for pf in (PF0, PF1)}
    assert sorted(first) == [*vfs[PF0][:3], vfs[PF1][6]]
    assert sorted(rest) == [*vfs[PF0][3:], *vfs[PF1][:6]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device-plugin-config", "FILE"], "resourceList[0].pfNames: unknown key"),
        (
            ["--device-plugin-config", "FILE", "--config", "x"],
            "--config: 'x' is not valid; expected no such option beside --device-plugin-config",
        ),
        (["--resource-prefix", "a.io"], "--resource-prefix: 'a.io' is not valid; expected --device-plugin-"),
        (
            ["--device-plugin-config", "FILE", "--resource-prefix", "A"],
            "--resource-prefix: 'A' is not valid; expected a DNS name",
        ),
    ],
)
def test_what_is_wrong_is_exit_code_2(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    path = write(folder, {"resourceList": [{"resourceName": "a", "pfNames": ["ens0"]}]})
    arguments = [str(path) if word == "FILE" else word for word in options]
    assert main([*arguments, "--run-dir", str(folder / "run")]) == 2
    assert said in capsys.readouterr().err
    assert not (folder / "run").exists()


def test_which_file_is_meant() -> None:
    own, established = Path("own"), Path("established")
    assert choose_source(None, None, None) == ConfigSource(CONFIG)
    assert choose_source(own, None, None) == ConfigSource(own)
    assert choose_source(None, established, None) == ConfigSource(established, "intel.com")
    assert choose_source(None, established, "a.io") == ConfigSource(established, "a.io")
    with pytest.raises(InvalidInput, match=r"^--config: "):
        choose_source(own, established, None)
