"""Pictures of a comparison: differences, learning curves, time, tuning, gradient weights.

Every function returns a matplotlib figure, or None if the results have nothing to draw. matplotlib
(extra `plots`) is imported when a picture is made.
"""

from __future__ import annotations

import base64
import io
import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from hf_losses.compare.report.panels import curves_figure, tuning_figure
from hf_losses.compare.report.style import (
    BASELINE_COLOR,
    LABEL_WIDTH,
    LOSS_COLOR,
    MARGIN,
    MARKERS,
    PICTURE_STYLE,
    WIDTH,
    legend,
    wrap,
)
from hf_losses.compare.results import Metric, Results
from hf_losses.compare.statistics.speed import TimeToBaseline
from hf_losses.compare.statistics.summary import Statistics
from hf_losses.files import write_bytes
from hf_losses.losses.plots import loss_figure
from hf_losses.losses.registry import list_losses

TITLES = {"main": "", "screen": "Screening (not tested)", "confirm": "Confirmation on fresh seeds"}


def differences_figure(results: Results, statistics: Statistics) -> Any:
    """The paired differences to the baseline: mean, interval and margin, each seed a faint dot.

    Args:
        results: The results of the runs.
        statistics: The statistics of these results.

    Returns:
        A figure with a panel per stage; None if there is no pair.
    """
    panels = []
    for stage in statistics.stages:
        rows = [
            (entry.loss, entry.comparison)
            for entry in stage.losses
            if entry.comparison and entry.comparison.pairs
        ]
        if rows:
            panels.append((stage, sorted(rows, key=lambda row: row[1].difference or 0.0)))
    if not panels:
        return None
    figure, all_axes = _stacked_panels([len(rows) for _, rows in panels], sharex=True)
    plan = results.plan
    for axes, (stage, rows) in zip(all_axes, panels, strict=True):
        axes.axvline(0, color=BASELINE_COLOR, linewidth=1.2)
        if stage.margin:
            axes.axvspan(-stage.margin, stage.margin, **MARGIN)
        for height, (_, comparison) in enumerate(rows):
            style = dict(MARKERS[comparison.verdict])
            del style["label"]
            if comparison.interval:
                axes.plot(comparison.interval, [height] * 2, color=style["color"], linewidth=2.2)
            axes.plot(comparison.difference, height, markersize=8, markeredgewidth=2, **style)
            seeds = list(comparison.differences.values())
            below = [height - 0.26] * len(seeds)
            axes.plot(seeds, below, "o", color=style["color"], alpha=0.4, ms=4, mew=0)
        _label_rows(axes, [loss for loss, _ in rows])
        axes.set_title(TITLES[stage.stage])
    difference = "baseline minus loss" if plan.lower_is_better else "difference"
    difference += f" in {_metric_label(results)}"
    all_axes[-1].set_xlabel(f"worse ←  {difference} against {plan.baseline}  → better")
    verdicts = {comparison.verdict for _, rows in panels for _, comparison in rows}
    entries = [{**style, "linewidth": 2.2} for name, style in MARKERS.items() if name in verdicts]
    if any(stage.margin for stage, _ in panels):
        entries.append({**MARGIN, "linewidth": 9, "label": "margin"})
    legend(figure, entries)
    return figure


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
    figure, (axes,) = _stacked_panels([len(rows)], sharex=False)
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
    _label_rows(axes, [loss for loss, _ in rows])
    baseline = results.plan.baseline
    axes.set_xlabel(f"optimizer steps to what {baseline} reaches at its best with the same seed")
    legend(figure, [{**style, "label": label} for label, style in entries.items()])
    return figure


def weights_figure(results: Results) -> Any:
    """The compared losses themselves, each beside its gradient weight or slope.

    Args:
        results: The results of the runs.

    Returns:
        A figure; None if none of the losses is registered here. Losses that differ only in flags of
        the script are drawn once, with default parameters.
    """
    names = [label.split()[0] for label in results.plan.losses]
    known = [name for name in dict.fromkeys(names) if name in list_losses()]
    return loss_figure(known) if known else None


FIGURES: dict[str, Callable[[Results, Statistics], Any]] = {
    "differences.png": differences_figure,
    "learning_curves.png": curves_figure,
    "time_to_baseline.png": time_figure,
    "tuning.png": tuning_figure,
    "gradient_weights.png": lambda results, statistics: weights_figure(results),
}


def draw(results: Results, statistics: Statistics, folder: Path) -> dict[str, str]:
    """Writes the pictures that have something to show, and removes older files of all others.

    Args:
        results: The results of the runs.
        statistics: The statistics of these results.
        folder: The folder to write to.

    Returns:
        For each file name, the same picture as an SVG in a `data:` URL; empty without matplotlib.
    """
    for name in FIGURES:  # Pictures of earlier results must not stay.
        (folder / name).unlink(missing_ok=True)
    try:
        import matplotlib.style
    except ImportError:
        return {}
    drawn = {}
    # "default": the user's own matplotlib settings must not change a picture.
    with matplotlib.style.context(["default", PICTURE_STYLE]):
        for name, make in FIGURES.items():
            if (figure := make(results, statistics)) is None:
                continue
            drawn[name] = save(figure, folder / name)
    return drawn


def save(figure: Any, path: Path) -> str:
    """Writes a picture as PNG.

    Args:
        figure: A matplotlib figure.
        path: The file.

    Returns:
        The same picture as an SVG in a `data:` URL.
    """
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    write_bytes(path, picture.getvalue())
    picture = io.BytesIO()
    metadata = {"Date": None, "Creator": None}
    figure.savefig(picture, format="svg", metadata=metadata, transparent=True)
    text = base64.b64encode(picture.getvalue()).decode()
    return f"data:image/svg+xml;base64,{text}"


def _stacked_panels(rows: list[int], sharex: bool) -> tuple[Any, list[Any]]:
    """A figure with panels one below another, given the number of rows of each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 1.3 + 0.5 * sum(rows) + 0.5 * len(rows)))
    figure.set_layout_engine("constrained")
    ratios = [count + 0.5 for count in rows]
    grid = figure.subplots(len(rows), 1, sharex=sharex, squeeze=False, height_ratios=ratios)
    return figure, list(grid[:, 0])


def _label_rows(axes: Any, losses: list[str]) -> None:
    axes.set_yticks(range(len(losses)), [wrap(loss, LABEL_WIDTH) for loss in losses])
    axes.set_ylim(-0.6, len(losses) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)


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


def _metric_label(results: Results) -> str:
    metric = cast(Metric, results.metric)
    return f"{metric.name} ({metric.set})"
