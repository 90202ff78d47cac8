"""What a comparison found, for people: a table for GitHub, one for the terminal, an HTML report.

All of it is made from `results.json` alone, and the same results give the same table. The HTML is
`report.html` beside this file; it holds its pictures and asks no other server for anything.
"""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_losses import markdown
from hf_losses.compare.experiment import RESULTS
from hf_losses.compare.report.pictures import draw
from hf_losses.compare.report.words import COLUMNS, WORDS, view_of
from hf_losses.compare.statistics import statistics
from hf_losses.files import write_bytes, write_json
from hf_losses.messages import UsageError

TEMPLATE = Path(__file__).with_suffix(".html")
TABLE = "table.md"
REPORT = "report.html"
TERMINAL = 100  # Characters.
# Left out of the terminal's table, where there is no room for them.
WIDE = ("p", "steps", "seconds", "NLL", "ECE")


def write_report(folder: Path) -> list[Path]:
    """Writes table, report and pictures of a comparison, and its statistics into `results.json`.

    Pictures for which there is nothing to draw, or no matplotlib, are left out, and old ones of
    their names removed. Every file appears whole or not at all.

    Args:
        folder: That of the comparison.

    Returns:
        The files written beside `results.json`.

    Raises:
        ValueError: If `results.json` is missing or is not the results of a comparison.
        ImportError: If the packages of the extra `compare` are missing.
        OSError: If a file cannot be written.
    """
    from jinja2 import Environment

    results = read_results(folder)
    results["statistics"] = statistics(results)
    write_json(folder / RESULTS, results)
    view = view_of(results)
    write_bytes(folder / TABLE, _markdown(view).encode())
    pictures = draw(results, folder)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["code"] = _code
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    page = template.render(view, pictures=pictures, columns=COLUMNS, words=WORDS)
    write_bytes(folder / REPORT, page.encode())
    return [folder / name for name in (TABLE, REPORT, *pictures)]


def read_results(folder: Path) -> dict[str, Any]:
    """The content of a comparison's `results.json`.

    Args:
        folder: That of the comparison.

    Raises:
        ValueError: If it is missing or is not the results of a comparison.
    """
    path = folder / RESULTS
    again = "hf-losses compare writes it, and hf-losses report again"
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not {"plan", "runs"} <= set(results):
            raise UsageError("it holds no comparison")
    except FileNotFoundError:
        raise UsageError(f"{folder} holds no {RESULTS}: {again}") from None
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} cannot be read ({error}): {again}") from None
    return results


def text_table(results: Mapping[str, Any]) -> str:
    """The table of a comparison for a terminal, and what was found.

    Args:
        results: The content of `results.json`, or what `compare.collect` returns.

    Returns:
        Text without a final line break, 100 characters wide.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if "statistics" not in results:
        results = {**results, "statistics": statistics(results)}
    view = view_of(results)
    console = Console(width=TERMINAL, color_system=None, file=io.StringIO())
    with console.capture() as capture:
        for stage in view["stages"]:
            if len(view["stages"]) > 1:
                console.print(Text(f"{stage['title']}. {stage['note']}"))
            columns = [column for column in stage["rows"][0] if column not in WIDE]
            columns.sort(key=lambda column: column == "verdict")
            table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
            least = 0
            for column in columns:
                cells = [column, *(row[column] for row in stage["rows"])]
                if wraps := column in ("loss", "verdict"):
                    cells = " ".join(cells).split()
                width = max(map(len, cells))
                table.add_column(column, no_wrap=not wraps, min_width=width)
                least += width + 2
            console.width = max(TERMINAL, least)
            for row in stage["rows"]:
                table.add_row(*(Text(row[column]) for column in columns))
            console.print(table)
            console.width = TERMINAL
            console.print()
        for run in view["failed"]:
            about = f"{run['loss']}, {run['stage']}, seed {run['seed']} {run['status']}"
            console.print(Text(f"{about}: {run['reason']}"))
        console.print(Text(" ".join([*view["found"], *view["design"]]).replace("`", "")))
    return "\n".join(line.rstrip() for line in capture.get().strip("\n").splitlines())


def _markdown(view: Mapping[str, Any]) -> str:
    """The table for GitHub."""
    blocks = [f"# {_plain(view['title'])}", _plain("; ".join(view["lead"])) + "."]
    blocks += [f"**What was found.** {_plain(' '.join(view['found']))}"]
    blocks += [_plain(" ".join(view["design"]))]
    for stage in view["stages"]:
        blocks += [f"## {stage['title']}", stage["note"], _grid(stage["rows"])]
    blocks.append(COLUMNS)
    if view["failed"]:
        blocks += ["## Failed runs", _grid(view["failed"])]
    for stage in view["stages"]:
        summary = f"<summary>{stage['title']}: every seed</summary>"
        blocks.append(f"<details>{summary}\n\n{_grid(stage['seeds'])}\n\n</details>")
    if view["tuned"]:
        blocks += ["## Tuned parameters", _grid(view["tuned"])]
    blocks += ["## How it was made", f"```sh\n{view['command']}\n```"]
    blocks += [_plain(view["versions"]), _plain(view["hardware"])]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _grid(rows: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table."""
    lines = []
    for row in rows:
        # A bar would end a cell even within code.
        cells = {key: _plain(cell).replace("`", "\\`") for key, cell in row.items()}
        if "loss" in row:
            cells["loss"] = "`" + row["loss"].replace("|", "\\|") + "`"
        lines.append(list(cells.values()))
    numbers = [_plain(key) for key in rows[0] if key not in WORDS]
    return markdown.table([_plain(key) for key in rows[0]], lines, numbers)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, but for what stands in backquotes."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"[\\*|~]|\](?=[(\[])", r"\\\g<0>", escaped)


def _code(text: str) -> Any:
    """Escaped text with what stands in backquotes as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(text))))
