"""A table in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[str] = ()) -> str:
    """A table as GitHub and the Hub render it.

    Args:
        header: Names of the columns.
        rows: The cells, as Markdown; a bar within a cell must be escaped already.
        numbers: Names of the columns that are aligned at the right, as numbers are.

    Returns:
        The table, without a final line break.
    """
    right = set(numbers)
    lines = [header, ["---:" if name in right else "---" for name in header], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
