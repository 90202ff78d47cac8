"""Losses as modules: a registered function, its parameters, and what every loss shares.

Shared are dtype, targets, ignored items, class weights, label smoothing, the bounded gradient
weight and the reduction, each in one place.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from hf_losses.losses.base import (
    LossModule,
    RegressionLoss,
    accurate,
    accurate_dtype,
    exact_class_weights,
    not_zero,
)
from hf_losses.losses.bound import BoundedLoss
from hf_losses.losses.fused import DTYPES, Full, Fused, Kernel, Sparse, headroom
from hf_losses.losses.margin import class_margin, class_margins, one_hot, poison
from hf_losses.losses.registry import as_number, get_spec
from hf_losses.messages import UsageError

SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL)


class ClassificationLoss(LossModule):
    """A classification loss of the registry.

    Args:
        name: A registered name, such as `liberal_exp`.
        reduction: `mean`, `sum` or `none`.
        ignore_index: Targets with this value are left out (class indices and multi-label targets;
            a row of probabilities that starts with it is left out too). Where targets lie in
            [0, 1] it is refused if it does.
        weight: `[C]`, one non-negative number per class: a sequence, an array or a tensor. It keeps
            its precision for float64 logits and in `config`; the buffer `weight` is its float32. A
            mean over class indices divides by the sum of the weights and any other mean by the
            count, as `F.cross_entropy` does.
        label_smoothing: In [0, 1]: share of the target spread evenly over the classes.
        max_weight: Positive, `inf` allowed; for strict losses, where the gradient weight w would
            exceed this, the loss goes on linearly in log p with this slope: finite, and never a
            zero gradient. The weights of the other losses are bounded by themselves at small p.
        problem_type: `single_label_classification` or `multi_label_classification`.
        overwrite_logits: Allows the loss to leave anything in the logits after it was computed with
            gradients: less time and memory for training steps that need them no more. PyTorch says
            so if a backward pass would have needed them.
        **params: The loss's own parameters, such as `alpha`.

    Raises:
        ValueError: If any of these is unknown or out of range.
    """

    task = "classification"
    weight: Tensor | None
    _function: BoundedLoss

    def __init__(
        self,
        name: str,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
        weight: Tensor | Collection[float] | None = None,
        label_smoothing: float = 0.0,
        max_weight: float = 1e4,
        problem_type: str = SINGLE_LABEL,
        overwrite_logits: bool = False,
        **params: Any,
    ) -> None:
        """See the class."""
        super().__init__(name, reduction, params)
        if problem_type not in PROBLEM_TYPES:
            raise UsageError(
                f"unknown problem_type {problem_type!r}; choose one of {', '.join(PROBLEM_TYPES)} "
                "(regression has losses of its own: hf-losses list --task regression)"
            )
        self.label_smoothing = as_number(name, "label_smoothing", label_smoothing)
        if not 0.0 <= self.label_smoothing <= 1.0:
            raise UsageError(f"label_smoothing must lie in [0, 1], got {label_smoothing!r}")
        self.max_weight = as_number(name, "max_weight", max_weight)
        if not self.max_weight > 0:
            raise UsageError(f"max_weight must be positive (inf allowed), got {max_weight!r}")
        self._given_weight = None if weight is None else exact_class_weights(weight)
        buffer = None
        if self._given_weight is not None:
            buffer = self._given_weight.float()
            if isinstance(weight, Tensor):
                buffer = buffer.to(weight.device)
        self.register_buffer("weight", buffer)
        try:
            self.ignore_index = operator.index(ignore_index)
        except TypeError:
            raise UsageError(f"ignore_index must be an integer, got {ignore_index!r}") from None
        if problem_type == MULTI_LABEL:
            self._check_ignore_index()
        self.problem_type = problem_type
        self.overwrite_logits = overwrite_logits
        self._function = BoundedLoss(self.spec, self.params, self.max_weight)
        self.kernel: Kernel | None = self._fused_kernel()

    def _fused_kernel(self) -> Kernel | None:
        """How the loss is made straight from logits; None if there is no such way."""
        if self.label_smoothing or self.problem_type != SINGLE_LABEL:
            return None
        if not self.spec.is_full:
            return Sparse(self._function)
        # Of the wrong classes, only the top one may lie beyond the bound.
        if self.spec.wrong_class_function is None or self._function.boundary > 0:
            return None
        return Full(self._function)

    def _options(self) -> dict[str, Any]:
        options = super()._options()
        if self.ignore_index != -100:
            options["ignore_index"] = self.ignore_index
        if self.weight is not None:
            options["weight"] = self._exact_weight(self.weight).tolist()
        if self.label_smoothing:
            options["label_smoothing"] = self.label_smoothing
        if self.max_weight != 1e4:
            # JSON has no infinity; get_loss takes the word.
            options["max_weight"] = self.max_weight if math.isfinite(self.max_weight) else "inf"
        if self.problem_type != SINGLE_LABEL:
            options["problem_type"] = self.problem_type
        # overwrite_logits is no part of the loss: it decides where gradients are written.
        return options

    def _exact_weight(self, buffer: Tensor) -> Tensor:
        """The weights as given, float64, on the CPU; those of a buffer that was changed since."""
        held, given = buffer.cpu(), self._given_weight
        if given is None or given.shape != held.shape:
            return held.double()
        return torch.where(given.float().to(held.dtype) == held, given, held.double())

    def weight_for(self, logits: Tensor) -> Tensor | None:
        """The class weights on the device, and in the precision, that a loss is computed in.

        Args:
            logits: `[..., C]`, any floating dtype.

        Returns:
            `[C]`, float32 (float64 for float64 logits), or None if all classes weigh the same.
        """
        weight = self.weight
        if weight is None:
            return None
        dtype = accurate_dtype(logits)
        if not weight.dtype == dtype == torch.float32:
            # A module that holds this loss may have been cast, which would round the buffer.
            weight = self._exact_weight(weight)
        return weight.to(logits.device, dtype)

    def _check_ignore_index(self) -> None:
        if 0 <= self.ignore_index <= 1:
            raise UsageError(
                f"ignore_index={self.ignore_index} would leave out targets in [0, 1] that mean "
                "something: mark those to leave out with another number, such as -100"
            )

    def forward(
        self, logits: Tensor, target: Tensor, count: Tensor | float | None = None
    ) -> Tensor:
        """Computes the loss.

        Args:
            logits: `[..., C]`, any floating dtype; computed in float32 (float64 stays).
            target: `[...]` integer class indices, or `[..., C]` floating probabilities; for
                multi-label problems `[..., C]` in [0, 1], any dtype.
            count: What a mean divides by; None: as told of `weight` above.

        Returns:
            A scalar, or with `reduction="none"` one value per item: `[...]`, and `[..., C]` for
            multi-label problems. float32 (float64 for float64 logits). Ignored items are 0.

        Raises:
            ValueError: If shapes or dtypes do not fit, or a class index is out of range.
        """
        shape = tuple(logits.shape)
        weight = self.weight_for(logits)
        if weight is not None and weight.shape != logits.shape[-1:]:
            raise UsageError(
                f"weight has {weight.numel()} entries, one per class, for logits of shape {shape}"
            )
        if self.problem_type == MULTI_LABEL:
            return self._multi_label(accurate(logits), target, weight, count)
        if len(shape) == 0 or shape[-1] < 2:
            raise UsageError(
                f"logits of shape {shape} have fewer than two classes; for a single "
                "yes/no output set problem_type='multi_label_classification', for a number "
                "use a regression loss such as 'mse'"
            )
        if target.is_floating_point() and target.shape == shape:
            return self._probabilities(accurate(logits), target, weight, count)
        if target.is_floating_point() or target.dtype == torch.bool or target.shape != shape[:-1]:
            raise UsageError(
                f"target of shape {tuple(target.shape)} and dtype {target.dtype} does not fit "
                f"logits of shape {shape}: give integer class indices of shape "
                f"{shape[:-1]}, or floating probabilities of shape {shape}"
            )
        try:
            return self._class_indices(logits, target.long(), weight, count)
        except RuntimeError as error:
            # Asking first would make every step on a GPU wait; there, the device itself asserts.
            self.check_indices(target, shape[-1], error)
            raise

    def check_indices(self, target: Tensor, classes: int, cause: Exception) -> None:
        """Raises a ValueError that names the class indices that do not exist, if there are any."""
        target = target.long()  # A narrow dtype has no -100.
        outside = target[(target != self.ignore_index) & ((target < 0) | (target >= classes))]
        if outside.numel():
            raise UsageError(
                f"labels must lie in [0, {classes}) for {classes} classes, got "
                f"{sorted(set(outside.tolist()))[:10]}; check num_labels, or mark items to leave "
                f"out with {self.ignore_index}"
            ) from cause

    def _class_indices(
        self, logits: Tensor, target: Tensor, weight: Tensor | None, count: Tensor | float | None
    ) -> Tensor:
        if self._is_fused(logits):
            return self._fused(logits, target, weight, count)
        z, given = accurate(logits), target
        target, of_item = self._weigh(target, weight, z.dtype)
        if self.label_smoothing:
            keep = (given != self.ignore_index).unsqueeze(-1)
            share = self._smooth(one_hot(z, target).where(keep, 0.0))
            losses = self._all_classes(z, share, weight)
        else:
            losses = self._one_by_one(z, target, of_item)
        return self._reduce(losses, of_item.sum(), count)

    def _weigh(
        self, target: Tensor, weight: Tensor | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """The targets with 0 for ignored ones, and what each of them weighs: 0 for those."""
        kept = target != self.ignore_index
        target, of_item = target * kept, kept.to(dtype)
        if weight is not None:
            # gather rather than weight[target]: torch.func.vmap takes it too.
            of_item = of_item * weight.gather(0, target.reshape(-1)).reshape(target.shape)
        return target, of_item

    def _one_by_one(self, logits: Tensor, target: Tensor, of_item: Tensor) -> Tensor:
        """The losses of the items, times their weights, as PyTorch differentiates them."""
        z = accurate(logits)
        counts = of_item != 0
        if self.spec.is_full:
            share = one_hot(z, target).where(counts.unsqueeze(-1), 0.0)
            return of_item * self._all_classes(z, share, None)
        # An ignored item must not send back 0 · inf either, hence the where inside.
        return of_item * self._scalar(class_margin(z, target).where(counts, 0.0))

    def _is_fused(self, logits: Tensor) -> bool:
        """Whether value and gradient are made straight from the logits: the one place to decide."""
        return (
            self.kernel is not None
            and logits.dtype in DTYPES
            and not torch.compiler.is_compiling()
            and not torch._C._are_functorch_transforms_active()
            and forward_ad._current_level < 0  # Not within a dual_level; unpack_dual takes longer.
        )

    def _fused(
        self, logits: Tensor, target: Tensor, weight: Tensor | None, count: Tensor | float | None
    ) -> Tensor:
        target, scale, room = self.scaled(target, weight, count, logits.dtype)
        differentiate = torch.is_grad_enabled() and logits.requires_grad
        options = (self.reduction != "none", differentiate, self.overwrite_logits)
        out: Tensor = Fused.apply(  # type: ignore[no-untyped-call]
            logits, target, scale, self.kernel, self._one_by_one, options
        )
        return out if room is None else out / room

    def scaled(
        self,
        target: Tensor,
        weight: Tensor | None,
        count: Tensor | float | None,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What losses with their gradients are made of, beside the logits.

        Args:
            target: Class indices.
            weight: `[C]`, float32, or None.
            count: As for `forward`.
            dtype: Of the gradients.

        Returns:
            The targets with 0 for ignored ones; by what their losses are multiplied, `[]` if that
            is the same for all; and what has to be divided out of their sum again, or None.
        """
        number = target.numel()
        # On a GPU asking would take longer than multiplying.
        if weight is None and target.is_cpu and number and target.min().item() > self.ignore_index:
            if self.reduction == "mean":
                divisor = float(number if count is None else count)
                scale = torch.full((), 1 / divisor if divisor else math.inf)
            else:
                scale = torch.ones(())
        else:
            target, scale = self._weigh(target, weight, torch.float32)
            if self.reduction == "mean":
                scale = scale / (not_zero(scale.sum()) if count is None else count)
        room = headroom(scale, dtype, self._function.steepest)
        return target, scale if room is None else scale * room, room

    def _probabilities(
        self, z: Tensor, target: Tensor, weight: Tensor | None, count: Tensor | float | None
    ) -> Tensor:
        self._check_ignore_index()
        keep = target[..., 0] != self.ignore_index
        share = self._smooth(target.to(z.dtype).where(keep.unsqueeze(-1), 0.0))
        losses = self._all_classes(z, share, weight)
        return self._reduce(losses, keep.sum(), count)

    def _multi_label(
        self, z: Tensor, target: Tensor, weight: Tensor | None, count: Tensor | float | None
    ) -> Tensor:
        if target.shape != z.shape:
            raise UsageError(
                f"multi-label targets must have the logits' shape {tuple(z.shape)}, "
                f"got {tuple(target.shape)}"
            )
        keep = target != self.ignore_index
        yes = target.to(z.dtype).where(keep, 0.0)
        yes = yes * (1 - self.label_smoothing) + self.label_smoothing / 2
        losses = self._mix(z.where(keep, 0.0), yes, 1 - yes) + poison(z)
        losses = losses if weight is None else losses * weight
        return self._reduce(losses.where(keep, 0.0), keep.sum(), count)

    def _smooth(self, share: Tensor) -> Tensor:
        total = share.sum(-1, keepdim=True) if self.label_smoothing else 0.0
        return share * (1 - self.label_smoothing) + total * (self.label_smoothing / share.shape[-1])

    def _all_classes(self, z: Tensor, share: Tensor, weight: Tensor | None) -> Tensor:
        """Sum over classes k of share_k · weight_k · (loss if k were the true class)."""
        share = share if weight is None else share * weight
        margins = class_margins(z)
        # In a full form class k also pays, with the opposite sign, wherever it is not the true one.
        against = share.sum(-1, keepdim=True) - share if self.spec.is_full else None
        return self._mix(margins, share, against).sum(-1)

    def _mix(self, margins: Tensor, share: Tensor, against: Tensor | None) -> Tensor:
        # A class without a share must not contribute 0 · inf (its logit may be -inf).
        losses = share * self._scalar(margins.where(share != 0, 0.0))
        if against is not None:
            losses = losses + against * self._scalar(-margins.where(against != 0, 0.0))
        return losses


def get_loss(name: str, **params: Any) -> ClassificationLoss | RegressionLoss:
    """Builds a loss by name.

    Args:
        name: A registered name; `list_losses()` has them all.
        **params: The loss's own parameters (`alpha` of `strict_m_power`, `delta` of `huber`) and
            the options of `ClassificationLoss` (`reduction`, `ignore_index`, `weight`,
            `label_smoothing`, `max_weight`, `problem_type`) or `RegressionLoss` (`reduction`).

    Returns:
        A module: `loss(logits, target)` or `loss(prediction, target)`.

    Raises:
        ValueError: If the name or a parameter is unknown or out of range.

    Example:
        >>> loss = get_loss("liberal_exp")
        >>> loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
        tensor(0.1266)
    """
    spec = get_spec(name)
    return (ClassificationLoss if spec.task == "classification" else RegressionLoss)(name, **params)
