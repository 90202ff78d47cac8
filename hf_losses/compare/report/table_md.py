"""`table.md`: what a comparison found, as Markdown that GitHub shows."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence

from hf_losses import markdown
from hf_losses.compare.report.words import WORDS, Row, View


def table_md(view: View) -> str:
    """The content of `table.md`.

    Args:
        view: What the table says.
    """
    blocks = [f"# {plain(view.title)}", plain("; ".join(view.lead)) + "."]
    blocks += [f"**{plain(view.answer)}**", plain(" ".join(view.findings))]
    blocks += [plain(" ".join(view.design))]
    for stage in view.stages:
        blocks += [f"## {stage.title}", stage.note, grid(stage.rows)]
    blocks.append(foot_note(view.definitions, [stage.rows for stage in view.stages]))
    if view.failed:
        blocks += ["## Failed runs", grid(view.failed)]
    for stage in view.stages:
        summary = f"<summary>{stage.title}: every seed</summary>"
        blocks.append(f"<details>{summary}\n\n{grid(stage.seeds)}\n\n</details>")
    if view.tuned:
        blocks += ["## Tuned parameters", grid(view.tuned)]
        blocks.append(foot_note(view.definitions, [view.tuned]))
        summary = "<summary>Every trial</summary>"
        blocks.append(f"<details>{summary}\n\n{grid(view.trials)}\n\n</details>")
    blocks += ["## How it was made", f"```sh\n{view.command}\n```"]
    blocks += [plain(view.versions), plain(view.hardware)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def foot_note(definitions: Mapping[str, str], tables: Iterable[Sequence[Row]]) -> str:
    """What the columns of tables are, as a list."""
    columns = dict.fromkeys(column for rows in tables for column in rows[0])
    return "\n".join(f"- {plain(name)}: {plain(definitions[name])}" for name in columns)


def grid(rows: Sequence[Row]) -> str:
    """A Markdown table."""
    lines = []
    for row in rows:
        # A bar would end a cell, even within code.
        cells = {key: plain(cell).replace("`", "\\`") for key, cell in row.items()}
        if "loss" in row:
            cells["loss"] = "`" + row["loss"].replace("|", "\\|") + "`"
        lines.append(list(cells.values()))
    numbers = [plain(key) for key in rows[0] if key not in WORDS]
    return markdown.table([plain(key) for key in rows[0]], lines, numbers)


def plain(text: str) -> str:
    """Text escaped for Markdown; what stands in backquotes remains code."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"[\\*|~]|\](?=[(\[])", r"\\\g<0>", escaped)
