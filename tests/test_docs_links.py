"""The index has every page, and every link of a page leads somewhere."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
DOCS = PROJECT / "docs"
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]

_FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"(`+).+?\1")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def links_of(page: Path) -> list[str]:
    """Those into the project, without what is code."""
    text = _CODE.sub("", _FENCED.sub("", page.read_text()))
    return [link for link in _LINK.findall(text) if not re.match(r"https?://", link)]


def anchors_of(page: Path) -> Iterator[str]:
    """As GitHub makes them: lower case, a hyphen for each space, a number for what is there already."""
    seen: dict[str, int] = {}
    for heading in _HEADING.findall(_FENCED.sub("", page.read_text())):
        shown = _LINK.sub("", heading.replace("[", "")).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")
        count = seen[anchor] = seen.get(anchor, -1) + 1
        yield f"{anchor}-{count}" if count else anchor


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    dead = [link for link in links_of(page) if not leads_somewhere(page, link)]
    assert dead == []


def leads_somewhere(page: Path, link: str, root: Path = PROJECT) -> bool:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.is_relative_to(root) or not target.exists():
        return False
    return not anchor or anchor in anchors_of(target)


def test_the_index_has_every_page() -> None:
    linked = {link for link in links_of(DOCS / "README.md") if "/" not in link}
    assert linked == {page.name for page in DOCS.glob("*.md")} - {"README.md"}


def test_every_picture_is_shown() -> None:
    shown = {(page.parent / link).resolve() for page in PAGES for link in links_of(page)}
    assert [picture.name for picture in (DOCS / "img").iterdir() if picture not in shown] == []


def test_dead_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One `two`: three\n\n## Same\n\n## Same\n\n`[no](link.md)` [a](#one-two-three) [b](b.md)\n"
    )
    assert links_of(page) == ["#one-two-three", "b.md"]
    assert list(anchors_of(page)) == ["one-two-three", "same", "same-1"]
    assert leads_somewhere(page, "#same-1", tmp_path)
    assert not leads_somewhere(page, "#same-2", tmp_path)
    assert not leads_somewhere(page, "b.md", tmp_path)
