"""What the pictures of a comparison share: colours, marks of the verdicts, panels, rows, legend."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any, cast

from hf_losses.compare.results import Metric, Results
from hf_losses.losses.plots import COLORS, STYLE

PICTURE_STYLE = {**STYLE, "axes.titlelocation": "left", "legend.frameon": False}
# Verdicts differ in shape, and in the lightness of the colour.
MARKERS: dict[str | None, dict[str, Any]] = {
    "better": {"marker": "^", "color": "#0B5FA5", "label": "better"},
    "worse": {"marker": "v", "color": "#B3261E", "label": "worse"},
    "equivalent": {"marker": "D", "color": "#1B7837", "label": "equivalent"},
    "undecided": {"marker": "o", "color": "#4D4D4D", "label": "undecided"},
    "incomplete": {"marker": "x", "color": "#8C8C8C", "label": "incomplete"},
    None: {"marker": "s", "color": "#4D4D4D", "label": "not tested (screening)"},
}
MARGIN: dict[str, Any] = {"color": "#1B7837", "alpha": 0.12, "linewidth": 0}
BASELINE_COLOR = "#000000"
LOSS_COLOR = COLORS["liberal"][1]
WIDTH = 8.0  # Inches.
NARROW = 4.2  # Inches, for a telephone.
COLUMNS = 3
LABEL_WIDTH = 30  # Characters; a longer label of a loss is broken into lines.


def legend(figure: Any, entries: Iterable[Mapping[str, Any]], columns: int | None = None) -> None:
    """Draws a legend above a figure, of entries that are arguments of a line."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **entry) for entry in entries]
    columns = columns or len(handles)
    figure.legend(handles=handles, loc="outside upper right", ncols=columns, fontsize=9)


def wrap(label: str, width: int) -> str:
    """A label broken into lines between its words."""
    return "\n".join(textwrap.wrap(label, width, break_on_hyphens=False, break_long_words=False))


def stacked_panels(rows: list[int], width: float = WIDTH) -> tuple[Any, list[Any]]:
    """A figure with panels one below another, given the number of rows of each."""
    from matplotlib.figure import Figure

    row_height = 0.5 if width == WIDTH else 0.65
    figure = Figure(figsize=(width, 1.3 + row_height * sum(rows) + 0.5 * len(rows)))
    figure.set_layout_engine("constrained")
    ratios = [count + 0.5 for count in rows]
    grid = figure.subplots(len(rows), 1, squeeze=False, height_ratios=ratios)
    return figure, list(grid[:, 0])


def panel_grid(count: int, height: float) -> tuple[Any, list[Any]]:
    """A figure with so many panels of this height in inches, all with the same axes."""
    from matplotlib.figure import Figure

    columns = min(COLUMNS, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(WIDTH, 0.6 + height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for number in range(count, rows * columns):
        grid.flat[number].remove()
        # The panel above is the lowest one of its column.
        grid[rows - 2, number % columns].tick_params(labelbottom=True)
    return figure, list(grid.flat)[:count]


def label_rows(axes: Any, losses: list[str], above: bool = False) -> None:
    """Names the rows of a panel, from below; `above` writes each name over its row."""
    labels = [wrap(loss, LABEL_WIDTH) for loss in losses]
    axes.set_yticks(range(len(losses)), ["" if above else label for label in labels])
    if above:
        for height, loss in enumerate(losses):
            place = {"xycoords": axes.get_yaxis_transform(), "va": "center", "fontsize": 9}
            axes.annotate(loss, (0.01, height + 0.36), **place)
    axes.set_ylim(-0.6, len(losses) - (0.3 if above else 0.4))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)


def metric_label(results: Results) -> str:
    """The compared metric and its set."""
    metric = cast(Metric, results.metric)
    return f"{metric.name} ({metric.set})"
