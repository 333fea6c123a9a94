"""Pure: what a page of the documentation lets one type, and the files that it shows by their paths."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.test_docs_links import PROJECT

# Those of README.md, before its first heading, are questions.
_HEADING = re.compile(r"#{2,3} (.+)|\*\*(.+\?)\*\*.*")
_FILE = re.compile(r"# (/?[\w./-]+\.\w+)")  # the first line of a block that is a file
_PROMPT = re.compile(r"[$#] (.+?)(?: +# .+)?")  # without what is said of it


@dataclass(frozen=True)
class Shown:
    """`page`: its path in the project. `section`: the heading it stands under."""

    page: str
    section: str


@dataclass(frozen=True)
class Command(Shown):
    text: str


@dataclass(frozen=True)
class File(Shown):
    path: str
    content: str


def read_shown(page: str) -> list[Command | File]:
    """In the order of the page."""
    return list(_shown(page, (PROJECT / page).read_text()))


def _shown(page: str, text: str) -> Iterator[Command | File]:
    section = ""
    lines = iter(text.splitlines())
    for line in lines:
        if heading := _HEADING.fullmatch(line):
            section = heading[1] or heading[2]
        elif line.startswith("```"):
            block = list(iter(lambda: next(lines), "```"))
            if line == "```console":
                yield from (Command(page, section, typed) for typed in _typed(block))
            elif block and (first := _FILE.fullmatch(block[0])):
                yield File(page, section, first[1], "\n".join([*block, ""]))


def _typed(block: list[str]) -> Iterator[str]:
    for line in "\n".join(block).replace("\\\n", " ").splitlines():
        if prompt := _PROMPT.fullmatch(line):
            yield prompt[1]
