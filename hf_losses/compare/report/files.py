"""The files of a report: `table.md`, `report.html` and the pictures.

All of them follow from `results.json` alone, and the same results give the same files. The template
of the HTML is `report.html` beside this file; the page holds its pictures and loads nothing else.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_losses.compare.report.findings import NOTHING
from hf_losses.compare.report.pictures.draw import draw
from hf_losses.compare.report.table_md import table_md
from hf_losses.compare.report.words import WORDS, View, view_of
from hf_losses.compare.results import Results, read_results, write_results
from hf_losses.compare.statistics.summary import Statistics, statistics
from hf_losses.files import write_bytes

TABLE = "table.md"
REPORT = "report.html"
TEMPLATE = Path(__file__).with_name(REPORT)


def write_report(folder: Path) -> tuple[View, list[Path]]:
    """Writes table, report and pictures of a comparison, and its statistics into `results.json`.

    Pictures that would be empty are left out, without matplotlib all of them; older files of the
    same names are removed. Every file appears whole or not at all.

    Args:
        folder: Folder of the comparison.

    Returns:
        What the report says, and the files written beside `results.json`.

    Raises:
        UsageError: If `results.json` is missing or does not hold the results of a comparison.
        ImportError: If the packages of the extra `compare` are missing.
        OSError: If a file cannot be written.
    """
    results = read_results(folder)
    stats = statistics(results)
    write_results(folder, results, asdict(stats))
    view = view_of(results, stats)
    return view, write_pages(results, stats, view, folder)


def write_pages(results: Results, stats: Statistics, view: View, folder: Path) -> list[Path]:
    """Writes table, report and pictures.

    Args:
        results: The results.
        stats: Their statistics.
        view: Their words.
        folder: The folder to write to.

    Returns:
        The files written.

    Raises:
        ImportError: If the packages of the extra `compare` are missing.
        OSError: If a file cannot be written.
    """
    write_bytes(folder / TABLE, table_md(view).encode())
    page, pictures = render_page(results, stats, view, folder)
    write_bytes(folder / REPORT, page.encode())
    return [folder / name for name in (TABLE, REPORT, *pictures)]


def render_page(
    results: Results, stats: Statistics, view: View, folder: Path
) -> tuple[str, list[str]]:
    """Draws the pictures, and renders the page that holds them.

    Args:
        results: The results.
        stats: Their statistics.
        view: Their words.
        folder: Where the pictures are written.

    Returns:
        The HTML, and the names of the pictures.

    Raises:
        ImportError: If the packages of the extra `compare` are missing.
    """
    from jinja2 import Environment

    pictures = draw(results, stats, folder)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"code": code, "pieces": pieces}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    page = template.render(vars(view), pictures=pictures, words=WORDS, nothing=NOTHING)
    return page, list(pictures)


def code(text: str) -> Any:
    """Text escaped for HTML, in which backquotes mark code."""
    from markupsafe import Markup, escape

    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def pieces(text: str) -> Any:
    """Text escaped for HTML, whose lines break only before brackets."""
    from markupsafe import Markup

    pieces = re.split(r" (?=[\[(])", text)
    return Markup(" ").join(Markup("<span>{}</span>").format(piece) for piece in pieces)
