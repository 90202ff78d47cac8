"""What a comparison found, as a table for the terminal."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from hf_losses.compare.report.words import Row, View

TERMINAL = 100  # Width in characters.
# Columns that do not fit into a terminal.
WIDE = (
    "wall seconds",
    "steps",
    "p",
    "p (equiv.)",
    "P(better)",
    "steps to baseline",
    "seconds to baseline",
    "steps to 95 %",
    "NLL",
    "ECE",
)


def text_table(view: View) -> str:
    """The table of a comparison for a terminal, and what was found.

    Args:
        view: What the table says.

    Returns:
        Text without a final line break, 100 characters wide where the columns allow it.
    """
    tables = [
        (f"{stage.title}. {stage.note}" if len(view.stages) > 1 else "", stage.rows)
        for stage in view.stages
    ]
    failed = [
        f"{run['loss']}, {run['stage']}, seed {run['seed']} {run['status']}: {run['reason']}"
        for run in view.failed
    ]
    found = " ".join([view.answer, *view.findings, *view.design])
    lead = ", ".join(view.lead).replace("`", "")
    return text_tables(tables, [*failed, f"Compared: {lead}", found])


def text_tables(tables: Sequence[tuple[str, Sequence[Row]]], lines: Sequence[str]) -> str:
    """Tables for a terminal, and lines below them.

    Args:
        tables: The heading, which may be empty, and the rows of each.
        lines: What stands below; backquotes are left out of the last one.

    Returns:
        Text without a final line break, 100 characters wide where the columns allow it.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(width=TERMINAL, color_system=None, file=io.StringIO())
    with console.capture() as capture:
        for heading, rows in tables:
            if heading:
                console.print(Text(heading))
            _print(console, rows)
            console.print()
        *others, last = lines
        for line in [*others, last.replace("`", "")]:
            console.print(Text(line))
    return "\n".join(line.rstrip() for line in capture.get().strip("\n").splitlines())


def _print(console: Any, rows: Sequence[Row]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    columns = [column for column in rows[0] if column not in WIDE]
    columns.sort(key=lambda column: column == "verdict")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table_width = 0
    for column in columns:
        cells = [column, *(row[column] for row in rows)]
        if wraps := column in ("loss", "verdict"):
            cells = " ".join(cells).split()
        width = max(map(len, cells))
        table.add_column(Text(column), no_wrap=not wraps, min_width=width)
        table_width += width + 2
    console.width = max(TERMINAL, table_width + 4)
    for row in rows:
        table.add_row(*(Text(row[column]) for column in columns))
    console.print(table)
    console.width = TERMINAL
