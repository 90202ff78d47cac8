"""Pictures of the losses, drawn from the registry: each loss beside its gradient weight or slope.

The curves are the registered functions themselves, called with default parameters; the formula
texts are not read here. matplotlib (extra `plots`) is imported when a picture is made.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_losses.files import whole
from hf_losses.losses.registry import LossSpec, get_spec, list_losses, neutral_loss
from hf_losses.messages import MissingExtra, UsageError

FORMATS = ("png", "svg")

STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "figure.constrained_layout.w_pad": 0.12,
    "figure.constrained_layout.h_pad": 0.1,
    "savefig.dpi": 160,
    "svg.hashsalt": "hf_losses",
}
# Kinds differ by line style and heading, never by colour alone. Within a kind the colours differ in
# lightness or in blue, so that they stay apart without red-green vision (checked by simulation).
COLORS = {
    "neutral": ("#000000",),
    "strict": ("#6E1023", "#D7301F", "#F59B00", "#DE7FBA", "#6A3D9A", "#8C8C8C", "#4D4D00"),
    "liberal": ("#0B3C8C", "#1C9AD6", "#00796B", "#7CB342", "#A88BD8", "#8C6D1F", "#555555"),
    "mixed": ("#B8860B", "#6A3D9A", "#00796B"),
    "robust": ("#6E1023", "#1C9AD6", "#F59B00", "#00796B", "#DE7FBA", "#6A3D9A", "#8C8C8C"),
}
LINES: dict[str, dict[str, Any]] = {
    "neutral": {"linestyle": (0, (4.9, 1.45)), "linewidth": 3.2},
    "strict": {"linestyle": "-", "linewidth": 1.7},
    "liberal": {"linestyle": (0, (7, 1.2, 1.5, 1.2)), "linewidth": 1.9},
    "mixed": {"linestyle": (0, (1, 1.2)), "linewidth": 2.2},
    "robust": {"linestyle": "-", "linewidth": 1.7},
}
HEADINGS = {
    "neutral": "Reference",
    "strict": "Strict: hard examples weigh more",
    "liberal": "Liberal: hard examples weigh less",
    "mixed": "Mixed: the weight rises and falls",
    "robust": "Robust: large errors weigh less",
}
# What a task's two panels are called, and their common axis.
PANELS = {
    "classification": (
        "Loss  ℓ(p)",
        "Gradient weight  w(p) = p·|ℓ′(p)|",
        "p, probability of the true class\nhard ← examples → easy",
    ),
    "regression": ("Loss  ℓ(e)", "Slope  ℓ′(e)", "e, prediction minus target"),
}


def curves(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """What a picture shows of one loss, with its default parameters.

    Args:
        name: A registered name.
        x: Any shape, floating. For classification p, the probability of the true class, in (0, 1);
            for regression e, prediction minus target.

    Returns:
        Two tensors like x: the loss, and its gradient weight w(p) = p·|dl/dp| (classification) or
        its slope dl/de (regression). A full form is given for two classes, where both have the
        same margin and it is twice its sparse form.

    Raises:
        ValueError: If no loss has that name.
    """
    spec = get_spec(name)
    inside = x if spec.task == "regression" else torch.logit(x)
    value, slope = spec.function(inside, **spec.resolve({}))
    if spec.task == "regression":
        return value, slope
    classes = 2 if spec.is_full else 1
    return classes * value, -classes * slope / torch.sigmoid(-inside)


def digest(names: Sequence[str]) -> str:
    """A fingerprint of what a picture of these losses shows, whichever matplotlib draws it.

    Every picture holds it in its metadata, so that one can ask whether a file is still true.

    Args:
        names: Registered names, all of classification or all of regression losses.

    Returns:
        A SHA-256 in hexadecimal of labels, kinds, formulas and values on a coarse grid.

    Raises:
        ValueError: As `loss_figure`.
    """
    specs = _specs(names)
    x = _grid(specs[0].task, 20)
    # Six digits: where machines differ, they differ far behind them.
    content = [
        (
            _label(spec),
            spec.kind,
            spec.full_formula,
            spec.weight_formula,
            *(f"{y:.6g}" for curve in curves(spec.name, x) for y in curve.tolist()),
        )
        for spec in specs
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def loss_figure(names: Sequence[str]) -> Any:
    """Draws losses of one task beside the task's reference, cross-entropy or squared error.

    Args:
        names: Registered names, all of classification or all of regression losses. The reference
            is drawn whether or not it is among them.

    Returns:
        A `matplotlib.figure.Figure` with two panels: the loss, and its gradient weight or slope,
        see `curves`. The lines have the ids `NAME-loss` and `NAME-weight`.

    Raises:
        ValueError: If there is no name, one is unknown, or both tasks are among them.
        ImportError: If matplotlib is missing.
    """
    specs = _specs(names)
    try:
        import matplotlib.style
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError as error:
        raise MissingExtra("pictures need matplotlib: pip install 'hf-losses[plots]'") from error

    # "default", here and below: the user's own matplotlib settings must not change the picture.
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(11, 4.5), layout="constrained")
        panels = figure.subplots(1, 2)
        entries: list[Any] = []
        x = _grid(specs[0].task, 500)
        for kind, heading in HEADINGS.items():
            of_kind = [spec for spec in specs if spec.kind == kind]
            if of_kind:
                entries.append(
                    Line2D([], [], linestyle="none", label="\n" * bool(entries) + heading)
                )
            for spec in of_kind:
                for panel, y, part in zip(
                    panels, curves(spec.name, x), ("loss", "weight"), strict=True
                ):
                    (line,) = panel.plot(x, y, gid=f"{spec.name}-{part}", **_style(spec))
                entries.append(line)
        _finish(panels, specs)
        legend = figure.legend(
            handles=entries, loc="outside right center", frameon=False, handlelength=3.6
        )
        for text in legend.get_texts():
            if text.get_text().strip() in HEADINGS.values():
                text.set_fontweight("bold")
    return figure


def plot_losses(names: Sequence[str], output: str | os.PathLike[str]) -> None:
    """Writes a picture of losses of one task, see `loss_figure`, as PNG or SVG.

    The file appears whole or not at all. Equal losses and an equal matplotlib give equal bytes; the
    metadata hold `digest(names)`.

    Args:
        names: Registered names, all of classification or all of regression losses.
        output: File to write; its ending, `.png` or `.svg`, says which format.

    Raises:
        ValueError: If the ending is another one, or as `loss_figure`.
        ImportError: If matplotlib is missing.
        OSError: If the file cannot be written.
    """
    output = Path(output)
    ending = output.suffix[1:].lower()
    if ending not in FORMATS:
        raise UsageError(f"cannot write a picture to {str(output)!r}: use the ending .png or .svg")
    figure = loss_figure(names)
    import matplotlib.style

    metadata: dict[str, str | None] = {"Description": f"hf_losses sha256:{digest(names)}"}
    # Neither a date nor matplotlib's version: a file changes only if what it shows does.
    metadata |= {"Software": None} if ending == "png" else {"Date": None, "Creator": None}
    with whole(output) as temporary, matplotlib.style.context(["default", STYLE]):
        figure.savefig(temporary, format=ending, metadata=metadata)


def _specs(names: Sequence[str]) -> list[LossSpec]:
    """The records to draw, the reference first."""
    if not names:
        raise UsageError("there is no loss to draw: give at least one name")
    specs = [get_spec(name) for name in names]
    name_by_task = {spec.task: spec.name for spec in specs}
    if len(name_by_task) > 1:
        raise UsageError(
            "classification losses are functions of p and regression losses of e: draw "
            f"{' and '.join(name_by_task.values())} in two pictures"
        )
    once = dict.fromkeys([neutral_loss(specs[0].task), *names])
    return [get_spec(name) for name in once]


def _grid(task: str, steps: int) -> Tensor:
    """The points of the common axis."""
    if task == "regression":
        return torch.linspace(-4, 4, steps + 1, dtype=torch.float64)
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64)[1:-1]


def _label(spec: LossSpec) -> str:
    notes = [f"{name}={parameter.default:g}" for name, parameter in spec.parameters.items()]
    if spec.is_full:
        notes.append("two classes")
    return f"{spec.name} ({', '.join(notes)})" if notes else spec.name


def _style(spec: LossSpec) -> dict[str, Any]:
    """Colour and line of a loss: its own in every picture, whatever else is drawn."""
    colors = COLORS[spec.kind]
    place = list_losses(kind=spec.kind, task=spec.task).index(spec.name)
    return {"label": _label(spec), "color": colors[place % len(colors)], **LINES[spec.kind]}


def _finish(panels: Any, specs: list[LossSpec]) -> None:
    """Titles, axes, and limits that show where the losses differ: strict ones have no bound."""
    task = specs[0].task
    *titles, axis = PANELS[task]
    for panel, title in zip(panels, titles, strict=True):
        panel.set(title=title, xlabel=axis)

    def extent(which: int, x: Tensor) -> tuple[float, float]:
        y = torch.stack([curves(spec.name, x)[which] for spec in specs])
        return float(y.min()), float(y.max())

    loss, other = panels
    small = torch.linspace(-1, 1, 101, dtype=torch.float64)
    if task == "regression":
        steepest = max(map(abs, extent(1, small)))
        loss.set(xlim=(-4, 4), ylim=(0, extent(0, 2 * small)[1]))
        other.set(xlim=(-4, 4), ylim=(-steepest, steepest))
        return
    low, high = extent(1, 0.5 + 0.4 * small)
    loss.set(xlim=(0, 1), ylim=(0, max(4.0, extent(0, 0.65 + 0.25 * small)[1])))
    other.set(xlim=(0, 1), yscale="log", ylim=(min(0.1, max(low, 1e-3)), max(10.0, min(high, 1e3))))
    other.yaxis.set_major_formatter("{x:g}")
