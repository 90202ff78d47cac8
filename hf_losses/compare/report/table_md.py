"""`table.md`: what a comparison found, as Markdown that GitHub shows."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from hf_losses import markdown
from hf_losses.compare.report.words import WORDS, Row, View


def table_md(view: View) -> str:
    """The content of `table.md`.

    Args:
        view: What the table says.
    """
    blocks = [f"# {_plain(view.title)}", _plain("; ".join(view.lead)) + "."]
    blocks += [f"**{_plain(view.answer)}**", _plain(" ".join(view.findings))]
    blocks += [_plain(" ".join(view.design))]
    for stage in view.stages:
        blocks += [f"## {stage.title}", stage.note, _grid(stage.rows)]
    blocks.append(_foot_note(view, [stage.rows for stage in view.stages]))
    if view.failed:
        blocks += ["## Failed runs", _grid(view.failed)]
    for stage in view.stages:
        summary = f"<summary>{stage.title}: every seed</summary>"
        blocks.append(f"<details>{summary}\n\n{_grid(stage.seeds)}\n\n</details>")
    if view.tuned:
        blocks += ["## Tuned parameters", _grid(view.tuned), _foot_note(view, [view.tuned])]
        summary = "<summary>Every trial</summary>"
        blocks.append(f"<details>{summary}\n\n{_grid(view.trials)}\n\n</details>")
    blocks += ["## How it was made", f"```sh\n{view.command}\n```"]
    blocks += [_plain(view.versions), _plain(view.hardware)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _foot_note(view: View, tables: Sequence[Sequence[Row]]) -> str:
    """What the columns of tables are."""
    columns = dict.fromkeys(column for rows in tables for column in rows[0])
    return "\n".join(f"- {_plain(name)}: {_plain(view.definitions[name])}" for name in columns)


def _grid(rows: Sequence[Row]) -> str:
    """A Markdown table."""
    lines = []
    for row in rows:
        # A bar would end a cell, even within code.
        cells = {key: _plain(cell).replace("`", "\\`") for key, cell in row.items()}
        if "loss" in row:
            cells["loss"] = "`" + row["loss"].replace("|", "\\|") + "`"
        lines.append(list(cells.values()))
    numbers = [_plain(key) for key in rows[0] if key not in WORDS]
    return markdown.table([_plain(key) for key in rows[0]], lines, numbers)


def _plain(text: str) -> str:
    """Text escaped for Markdown; what stands in backquotes remains code."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"[\\*|~]|\](?=[(\[])", r"\\\g<0>", escaped)
