"""Adapter: where the commands of sriovctl write."""

import sys
from typing import NoReturn

import msgspec
import typer
from rich.console import Console
from rich.table import Table

_UNLIMITED = 10_000  # columns: only a terminal has an edge to fold a line at

# Exit codes. 0: as it should be.
FAILED = 1
WRONG_INPUT = 2
NOTICE = 3  # something to know of, or to be done
TROUBLE = 4  # something is not as it should be, and somebody has to act


def new_console() -> Console:
    """On stdout. Text is written as it is: ":cd:" in a MAC address is an emoji to rich."""
    console = Console(markup=False, emoji=False, highlight=False)
    if not sys.stdout.isatty():
        console.width = _UNLIMITED
    return console


def new_table(*titles: str) -> Table:
    """The last column folds, the others do not."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles[:-1]:
        table.add_column(title, no_wrap=True)
    table.add_column(titles[-1], overflow="fold")
    return table


def print_json(document: object) -> None:
    typer.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


def fail(code: int, *lines: str) -> NoReturn:
    """Each line on stderr, after the name of the command."""
    for line in lines:
        typer.echo(f"sriovctl: {line}", err=True)
    raise typer.Exit(code)
