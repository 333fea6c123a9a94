"""What docs/vf-manager.md shows is what `sriovctl` says. Each console block is run on a node in memory that
is as its section says, with the config above it."""

import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from node_agent.config import ConfigError, parse_config
from node_agent.vfs_config import VfsConfig
from tests.fake_kernel import FakeKernel
from tests.test_cli_plan import Sriovctl
from vf_manager.errors import KernelError
from vf_manager.model import IfName, Mac, PciAddress
from vf_manager.stable_mac import stable_mac

PROJECT = Path(__file__).parent.parent
PAGE = (PROJECT / "docs/vf-manager.md").read_text()
ONE, TWO = PciAddress("0000:3b:00.0"), PciAddress("0000:5e:00.0")
BURNT_IN = Mac("b4:96:91:a0:00:10")

_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
_BLOCK = re.compile(r"^```(console|yaml)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"^# sriovctl (\S+)((?: \S+)*)$", re.MULTILINE)
_REASON = re.compile(r"^\| (pending|refused) \| `(.+)` \| .+ \|$", re.MULTILINE)
_MISTAKE = re.compile(r"^\| `(\{pools: .+?)` \| `(.+)` \|$", re.MULTILINE)


def sections() -> dict[str, str]:
    _, *parts = _SECTION.split(PAGE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def as_made(sriovctl: Sriovctl) -> None:
    """By the config of the page's first example."""
    now = sriovctl.config.read_text()
    sriovctl.write(first_config())
    assert sriovctl("apply").exit_code == 0
    sriovctl.write(now)


def first_config() -> str:
    return next(found[2] for found in _BLOCK.finditer(PAGE) if found[1] == "yaml")


def with_a_pod(sriovctl: Sriovctl) -> None:
    as_made(sriovctl)
    vf = sriovctl.vfs(ONE)[2]
    sriovctl.kernel.new_netns("/run/netns/trainer")
    pod = sriovctl.kernel.netns_at("/run/netns/trainer")
    assert pod is not None
    with sriovctl.kernel.links() as host:
        link = next(link for link in host.dump() if link.parent == vf)
        host.move(link.netdev.ifindex, pod, IfName("eth0"))
    sriovctl.hold(vf, "default", "trainer")


def made_by_others(sriovctl: Sriovctl) -> None:
    sriovctl.kernel.set_num_vfs(ONE, 4)


def out_of_memory(sriovctl: Sriovctl) -> None:
    as_made(sriovctl)
    left = ["set_num_vfs 16"]

    def refuse(what: str) -> None:
        if what in left:
            left.remove(what)
            raise KernelError(f"write '16' to sriov_numvfs of {ONE}", 12)

    sriovctl.kernel.on_change = refuse


SCENES: dict[str, Callable[[Sriovctl], None]] = {
    "Plan and apply": lambda sriovctl: None,
    "Pending: VFs in use": with_a_pod,
    "VFs that somebody else created": made_by_others,
    "When something fails": out_of_memory,
}


@pytest.fixture
def sriovctl(tmp_path: Path) -> Sriovctl:
    kernel = FakeKernel()
    kernel.add_pf(ONE, "ens1f0", total_vfs=16, driver="ice")
    kernel.add_pf(TWO, "ens2f0", total_vfs=16, driver="ice")
    return Sriovctl(tmp_path, kernel)


def test_every_example_is_in_a_section_that_is_run() -> None:
    """The expressions above find what is there."""
    with_examples = [title for title, text in sections().items() if "# sriovctl " in text]
    assert with_examples == list(SCENES)
    assert len(_COMMAND.findall(PAGE)) == PAGE.count("# sriovctl ") >= 7
    assert len(_REASON.findall(PAGE)) == len(re.findall(r"^\| (?:pending|refused) ", PAGE, re.MULTILINE)) >= 9
    assert len(_MISTAKE.findall(PAGE)) == PAGE.count("| `{pools:") >= 4


@pytest.mark.parametrize("title", list(SCENES))
def test_examples(sriovctl: Sriovctl, title: str) -> None:
    SCENES[title](sriovctl)
    for kind, text in _BLOCK.findall(sections()[title]):
        if kind == "yaml":
            sriovctl.write(text)
        elif "# sriovctl " in text:
            assert session(sriovctl, text) == text


def session(sriovctl: Sriovctl, text: str) -> str:
    """The block as it comes out."""
    said = ""
    for command, arguments in _COMMAND.findall(text):
        done = sriovctl(command, *arguments.split())
        lines = [line.rstrip() for line in done.output.splitlines()]
        said += "\n".join([f"# sriovctl {command}{arguments}", *lines, ""])
    return said


def test_every_key_of_vfs_is_described() -> None:
    keys = {field.encode_name for field in msgspec.structs.fields(VfsConfig)}
    assert keys == set(re.findall(r"^\| `(\w+)` \|", sections()["What can be asked for"], re.MULTILINE))


@pytest.mark.parametrize(("kind", "reason"), _REASON.findall(PAGE))
def test_reasons_are_those_of_the_planner(kind: str, reason: str) -> None:
    """An ellipsis stands for names and numbers."""
    written = "".join(
        re.sub(r'"\n\s+f?"|"\s*\n\s+f"', "", (PROJECT / "vf_manager" / name).read_text())
        for name in ("provision.py", "provisioner.py", "locks.py")
    )
    for part in filter(None, (part.strip() for part in reason.split("..."))):
        assert part in written, part


@pytest.mark.parametrize(("text", "message"), _MISTAKE.findall(PAGE))
def test_mistakes_in_the_config(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    assert str(caught.value) == message


def test_the_mac_that_is_shown() -> None:
    assert f"`{BURNT_IN}` has the VFs `{stable_mac(BURNT_IN, 0)}`, `{stable_mac(BURNT_IN, 1)}`" in PAGE
