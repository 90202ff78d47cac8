"""Draws the pictures of a comparison that have something to show, and writes them.

A function makes each figure from the results, or returns None if they have nothing to draw.
matplotlib (extra `plots`) is imported when a picture is made.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hf_losses.compare.report.pictures.differences import differences_figure
from hf_losses.compare.report.pictures.panels import curves_figure, tuning_figure
from hf_losses.compare.report.pictures.predictions import calibration_figure, classes_figure
from hf_losses.compare.report.pictures.style import PICTURE_STYLE
from hf_losses.compare.report.pictures.time_to_baseline import time_figure
from hf_losses.compare.results import Results
from hf_losses.compare.statistics.summary import Statistics
from hf_losses.files import write_bytes
from hf_losses.losses.plots import loss_figure
from hf_losses.losses.registry import list_losses


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
    "calibration.png": calibration_figure,
    "classes.png": classes_figure,
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
    import matplotlib

    # The layout settles in two passes. It then stays, rather than be made four times.
    figure.set_dpi(matplotlib.rcParams["savefig.dpi"])
    figure.draw_without_rendering()
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine("none")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    write_bytes(path, picture.getvalue())
    return _svg(figure)


def _svg(figure: Any) -> str:
    picture = io.BytesIO()
    metadata = {"Date": None, "Creator": None}
    figure.savefig(picture, format="svg", metadata=metadata, transparent=True)
    return f"data:image/svg+xml;base64,{base64.b64encode(picture.getvalue()).decode()}"
