"""The pictures of a model card: its loss, and the learning curve."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from hf_losses.hub.card_names import is_finite, is_metric
from hf_losses.hub.run_facts import RunFacts
from hf_losses.losses.modules import ClassificationLoss, get_loss
from hf_losses.losses.plots import COLORS, STYLE, loss_figure

PICTURES = ("loss.png", "learning_curve.png")


def draw(run: RunFacts) -> list[str]:
    """Writes the pictures that the run has data for, if matplotlib is installed.

    Args:
        run: The run; the pictures go into its folder.

    Returns:
        Names of the files written.
    """
    try:
        import matplotlib.style
    except ImportError:
        return []
    drawn = []
    with matplotlib.style.context(["default", STYLE]):
        for name, figure in zip(PICTURES, (_loss_figure(run), _curve_figure(run)), strict=True):
            if figure is not None:
                figure.savefig(run.folder / name, metadata={"Software": None})
                drawn.append(name)
    return drawn


def _loss_figure(run: RunFacts) -> Any:
    """The picture of the registered loss, with this run's parameters in place of the defaults."""
    if run.spec is None:
        return None
    spec, figure = run.spec, loss_figure([run.spec.name])
    names = (*spec.parameters, "max_weight")
    parameters = {name: value for name, value in run.loss.items() if name in names}
    if parameters and spec.name != run.baseline:
        loss = get_loss(spec.name, reduction="none", **parameters)
        for panel, part in zip(figure.axes, ("loss", "weight"), strict=True):
            (line,) = (line for line in panel.lines if line.get_gid() == f"{spec.name}-{part}")
            line.set_ydata(curves(loss, torch.as_tensor(line.get_xdata()))[part])
        for text in figure.legends[0].get_texts():
            if text.get_text().startswith(spec.name):
                values = ", ".join(f"{name}={value}" for name, value in parameters.items())
                text.set_text(f"{spec.name} ({values})")
        if not run.regression:
            at = torch.tensor([0.1, 0.9], dtype=torch.float64)
            low, high = sorted(curves(loss, at)["weight"].tolist())
            panel.set_ylim(min(0.1, max(low, 1e-3)), max(10.0, min(high, 1e3)))
    return figure


def curves(loss: Any, x: Tensor) -> dict[str, Tensor]:
    """The value and the gradient weight of a loss object, as `losses.plots.curves` has them.

    Args:
        loss: A loss without reduction.
        x: The probabilities of the true one of two classes; for a regression loss the errors.

    Returns:
        `loss` and `weight` (for a regression loss the slope), each of the shape of `x`.
    """
    if not isinstance(loss, ClassificationLoss):
        error = x.clone().requires_grad_()
        values = loss(error, torch.zeros_like(error))
        (slope,) = torch.autograd.grad(values.sum(), error)
        return {"loss": values.detach(), "weight": slope}
    logits = torch.stack([torch.logit(x), torch.zeros_like(x)], -1).requires_grad_()
    values = loss(logits, torch.zeros(len(x), dtype=torch.long))
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    return {"loss": values.detach(), "weight": -gradient[:, 0] / (1 - x)}


def _curve_figure(run: RunFacts) -> Any:
    """The losses by epoch, and beside them a metric; None if nothing was logged twice."""
    from matplotlib.figure import Figure

    series: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for entry in run.state.get("log_history", []):
        for key, value in entry.items():
            if (key == "loss" or key.startswith("eval_")) and is_metric(key):
                if is_finite(value):
                    series[key].append((entry["epoch"], value))
    series = {key: points for key, points in series.items() if len(points) > 1}
    losses = [key for key in series if key == "loss" or key.endswith("_loss")]
    best_by = str(run.args.get("metric_for_best_model") or "").removeprefix("eval_")
    metrics = [key for key in series if key not in losses and not key.endswith(run.baseline)]
    metric = [key for key in metrics if key == f"eval_{best_by}"] or metrics[:1]
    panels = [(names, title) for names, title in ((losses, "Loss"), (metric, "Metric")) if names]
    if not panels:
        return None
    figure = Figure(figsize=(5.5 * len(panels), 4), layout="constrained")
    row = figure.subplots(1, len(panels), sharex=True, squeeze=False)[0]
    for axes, (names, title) in zip(row, panels, strict=True):
        axes.set_prop_cycle(color=COLORS["strict"])
        for name in names:
            label = {"loss": "training", "eval_loss": "validation"}.get(name, name)
            style = (
                {"color": COLORS["liberal"][1]}
                if name == "loss"
                else {"linestyle": "--", "marker": "o"}
            )
            axes.plot(*zip(*series[name], strict=True), label=label.removeprefix("eval_"), **style)
        axes.set(title=title, xlabel="epoch")
        axes.locator_params(axis="x", integer=series[names[0]][-1][0] >= 2)
        axes.legend(frameon=False)
    return figure
