"""What a loss does to the single examples of a step: quantiles of p_y, margin and gradient weight.

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
from hf_losses.losses.margin import class_margin, gradient_weight
from hf_losses.losses.modules import MULTI_LABEL, ClassificationLoss, get_loss
from hf_losses.messages import UsageError
from hf_losses.models.builtin import IGNORE

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Numbers of the logits that are looked at together: a large vocabulary must not be copied whole.
CHUNK = 2**22
# Fills up the processes that have fewer items than others.
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
    """Whether an optimizer step, counted from 1, is one whose items are looked at."""
    steps = getattr(args, "loss_stats_steps", 0)
    return bool(steps) and step % steps == 0


class LossStats:
    """Collects the items of one optimizer step, from all micro-batches and processes."""

    def __init__(self) -> None:
        """Starts without items."""
        self._parts: list[Tensor] = []

    def add(
        self, criterion: ClassificationLoss | RegressionLoss, logits: Tensor, labels: Tensor
    ) -> None:
        """Takes one micro-batch; see `item_stats`."""
        self._parts.append(item_stats(criterion, logits, labels))

    def take(
        self, criterion: ClassificationLoss | RegressionLoss, accelerator: Any
    ) -> dict[str, float]:
        """The figures of all items so far, which are forgotten.

        Args:
            criterion: The loss.
            accelerator: That of the trainer. All processes must call this together.

        Returns:
            See `summary`; the same on every process.
        """
        if not self._parts:
            return {}
        items, self._parts = torch.cat(self._parts), []
        if accelerator.num_processes > 1:
            items = accelerator.gather(accelerator.pad_across_processes(items, pad_index=ABSENT))
            items = items[items[:, 2] != ABSENT]
        return summary(criterion, items)


def summary(criterion: ClassificationLoss | RegressionLoss, items: Tensor) -> dict[str, float]:
    """Quantiles of items, by the name under which they are logged.

    A quantile is the number of a real item, the nearest by rank: that of p_y is the sigmoid of
    the margin's, and an infinite margin is no harm to the others.

    Args:
        criterion: The loss.
        items: `[N, 3]`, see `item_stats`.

    Returns:
        `loss_stats/p_y_q05`, …, `loss_stats/margin_q05`, …, `loss_stats/weight_q05`, …, for the
        losses that have a `max_weight` the share `loss_stats/at_max_weight`; for regression
        `loss_stats/error_q05`, … and `loss_stats/weight_q05`, …. All NaN if an item's number is
        NaN; empty without items.
    """
    if not len(items):
        return {}
    ranks = [round(q * (len(items) - 1)) for q in QUANTILES]
    ordered = items[:, :2].sort(0).values
    first, weight = ordered[ranks].where(~ordered[-1].isnan(), torch.nan).T  # NaN is sorted last.
    found = {"weight": weight}
    if isinstance(criterion, RegressionLoss):
        found = {"error": first} | found
    else:
        found = {"p_y": first.sigmoid(), "margin": first} | found
    names = [f"loss_stats/{name}_q{100 * q:02.0f}" for name in found for q in QUANTILES]
    values = [*found.values()]
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
        logits: What it was computed from, of any floating dtype; its graph is left alone.
        labels: The same; items with -100 are left out, except for regression.

    Returns:
        `[items, 3]`, float32: the margin of the true class, the gradient weight, and 1 where
        `max_weight` caps that class, else 0. For probabilities the true class is the one with the
        largest share; for several labels every label is an item with the margin ±logit. A weight
        is 0 where neither the loss nor cross-entropy has a gradient. For regression: the size of
        the error, the size of the loss's slope there, and 0.
    """
    if isinstance(criterion, RegressionLoss):
        error = logits.float().flatten() - labels.float().flatten()
        slope = criterion.spec.function(error, **criterion.params)[1]
        return torch.stack([error.abs(), slope.abs(), torch.zeros_like(error)], -1)
    if criterion.problem_type == MULTI_LABEL:
        z, target = logits.float(), labels.float()
        margin = torch.where(target >= 0.5, z, -z)
        of_loss, of_baseline = _gradients(criterion, z, target)
        items = _stacked(criterion, margin, _ratio(of_loss, of_baseline))
        return items[target != IGNORE]
    soft = labels.is_floating_point()
    classes = logits.shape[-1]
    rows = max(1, CHUNK // classes)
    matrix = logits.reshape(-1, classes)
    flat = labels.reshape(-1, classes) if soft else labels.flatten()
    parts = []
    for start in range(0, len(flat), rows):
        z, target = matrix[start : start + rows].float(), flat[start : start + rows]
        keep = (target[:, 0] if soft else target) != IGNORE
        true = target.argmax(-1) if soft else target.where(keep, 0)
        margin = _margin(z, true)
        if soft or criterion.label_smoothing:
            of_loss, of_baseline = _gradients(criterion, z, target)
            weight = _ratio(of_loss.norm(1, -1), of_baseline.norm(1, -1))
        elif criterion.spec.is_full:
            of_loss = _gradient(criterion, z, target)
            weight = _ratio(of_loss.norm(1, -1), 2 * torch.sigmoid(-margin))
        else:
            weight = _weight(criterion, margin)
            if criterion.spec.has_max_weight:
                weight = weight.clamp(max=criterion.max_weight)
            if criterion.weight is not None:
                weight = weight * criterion.weight[true]
        parts.append(_stacked(criterion, margin, weight)[keep])
    return torch.cat(parts)


def _margin(z: Tensor, true: Tensor) -> Tensor:
    """`class_margin` without its copies of the logits, where these are not needed."""
    log_p = z.gather(-1, true.unsqueeze(-1)).squeeze(-1) - z.logsumexp(-1)
    margin = log_p - torch.log1p(-log_p.exp())
    # From p = 1/2 on, 1 - p cancels. NaN and infinite logits go the long way too.
    rest = (~((log_p > -torch.inf) & (log_p < -0.7))).nonzero().squeeze(-1)
    margin[rest] = class_margin(z[rest], true[rest])
    return margin


def _weight(criterion: ClassificationLoss, margin: Tensor) -> Tensor:
    """The gradient weight by the formula, not capped and without class weights."""
    m = margin.clamp(max=80.0)  # It has long reached its limit; sigmoid(-m) ends soon.
    return gradient_weight(partial(criterion.spec.function, **criterion.params), m)


def _stacked(criterion: ClassificationLoss, margin: Tensor, weight: Tensor) -> Tensor:
    if criterion.spec.has_max_weight:
        capped = (_weight(criterion, margin) > criterion.max_weight).float()
    else:
        capped = torch.zeros_like(margin)
    return torch.stack([margin, weight, capped], -1)


def _gradients(criterion: ClassificationLoss, z: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Those of the loss and of cross-entropy for the same, equally smoothed target."""
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
