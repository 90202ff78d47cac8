"""What a loss does to the examples of a step: quantiles of p_y, margin and gradient weight.

The gradient weight of an item is the L1 norm of the loss's gradient with respect to its logits,
divided by cross-entropy's for the same target, which is 2·(1 - p_y) for a class index. Class
weights are part of it. For the sparse losses it is the w(p) of the registry.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hf_losses.losses.base import RegressionLoss
from hf_losses.losses.margin import class_margin_of_rows, gradient_weight
from hf_losses.losses.modules import MULTI_LABEL, ClassificationLoss, get_loss
from hf_losses.losses.registry import IGNORE_INDEX
from hf_losses.messages import UsageError
from hf_losses.training.loss.items import Items

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Logits to process at a time: those of a large vocabulary must not be copied as a whole.
CHUNK = 2**22
# In the third column: an item that is left out, or that pads those of a process with fewer.
ABSENT = -1.0


def check_stats_steps(steps: int) -> None:
    """Raises a ValueError unless `loss_stats_steps` is a number of steps, or 0."""
    if not steps >= 0 or steps % 1:
        raise UsageError(f"loss_stats_steps must be a whole number, 0 (off) or more, got {steps!r}")


def check_stats(args: Any, criterion: Any) -> None:
    """Raises a ValueError if the training arguments ask for figures that the loss does not have.

    Args:
        args: Training arguments, with or without `loss_stats_steps`.
        criterion: The loss in force.
    """
    steps = getattr(args, "loss_stats_steps", 0)
    check_stats_steps(steps)
    if steps and not isinstance(criterion, ClassificationLoss | RegressionLoss):
        raise UsageError(
            f"loss_stats_steps={steps} needs a loss of this project, whose gradient weight is "
            f"known, not {criterion!r}: name one (hf-losses list), build one by get_loss(…), or "
            "register yours by register_loss"
        )


def stats_due(args: Any, step: int) -> bool:
    """Whether the figures of an optimizer step, counted from 1, are logged."""
    steps = getattr(args, "loss_stats_steps", 0)
    return bool(steps) and step % steps == 0


class LossStats:
    """Collects the items of one optimizer step, from all micro-batches and processes."""

    def __init__(self) -> None:
        """Starts without items."""
        self._parts: list[Tensor] = []

    def add(self, criterion: ClassificationLoss | RegressionLoss, batch: Items) -> None:
        """Adds the items of one micro-batch, their weights included; see `item_stats`."""
        stats = item_stats(criterion, batch.logits, batch.labels)
        if batch.weight is not None:
            stats[:, 1] *= batch.weight.flatten()
        self._parts.append(stats)

    def take(
        self, criterion: ClassificationLoss | RegressionLoss, accelerator: Any
    ) -> dict[str, float]:
        """Returns the figures of all items so far, and forgets the items.

        Args:
            criterion: The loss.
            accelerator: The trainer's accelerator. All processes must call this together.

        Returns:
            See `summary`; the same on every process.
        """
        if not self._parts:
            return {}
        items, self._parts = torch.cat(self._parts), []
        if accelerator.num_processes > 1:
            items = accelerator.gather(accelerator.pad_across_processes(items, pad_index=ABSENT))
        return summary(criterion, items)


def summary(criterion: ClassificationLoss | RegressionLoss, items: Tensor) -> dict[str, float]:
    """Quantiles of items, by the name under which they are logged.

    A quantile is the value of one item, the nearest by rank. So the quantile of p_y is the sigmoid
    of the margin's, and an infinite margin does not spoil the others.

    Args:
        criterion: The loss.
        items: `[N, 3]`; see `item_stats`.

    Returns:
        `loss_stats/p_y_q05`, …, `loss_stats/margin_q05`, …, `loss_stats/weight_q05`, …, for the
        losses that have a `max_weight` the share `loss_stats/at_max_weight`; for regression
        `loss_stats/error_q05`, … and `loss_stats/weight_q05`, …. All NaN if an item has a
        NaN; empty without items.
    """
    items = items[items[:, 2] != ABSENT]
    if not len(items):
        return {}
    ranks = [round(q * (len(items) - 1)) for q in QUANTILES]
    ordered = items[:, :2].sort(0).values
    quantiles = ordered[ranks].where(~ordered[-1].isnan(), torch.nan)  # NaN is sorted last.
    margin_or_error, weight = quantiles.T
    if isinstance(criterion, RegressionLoss):
        figures = {"error": margin_or_error, "weight": weight}
    else:
        figures = {"p_y": margin_or_error.sigmoid(), "margin": margin_or_error, "weight": weight}
    names = [f"loss_stats/{name}_q{100 * q:02.0f}" for name in figures for q in QUANTILES]
    values = [*figures.values()]
    if criterion.spec.has_max_weight:
        names.append("loss_stats/at_max_weight")
        values.append(items[:, 2:].mean(0))
    return dict(zip(names, torch.cat(values).tolist(), strict=True))


@torch.no_grad()
def item_stats(
    criterion: ClassificationLoss | RegressionLoss, logits: Tensor, labels: Tensor
) -> Tensor:
    """Three numbers per item of a micro-batch.

    Args:
        criterion: The loss.
        logits: The model's logits, of any floating dtype; their graph is left alone.
        labels: Their labels.

    Returns:
        `[items, 3]`, float32: the margin of the true class, the gradient weight, and 1 where
        `max_weight` caps that class, else 0. For probabilities the true class is the one with the
        largest share; for several labels every label is an item with the margin ±logit. A weight
        is 0 where neither the loss nor cross-entropy has a gradient. For regression: the size of
        the error, the size of the loss's slope there, and 0. Except in regression, an item with
        -100 has `ABSENT` in place of the third, and no meaning in the others.
    """
    if isinstance(criterion, RegressionLoss):
        error = logits.float().flatten() - labels.float().flatten()
        slope = criterion.spec.function(error, **criterion.params)[1]
        return torch.stack([error.abs(), slope.abs(), torch.zeros_like(error)], -1)
    if criterion.problem_type == MULTI_LABEL:
        z, target = logits.float(), labels.float()
        margin = torch.where(target >= 0.5, z, -z)
        gradient, baseline_gradient = _gradients(criterion, z, target)
        items = _stack(criterion, margin, _ratio(gradient, baseline_gradient))
        return _marked(items, target != IGNORE_INDEX)
    soft = labels.is_floating_point()
    classes = logits.shape[-1]
    rows = max(1, CHUNK // classes)
    matrix = logits.reshape(-1, classes)
    flat = labels.reshape(-1, classes) if soft else labels.flatten()
    parts = []
    for start in range(0, len(flat), rows):
        z, target = matrix[start : start + rows].float(), flat[start : start + rows]
        keep = (target[:, 0] if soft else target) != IGNORE_INDEX
        true = target.argmax(-1) if soft else target.where(keep, 0)
        margin = class_margin_of_rows(z, true)
        if soft or criterion.label_smoothing:
            gradient, baseline_gradient = _gradients(criterion, z, target)
            weight = _ratio(gradient.norm(1, -1), baseline_gradient.norm(1, -1))
        elif criterion.spec.is_full:
            gradient = _gradient(criterion, z, target)
            weight = _ratio(gradient.norm(1, -1), 2 * torch.sigmoid(-margin))
        else:
            weight = _weight(criterion, margin)
            if criterion.spec.has_max_weight:
                weight = weight.clamp(max=criterion.max_weight)
            if criterion.weight is not None:
                weight = weight * criterion.weight[true]
        parts.append(_marked(_stack(criterion, margin, weight), keep))
    return torch.cat(parts)


def _weight(criterion: ClassificationLoss, margin: Tensor) -> Tensor:
    """The gradient weight by the loss's formula, before `max_weight` and class weights."""
    m = margin.clamp(max=80.0)  # The weight is at its limit there; sigmoid(-m) soon underflows.
    return gradient_weight(partial(criterion.spec.function, **criterion.params), m)


def _stack(criterion: ClassificationLoss, margin: Tensor, weight: Tensor) -> Tensor:
    """Margin, weight and whether `max_weight` caps it, as the last dimension."""
    if criterion.spec.has_max_weight:
        capped = (_weight(criterion, margin) > criterion.max_weight).float()
    else:
        capped = torch.zeros_like(margin)
    return torch.stack([margin, weight, capped], -1)


def _marked(items: Tensor, keep: Tensor) -> Tensor:
    """The items as rows, with `ABSENT` in those that are left out; how many stays unknown."""
    items[..., 2].masked_fill_(~keep, ABSENT)
    return items.flatten(0, -2)


def _gradients(criterion: ClassificationLoss, z: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the loss and of cross-entropy for the same, equally smoothed target."""
    baseline = get_loss(
        "cross_entropy",
        label_smoothing=criterion.label_smoothing,
        problem_type=criterion.problem_type,
    )
    return _gradient(criterion, z, target), _gradient(baseline, z, target)


def _gradient(criterion: Any, z: Tensor, target: Tensor) -> Tensor:
    summed = copy.copy(criterion)
    summed.reduction = "sum"
    z = z.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(summed(z, target), z)
    return gradient


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b == 0, 0.0, a.abs() / b.abs())
