"""Pure: a table as data, for a terminal or for a page of the documentation."""

from collections.abc import Iterator, Sequence

import msgspec


class Grid(msgspec.Struct, frozen=True):
    """`head` names the columns; the first one of a row says what it is about, the others are numbers."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def as_text(grid: Grid) -> Iterator[str]:
    yield grid.title
    lines = (grid.head, *grid.rows)
    widths = [max(len(line[column]) for line in lines) for column in range(len(grid.head))]
    for first, *numbers in lines:
        cells = (cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True))
        yield "  ".join(["", first.ljust(widths[0]), *cells])
    yield ""


def as_markdown(grid: Grid) -> Iterator[str]:
    yield f"**{grid.title}**"
    yield ""
    yield _row(grid.head)
    yield _row(["---", *("---:" for _ in grid.head[1:])])
    yield from map(_row, grid.rows)
    yield ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
