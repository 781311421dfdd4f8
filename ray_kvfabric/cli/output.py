"""How subcommands print: tables for people, JSON for machines, notes on stderr."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import click
from rich import box
from rich.console import Console
from rich.table import Table

PLAIN_WIDTH = 120  # columns, where stdout is no terminal


def print_json(value: object) -> None:
    """One line on stdout."""
    click.echo(json.dumps(value))


def console() -> Console:
    """Of stdout as it is now; plain text where it is no terminal."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A column whose name begins with '>' is right-aligned."""
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    for column in columns:
        made.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    for row in rows:
        made.add_row(*("" if cell is None else str(cell) for cell in row))
    return made


def mebibytes(nbytes: object) -> str:
    return f"{nbytes / 2**20:,.1f}" if isinstance(nbytes, int) else ""
