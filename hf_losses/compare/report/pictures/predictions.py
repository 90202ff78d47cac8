"""Pictures of what classifiers predict: calibration, and the F1 of each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from hf_losses.compare.report.pictures.style import (
    BASELINE_COLOR,
    LABEL_WIDTH,
    LOSS_COLOR,
    legend,
    panel_grid,
    wrap,
)
from hf_losses.compare.results import Metric, Results
from hf_losses.compare.statistics.summary import Statistics

MOST_CLASSES = 12  # Of more, those are shown on which the losses differ most.
BASELINE: dict[str, Any] = {"color": BASELINE_COLOR, "linestyle": (0, (4, 1.5)), "linewidth": 1.6}
Counts = dict[str, npt.NDArray[np.float64]]  # `[seeds, bins or classes]` by name.


def calibration_figure(results: Results, statistics: Statistics) -> Any:
    """How often predictions are right, by their probability, a panel per loss.

    Args:
        results: The results of the runs.
        statistics: The statistics of these results.

    Returns:
        A figure of the last stage, with the predictions of all seeds together; None unless the
        baseline and another loss report theirs.
    """
    counts = {
        loss: counts
        for loss, counts in _counts(results, statistics, "calibration").items()
        if counts["count"].sum() > 0
    }
    baseline = counts.pop(results.plan.baseline, None)
    if baseline is None or not counts:
        return None
    figure, grid = panel_grid(len(counts), 2.3)
    reference = _reliability(baseline)
    for axes, (loss, loss_counts) in zip(grid, counts.items(), strict=True):
        axes.plot([0, 1], [0, 1], color="#8C8C8C", linewidth=0.8)
        axes.plot(*reference[:2], **BASELINE)
        probability, right, share = _reliability(loss_counts)
        axes.plot(probability, right, color=LOSS_COLOR, linewidth=2)
        axes.scatter(probability, right, 120 * share, color=LOSS_COLOR, alpha=0.55, linewidth=0)
        axes.set_title(wrap(loss, LABEL_WIDTH), fontsize=9)
    lowest = min(probability.min() for probability, *_ in map(_reliability, counts.values()))
    grid[0].set_xlim(max(0.0, min(lowest, reference[0].min()) - 0.05), 1.01)
    grid[0].set_ylim(-0.02, 1.02)
    figure.supxlabel("probability of the predicted class", fontsize=10)
    metric = cast(Metric, results.metric)
    figure.supylabel(f"share that is right ({metric.set})", fontsize=10)
    line = {"color": LOSS_COLOR, "linewidth": 2, "marker": "o", "alpha": 0.8}
    legend(
        figure,
        [
            {**line, "label": "the loss; larger dots: more predictions"},
            {**BASELINE, "label": results.plan.baseline},
            {"color": "#8C8C8C", "linewidth": 0.8, "label": "calibrated"},
        ],
    )
    return figure


def classes_figure(results: Results, statistics: Statistics) -> Any:
    """The F1 of each class beside the baseline's, a panel per loss.

    Args:
        results: The results of the runs.
        statistics: The statistics of these results.

    Returns:
        A figure of the last stage: means over the seeds and each seed; None unless the baseline
        and another loss report their predictions by class.
    """
    scores = {loss: _f1(counts) for loss, counts in _counts(results, statistics, "classes").items()}
    baseline = scores.pop(results.plan.baseline, None)
    if baseline is None or not scores:
        return None
    if {f1.shape[1] for f1 in scores.values()} != {baseline.shape[1]}:
        return None
    reference = baseline.mean(0)
    spread = np.max([abs(f1.mean(0) - reference) for f1 in scores.values()], 0)
    shown = sorted(np.argsort(-spread, kind="stable")[:MOST_CLASSES], reverse=True)
    names = results.classes if len(results.classes) == len(reference) else ()
    labels = [wrap(names[i] if names else f"class {i}", 22) for i in shown]
    figure, grid = panel_grid(len(scores), 0.9 + 0.26 * len(shown))
    heights = np.arange(len(shown))
    mark = {"marker": "|", "color": BASELINE_COLOR, "linestyle": "none", "ms": 11, "mew": 2}
    seeds = {"marker": "o", "color": LOSS_COLOR, "alpha": 0.3, "ms": 4, "mew": 0}
    for axes, (loss, f1) in zip(grid, scores.items(), strict=True):
        for values in f1:
            axes.plot(values[shown], heights - 0.2, linestyle="none", **seeds)
        axes.plot(reference[shown], heights, **mark)
        axes.plot(f1.mean(0)[shown], heights, "o", color=LOSS_COLOR, ms=7, mew=0)
        axes.set_title(wrap(loss, LABEL_WIDTH), fontsize=9)
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=5)
    grid[0].set_yticks(heights, labels, fontsize=9)
    grid[0].set_ylim(-0.7, len(shown) - 0.4)
    metric = cast(Metric, results.metric)
    more = len(reference) - len(shown)
    of_all = f"; the {len(shown)} of {len(reference)} classes that differ most" if more else ""
    figure.supxlabel(f"F1 ({metric.set}){of_all}", fontsize=10)
    legend(
        figure,
        [
            {"marker": "o", "color": LOSS_COLOR, "linestyle": "none", "label": "mean of the loss"},
            {**seeds, "linestyle": "none", "label": "a seed"},
            {**mark, "label": f"mean of {results.plan.baseline}"},
        ],
    )
    return figure


def _counts(results: Results, statistics: Statistics, kind: str) -> dict[str, Counts]:
    """The counts of all seeds of the last stage by loss, in the order of the tables."""
    stage = statistics.stages[-1] if statistics.stages else None
    counts = {}
    for entry in stage.losses if stage else ():
        runs: list[Mapping[str, Sequence[float]]] = [
            run.predictions[kind]
            for run in results.runs
            if stage and (run.stage, run.loss) == (stage.stage, entry.loss) and run.finished
            if kind in run.predictions
        ]
        if runs and len({len(run[name]) for run in runs for name in run}) == 1:
            counts[entry.loss] = {name: np.array([run[name] for run in runs]) for name in runs[0]}
    return counts


def _reliability(counts: Counts) -> tuple[npt.NDArray[np.float64], ...]:
    """Of the bins that hold predictions: mean probability, share that is right, share of all."""
    count, probability, right = (counts[name].sum(0) for name in ("count", "probability", "right"))
    used = count > 0
    probability, right = (part[used] / count[used] for part in (probability, right))
    return probability, right, count[used] / count.sum()


def _f1(counts: Counts) -> npt.NDArray[np.float64]:
    """`[seeds, classes]`; 0 for a class that is neither there nor predicted."""
    both = counts["true"] + counts["predicted"]
    return np.divide(2 * counts["right"], both, out=np.zeros_like(both), where=both > 0)
