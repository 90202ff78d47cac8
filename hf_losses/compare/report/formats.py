"""A comparison in one of several formats, for other documents and programs."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hf_losses.compare.report.files import render_page
from hf_losses.compare.report.pictures.over_tasks import draw
from hf_losses.compare.report.table_md import table_md
from hf_losses.compare.report.tasks import TasksReport, read_report, render, tasks_table
from hf_losses.compare.report.words import WORDS, Row, View, view_of
from hf_losses.compare.results import Results, read_results
from hf_losses.compare.statistics.comparison import Comparison
from hf_losses.compare.statistics.cost import cost
from hf_losses.compare.statistics.summary import Statistics, statistics
from hf_losses.compare.tasks import has_tasks

LATEX = {character: rf"\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "∞": r"$\infty$",
    "–": r"\textendash{}",
    "<": "$<$",
    ">": "$>$",
    "[": "{[}",  # At the beginning of a cell it would be an option of the line break before it.
}


def formatted(folder: Path, name: str) -> str:
    """What a comparison found, in a format.

    Args:
        folder: Folder of the comparison; nothing in it is changed.
        name: One of `FORMATS`.

    Raises:
        UsageError: If `results.json` is missing or does not hold the results of a comparison.
        ImportError: If the packages of the extra `compare` are missing.
    """
    if has_tasks(folder):
        return TASKS_FORMATS[name](read_report(folder))
    results = read_results(folder)
    stats = statistics(results)
    return FORMATS[name](results, stats, view_of(results, stats))


def _csv(results: Results, stats: Statistics, view: View) -> str:
    """A row per stage and loss, with all digits; empty cells where there is no number."""
    return _lines(_numbers(results, stats))


def _tasks_csv(report: TasksReport) -> str:
    """The same, a row per task and loss; then what all tasks together show, a row per loss."""
    rows = [
        {"task": name} | row
        for name, stats in report.statistics.items()
        for row in _numbers(report.named(name), stats)
    ]
    for entry in report.summary.losses:
        low, high = entry.interval or (None, None)
        rows.append(
            dict.fromkeys(rows[0] if rows else ())
            | {"task": "all", "loss": entry.loss, "difference": entry.difference}
            | {"low": low, "high": high, "rank": entry.rank}
            | {"probability_better": entry.probability_better}
        )
    columns = dict.fromkeys(key for row in rows for key in row)
    return _lines([dict.fromkeys(columns) | row for row in rows])


def _numbers(results: Results, stats: Statistics) -> list[dict[str, Any]]:
    rows = []
    for stage in stats.stages:
        for result in stage.losses:
            comparison = result.comparison or Comparison(0, {}, None, None)
            low, high = comparison.interval or (None, None)
            typical = cost(results, stage.stage, result.loss)
            outlook, time = comparison.outlook, result.time_to_baseline
            most = result.time_to_most
            fastest, slowest = (most and most.ratio_interval) or (None, None)
            rows.append(
                {
                    "stage": stage.stage,
                    "loss": result.loss,
                    "verdict": comparison.verdict if result.comparison else "baseline",
                    "seeds": len(result.values),
                    "mean": result.mean,
                    "sd": result.sd,
                    "difference": comparison.difference,
                    "low": low,
                    "high": high,
                    "level": comparison.level,
                    "margin": stage.margin,
                    "p": comparison.p,
                    "p_adjusted": comparison.p_adjusted,
                    "p_equivalent": comparison.p_equivalent,
                    "probability_better": comparison.probability_better,
                    "more_seeds": outlook.seeds if outlook else None,
                    "steps": typical.steps,
                    "wall_seconds": typical.wall_seconds,
                    "steps_to_baseline": time.steps if time else None,
                    "seconds_to_baseline": time.seconds if time else None,
                    "steps_to_95_percent": most.steps if most else None,
                    "steps_ratio": most.ratio if most else None,
                    "steps_ratio_low": fastest,
                    "steps_ratio_high": slowest,
                    "cross_entropy": result.cross_entropy,
                    "ece": result.ece,
                }
            )
    return rows


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _latex(results: Results, stats: Statistics, view: View) -> str:
    """A table for the package booktabs per stage, with the cells of the report."""
    return _latex_tables((f"{view.title}: {stage.title}", stage.rows) for stage in view.stages)


def _tasks_latex(report: TasksReport) -> str:
    """The same over all tasks, then for each."""
    tables = [(report.view.title, report.view.rows)]
    for name, task in report.view.tasks.items():
        tables += [(name, stage.rows) for stage in task.stages]
    return _latex_tables(tables)


def _latex_tables(tables: Iterable[tuple[str, Sequence[Row]]]) -> str:
    blocks = ["% \\usepackage{booktabs}"]
    for title, rows in tables:
        columns = list(rows[0])
        lines = [_latex_line(dict(zip(columns, columns, strict=True))), "\\midrule"]
        lines += [_latex_line(row) for row in rows]
        kinds = "".join("l" if column in WORDS else "r" for column in columns)
        lines = [f"\\begin{{tabular}}{{{kinds}}}", "\\toprule", *lines, "\\bottomrule"]
        blocks.append("\n".join([f"% {title}", *lines, "\\end{tabular}"]))
    return "\n\n".join(blocks) + "\n"


def _latex_line(row: Row) -> str:
    pattern = "[" + re.escape("".join(LATEX)) + "]"
    cells = (re.sub(pattern, lambda match: LATEX[match[0]], cell) for cell in row.values())
    return " & ".join(cells).replace("--", "-{}-") + r" \\"


def _html(results: Results, stats: Statistics, view: View) -> str:
    with TemporaryDirectory() as folder:
        return render_page(results, stats, view, Path(folder))[0]


FORMATS: dict[str, Callable[[Results, Statistics, View], str]] = {
    "md": lambda results, stats, view: table_md(view),
    "html": _html,
    "csv": _csv,
    "latex": _latex,
}


def _tasks_html(report: TasksReport) -> str:
    with TemporaryDirectory() as folder:
        return render(report.view, draw(report.summary, Path(folder)))


TASKS_FORMATS: dict[str, Callable[[TasksReport], str]] = {
    "md": lambda report: tasks_table(report.view),
    "html": _tasks_html,
    "csv": _tasks_csv,
    "latex": _tasks_latex,
}
