"""The picture of the paired differences to the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_losses.compare.report.findings import formatted, number_format
from hf_losses.compare.report.pictures.style import (
    BASELINE_COLOR,
    MARGIN,
    MARKERS,
    NARROW,
    WIDTH,
    label_rows,
    legend,
    metric_label,
    stacked_panels,
    wrap,
)
from hf_losses.compare.results import Results
from hf_losses.compare.statistics.comparison import Comparison
from hf_losses.compare.statistics.summary import Statistics

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
    figure, all_axes = stacked_panels(counts, NARROW if narrow else WIDTH)
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
            row = DifferenceRow(axes, height, (low, high), f"+{number_format(results)}")
            row.draw(comparison, MARKERS[comparison.verdict])
            clipped |= row.clipped
        label_rows(axes, [loss for loss, _ in rows], above=narrow)
        axes.set_title(TITLES[stage.stage])
        axes.locator_params(axis="x", nbins=5 if narrow else 9)
    difference = "baseline minus loss" if plan.lower_is_better else "difference"
    difference += f" in {metric_label(results)}"
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
class DifferenceRow:
    """A row of the differences: what lies beyond the limits is an arrow with its number.

    Attributes:
        axes: Where to draw.
        height: The height of the row.
        limits: The lowest and the highest value that is shown.
        digits: The format of the numbers.
        dot: What a faint dot stands for.
        clipped: Whether anything lies beyond the limits.
    """

    axes: Any
    height: float
    limits: tuple[float, float]
    digits: str
    dot: str = "seed"
    clipped: bool = False

    def draw(self, comparison: Comparison, marker: Mapping[str, Any]) -> None:
        """Draws mean, interval and a dot for each single difference.

        Args:
            comparison: The differences.
            marker: Shape and colour.
        """
        style = {key: value for key, value in marker.items() if key != "label"}
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
        below, single = self.height - 0.26, list(comparison.differences.values())
        inside = [value for value in single if not self._is_beyond(value)]
        self.axes.plot(inside, [below] * len(inside), "o", color=color, alpha=0.5, ms=4, mew=0)
        for sign in (-1, 1):
            if far := [value for value in single if self._is_beyond(value) and sign * value > 0]:
                text = formatted(max(far, key=abs), self.digits)
                many = len(far) > 1
                text = f"{len(far)} {self.dot}s to {text}" if many else f"a {self.dot} at {text}"
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
