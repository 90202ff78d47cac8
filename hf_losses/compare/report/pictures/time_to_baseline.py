"""The picture of the steps that each loss takes to the baseline's best value."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

from hf_losses.compare.report.pictures.style import (
    LOSS_COLOR,
    MARKERS,
    label_rows,
    legend,
    stacked_panels,
)
from hf_losses.compare.results import Results
from hf_losses.compare.statistics.speed import TimeToBaseline
from hf_losses.compare.statistics.summary import Statistics


def time_figure(results: Results, statistics: Statistics) -> Any:
    """The steps that each loss takes to the baseline's best value on the validation set.

    Args:
        results: The results of the runs.
        statistics: The statistics of these results.

    Returns:
        A figure; None if no run was evaluated while it trained. With two stages it shows the
        confirmation.
    """
    for stage in reversed(statistics.stages):
        rows = [
            (entry.loss, entry.time_to_baseline) for entry in stage.losses if entry.time_to_baseline
        ]
        if rows:
            break
    else:
        return None

    def median(time: TimeToBaseline) -> float:
        return math.inf if time.steps is None else float(time.steps)

    rows.sort(key=lambda row: (median(row[1]), -row[1].reached))
    rows.reverse()  # The first row is drawn lowest.
    all_steps = [step for _, time in rows for step in time.by_seed.values() if step is not None]
    edge = 1.1 * max(all_steps, default=1)
    figure, (axes,) = stacked_panels([len(rows)])
    entries: dict[str, dict[str, Any]] = {
        "median": {"marker": "D", "color": "#0B3C8C", "markersize": 7, "linestyle": "none"},
        "a seed": {
            "marker": "o",
            "color": LOSS_COLOR,
            "alpha": 0.55,
            "mew": 0,
            "linestyle": "none",
        },
        "seeds that never reached it, and how many": {
            "marker": "x",
            "color": "#B3261E",
            "linestyle": "none",
        },
    }
    for height, (_, time) in enumerate(rows):
        steps = time.by_seed.values()
        reached = [step for step in steps if step is not None]
        axes.plot(reached, _dot_heights(reached, height), **entries["a seed"])
        if never := len(steps) - len(reached):
            axes.plot(edge, height, **entries["seeds that never reached it, and how many"])
            note = {"xytext": (7, 0), "textcoords": "offset points", "annotation_clip": False}
            axes.annotate(
                f"{never} of {len(steps)}", (edge, height), va="center", fontsize=9, **note
            )
        if math.isfinite(median(time)):
            axes.plot(median(time), height, **entries["median"])
    axes.axvline(edge, color=MARKERS["worse"]["color"], linewidth=0.8, linestyle=":")
    axes.set_xlim(0, 1.04 * edge)
    ticks = [tick for tick in axes.get_xticks() if 0 <= tick < 0.95 * edge]
    axes.set_xticks([*ticks, edge], [*(f"{tick:g}" for tick in ticks), "never"])
    label_rows(axes, [loss for loss, _ in rows])
    baseline = results.plan.baseline
    axes.set_xlabel(f"optimizer steps to what {baseline} reaches at its best with the same seed")
    legend(figure, [{**style, "label": label} for label, style in entries.items()])
    return figure


def _dot_heights(steps: list[Any], row: int) -> list[float]:
    """Heights for the dots of a row, so that equal ones do not cover each other."""
    step_up = 0.09 if steps and max(map(steps.count, steps)) <= 8 else 0.6 / max(len(steps), 1)
    seen: dict[Any, int] = defaultdict(int)
    heights = []
    for step in steps:
        number = seen[step]
        heights.append(row + step_up * ((number + 1) // 2) * (-1) ** number)
        seen[step] += 1
    return heights
