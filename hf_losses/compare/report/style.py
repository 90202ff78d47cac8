"""What the pictures of a comparison share: colours, marks of the verdicts, sizes, legend."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

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
