"""The picture over several tasks: differences, probabilities of a better value, and mean ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_losses.compare.report.pictures.differences import DifferenceRow, axis_limits
from hf_losses.compare.report.pictures.draw import save
from hf_losses.compare.report.pictures.style import (
    BASELINE_COLOR,
    LABEL_WIDTH,
    LOSS_COLOR,
    PICTURE_STYLE,
    WIDTH,
    wrap,
)
from hf_losses.compare.statistics.comparison import Comparison
from hf_losses.compare.statistics.tasks import OverTasks

PICTURE = "over_tasks.png"


def draw(summary: OverTasks, folder: Path) -> str | None:
    """Writes the picture, or removes an older one if there is nothing to draw.

    Args:
        summary: What all tasks together show.
        folder: The folder to write to.

    Returns:
        The same picture as an SVG in a `data:` URL; None without matplotlib, or if no loss has run
        on all tasks.
    """
    (folder / PICTURE).unlink(missing_ok=True)
    try:
        import matplotlib.style
    except ImportError:
        return None
    with matplotlib.style.context(["default", PICTURE_STYLE]):
        figure = tasks_figure(summary)
        return figure and save(figure, folder / PICTURE)


def tasks_figure(summary: OverTasks) -> Any:
    """Means over the tasks with their intervals, and ranks with the critical difference.

    Args:
        summary: What all tasks together show.

    Returns:
        A figure; None if no loss has run on all tasks.
    """
    losses = [entry for entry in reversed(summary.losses) if entry.rank is not None]
    if not any(entry.difference is not None for entry in losses):
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 1.3 + 0.45 * len(losses)), layout="constrained")
    difference, rank = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    difference.axvline(0, color=BASELINE_COLOR, linewidth=1.2)
    compared = {}
    for entry in losses:
        if entry.difference is not None:
            by_task = {task: d for task, d in (entry.differences or {}).items() if d is not None}
            compared[entry.loss] = Comparison(
                len(by_task), by_task, entry.difference, None, entry.interval
            )
    limits = axis_limits(list(compared.values()), 1.0)
    edge = 0.03 * (limits[1] - limits[0])
    difference.set_xlim(limits[0] - edge, limits[1] + edge)
    half = (summary.critical_difference or 0) / 2
    for height, entry in enumerate(losses):
        style = {"color": BASELINE_COLOR if entry.loss == summary.baseline else LOSS_COLOR}
        if entry.loss in compared:
            row = DifferenceRow(difference, height, limits, "+.1f", "task")
            row.draw(compared[entry.loss], {"marker": "o", **style})
        mean = entry.rank or 0.0
        rank.plot([mean - half, mean + half], [height] * 2, linewidth=2.2, **style)
        rank.plot(mean, height, "o", markersize=8, **style)
    labels = [wrap(entry.loss, LABEL_WIDTH) for entry in losses]
    difference.set_yticks(range(len(losses)), labels)
    difference.set_ylim(-0.6, len(losses) - 0.4)
    for axes in (difference, rank):
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
    difference.set_xlabel("worse ←  difference, in sd of a seed  → better")
    rank.set_xlabel("mean rank ±\nhalf the critical difference")
    rank.locator_params(axis="x", integer=True)
    return figure
