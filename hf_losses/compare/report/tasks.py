"""The report over several tasks: which loss is better on which task, means and ranks over all.

The page of a single task has the same form as that of a comparison on this task alone; its tests
however allow for all tasks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hf_losses.compare.report.files import REPORT, TABLE, TEMPLATE, code, pieces, write_pages
from hf_losses.compare.report.findings import VERDICTS, formatted, formatted_p, joined
from hf_losses.compare.report.pictures.over_tasks import PICTURE, draw
from hf_losses.compare.report.table_md import foot_note, grid, plain
from hf_losses.compare.report.words import DEFINITIONS as DEFINITIONS_OF_A_TASK
from hf_losses.compare.report.words import WORDS, Row, View, command_lines, view_of
from hf_losses.compare.results import Results
from hf_losses.compare.statistics.summary import Statistics
from hf_losses.compare.statistics.tasks import LossOverTasks, OverTasks, over_tasks
from hf_losses.compare.tasks import task_folder, task_results, write_task_results
from hf_losses.files import write_bytes
from hf_losses.messages import UsageError

PAGE = Path(__file__).with_name("tasks.html")
DEFINITIONS = {
    "loss": DEFINITIONS_OF_A_TASK["loss"],
    "verdict": "number of tasks with each verdict; they allow for all losses on all tasks (Holm)",
    "rank": "mean over the tasks of the loss's rank by its mean score, 1 for the best (Demšar 2006)"
    "; a loss that lacks a run on any task has neither mean nor rank",
    "difference (sd)": "mean over the tasks of the mean difference to the baseline, counted in "
    "standard deviations that another seed makes to the baseline on the same task: no task's scale "
    "counts for more, and positive is better whatever the metric's direction",
    "P(better)": "share of seeds with a better value than the baseline, averaged over the tasks",
}
NOTE = (
    "Both intervals are at 95 %, by drawing the seeds of each task again (stratified bootstrap, "
    "Agarwal et al. 2021). They speak of other seeds on these tasks, not of other tasks, and are "
    "somewhat too short for few seeds; no verdict rests on them."
)


@dataclass(frozen=True)
class TasksView:
    """Everything that the table and the report over several tasks say.

    Attributes:
        title: The heading.
        lead: Tasks and seeds.
        findings: What was found, in sentences with names in backquotes.
        ranking: What the ranks can show, in sentences.
        rows: A row for each loss.
        tasks: What is said of each task that has begun, by name.
        folders: Where its own report lies, relative to that of all tasks.
        command: The command that makes the same comparison.
    """

    title: str
    lead: str
    findings: Sequence[str]
    ranking: Sequence[str]
    rows: Sequence[Row]
    tasks: Mapping[str, View]
    folders: Mapping[str, str]
    command: str


@dataclass(frozen=True)
class TasksReport:
    """A comparison over several tasks, with its statistics and their words."""

    results: Mapping[str, Results | None]
    statistics: Mapping[str, Statistics]
    summary: OverTasks
    view: TasksView

    def named(self, name: str) -> Results:
        """The results of a task that has begun, under the name that it has here."""
        results = self.results[name]
        assert results
        return replace(results, task=name)


def read_report(folder: Path) -> TasksReport:
    """Computes what a comparison over several tasks shows.

    Args:
        folder: Folder of the comparison.

    Raises:
        UsageError: If no task has begun, or the results cannot be read.
    """
    results = task_results(folder)
    if not any(results.values()):
        raise UsageError(f"{folder} holds no results: none of its tasks has begun")
    statistics, summary = over_tasks(results)
    return TasksReport(results, statistics, summary, tasks_view(results, statistics, summary))


def write_tasks_report(folder: Path) -> tuple[TasksView, list[Path]]:
    """Writes results, table, report and pictures over all tasks, and the report of each task.

    Args:
        folder: Folder of the comparison.

    Returns:
        What the report says, and the files over all tasks, beside `results.json`.

    Raises:
        UsageError: If no task has begun, or the results cannot be read.
        ImportError: If the packages of the extra `compare` are missing.
        OSError: If a file cannot be written.
    """
    report = read_report(folder)
    view = report.view
    write_task_results(folder, report.results, report.statistics, report.summary)
    for name, task_view in view.tasks.items():
        path = task_folder(folder, name)
        path.mkdir(parents=True, exist_ok=True)
        write_pages(report.named(name), report.statistics[name], task_view, path)
    write_bytes(folder / TABLE, tasks_table(view).encode())
    picture = draw(report.summary, folder)
    write_bytes(folder / REPORT, render(view, picture).encode())
    return view, [folder / name for name in (TABLE, REPORT, *([PICTURE] if picture else []))]


def tasks_view(
    results: Mapping[str, Results | None], statistics: Mapping[str, Statistics], summary: OverTasks
) -> TasksView:
    """Puts the results into words.

    Args:
        results: The results by task; None for a task that has not begun.
        statistics: The statistics of each task that has begun.
        summary: What all tasks together show.
    """
    begun = {name: replace(task, task=name) for name, task in results.items() if task}
    first_task = next(iter(begun.values()))
    sections = [[task.plan.script, *task.plan.arguments] for task in begun.values()]
    command = command_lines(first_task.plan, first_task.metric, sections)
    views = {name: view_of(task, statistics[name]) for name, task in begun.items()}
    others = len(first_task.plan.losses) - 1
    count = f"{len(results)} tasks: {others} loss{'es' * (others > 1)} against {summary.baseline}"
    lead = f"{', '.join(results)}; {first_task.plan.tested_seeds} seeds each"
    if waiting := [name for name in results if name not in begun]:
        lead += f"; not begun: {', '.join(waiting)}"
    return TasksView(
        title=count,
        lead=lead,
        findings=_findings(summary),
        ranking=_ranking(summary),
        rows=_rows(summary),
        tasks={name: replace(view, command=command) for name, view in views.items()},
        folders={name: task_folder(Path(), name).as_posix() for name in begun},
        command=command,
    )


def _rows(summary: OverTasks) -> list[Row]:
    return [
        {
            "loss": entry.loss,
            "verdict": _counts(entry),
            "rank": formatted(entry.rank, ".2f"),
            "difference (sd)": _with_interval(entry.difference, entry.interval, "+.2f"),
            "P(better)": _with_interval(
                entry.probability_better, entry.probability_interval, ".2f"
            ),
        }
        for entry in summary.losses
    ]


def _counts(entry: LossOverTasks) -> str:
    """How many tasks have which verdict."""
    if entry.verdicts is None:
        return "baseline"
    counts = Counter(entry.verdicts.values())
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])


def _with_interval(value: float | None, interval: Sequence[float] | None, style: str) -> str:
    limits = ", ".join(formatted(limit, style) for limit in interval or ())
    return formatted(value, style) + (f" [{limits}]" if limits else "")


def _findings(summary: OverTasks) -> list[str]:
    """Which loss is better or worse on which task; and what is not averaged, and why."""
    clauses = []
    for entry in summary.losses:
        if entry.verdicts is None:
            continue
        parts = []
        for verdict in VERDICTS:
            tasks = [name for name, outcome in entry.verdicts.items() if outcome == verdict]
            if tasks:
                where = "all tasks" if len(tasks) == len(summary.tasks) else joined(tasks)
                parts.append(f"{verdict} on {where}")
        clauses.append(f"`{entry.loss}` is {joined(parts)}")
    sentences = [f"Against `{summary.baseline}`: {'; '.join(clauses)}."]
    if constant := [name for name, unit in summary.units.items() if unit is None]:
        sentences.append(
            f"There is no mean difference, since the spread of `{summary.baseline}` over the seeds "
            f"is zero or unknown on {joined(constant)}."
        )
    return sentences


def _ranking(summary: OverTasks) -> list[str]:
    """What the ranks over the tasks show, and what so few tasks can show at all."""
    ranked = [entry for entry in summary.losses if entry.rank is not None]
    if summary.critical_difference is None:
        return []
    tasks, most = len(summary.tasks), len(ranked) - 1
    sentences = []
    if summary.friedman_p is not None:
        sentences.append(
            f"That all {len(ranked)} losses rank the same over the tasks has p = "
            f"{formatted_p(summary.friedman_p)} (Friedman; approximate for few tasks)."
        )
    critical = (
        f"Mean ranks differ if they are more than {formatted(summary.critical_difference, '.2f')} "
        "apart (Nemenyi, 5 %)"
    )
    if summary.critical_difference >= most:
        sentences.append(
            f"{critical}, and the largest difference possible is {most}: {tasks} tasks are too few "
            "for the ranks to show anything."
        )
    else:
        pairs = [
            f"`{one.loss}` ranks before `{other.loss}`"
            for number, one in enumerate(ranked)
            for other in ranked[number + 1 :]
            if (other.rank or 0) - (one.rank or 0) > summary.critical_difference
        ]
        shown = joined(pairs) if pairs else "none do"
        sentences.append(f"{critical}: {shown}. Few tasks say little.")
    return sentences


def tasks_table(view: TasksView) -> str:
    """The content of `table.md`.

    Args:
        view: What the table says.
    """
    blocks = [f"# {plain(view.title)}", plain(view.lead) + "."]
    blocks += [
        f"**What was found.** {plain(' '.join(view.findings))}",
        plain(" ".join(view.ranking)),
    ]
    blocks += ["## Over all tasks", grid(view.rows), foot_note(DEFINITIONS, [view.rows]), NOTE]
    for name, task in view.tasks.items():
        blocks += [f"## {plain(name)}", plain("; ".join(task.lead)) + "."]
        blocks += [grid(stage.rows) for stage in task.stages]
        if task.failed:
            blocks += ["Failed runs:", grid(task.failed)]
        blocks.append(f"[Every seed]({view.folders[name]}/{TABLE})")
    blocks.append(foot_note(*_of_tasks(view)))
    blocks += ["## How it was made", f"```sh\n{view.command}\n```"]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _of_tasks(view: TasksView) -> tuple[dict[str, str], list[Sequence[Row]]]:
    """The definitions of the columns of the single tasks, and their tables."""
    tasks = view.tasks.values()
    definitions = {key: text for task in tasks for key, text in task.definitions.items()}
    return definitions, [stage.rows for task in tasks for stage in task.stages]


def render(view: TasksView, picture: str | None) -> str:
    """The HTML over all tasks, in the style of the report on one task.

    Args:
        view: What the page says.
        picture: A picture as a `data:` URL; None without matplotlib.

    Raises:
        ImportError: If the packages of the extra `compare` are missing.
    """
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"code": code, "pieces": pieces}
    task_definitions, task_tables = _of_tasks(view)
    style = re.search(r"<style>(.*?)</style>", TEMPLATE.read_text(encoding="utf-8"), re.DOTALL)
    template = environment.from_string(PAGE.read_text(encoding="utf-8"))
    return template.render(
        vars(view),
        picture=picture,
        style=environment.from_string(style[1] if style else "").render(),
        words=WORDS,
        note=NOTE,
        definitions=DEFINITIONS,
        task_definitions=task_definitions,
        task_tables=task_tables,
        report=REPORT,
    )
