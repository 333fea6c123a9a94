"""What docs/getting-started.md shows of `sriovctl` is what it says, on a node with such a PF."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from node_agent import cli
from node_agent.config import parse_config
from node_agent.config_source import CONFIG
from tests.docs_console import File, read_shown
from tests.fake_kernel import FakeKernel
from tests.test_cli_plan import Sriovctl
from vf_manager.model import PciAddress

PAGE = (Path(__file__).parent.parent / "docs/getting-started.md").read_text()

_SESSION = re.compile(r"^```console\n(# sriovctl .*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture
def sriovctl(tmp_path: Path) -> Sriovctl:
    kernel = FakeKernel()
    kernel.add_pf(PciAddress("0000:3b:00.0"), "ens1f0", total_vfs=16, driver="ice")
    kernel.add_pf(PciAddress("0000:3b:00.1"), "ens1f1", total_vfs=16, driver="ice")
    sriovctl = Sriovctl(tmp_path, kernel)
    shown = read_shown("docs/getting-started.md")
    [config] = [one for one in shown if isinstance(one, File) and one.path == str(CONFIG)]
    sriovctl.write(config.content)
    return sriovctl


def test_what_it_says_before_anything_is_changed(sriovctl: Sriovctl) -> None:
    validated = CliRunner().invoke(cli.app, ["validate", str(sriovctl.config)]).output
    said = [
        f"# sriovctl validate {CONFIG}",
        *validated.replace(str(sriovctl.config), str(CONFIG)).splitlines(),
        "# sriovctl plan",
        *sriovctl("plan").output.splitlines(),
    ]
    [shown] = _SESSION.findall(PAGE)
    assert shown.splitlines() == [line.rstrip() for line in said if line.strip()]


def test_the_line_that_is_added_is_one_of_the_config(sriovctl: Sriovctl) -> None:
    [line] = re.findall(r"^\$ echo '(fallback: .+)' \| sudo tee -a", PAGE, re.MULTILINE)
    assert parse_config(f"{sriovctl.config.read_text()}{line}\n").fallback


def test_the_agent_then_makes_the_pool_that_the_page_says(sriovctl: Sriovctl) -> None:
    assert sriovctl("apply").exit_code == 0
    made = len(sriovctl.vfs(PciAddress("0000:3b:00.0")))
    assert f'"pools": {{"fast": {made}}}' in PAGE
    assert f'"sriov-underlay.io/fast":"{made}"' in PAGE
