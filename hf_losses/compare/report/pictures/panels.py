"""Pictures of a panel per loss: learning curves, and the score over the tuned range."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from statistics import fmean
from typing import Any, cast

from hf_losses.compare.ranges import by_logarithm
from hf_losses.compare.report.pictures.style import (
    BASELINE_COLOR,
    COLUMNS,
    LABEL_WIDTH,
    LOSS_COLOR,
    MARKERS,
    WIDTH,
    legend,
    panel_grid,
    wrap,
)
from hf_losses.compare.results import Metric, Results, finished_trials, is_number
from hf_losses.compare.statistics.summary import Statistics
from hf_losses.compare.statistics.tuned import EDGE


def curves_figure(results: Results, statistics: Statistics) -> Any:
    """The compared metric on the validation set during training, a panel per loss.

    Args:
        results: The results of the runs.
        statistics: The statistics of these results.

    Returns:
        A figure; None if no run of a loss was evaluated while it trained. A loss that was confirmed
        is shown by its confirmation, the others by their screening.
    """
    baseline = results.plan.baseline
    panels: dict[str, tuple[str, dict[int, list[float]], dict[int, list[float]]]] = {}
    for stage in reversed(statistics.stages):
        name = stage.stage
        reference = _curve(results, name, baseline)
        for entry in stage.losses:
            loss = entry.loss
            curve = _curve(results, name, loss)
            if curve and loss != baseline and loss not in panels:
                title = f"{loss} (screening)" if name == "screen" else loss
                panels[loss] = title, curve, reference
    if not panels:
        return None
    figure, grid = panel_grid(len(panels), 2.2)
    for axes, (title, curve, reference) in zip(grid, panels.values(), strict=True):
        if reference:
            axes.plot(
                *_mean_curve(reference), color=BASELINE_COLOR, linestyle=(0, (4, 1.5)), lw=1.6
            )
        if any(len(values) > 1 for values in curve.values()):
            low, high = (list(map(limit, curve.values())) for limit in (min, max))
            axes.fill_between(list(curve), low, high, color=LOSS_COLOR, alpha=0.25, linewidth=0)
        marker = "o" if len(curve) == 1 else ""
        axes.plot(*_mean_curve(curve), color=LOSS_COLOR, linewidth=2, marker=marker)
        axes.set_title(wrap(title, LABEL_WIDTH), fontsize=9)
        axes.locator_params(axis="x", nbins=4, integer=True)
        axes.locator_params(axis="y", nbins=5)
    figure.supxlabel("optimizer step", fontsize=10)
    figure.supylabel(f"{cast(Metric, results.metric).name} on the validation set", fontsize=10)
    entries: list[dict[str, Any]] = [
        {
            "color": LOSS_COLOR,
            "linewidth": 2,
            "label": "mean of the loss; band: lowest to highest seed",
        }
    ]
    if any(reference for *_, reference in panels.values()):
        line = {"color": BASELINE_COLOR, "linestyle": (0, (4, 1.5)), "linewidth": 1.6}
        entries.append({**line, "label": f"mean of {baseline}"})
    legend(figure, entries)
    return figure


def tuning_figure(results: Results, statistics: Statistics) -> Any:
    """The score of every trial over the tuned ranges, a panel per loss and flag.

    Args:
        results: The results of the runs.
        statistics: The statistics of these results.

    Returns:
        A figure; None if no trial has finished.
    """
    ranges = results.plan.tune
    panels = [(tuned, name) for tuned in statistics.tuned for name in ranges]
    if not panels:
        return None
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    columns = len(ranges) if 1 < len(ranges) <= COLUMNS else min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(WIDTH, 0.6 + 2.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    dots = {"marker": "o", "color": LOSS_COLOR, "alpha": 0.55, "mew": 0, "linestyle": "none"}
    best = {"marker": "D", "color": "#0B3C8C", "markersize": 8, "linestyle": "none"}
    best["clip_on"] = False  # It may lie on the frame.
    for number, axes in enumerate(grid.flat):
        if number >= len(panels):
            axes.remove()
            continue
        tuned, name = panels[number]
        low, high = ranges[name]
        trials = finished_trials(results.plan, tuned.loss, results.runs)
        axes.plot(
            [trial.parameters[name] for trial in trials], [trial.mean for trial in trials], **dots
        )
        axes.plot(tuned.parameters[name], tuned.value, **best)
        if by_logarithm(low, high):
            axes.set_xscale("log")
            # Labels of a narrow panel must not overlap: 0.1, 0.3, 1, or whole decades alone.
            steps = (1.0, 3.0) if high < 100 * low else (1.0,)
            axes.xaxis.set_major_locator(LogLocator(subs=steps))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            ends = [(low, low ** (1 - EDGE) * high**EDGE), (low**EDGE * high ** (1 - EDGE), high)]
        else:
            ends = [(low, low + EDGE * (high - low)), (high - EDGE * (high - low), high)]
        for end in ends:
            axes.axvspan(*end, color=MARKERS["worse"]["color"], alpha=0.1, linewidth=0)
        axes.set_xlim(low, high)
        mark = " (at the edge)" if name in tuned.at_edge else ""
        axes.set_title(wrap(tuned.loss + mark, LABEL_WIDTH), fontsize=9)
        axes.set_xlabel(name, fontsize=9)
    metric = results.metric.name if results.metric else "metric"  # While only trials have run.
    figure.supylabel(f"{metric} on the validation set", fontsize=10)
    legend(figure, [{**dots, "label": "a trial"}, {**best, "label": "the best one"}])
    return figure


def _curve(results: Results, stage: str, loss: str) -> dict[int, list[float]]:
    """The metric of all seeds, by the steps at which all finished runs were evaluated."""
    metric = results.metric.name if results.metric else ""
    runs = [
        {entry["step"]: entry[metric] for entry in run.history if is_number(entry.get(metric))}
        for run in results.runs
        if (run.stage, run.loss, run.status) == (stage, loss, "finished")
    ]
    values = defaultdict(list)
    for run in runs:
        for step, value in run.items():
            values[step].append(value)
    return {step: values[step] for step in sorted(values) if len(values[step]) == len(runs)}


def _mean_curve(curve: Mapping[int, list[float]]) -> tuple[list[int], list[float]]:
    return list(curve), list(map(fmean, curve.values()))
