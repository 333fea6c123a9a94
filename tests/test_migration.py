"""docs/migration.md and docs/device-plugin.md: files are read as they say, messages are what one gets."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from device_plugin.established import parse_established
from device_plugin.pools import Pool, resource_of
from node_agent.cli import app
from node_agent.config import parse_config
from tests.fake_kernel import FakeKernel
from vf_manager.mistakes import MistakesFound
from vf_manager.model import PciAddress

DOCS = Path(__file__).parent.parent / "docs"
MIGRATION = (DOCS / "migration.md").read_text()
DEVICE_PLUGIN = (DOCS / "device-plugin.md").read_text()
PF = PciAddress("0000:3b:00.0")

_BLOCK = re.compile(r"^```(json|yaml|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_ROW = re.compile(r"^\| `(\{.+?\})` \| (`+)(.+?) ?\2 \|$", re.MULTILINE)


def blocks(text: str, kind: str) -> list[str]:
    return [block for name, block in _BLOCK.findall(text) if name == kind]


def rows(text: str) -> list[tuple[str, str]]:
    """Of the tables of errors: what is written, and the message."""
    return [(written, message) for written, _, message in _ROW.findall(text)]


def test_there_are_errors() -> None:
    """The expression above finds what is there."""
    for text in (MIGRATION, DEVICE_PLUGIN):
        assert len(rows(text)) == sum(line.startswith("| `{") for line in text.splitlines()) > 10


def message_of(parse: Callable[[str], object], text: str) -> str:
    with pytest.raises(MistakesFound) as caught:
        parse(text)
    return str(caught.value)


@pytest.mark.parametrize(("written", "message"), rows(MIGRATION))
def test_errors_of_an_established_config(written: str, message: str) -> None:
    assert message_of(parse_established, written) == message


@pytest.mark.parametrize(("written", "message"), rows(DEVICE_PLUGIN))
def test_errors_of_pools(written: str, message: str) -> None:
    assert message_of(parse_config, written) == message


def test_both_configurations_say_the_same() -> None:
    (established,) = blocks(MIGRATION, "json")
    (own,) = blocks(MIGRATION, "yaml")
    config = parse_config(own)
    assert config.resource_prefix == "intel.com"
    there, here = parse_established(established), config.resources()
    assert [resource_of(pool, "intel.com") for pool in there] == [
        resource_of(pool, "intel.com") for pool in here
    ]
    assert [essence(pool) for pool in there] == [essence(pool) for pool in here]


def essence(pool: Pool) -> Pool:
    """Without what has no word in the other file."""
    return msgspec.structs.replace(
        pool, name="", resource=None, prefix=None, without_pf=False, hyphen_env=False
    )


def node() -> FakeKernel:
    kernel = FakeKernel()
    kernel.add_pf(PF, "ens1f0")
    kernel.set_num_vfs(PF, 7)
    return kernel


def test_what_the_commands_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    section = DEVICE_PLUGIN[DEVICE_PLUGIN.index("## explain and validate") :]
    Path("config.yaml").write_text(blocks(section, "yaml")[0])
    shown = [run for block in blocks(section, "console") for run in block.split("$ ")[1:]]
    assert len(shown) >= 5
    for run in shown:
        command, _, output = run.partition("\n")
        match shlex.split(command):
            case ["cat", name]:
                Path(name).write_text(output)
            case ["sriovctl", *arguments]:
                assert printed(arguments) == output.splitlines()


def printed(arguments: list[str]) -> list[str]:
    if arguments[0] == "explain":
        arguments = [*arguments, "--config", "config.yaml"]
    done = CliRunner().invoke(app, arguments, obj=node())
    return [line.rstrip() for line in (done.stdout + done.stderr).splitlines()]
