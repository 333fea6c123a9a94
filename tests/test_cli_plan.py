"""`sriovctl plan` and `sriovctl apply` over an in-memory kernel."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from node_agent import cli
from node_agent.agent import lock_alone
from node_agent.cli_plan import add_commands
from sriov_cni.attachment import Attachment, Original, Sandbox
from sriov_cni.environment import Pod
from tests.cni_world import World, conf_of
from tests.fake_kernel import FakeKernel
from tests.provision_world import PF0, PF1
from vf_manager.errors import KernelError
from vf_manager.kernel.api import NetnsId, PciFunction
from vf_manager.model import IfName, PciAddress
from vf_manager.records import RecordStore
from vf_manager.vf_attributes import VfPort

CONFIG = """
pools:
- name: fast
  select: {pfNames: [ens0]}
  vfs: {count: 3, mtu: 9000, mac: stable}
- name: dpdk
  select: {pfNames: ["ens1#0-1,3"]}
  vfs: {count: 4, driver: vfio-pci}
"""


class Sriovctl:
    """The commands, on a node with two PFs without VFs."""

    def __init__(self, root: Path, kernel: FakeKernel) -> None:
        self.root = root
        self.kernel = kernel
        self.run_dir = root / "run"
        self.config = root / "config.yaml"
        self.write(CONFIG)
        self._app = typer.Typer()
        add_commands(self._app, lambda: self.kernel)

    def write(self, config: str) -> None:
        self.config.write_text(config)

    def __call__(self, command: str, *arguments: str) -> Result:
        options = {"--config": self.config, "--run-dir": self.run_dir, "--kubelet-dir": self.root / "kubelet"}
        words = [word for key, value in options.items() for word in (key, str(value))]
        return CliRunner().invoke(self._app, [command, *words, *arguments])

    def rows(self, command: str, code: int) -> list[list[str]]:
        done = self(command)
        assert done.exit_code == code, done.output
        return [re.split(r"\s{2,}", line.rstrip()) for line in done.stdout.splitlines()[1:]]

    def document(self, command: str, code: int) -> dict[str, Any]:
        done = self(command, "--json")
        assert done.exit_code == code, done.output
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def hold(self, vf: PciAddress, namespace: str, name: str) -> None:
        """As the agent records that a pod has it."""
        port = VfPort(pci=vf, pf=self.kernel.functions[vf].function.physfn)
        record = Attachment(
            config="underlay",
            network="underlay",
            primary=IfName("eth0"),
            container_id="c1",
            ifname=IfName("eth0"),
            sandbox=Sandbox(path="/run/netns/a", id=NetnsId(4, 5)),
            pod=Pod(namespace=namespace, name=name),
            port=port,
            original=Original(),
        )
        RecordStore(self.run_dir / "attachments", Attachment).write(record.key, record)

    def vfs(self, pf: PciAddress) -> list[PciAddress]:
        return [vf for _, vf in self.kernel.functions[pf].function.virtfns]


@pytest.fixture
def sriovctl(tmp_path: Path) -> Sriovctl:
    kernel = FakeKernel()
    kernel.add_pf(PF0, "ens0")
    kernel.add_pf(PF1, "ens1")
    return Sriovctl(tmp_path, kernel)


# -- plan


def test_a_plan_is_a_table_of_what_would_change(sriovctl: Sriovctl) -> None:
    before = sriovctl.kernel.snapshot()
    assert sriovctl.rows("plan", 3) == [
        [f"ens0 ({PF0})", "change", "set the PF up"],
        ["", "change", "mtu 9000 on the PF"],
        ["", "change", "create 3 VFs"],
        ["", "change", "VF 0-2: stable mac, bind to its kernel driver, mtu 9000"],
        [f"ens1 ({PF1})", "change", "set the PF up"],
        ["", "change", "create 4 VFs"],
        ["", "change", "VF 0-1: bind to vfio-pci"],
        ["", "change", "VF 2: bind to its kernel driver"],
        ["", "change", "VF 3: bind to vfio-pci"],
    ]
    assert sriovctl.kernel.snapshot() == before
    assert not sriovctl.run_dir.exists()


def test_a_plan_for_programs_has_every_step(sriovctl: Sriovctl) -> None:
    document = sriovctl.document("plan", 3)
    assert document["steps"][0] == {"text": f"set PF {PF0} up", "type": "SetPfUp", "pf": PF0, "up": True}
    assert [s["count"] for s in document["steps"] if s["type"] == "SetNumVfs"] == [3, 4]
    assert {key for key, value in document.items() if value == []} == {
        "pending",
        "refused",
        "failed",
        "missing",
    }


def test_nothing_to_do_is_exit_code_0(sriovctl: Sriovctl) -> None:
    assert sriovctl("apply").exit_code == 0
    done = sriovctl("plan")
    assert (done.exit_code, done.stdout) == (
        0,
        "Nothing to do: every PF that is here is as the config asks for.\n",
    )


def test_a_pf_that_is_not_here_is_told(sriovctl: Sriovctl) -> None:
    """One config may be for nodes that differ."""
    sriovctl.write("pools: [{name: a, select: {pfNames: [ens9]}, vfs: {count: 1}}]")
    done = sriovctl("plan")
    assert done.exit_code == 0
    assert "missing  pools[0] a: no SR-IOV PF is called 'ens9' on this node" in done.stdout
    assert sriovctl.document("plan", 0)["missing"]


def test_a_plan_is_for_the_node_that_is_named(sriovctl: Sriovctl, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or for that of the variable that the agent's container has."""
    pool = "{name: a, select: {pfNames: [ens0]}, vfs: {count: 2, adopt: false}}"
    sriovctl.write(f"{{pools: [], nodes: [{{match: {{node: gpu-1}}, pools: [{pool}]}}]}}")
    assert sriovctl("plan", "--node-name", "web-1").exit_code == 0
    assert sriovctl("plan", "--node-name", "gpu-1").exit_code == 3
    monkeypatch.setenv("NODE_NAME", "gpu-1")
    assert sriovctl("plan").exit_code == 3


def test_what_is_held_back_is_exit_code_4_and_says_why(tmp_path: Path) -> None:
    """With the agent's records, and what the kernel shows."""
    world = World(tmp_path / "run")
    sriovctl = Sriovctl(tmp_path, world.kernel)
    vf = world.vfs(PF0)[2]
    args = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=trainer"
    assert world.call("ADD", "c1", world.new_pod("a"), conf_of(vf), CNI_ARGS=args).exit_code == 0
    (tmp_path / "run/pfs").mkdir()
    (tmp_path / f"run/pfs/{PF0}.json").write_text(json.dumps({"pf": PF0, "count": 7}))
    before = world.kernel.snapshot()
    for command in ("plan", "apply"):
        assert sriovctl.rows(command, 4) == [
            [
                f"ens0 ({PF0})",
                "pending",
                f"7 VFs -> 3 would destroy all 7 VFs of ens0 ({PF0}), of which are in use:"
                f" {vf} (default/trainer)",
            ],
            [
                f"ens1 ({PF1})",
                "refused",
                f"ens1 ({PF1}) has 7 VFs that somebody else created, and they would have to go:"
                " 7 VFs -> 4; say adopt: true, or write 0 to its sriov_numvfs",
            ],
        ]
        document = sriovctl.document(command, 4)
        assert document["pending"][0]["holders"] == [{"vf": vf, "by": "default/trainer"}]
        assert document["refused"][0]["holders"] == []
    assert world.kernel.snapshot() == before


# -- apply


def test_apply_does_what_the_plan_says(sriovctl: Sriovctl) -> None:
    planned = sriovctl.rows("plan", 3)
    done = sriovctl.rows("apply", 0)
    assert done == [[pf, state.replace("change", "done"), what] for pf, state, what in planned]
    assert [len(sriovctl.vfs(pf)) for pf in (PF0, PF1)] == [3, 4]
    assert sorted(path.name for path in (sriovctl.run_dir / "pfs").iterdir()) == [
        f"{PF0}.json",
        f"{PF1}.json",
    ]


def test_what_fails_is_exit_code_1(sriovctl: Sriovctl) -> None:
    def refuse(what: str) -> None:
        if what == "set_num_vfs 3":
            raise KernelError("write 3 to sriov_numvfs", 12)

    sriovctl.kernel.on_change = refuse
    rows = sriovctl.rows("apply", 1)
    assert rows[0] == [
        f"ens0 ({PF0})",
        "failed",
        f"write 3 to sriov_numvfs: ENOMEM (Cannot allocate memory); ens0 ({PF0}) is as it was before",
    ]
    assert [len(sriovctl.vfs(pf)) for pf in (PF0, PF1)] == [0, 4]


def test_where_the_agent_runs_it_is_left_to_do_it(sriovctl: Sriovctl) -> None:
    sriovctl.run_dir.mkdir()
    lock = lock_alone(sriovctl.run_dir / "lock")
    try:
        done = sriovctl("apply")
        assert done.exit_code == 1
        assert done.stderr == (
            f"sriovctl: sriov-agent runs with {sriovctl.run_dir} and makes the VFs by itself;"
            " `sriovctl plan` shows what it waits for\n"
        )
        done = sriovctl("apply", "--once")
        assert (done.exit_code, done.stdout) == (0, "sriov-agent runs already; it makes the VFs.\n")
        assert sriovctl("plan").exit_code == 3
    finally:
        os.close(lock)
    assert [len(sriovctl.vfs(pf)) for pf in (PF0, PF1)] == [0, 0]


class BootingKernel(FakeKernel):
    """The second PF gets its name at the third look."""

    looks = 0

    def read_functions(self) -> list[PciFunction]:
        self.looks += 1
        if self.looks == 3:
            self.add_pf(PF1, "ens1")
        return super().read_functions()


def test_at_boot_it_waits_for_the_pfs(tmp_path: Path) -> None:
    kernel = BootingKernel()
    kernel.add_pf(PF0, "ens0")
    sriovctl = Sriovctl(tmp_path, kernel)
    done = sriovctl("apply", "--once")
    assert done.exit_code == 0, done.output
    assert [len(sriovctl.vfs(pf)) for pf in (PF0, PF1)] == [3, 4]
    assert json.loads(done.stderr.splitlines()[0])["step"] == f"set PF {PF0} up"


def test_but_not_for_ever(sriovctl: Sriovctl) -> None:
    sriovctl.write(CONFIG + "- {name: a, select: {pfNames: [ens9]}, vfs: {count: 1}}\n")
    assert sriovctl("apply", "--once", "--wait", "0.01").exit_code == 0
    assert [len(sriovctl.vfs(pf)) for pf in (PF0, PF1)] == [3, 4]


# -- what can be wrong


@pytest.mark.parametrize("command", ["plan", "apply"])
def test_a_wrong_config_is_exit_code_2(sriovctl: Sriovctl, command: str) -> None:
    sriovctl.write("pools: []\nextra: 1")
    done = sriovctl(command)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"sriovctl: {sriovctl.config}: extra: unknown key (its value is 1); known")
    sriovctl.config.unlink()
    done = sriovctl(command)
    assert (done.exit_code, done.stderr) == (2, f"sriovctl: {sriovctl.config}: No such file or directory\n")


@pytest.mark.parametrize("command", ["plan", "apply"])
def test_a_record_that_cannot_be_read_is_not_passed_over(sriovctl: Sriovctl, command: str) -> None:
    """Its VF may be in use."""
    sriovctl.kernel.set_num_vfs(PF0, 2)
    (sriovctl.run_dir / "attachments").mkdir(parents=True)
    (sriovctl.run_dir / "attachments/c1@net1.json").write_text("{")
    sriovctl.write(CONFIG.replace("mac: stable", "adopt: true"))
    rows = sriovctl.rows(command, 4)
    assert rows[0][1] == "pending"
    assert rows[0][2].startswith("who uses its VFs cannot be told now: record ")
    assert len(sriovctl.vfs(PF0)) == 2


def test_sriovctl_has_them() -> None:
    done = CliRunner().invoke(cli.app, ["--help"])
    assert re.search(r"\bplan\b", done.output)
    assert re.search(r"\bapply\b", done.output)
