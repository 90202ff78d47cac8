"""One loss for one optimizer step: the sum over its items, divided by their number.

`Trainer` counts the items of all micro-batches and processes of a step and hands the count to the
loss. A loss that sums over its micro-batch and divides by that count gives the same gradients for
batch 16, 8 x 2 accumulated, and 2 processes x 8. What an item is follows from the head's problem:
see `item_mask`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_losses.losses.base import RegressionLoss
from hf_losses.losses.modules import MULTI_LABEL, SINGLE_LABEL, ClassificationLoss
from hf_losses.losses.registry import IGNORE_INDEX
from hf_losses.messages import UsageError
from hf_losses.models.heads import LOSS_WEIGHT, REGRESSION

# Takes logits, labels, the number to divide the sum by and the items' weights.
SumFunction = Callable[[Tensor, Tensor, Tensor | float, Tensor | None], Tensor]


class Items(NamedTuple):
    """What the loss of a batch is computed from.

    Attributes:
        logits: `[..., C]`, or numbers.
        labels: `[...]` classes, or the logits' shape.
        weight: One number per item, by which its loss is multiplied; None if all are 1.
    """

    logits: Tensor
    labels: Tensor
    weight: Tensor | None

    def rows(self, count: int | None) -> Items:
        """The first `count` rows, or all if `count` is None."""
        weight = None if self.weight is None else self.weight[:count]
        return Items(self.logits[:count], self.labels[:count], weight)


# The problem types of PyTorch's own losses, for models that do not have one.
PROBLEMS: dict[type, str] = {
    nn.CrossEntropyLoss: SINGLE_LABEL,
    nn.MultiMarginLoss: SINGLE_LABEL,
    nn.NLLLoss: SINGLE_LABEL,
    nn.BCEWithLogitsLoss: MULTI_LABEL,
    nn.MultiLabelSoftMarginLoss: MULTI_LABEL,
    nn.HuberLoss: REGRESSION,
    nn.L1Loss: REGRESSION,
    nn.MSELoss: REGRESSION,
    nn.SmoothL1Loss: REGRESSION,
}


def problem_of(loss: Any) -> str | None:
    """What a loss is for, in the words of `config.problem_type`; None if that is unknown."""
    if isinstance(loss, ClassificationLoss):
        return loss.problem_type
    if isinstance(loss, RegressionLoss):
        return REGRESSION
    return next((name for kind, name in PROBLEMS.items() if isinstance(loss, kind)), None)


def items_of(labels: Tensor, problem: str | None) -> Tensor:
    """One number per item, -100 for those that do not count; in regression all of them count.

    Args:
        labels: `[...]` classes, `[..., C]` probabilities of them or yes/no labels, or numbers.
        problem: What the labels are for.

    Returns:
        A tensor in which a row of probabilities is one item and a row of yes/no labels C items.
    """
    if problem == REGRESSION:
        return torch.zeros_like(labels)
    if problem == SINGLE_LABEL and labels.is_floating_point():
        return labels[..., 0]
    return labels.long() if labels.dtype == torch.uint8 else labels  # Where -100 would be 156.


def item_mask(labels: Tensor, problem: str | None) -> Tensor:
    """A mask of the items that count; see `items_of`."""
    return items_of(labels, problem) != IGNORE_INDEX


def fit(logits: Tensor, labels: Tensor, problem: str | None, weight: Tensor | None = None) -> Items:
    """Logits with labels and weights in the shapes that go with them.

    Args:
        logits: `[..., C]`, or numbers `[...]` or `[..., 1]`.
        labels: `[...]`, `[..., 1]` or `[..., C]`.
        problem: What the labels are for.
        weight: `[B]`, one number per row, or as many as items.

    Returns:
        Labels `[...]` of classes or labels of the logits' shape: `[N, 1]` never meets `[N]`, which
        PyTorch would broadcast to `[N, N]`. Weights have the shape of `items_of(labels)`.

    Raises:
        ValueError: If the shapes do not go together.
    """
    logits_shape, labels_shape = tuple(logits.shape), tuple(labels.shape)
    if labels_shape not in (logits_shape, logits_shape[:-1]) and labels_shape[-1:] == (1,):
        labels = labels.squeeze(-1)
    if logits_shape == (*labels.shape, 1) and problem != SINGLE_LABEL:
        labels = labels.unsqueeze(-1)
    are_classes = problem in (SINGLE_LABEL, None) and labels.shape == logits.shape[:-1]
    if not are_classes and labels.shape != logits.shape:
        raise UsageError(
            f"labels of shape {labels_shape} do not fit the model's output of shape {logits_shape}"
            + (f" for {problem}" if problem else "")
            + ("; classes are whole numbers" if labels.is_floating_point() else "")
        )
    return Items(logits, labels, _fit_weight(weight, items_of(labels, problem)))


def _fit_weight(weight: Tensor | None, items: Tensor) -> Tensor | None:
    if weight is None:
        return None
    shape, weight = tuple(weight.shape), weight.to(items.device)
    if weight.shape != items.shape and shape[-1:] == (1,):
        weight = weight.squeeze(-1)
    if weight.dim() == 1 and len(weight) == len(items):
        weight = weight.reshape(-1, *[1] * (items.dim() - 1)).expand(items.shape)
    if weight.shape != items.shape:
        raise UsageError(
            f"{LOSS_WEIGHT} of shape {shape} does not fit items of shape {tuple(items.shape)}: "
            "give one number per example, or one per label"
        )
    return weight


def sum_over_items(loss: Callable[..., Tensor], problem: str | None) -> SumFunction:
    """Turns any loss into the sum over the items of a batch, divided by a given number.

    Args:
        loss: A loss of this project, a loss module of PyTorch, or a callable `loss(logits, labels)`
            that returns a mean over the items that are not -100, or one value per item.
        problem: What the labels are for; see `item_mask`.

    Returns:
        A function of logits, labels (as `fit` returns them) and the divisor, that returns a scalar.

    Raises:
        ValueError: If the loss sums already, normalises by anything but the items, or has
            parameters of its own to train.
    """
    if getattr(loss, "reduction", "mean") == "sum":
        raise UsageError(
            "the Trainer sums and divides by the number of items itself: "
            "give the loss reduction='mean' (or 'none')"
        )
    if getattr(loss, "ignore_index", IGNORE_INDEX) != IGNORE_INDEX:
        raise UsageError(
            f"ignore_index is {getattr(loss, 'ignore_index', None)}, but Trainer counts the items "
            f"whose label is not {IGNORE_INDEX}: mark those to leave out with {IGNORE_INDEX}"
        )
    if isinstance(loss, nn.Module) and any(p.requires_grad for p in loss.parameters()):
        raise UsageError(
            f"{type(loss).__name__} has parameters that the optimizer would never see: "
            "make it a part of the model"
        )
    if isinstance(loss, ClassificationLoss) and loss.spec.name == "cross_entropy":
        return _sum_of_cross_entropy(loss)
    if isinstance(loss, ClassificationLoss | RegressionLoss):
        return _sum_of_loss(loss)
    return _sum_of_user_loss(loss, problem)


def _with_reduction(loss: nn.Module, reduction: str) -> Any:
    changed: Any = copy.copy(loss)
    changed.reduction = reduction
    return changed


def _sum_of_loss(loss: ClassificationLoss | RegressionLoss) -> SumFunction:
    mean_loss = _with_reduction(loss, "mean")

    def summed(
        logits: Tensor, labels: Tensor, divisor: Tensor | float, weight: Tensor | None = None
    ) -> Tensor:
        mean: Tensor = mean_loss(logits, labels, divisor, item_weight=weight)
        return mean

    return summed


def _sum_of_cross_entropy(loss: ClassificationLoss) -> SumFunction:
    general = _sum_of_loss(loss)

    def summed(
        logits: Tensor, labels: Tensor, divisor: Tensor | float, weight: Tensor | None = None
    ) -> Tensor:
        of_indices = not labels.is_floating_point() and loss.problem_type != MULTI_LABEL
        if not of_indices or logits.dtype == torch.float64 or weight is not None:
            return general(logits, labels, divisor, weight)
        # PyTorch's kernel, so that the baseline is the stock Trainer's to the last bit.
        try:
            value = F.cross_entropy(
                *_pytorch_shapes(logits.float(), labels.long()),
                weight=loss.weight_for(logits),
                reduction="sum",
                label_smoothing=loss.label_smoothing,
            )
        except IndexError as error:
            loss.check_indices(labels, logits.shape[-1], error)
            raise
        return value / divisor

    return summed


def _pytorch_shapes(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and labels in the shapes that losses of PyTorch and of users expect."""
    if labels.shape == logits.shape[:-1]:
        return logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    if labels.dim() > 1 and labels.shape[-1] == 1:
        return logits.squeeze(-1), labels.squeeze(-1)
    return logits, labels


def _sum_of_user_loss(loss: Callable[..., Tensor], problem: str | None) -> SumFunction:
    if isinstance(loss, nn.modules.loss._Loss) and loss.reduction == "mean":
        loss = _with_reduction(loss, "none")
    takes_indices = isinstance(loss, nn.MultiLabelMarginLoss)

    def summed(
        logits: Tensor, labels: Tensor, divisor: Tensor | float, weight: Tensor | None = None
    ) -> Tensor:
        logits, labels = _pytorch_shapes(logits, labels)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        if labels.shape == logits.shape and not takes_indices:
            labels = labels.to(logits.dtype)
        items = item_mask(labels, problem)
        if logits.requires_grad and not (items.is_cpu and items.any()):
            # The gradient of a mean of no items may be NaN.
            logits = logits.view_as(logits)
            logits.register_hook(lambda gradient: gradient.where(items.any(), 0.0))  # type: ignore[no-untyped-call]
        value = loss(logits, labels)
        if not torch.is_tensor(value):
            raise UsageError(
                f"the loss returned {value!r}, not a tensor: the mean over the items, or one "
                "number for each of them"
            )
        if weight is not None:
            if value.numel() != weight.numel():
                raise UsageError(
                    f"the loss returned {value.numel()} values for {weight.numel()} items with a "
                    f"{LOSS_WEIGHT}: it must return one per item, not a mean (reduction='none')"
                )
            keep = items.flatten() & (weight.flatten() != 0)
            return (value.flatten() * weight.flatten()).where(keep, 0.0).sum() / divisor
        if not value.dim():
            number = items.sum()
            # The mean of no items is NaN.
            return torch.where(number > 0, value * number, 0.0) / divisor
        if value.numel() == items.numel():
            return value.flatten().where(items.flatten(), 0.0).sum() / divisor
        # A loss may return one value per row even where every number in the row is an item.
        if len(value) == len(items) and items.numel() % value.numel() == 0:
            return value.sum() * (items.numel() / value.numel()) / divisor
        if value.numel() != items.sum():  # It may leave out the others itself.
            raise UsageError(
                f"the loss returned {value.numel()} values for {items.numel()} labels, "
                f"{int(items.sum())} of them not {IGNORE_INDEX}: it must return the mean over "
                "those, or one value per label"
            )
        return value.sum() / divisor

    return summed


def item_count(labels: Tensor, counted: Any, problem: str | None) -> Tensor | Any:
    """Items to divide by: of the whole step if they were counted, else of this batch; at least 1.

    Args:
        labels: Labels of the batch.
        counted: Number of items of the step; None if they were not counted.
        problem: What the labels are for; see `item_mask`.
    """
    items = item_mask(labels, problem).sum() if counted is None else counted
    return items.clamp(min=1) if torch.is_tensor(items) else max(items, 1)


def divisors(
    trainer: Any, labels: Sequence[Tensor], counted: Any, problem: str | None
) -> list[Any]:
    """What the sums over a micro-batch are divided by, so that gradients add up to the step's mean.

    Args:
        trainer: The trainer, for its arguments, processes and accumulation steps.
        labels: Labels of each classification of a row, mostly a single one.
        counted: Trainer's count of the items of the step, `[P]` for P classifications; None if they
            were not counted, so that the items of the micro-batch take their place.
        problem: What the labels are for; see `item_mask`.

    Returns:
        P numbers.
    """
    args, counts = trainer.args, [counted] * len(labels)
    if len(labels) > 1 and counted is not None:
        counts = list(counted)
    result = []
    for batch_labels, count in zip(labels, counts, strict=True):
        if torch.is_tensor(count) and count.dim():
            count = count.flatten()[0]  # DataParallel has the count once per GPU.
        divisor = item_count(batch_labels, count, problem)
        if count is None:
            if trainer.model.training:
                divisor = divisor * trainer.current_gradient_accumulation_steps
        elif args.average_tokens_across_devices:
            # The count is over all processes, but their gradients are averaged.
            divisor = divisor / (trainer.accelerator.num_processes // trainer.get_tp_size())
        result.append(divisor)
    return result
