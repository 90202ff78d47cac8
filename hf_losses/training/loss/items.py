"""One loss for one optimizer step: the sum over its items, divided by their number.

`Trainer` counts the items of all micro-batches and processes of a step and hands the count to the
loss. A loss that sums over its micro-batch and divides by that count gives the same gradients for
batch 16, 8 x 2 accumulated, and 2 processes x 8. What an item is follows from the head's problem:
see `kept`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_losses.losses.base import RegressionLoss
from hf_losses.losses.modules import MULTI_LABEL, SINGLE_LABEL, ClassificationLoss
from hf_losses.messages import UsageError
from hf_losses.models.builtin import IGNORE
from hf_losses.models.heads import REGRESSION

# Of logits, labels and the number to divide the sum by.
SumFunction = Callable[[Tensor, Tensor, Tensor | float], Tensor]

# What PyTorch's own losses are for, where the model does not say it.
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
    """What a loss is for, in the words of `config.problem_type`; None where it does not say it."""
    if isinstance(loss, ClassificationLoss):
        return loss.problem_type
    if isinstance(loss, RegressionLoss):
        return REGRESSION
    return next((name for kind, name in PROBLEMS.items() if isinstance(loss, kind)), None)


def items_of(labels: Tensor, problem: str | None) -> Tensor:
    """One number per item, -100 where it does not count: of a regression every number does.

    Args:
        labels: `[...]` classes, `[..., C]` probabilities of them or yes/no labels, or numbers.
        problem: What they are labels for.

    Returns:
        `[...]`: a row of probabilities is one item, of yes/no labels it is C.
    """
    if problem == REGRESSION:
        return torch.zeros_like(labels)
    if problem == SINGLE_LABEL and labels.is_floating_point():
        return labels[..., 0]
    return labels


def kept(labels: Tensor, problem: str | None) -> Tensor:
    """Which items count; see `items_of`."""
    return items_of(labels, problem) != IGNORE


def fit(logits: Tensor, labels: Tensor, problem: str | None) -> tuple[Tensor, Tensor]:
    """Logits, and their labels in a shape that belongs to them.

    Args:
        logits: `[..., C]`, or numbers `[...]` or `[..., 1]`.
        labels: `[...]`, `[..., 1]` or `[..., C]`.
        problem: What they are labels for.

    Returns:
        Labels `[...]` of classes, or of the logits' shape: `[N, 1]` never meets `[N]`, of which
        PyTorch would make `[N, N]`.

    Raises:
        ValueError: If the shapes do not belong together.
    """
    shapes = tuple(logits.shape), tuple(labels.shape)
    if shapes[1] not in (shapes[0], shapes[0][:-1]) and shapes[1][-1:] == (1,):
        labels = labels.squeeze(-1)
    if shapes[0] == (*labels.shape, 1) and problem != SINGLE_LABEL:
        labels = labels.unsqueeze(-1)
    of_classes = problem in (SINGLE_LABEL, None) and labels.shape == logits.shape[:-1]
    if not of_classes and labels.shape != logits.shape:
        raise UsageError(
            f"labels of shape {shapes[1]} do not fit the model's output of shape {shapes[0]}"
            + (f" for {problem}" if problem else "")
            + ("; classes are whole numbers" if labels.is_floating_point() else "")
        )
    return logits, labels


def check_targets(logits: Tensor, labels: Tensor, loss: Any) -> None:
    """Raises a ValueError unless a loss of this project is defined for such labels.

    It reads their values: on a GPU that waits for them, so it is for the first batch.

    Args:
        logits: `[..., C]`.
        labels: As of `fit`.
        loss: The loss; one of the user's own is taken as it is.
    """
    if not isinstance(loss, ClassificationLoss):
        return
    number = "for numbers name a regression loss, such as loss='mse'"
    several = loss.problem_type == MULTI_LABEL
    if logits.dim() < 2 or (logits.shape[-1] < 2 and not several):
        raise UsageError(
            f"the model's output of shape {tuple(logits.shape)} has no dimension of classes for "
            f"the loss {loss.spec.name!r}: {number}"
        )
    if not several and not labels.is_floating_point():
        return
    values = labels[kept(labels, loss.problem_type)]
    if not values.numel():
        return
    low, high = values.min().item(), values.max().item()
    if not (low >= 0 and high <= 1):
        what = "yes/no labels" if several else "probabilities of the classes"
        raise UsageError(
            f"labels from {low:g} to {high:g} are no {what}, which lie in [0, 1] "
            f"(or are {IGNORE}, to be left out); {number}"
        )
    if not several:
        sums = values.sum(-1)
        worst = sums[(sums - 1).abs().argmax()].item()
        if abs(worst - 1) > 0.01:
            raise UsageError(
                f"a row of labels sums to {worst:g}, but probabilities of the classes sum to 1; "
                f"for several yes/no labels set problem_type={MULTI_LABEL!r}; {number}"
            )


def sum_over_items(loss: Callable[..., Tensor], problem: str | None) -> SumFunction:
    """Makes of any loss the sum over the items of a batch, divided by a given number.

    Args:
        loss: A loss of this project, a loss module of PyTorch, or a callable `loss(logits, labels)`
            that returns a mean over the items that are not -100, or one value per item.
        problem: What the labels are for; see `kept`.

    Returns:
        A function of logits, labels (as of `fit`) and the divisor that returns a scalar.

    Raises:
        ValueError: If the loss sums already, or normalises by something else than the items.
    """
    if getattr(loss, "reduction", "mean") == "sum":
        raise UsageError(
            "the Trainer sums and divides by the number of items itself: "
            "give the loss reduction='mean' (or 'none')"
        )
    if getattr(loss, "ignore_index", IGNORE) != IGNORE:
        raise UsageError(
            f"ignore_index is {getattr(loss, 'ignore_index', None)}, but Trainer counts the items "
            f"whose label is not {IGNORE}: mark those to leave out with {IGNORE}"
        )
    if isinstance(loss, nn.Module) and any(p.requires_grad for p in loss.parameters()):
        raise UsageError(
            f"{type(loss).__name__} has parameters that the optimizer would never see: "
            "make it a part of the model"
        )
    if isinstance(loss, ClassificationLoss) and loss.spec.name == "cross_entropy":
        return _cross_entropy(loss)
    if isinstance(loss, ClassificationLoss | RegressionLoss):
        mean: SumFunction = _reduced(loss, "mean")
        return mean
    return _of_user(loss, problem)


def _reduced(loss: nn.Module, reduction: str) -> Any:
    again: Any = copy.copy(loss)
    again.reduction = reduction
    return again


def _cross_entropy(loss: ClassificationLoss) -> SumFunction:
    own = _reduced(loss, "mean")
    kernel = nn.CrossEntropyLoss(loss.weight, reduction="sum", label_smoothing=loss.label_smoothing)

    def summed(logits: Tensor, labels: Tensor, divisor: Tensor | float) -> Tensor:
        of_indices = not labels.is_floating_point() and loss.problem_type != MULTI_LABEL
        if not of_indices or logits.dtype == torch.float64:
            mean: Tensor = own(logits, labels, divisor)
            return mean
        # PyTorch's kernel, so that the baseline is the stock Trainer's to the last bit.
        try:
            value: Tensor = kernel(*_flat(logits.float(), labels.long()))
        except IndexError as error:
            loss.check_indices(labels, logits.shape[-1], error)
            raise
        return value / divisor

    return summed


def _flat(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if labels.shape == logits.shape[:-1]:
        return logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    if labels.dim() > 1 and labels.shape[-1] == 1:
        return logits.squeeze(-1), labels.squeeze(-1)  # As users' functions expect numbers.
    return logits, labels


def _of_user(loss: Callable[..., Tensor], problem: str | None) -> SumFunction:
    if isinstance(loss, nn.modules.loss._Loss) and loss.reduction == "mean":
        loss = _reduced(loss, "none")
    takes_indices = isinstance(loss, nn.MultiLabelMarginLoss)

    def summed(logits: Tensor, labels: Tensor, divisor: Tensor | float) -> Tensor:
        logits, labels = _flat(logits, labels)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        if labels.shape == logits.shape and not takes_indices:
            labels = labels.to(logits.dtype)
        value = loss(logits, labels)
        if not torch.is_tensor(value):
            raise UsageError(
                f"the loss returned {value!r}, not a tensor: the mean over the items, or one "
                "number for each of them"
            )
        items = kept(labels, problem)
        if not value.dim():
            number = items.sum()
            # The mean of nothing is NaN.
            return torch.where(number > 0, value * number, 0.0) / divisor
        # It may have one value for each row where every number of a row is an item, or many.
        return value.sum() * (items.numel() / max(value.numel(), 1)) / divisor

    return summed


def item_count(labels: Tensor, counted: Any, problem: str | None) -> Tensor | Any:
    """Items to divide by: those of the whole step where they were counted, else of this batch.

    Args:
        labels: Those of the batch.
        counted: The items of the step, or None.
        problem: What the labels are for; see `kept`.
    """
    items = kept(labels, problem).sum() if counted is None else counted
    return items.clamp(min=1) if torch.is_tensor(items) else max(items, 1)


def divisors(
    trainer: Any, labels: Sequence[Tensor], counted: Any, problem: str | None
) -> list[Any]:
    """What the sums over a micro-batch are divided by, so that gradients add up to the step's mean.

    Args:
        trainer: The trainer, for its arguments, processes and accumulation steps.
        labels: Those of every classification that a row goes through, mostly one.
        counted: Trainer's count of the items of the step, `[P]` for P classifications; None if they
            were not counted: then the micro-batch counts alone.
        problem: What the labels are for; see `kept`.

    Returns:
        P numbers.
    """
    args, counts = trainer.args, [counted] * len(labels)
    if len(labels) > 1 and counted is not None:
        counts = list(counted)
    result = []
    for own, count in zip(labels, counts, strict=True):
        if torch.is_tensor(count) and count.dim():
            # DataParallel: once per GPU, and without averaging across devices already divided.
            count = count.flatten()[0]
            if not args.average_tokens_across_devices:
                count = count * args.n_gpu
        divisor = item_count(own, count, problem)
        if count is None:
            if trainer.model.training:
                divisor = divisor * trainer.current_gradient_accumulation_steps
        elif args.average_tokens_across_devices:
            # The count is over all processes, but their gradients are averaged.
            divisor = divisor / (trainer.accelerator.num_processes // trainer.get_tp_size())
        result.append(divisor)
    return result
