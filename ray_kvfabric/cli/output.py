"""How subcommands print: tables for people, JSON for machines, notes on stderr."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import click
from rich.console import Console
from rich.table import Table


def print_json(value: object) -> None:
    """One line on stdout."""
    click.echo(json.dumps(value))


def note(text: str) -> None:
    click.secho(f"kvfabric: {text}", fg="yellow", err=True)


def console() -> Console:
    """Of stdout as it is now; plain text where it is no terminal."""
    return Console(soft_wrap=False, highlight=False)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Columns whose name ends in a unit or a count are right-aligned: mark them with a leading '>'."""
    made = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for column in columns:
        made.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    for row in rows:
        made.add_row(*("" if cell is None else str(cell) for cell in row))
    return made


def mebibytes(nbytes: object) -> str:
    return f"{nbytes / 2**20:,.1f}" if isinstance(nbytes, int) else ""
