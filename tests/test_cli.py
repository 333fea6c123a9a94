"""`sriovctl vfs`: what people and programs see of a node."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from node_agent import cli
from tests.cni_world import PF0, PF1, World, conf_of
from tests.fake_kernel import FakeKernel
from vf_manager.errors import KernelError
from vf_manager.kernel.api import LinkChange
from vf_manager.model import LinkState, Mac, Pf, VfChange, VlanProto


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Two PFs of seven VFs; `attachments` of the run dir is the agent's."""
    return World(tmp_path)


@pytest.fixture
def sriovctl(world: World, monkeypatch: pytest.MonkeyPatch) -> "Sriovctl":
    return Sriovctl(world.kernel, world.root, monkeypatch)


class Sriovctl:
    """The command over an in-memory kernel."""

    def __init__(self, kernel: FakeKernel, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._run_dir = run_dir
        monkeypatch.setattr(cli, "LinuxKernel", lambda: kernel)

    def __call__(self, *arguments: str) -> Result:
        return CliRunner().invoke(cli.app, ["vfs", "--run-dir", str(self._run_dir), *arguments])

    def rows(self) -> dict[str, list[str]]:
        """Of the table, by PCI address."""
        done = self()
        assert done.exit_code == 0, done.output
        cells = [re.split(r"\s{2,}", line.strip()) for line in done.stdout.splitlines()[1:]]
        return {row[1]: row for row in cells}

    def document(self) -> dict[str, Any]:
        done = self("--json")
        assert done.exit_code == 0, done.output
        document: dict[str, Any] = json.loads(done.stdout)
        return document


def attach(world: World, device: str, **conf: Any) -> None:
    pod = world.new_pod("pod-1")
    args = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0"
    reply = world.call("ADD", "c1", pod, conf_of(device, **conf), CNI_ARGS=args)
    assert reply.exit_code == 0, reply


# -- the table


def test_the_table_has_a_line_for_each_device(sriovctl: Sriovctl, world: World) -> None:
    lines = sriovctl().stdout.splitlines()
    assert (
        re.sub(" +", " ", lines[0]).strip() == "device pci driver name mac mtu link vlan flags numa used by"
    )
    assert len(lines) == 1 + 2 * 8
    rows = sriovctl.rows()
    assert list(rows) == [PF0, *world.vfs(PF0), PF1, *world.vfs(PF1)]
    assert rows[PF0][:4] == ["PF (7 of 7 VFs)", PF0, "igb", "ens0"]
    assert rows[world.vfs(PF1)[2]][:4] == ["VF 2", world.vfs(PF1)[2], "igbvf", "ens1v2"]


def test_a_line_tells_the_state_of_its_device(sriovctl: Sriovctl, world: World) -> None:
    vf = world.vfs(PF0)[3]
    with world.kernel.links() as host:
        pf, link = host.read(name="ens0"), host.read(name="ens0v3")
        assert pf is not None
        assert link is not None
        host.set_link(link.netdev.ifindex, LinkChange(mtu=9000, up=True, mac=Mac("02:cd:00:00:00:0a")))
        change = VfChange(vlan=100, qos=3, proto=VlanProto.DOT1Q, trust=True)
        host.set_vf(pf.netdev.ifindex, 3, change)
    rows = sriovctl.rows()
    assert rows[vf][4:] == ["02:cd:00:00:00:0a", "9000", "up", "100 qos 3", "spoofchk,trust", "0"]
    assert rows[world.vfs(PF0)[4]][5:] == ["1500", "down", "-", "spoofchk", "0"]


def test_a_link_without_carrier_is_not_up(sriovctl: Sriovctl, world: World) -> None:
    link = world.kernel.find("ens0")
    assert link is not None
    link.netdev = msgspec.structs.replace(link.netdev, up=True, carrier=False)
    assert "no carrier" in sriovctl.rows()[PF0]


def test_what_there_is_not_is_a_dash(sriovctl: Sriovctl, world: World) -> None:
    vf = world.vfs(PF0)[0]
    world.kernel.bind_driver(vf, "vfio-pci")
    attributes = world.kernel.functions[PF0].attributes
    attributes[0] = msgspec.structs.replace(attributes[0], mac=Mac("02:00:00:00:00:99"), spoofchk=False)
    assert sriovctl.rows()[vf][2:] == ["vfio-pci", "-", "02:00:00:00:00:99", "-", "-", "-", "-", "0"]

    link = world.kernel.find("ens1")
    assert link is not None
    world.kernel.namespaces[1].remove(link)
    world.kernel.bind_driver(world.vfs(PF1)[0], "vfio-pci")
    rows = sriovctl.rows()
    assert rows[PF1][3:7] == ["-", "-", "-", "-"]
    assert rows[world.vfs(PF1)[0]][3:9] == ["-", "-", "-", "-", "-", "-"]


def test_who_has_a_vf_is_shown(sriovctl: Sriovctl, world: World) -> None:
    vf = world.vfs(PF0)[2]
    attach(world, vf, vlan=100)
    row = sriovctl.rows()[vf]
    assert row[-1] == "default/web-0 net1"
    assert "100" in row
    assert [row[-1] for pci, row in sriovctl.rows().items() if "net1" in row[-1]] == ["default/web-0 net1"]


def test_nothing_is_cut_off_where_there_is_no_terminal(sriovctl: Sriovctl, world: World) -> None:
    attach(world, world.vfs(PF0)[2])
    assert "…" not in sriovctl().stdout


def test_a_node_without_nics_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = Sriovctl(FakeKernel(), tmp_path, monkeypatch)()
    assert done.exit_code == 0
    assert done.stdout == "This node has no SR-IOV capable NIC: no PCI device here has sriov_totalvfs.\n"
    done = Sriovctl(FakeKernel(), tmp_path, monkeypatch)("--json")
    assert json.loads(done.stdout) == {"pfs": [], "withoutPf": [], "attachments": []}


def test_a_nic_that_may_be_a_vf_without_a_pf_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = FakeKernel()
    kernel.add_lone("0000:05:00.0", "ens5")
    kernel.add_lone("0000:06:00.0", "ens6")
    kernel.uppers_of["ens6"] = ("br0",)
    done = Sriovctl(kernel, tmp_path, monkeypatch)()
    assert done.exit_code == 0
    no_pf, _, *rows = done.stdout.splitlines()
    assert no_pf.startswith("This node has no SR-IOV capable NIC")
    assert [re.split(r"\s{2,}", row.strip())[:4] for row in rows] == [
        ["NIC without PF", "0000:05:00.0", "e1000e", "ens5"],
        ["NIC without PF", "0000:06:00.0", "e1000e", "ens6"],
    ]
    assert rows[0].split()[-1] == "0"
    assert rows[1].endswith("not for pods: br0 of the host stands on its interface ens6")
    document = json.loads(Sriovctl(kernel, tmp_path, monkeypatch)("--json").stdout)
    assert [(vf["pci"], vf["pf_pci"]) for vf in document["withoutPf"]] == [
        ("0000:05:00.0", None),
        ("0000:06:00.0", None),
    ]


# -- JSON


def test_json_has_every_field(sriovctl: Sriovctl, world: World) -> None:
    document = sriovctl.document()
    pfs = msgspec.convert(document["pfs"], tuple[Pf, ...])
    assert [pf.pci for pf in pfs] == [PF0, PF1]
    vf = pfs[0].vfs[1]
    assert vf.attributes is not None
    assert (vf.index, vf.driver, vf.attributes.link_state) == (1, "igbvf", LinkState.AUTO)
    assert vf.netdev is not None
    assert vf.netdev.name == "ens0v1"
    assert document["attachments"] == []


def test_json_has_the_attributes_of_dra(sriovctl: Sriovctl, world: World) -> None:
    world.kernel.add_lone("0000:05:00.0", "ens5")
    document = sriovctl.document()
    vf = document["pfs"][0]["vfs"][1]
    assert vf["dra"]["resource.kubernetes.io/pciBusID"] == vf["pci"]
    assert (vf["dra"]["pfName"], vf["dra"]["vfID"], vf["dra"]["linkType"]) == ("ens0", 1, "ether")
    assert document["withoutPf"][0]["dra"]["deviceID"] == "10d3"


def test_json_has_the_attachments(sriovctl: Sriovctl, world: World) -> None:
    vf = world.vfs(PF0)[2]
    attach(world, vf)
    (one,) = sriovctl.document()["attachments"]
    assert (one["vf"], one["state"], one["container"], one["ifname"]) == (vf, "attached", "c1", "net1")
    assert (one["pod"]["namespace"], one["pod"]["name"]) == ("default", "web-0")


# -- what can be wrong


def test_a_record_that_cannot_be_read_is_told_and_passed_over(sriovctl: Sriovctl, world: World) -> None:
    attach(world, world.vfs(PF0)[2])
    (world.root / "attachments/c0@net1.json").write_text("{")
    (world.root / "attachments/.c9@net1.tmp").write_text("{")
    done = sriovctl("--json")
    assert done.exit_code == 0
    assert "attachments/c0@net1.json cannot be read" in done.stderr
    assert len(json.loads(done.stdout)["attachments"]) == 1


def test_without_an_agent_no_folder_is_made(sriovctl: Sriovctl, tmp_path: Path, world: World) -> None:
    done = CliRunner().invoke(cli.app, ["vfs", "--run-dir", str(tmp_path / "nobody")])
    assert done.exit_code == 0
    assert not (tmp_path / "nobody").exists()


def test_a_kernel_that_refuses_is_exit_code_1(
    sriovctl: Sriovctl, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> dict[str, str]:
        raise KernelError("list the network interfaces", 1)

    monkeypatch.setattr(world.kernel, "eswitch_modes", refuse)
    done = sriovctl()
    assert done.exit_code == 1
    assert done.stderr == "sriovctl: list the network interfaces: EPERM (Operation not permitted)\n"
    assert done.stdout == ""


def test_without_a_command_it_helps() -> None:
    done = CliRunner().invoke(cli.app, [])
    assert "vfs" in done.output
    assert CliRunner().invoke(cli.app, ["--help"]).exit_code == 0
