"""Commands of this project that the documentation shows exist, with these options. What other programs do is
not looked at."""

import io
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from node_agent import cli, main
from tests.docs_console import Command, read_shown
from tests.test_docs_links import PAGES

PROJECT = Path(__file__).parent.parent

_INLINE = re.compile(r"`((?:make|sriovctl|sriov-agent) [^`]+)`")
_TARGETS = re.findall(r"^([a-z][a-z-]*):", (PROJECT / "Makefile").read_text(), re.MULTILINE)
_VARIABLES = re.findall(r"^([A-Z_]+) \?=", (PROJECT / "Makefile").read_text(), re.MULTILINE)
_UNITS = [path.stem for path in (PROJECT / "manifests").glob("*.service")]
_PLACEHOLDER = re.compile(r"[A-Z_]+|\.\.\.|[a-z]+\|[a-z|]+")


def commands() -> Iterator[object]:
    for page in PAGES:
        shown = read_shown(str(page.relative_to(PROJECT)))
        typed = [one.text for one in shown if isinstance(one, Command)]
        for command in [*typed, *_INLINE.findall(page.read_text())]:
            words = words_of(command)
            if words and words[0] in CHECKS:
                yield pytest.param(words, id=f"{page.name}: {' '.join(words)}")


def words_of(command: str) -> list[str]:
    """Without sudo, variables of the environment and brackets of options."""
    words = shlex.split(command.replace("[", " ").replace("]", " "), comments=True)
    while words and (words[0] == "sudo" or re.match(r"[A-Z_]+=", words[0])):
        words = words[1:]
    return words


def check_make(words: list[str]) -> None:
    for word in words:
        variable, is_variable, _ = word.partition("=")
        assert word in _TARGETS or (is_variable and variable in [*_VARIABLES, "BENCH"]), word


def check_sriovctl(words: list[str]) -> None:
    group = typer.main.get_command(cli.app)
    assert isinstance(group, TyperGroup)
    name = words[0]
    if name.startswith("-"):
        assert name in [option for parameter in group.params for option in parameter.opts], name
        return
    assert name in group.commands, name
    known = {option for parameter in group.commands[name].params for option in parameter.opts}
    assert [word for word in words[1:] if word.startswith("-") and word not in known] == []


def check_agent(words: list[str]) -> None:
    known = re.findall(r"--[a-z-]+", agent_help())
    assert [word for word in words if word.startswith("--") and word not in known] == []


def agent_help() -> str:
    with redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit):
        main.main(["--help"])
    return said.getvalue()


def check_systemctl(words: list[str]) -> None:
    ours = [word for word in words if word.startswith("sriov")]
    assert [unit for unit in ours if unit.removesuffix(".service") not in _UNITS] == []


CHECKS = {
    "make": check_make,
    "sriovctl": check_sriovctl,
    "sriov-agent": check_agent,
    "systemctl": check_systemctl,
    "journalctl": check_systemctl,
}


@pytest.mark.parametrize("words", list(commands()))
def test_commands_exist(words: list[str]) -> None:
    CHECKS[words[0]]([word for word in words[1:] if not _PLACEHOLDER.fullmatch(word)])


def test_there_are_commands() -> None:
    """The expressions above find what is there."""
    assert len(list(commands())) >= 60


@pytest.mark.parametrize(
    "command", ["make instal", "sriovctl vf", "sriovctl vfs --jsn", "systemctl start sriov"]
)
def test_mistakes_are_found(command: str) -> None:
    program, *words = command.split()
    with pytest.raises(AssertionError):
        CHECKS[program](words)


def test_the_list_of_tiers_is_that_of_make_test() -> None:
    listed = re.findall(r"^\| `make ([a-z-]+)` \|", (PROJECT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    tiers = re.search(r"^test: ([a-z -]+?) *##", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    assert tiers is not None
    assert listed == [*tiers[1].split(), "test"]
