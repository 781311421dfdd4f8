"""A table for notebooks: plain HTML without colours, which light and dark themes style each in its way.

It lies on this floor because `Cache` is the lowest thing that is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

Cell = str | int | float | None


def html_table(caption: str, headings: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Everything is escaped. A column whose first cell is a number is aligned to the right; None is an empty cell."""
    sides = ["right" if isinstance(cell, int | float) else "left" for cell in (rows or [headings])[0]]
    lines = [_row("th", headings, sides), *(_row("td", cells, sides) for cells in rows)]
    title = f'<caption style="text-align:left; white-space:nowrap">{escape(caption)}</caption>'
    return f"<table>{title}{''.join(lines)}</table>"


def mebibytes(nbytes: int) -> float:
    return round(nbytes / 2**20, 2)


def _row(tag: str, cells: Sequence[Cell], sides: Sequence[str]) -> str:
    styled = zip(cells, sides, strict=True)
    return f"<tr>{''.join(_cell(tag, cell, side) for cell, side in styled)}</tr>"


def _cell(tag: str, cell: Cell, side: str) -> str:
    text = "" if cell is None else escape(str(cell))
    return f'<{tag} style="text-align:{side}">{text}</{tag}>'
