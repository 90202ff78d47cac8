"""Pictures of a comparison: differences, learning curves, time, tuning, gradient weights.

Every function returns a matplotlib figure, or None if the results have nothing to draw. matplotlib
(extra `plots`) is imported when a picture is made.
"""

from __future__ import annotations

import base64
import io
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from hf_losses.compare.report.findings import formatted, number_format
from hf_losses.compare.report.panels import curves_figure, tuning_figure
from hf_losses.compare.report.style import (
    BASELINE_COLOR,
    LABEL_WIDTH,
    LOSS_COLOR,
    MARGIN,
    MARKERS,
    NARROW,
    PICTURE_STYLE,
    WIDTH,
    legend,
    wrap,
)
from hf_losses.compare.results import Metric, Results
from hf_losses.compare.statistics.comparison import Comparison
from hf_losses.compare.statistics.speed import TimeToBaseline
from hf_losses.compare.statistics.summary import Statistics
from hf_losses.files import write_bytes
from hf_losses.losses.plots import loss_figure
from hf_losses.losses.registry import list_losses

CLIP = 4  # How many times the margin, or the smaller differences, an axis reaches.
TITLES = {"main": "", "screen": "Screening (not tested)", "confirm": "Confirmation on fresh seeds"}


def differences_figure(results: Results, statistics: Statistics, narrow: bool = False) -> Any:
    """The paired differences to the baseline: mean, interval and margin, each seed a faint dot.

    What lies far beyond the others, such as a loss that fell to chance, is an arrow at the edge
    with its number, so that it does not squash the axis.

    Args:
        results: The results of the runs.
        statistics: The statistics of these results.
        narrow: For a narrow page: the names of the losses stand above their rows.

    Returns:
        A figure with a panel per stage, the tested one first; None if there is no pair.
    """
    panels = []
    for stage in sorted(statistics.stages, key=lambda stage: not stage.tested):
        rows = [
            (entry.loss, entry.comparison)
            for entry in stage.losses
            if entry.comparison and entry.comparison.pairs
        ]
        if rows:
            panels.append((stage, sorted(rows, key=lambda row: row[1].difference or 0.0)))
    if not panels:
        return None
    counts = [len(rows) for _, rows in panels]
    figure, all_axes = _stacked_panels(counts, NARROW if narrow else WIDTH)
    plan = results.plan
    clipped = False
    for axes, (stage, rows) in zip(all_axes, panels, strict=True):
        axes.axvline(0, color=BASELINE_COLOR, linewidth=1.2)
        if stage.margin:
            axes.axvspan(-stage.margin, stage.margin, **MARGIN)
        low, high = axis_limits(
            [comparison for _, comparison in rows],
            max(stage.margin or 0.0, stage.losses[0].sd or 0.0),
        )
        edge = 0.03 * (high - low)
        axes.set_xlim(low - edge, high + edge)
        for height, (_, comparison) in enumerate(rows):
            row = _Row(axes, height, (low, high), f"+{number_format(results)}")
            row.draw(comparison)
            clipped |= row.clipped
        _label_rows(axes, [loss for loss, _ in rows], above=narrow)
        axes.set_title(TITLES[stage.stage])
        axes.locator_params(axis="x", nbins=5 if narrow else 9)
    difference = "baseline minus loss" if plan.lower_is_better else "difference"
    difference += f" in {_metric_label(results)}"
    label = f"worse ←  {difference} against {plan.baseline}  → better"
    if narrow:
        label = wrap(f"{difference} against {plan.baseline}", 60) + "\nworse ←  → better"
    all_axes[-1].set_xlabel(label, fontsize=9 if narrow else None)
    verdicts = {comparison.verdict for _, rows in panels for _, comparison in rows}
    entries = [{**style, "linewidth": 2.2} for name, style in MARKERS.items() if name in verdicts]
    if any(stage.margin for stage, _ in panels):
        entries.append({**MARGIN, "linewidth": 9, "label": "margin"})
    if clipped:
        arrow = {"marker": "<", "color": "#4D4D4D", "linestyle": "none"}
        entries.append({**arrow, "label": "beyond the axis"})
    legend(figure, entries, 2 if narrow else None)
    return figure


def axis_limits(rows: Sequence[Comparison], unit: float) -> tuple[float, float]:
    """The limits of an axis of differences on which the losses close to the baseline can be told.

    Everything is shown, unless it lies further out than a few times the unit or the smaller
    differences, whichever is more: then the axis ends there.

    Args:
        rows: Comparisons that have pairs.
        unit: The margin or, if that is more, the standard deviation of the baseline over the seeds.

    Returns:
        The lowest and the highest value.
    """
    means = sorted(abs(row.difference) for row in rows if row.difference)
    ends = [end for row in rows for end in row.interval or ()]
    points = [0.0, -unit, unit, *ends, *(row.difference or 0.0 for row in rows)]
    points += [seed for row in rows for seed in row.differences.values()]
    # The lower quartile, since most losses may have fallen to chance.
    reach = CLIP * max(unit, means[(len(means) - 1) // 4] if means else 0.0)
    # What ends a little further out needs no arrow.
    reach = max([reach, *(1.05 * mean for mean in means if mean <= 2 * reach)])
    reach = max([reach, *(abs(end) for end in ends if abs(end) <= 2 * reach)])
    low, high = min(points), max(points)
    low = low if low >= -1.5 * reach else -reach
    high = high if high <= 1.5 * reach else reach
    return (low, high) if low < high else (-1.0, 1.0)


@dataclass
class _Row:
    """A row of the differences: what lies beyond the limits is an arrow with its number."""

    axes: Any
    height: float
    limits: tuple[float, float]
    digits: str
    clipped: bool = False

    def draw(self, comparison: Comparison) -> None:
        """Draws mean, interval and seeds."""
        style = {key: v for key, v in MARKERS[comparison.verdict].items() if key != "label"}
        color, mean = style["color"], comparison.difference or 0.0
        ends = comparison.interval or ()
        if self._is_beyond(mean):
            text = formatted(mean, self.digits)
            if ends:
                text += f" [{', '.join(formatted(end, self.digits) for end in ends)}]"
            self._arrow(mean, text, self.height, color, ms=9)
        else:
            low, high = self.limits
            shown = [min(max(end, low), high) for end in ends]
            self.axes.plot(shown, [self.height] * len(ends), color=color, linewidth=2.2)
            self.axes.plot(mean, self.height, markersize=8, markeredgewidth=2, **style)
            for end in filter(self._is_beyond, ends):
                text = f"interval to {formatted(end, self.digits)}"
                self._arrow(end, text, self.height, color, ms=6, rise=8)
        below, seeds = self.height - 0.26, list(comparison.differences.values())
        inside = [seed for seed in seeds if not self._is_beyond(seed)]
        self.axes.plot(inside, [below] * len(inside), "o", color=color, alpha=0.5, ms=4, mew=0)
        for sign in (-1, 1):
            if far := [seed for seed in seeds if self._is_beyond(seed) and sign * seed > 0]:
                text = formatted(max(far, key=abs), self.digits)
                text = f"{len(far)} seeds to {text}" if len(far) > 1 else f"a seed at {text}"
                self._arrow(far[0], text, below, color, ms=4)

    def _is_beyond(self, value: float) -> bool:
        return not self.limits[0] <= value <= self.limits[1]

    def _arrow(
        self, value: float, text: str, height: float, color: str, ms: float, rise: float = 0
    ) -> None:
        """An arrow at the edge that a value lies beyond, and a text beside it."""
        from matplotlib.patheffects import withStroke

        self.clipped = True
        side, marker, shift = (0, "<", 8) if value < 0 else (1, ">", -8)
        edge = self.limits[side]
        self.axes.plot(edge, height, marker, color=color, ms=ms, mew=0)
        place = {"xytext": (shift, rise), "textcoords": "offset points", "va": "center"}
        self.axes.annotate(
            text,
            (edge, height),
            **place,
            ha=("left", "right")[side],
            fontsize=8.5 if ms > 6 else 7.5,
            color=color,
            # It may lie on dots and lines.
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )


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
    figure, (axes,) = _stacked_panels([len(rows)])
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


# A second form for narrow pages.
NARROW_FIGURES: dict[str, Callable[[Results, Statistics], Any]] = {
    "differences.png": partial(differences_figure, narrow=True),
}
FIGURES: dict[str, Callable[[Results, Statistics], Any]] = {
    "differences.png": differences_figure,
    "learning_curves.png": curves_figure,
    "time_to_baseline.png": time_figure,
    "tuning.png": tuning_figure,
    "gradient_weights.png": lambda results, statistics: weights_figure(results),
}


@dataclass(frozen=True)
class Picture:
    """A picture for the page.

    Attributes:
        wide: An SVG in a `data:` URL.
        narrow: Another one for narrow pages; None if there is only one form.
    """

    wide: str
    narrow: str | None


def draw(results: Results, statistics: Statistics, folder: Path) -> dict[str, Picture]:
    """Writes the pictures that have something to show, and removes older files of all others.

    Args:
        results: The results of the runs.
        statistics: The statistics of these results.
        folder: The folder to write to.

    Returns:
        For each file name, the same picture for the page; empty without matplotlib.
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
            narrow = NARROW_FIGURES.get(name)
            wide = save(figure, folder / name)
            drawn[name] = Picture(wide, narrow and _svg(narrow(results, statistics)))
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
    return _svg(figure)


def _svg(figure: Any) -> str:
    picture = io.BytesIO()
    metadata = {"Date": None, "Creator": None}
    figure.savefig(picture, format="svg", metadata=metadata, transparent=True)
    return f"data:image/svg+xml;base64,{base64.b64encode(picture.getvalue()).decode()}"


def _stacked_panels(rows: list[int], width: float = WIDTH) -> tuple[Any, list[Any]]:
    """A figure with panels one below another, given the number of rows of each."""
    from matplotlib.figure import Figure

    row_height = 0.5 if width == WIDTH else 0.65
    figure = Figure(figsize=(width, 1.3 + row_height * sum(rows) + 0.5 * len(rows)))
    figure.set_layout_engine("constrained")
    ratios = [count + 0.5 for count in rows]
    grid = figure.subplots(len(rows), 1, squeeze=False, height_ratios=ratios)
    return figure, list(grid[:, 0])


def _label_rows(axes: Any, losses: list[str], above: bool = False) -> None:
    labels = [wrap(loss, LABEL_WIDTH) for loss in losses]
    axes.set_yticks(range(len(losses)), ["" if above else label for label in labels])
    if above:
        for height, loss in enumerate(losses):
            place = {"xycoords": axes.get_yaxis_transform(), "va": "center", "fontsize": 9}
            axes.annotate(loss, (0.01, height + 0.36), **place)
    axes.set_ylim(-0.6, len(losses) - (0.3 if above else 0.4))
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
