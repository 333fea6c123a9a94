"""What docs/sriovctl.md shows is what `sriovctl` says, on the node of tests/doctor_node.py."""

import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from node_agent import cli
from node_agent.status_file import AgentStatus, PoolState, Provisioned, StatusFile
from tests.cni_world import PF1, quiet_log
from tests.doctor_node import DoctorNode
from tests.test_doctor import BREAKS
from vf_manager.model import PciAddress
from vf_manager.provision import Refusal, RefusalKind

PROJECT = Path(__file__).parent.parent
PAGE = (PROJECT / "docs/sriovctl.md").read_text()

_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"^# sriovctl (\w+)((?: \S+)*)$", re.MULTILINE)


def sections() -> dict[str, list[str]]:
    _, *parts = _SECTION.split(PAGE)
    found = zip(parts[::2], parts[1::2], strict=True)
    return {title: blocks for title, text in found if (blocks := _BLOCK.findall(text))}


def well(node: DoctorNode) -> None:
    tell(node)


def ill(node: DoctorNode) -> None:
    refusal = Refusal(pf=PF1, kind=RefusalKind.REFUSED, reason="somebody else created 7 VFs")
    tell(
        node,
        unhealthy={node.vf(6): "no driver is bound to it"},
        refused="pools[0].nmae: unknown key (its value is 'fast'); did you mean name?",
        provisioning=Provisioned(refused=(refusal,)),
    )


def tell(
    node: DoctorNode,
    unhealthy: dict[PciAddress, str] | None = None,
    refused: str | None = None,
    provisioning: Provisioned | None = None,
) -> None:
    pools = [
        PoolState(
            name=name,
            resource=f"sriov-underlay.io/{name}",
            vfs=tuple(node.vf(index, pf) for index in range(7)),
            unhealthy=(unhealthy or {}) if name == "fast" else {},
            registered=True,
        )
        for name, pf in (("fast", "ens0"), ("dpdk", "ens1"))
    ]
    status = AgentStatus(
        pid=1,
        config="/etc/sriov-underlay/config.yaml",
        config_refused=refused,
        pools=tuple(pools),
        provisioning=provisioning or Provisioned(),
    )
    StatusFile(node.run_dir / "status.json", lambda: status, quiet_log()).write()


def without_a_pod(node: DoctorNode) -> None:
    node.kernel.destroy_netns(node.kernel.paths["/run/netns/web-0"])


def as_it_is(node: DoctorNode) -> None:
    """Nothing more happens."""


SCENES: dict[str, list[Callable[[DoctorNode], None]]] = {
    "status": [well, ill],
    "doctor": [as_it_is],
    "pfs": [as_it_is],
    "attachments": [as_it_is],
    "top": [as_it_is],
    "gc": [without_a_pod],
}


def test_every_example_is_run() -> None:
    assert {title: len(blocks) for title, blocks in sections().items()} == {
        title: len(scenes) for title, scenes in SCENES.items()
    }
    assert len(_COMMAND.findall(PAGE)) == PAGE.count("# sriovctl ") == sum(map(len, SCENES.values()))


@pytest.mark.parametrize("title", list(SCENES))
def test_examples(title: str) -> None:
    for scene, block in zip(SCENES[title], sections()[title], strict=True):
        with tempfile.TemporaryDirectory(prefix="docs-") as folder:
            node = DoctorNode(Path(folder))
            BREAKS["bypasses-kube-proxy"](node)
            node.attach("trainer-0", node.vf(1), vlan=100)
            node.set_link("ens1", carrier=False)
            for record in (node.run_dir / "attachments").iterdir():
                os.utime(record, times=(time.time() - 8000,) * 2)
            with node.agent():
                scene(node)
                assert session(node, block) == block


def session(node: DoctorNode, block: str) -> str:
    """The block as it comes out."""
    ((command, arguments),) = _COMMAND.findall(block)
    done = run(node, command, arguments.split())
    lines = [f"# sriovctl {command}{arguments}", *(line.rstrip() for line in done.output.splitlines())]
    if "# echo $?" in block:
        lines += ["# echo $?", str(done.exit_code)]
    return "\n".join([*lines, ""])


def run(node: DoctorNode, command: str, arguments: list[str]) -> Result:
    match command:
        case "doctor":
            return node.doctor(*arguments)
        case "top":
            arguments = [*arguments, "--interval", "0.01"]
        case "gc":
            arguments = [*arguments, "--kubelet-dir", str(node.root / "kubelet-gone")]
    words = [command, "--run-dir", str(node.run_dir), *arguments]
    return CliRunner().invoke(cli.app, words, obj=node.kernel)


def test_every_command_is_named() -> None:
    names = {command.name for command in cli.app.registered_commands}
    names |= {command.callback.__name__ for command in cli.app.registered_commands if command.callback}
    shown = set(re.findall(r"`(\w+)(?: --dry-run)?`", PAGE.partition("## status")[0]))
    assert {name for name in names if name and not name.endswith("_command")} <= shown
