"""What a comparison found, as a table for the terminal."""

from __future__ import annotations

import io

from hf_losses.compare.report.words import View

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
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=TERMINAL, color_system=None, file=io.StringIO())
    with console.capture() as capture:
        for stage in view.stages:
            if len(view.stages) > 1:
                console.print(Text(f"{stage.title}. {stage.note}"))
            columns = [column for column in stage.rows[0] if column not in WIDE]
            columns.sort(key=lambda column: column == "verdict")
            table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
            table_width = 0
            for column in columns:
                cells = [column, *(row[column] for row in stage.rows)]
                if wraps := column in ("loss", "verdict"):
                    cells = " ".join(cells).split()
                width = max(map(len, cells))
                table.add_column(Text(column), no_wrap=not wraps, min_width=width)
                table_width += width + 2
            console.width = max(TERMINAL, table_width + 4)
            for row in stage.rows:
                table.add_row(*(Text(row[column]) for column in columns))
            console.print(table)
            console.width = TERMINAL
            console.print()
        for run in view.failed:
            description = f"{run['loss']}, {run['stage']}, seed {run['seed']} {run['status']}"
            console.print(Text(f"{description}: {run['reason']}"))
        console.print(Text(" ".join([view.answer, *view.findings, *view.design]).replace("`", "")))
    return "\n".join(line.rstrip() for line in capture.get().strip("\n").splitlines())
