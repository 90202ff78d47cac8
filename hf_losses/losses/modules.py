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
    Weighting,
    at_least_tiny,
    checked_item_weight,
    upcast,
    upcast_dtype,
    way_out,
)
from hf_losses.losses.bound import BoundedLoss
from hf_losses.losses.class_weights import ExactWeights
from hf_losses.losses.fused.chunk import DTYPES, Kernel, may_wait
from hf_losses.losses.fused.function import Fused, headroom
from hf_losses.losses.fused.torch_kernels import Full, Sparse
from hf_losses.losses.margin import class_margin, class_margins, one_hot, propagate_nan
from hf_losses.losses.registry import IGNORE_INDEX, as_number, get_spec
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
            a row of probabilities that starts with it is left out too). A number in [0, 1] is
            refused for probabilities and multi-label targets.
        weight: `[C]`, one non-negative number per class: a sequence, an array or a tensor. It keeps
            its precision for float64 logits and in `config`; the buffer `weight` is its float32. A
            mean over class indices divides by the sum of the weights and any other mean by the
            count, as `F.cross_entropy` does.
        label_smoothing: In [0, 1]: share of the target spread evenly over the classes.
        max_weight: Positive, `inf` allowed; the largest gradient weight w of a strict loss. Where
            w would exceed it, the loss continues linearly in log p with this slope, so that it
            stays finite and its gradient never vanishes. Other losses ignore it: their weights
            are bounded at small p by themselves.
        problem_type: `single_label_classification` or `multi_label_classification`.
        overwrite_logits: May overwrite the logits in place when gradients are computed, which saves
            time and memory; they hold the gradient until the backward pass, so nothing else may
            use them. PyTorch raises an error if another operation needs them in its backward pass;
            a second loss made of them would be wrong.
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
        ignore_index: int = IGNORE_INDEX,
        weight: Tensor | Collection[float] | None = None,
        label_smoothing: float = 0.0,
        max_weight: float = 1e4,
        problem_type: str = SINGLE_LABEL,
        overwrite_logits: bool = False,
        **params: Any,
    ) -> None:
        super().__init__(name, reduction, params)
        if problem_type not in PROBLEM_TYPES:
            raise UsageError(
                f"unknown problem_type {problem_type!r}; choose one of {', '.join(PROBLEM_TYPES)} "
                "(regression has losses of its own: hf-losses list --task regression)"
            )
        self.label_smoothing = as_number(name, "label_smoothing", label_smoothing)
        if not 0.0 <= self.label_smoothing <= 1.0:
            raise UsageError(f"label_smoothing must lie in [0, 1], got {label_smoothing!r}")
        number = as_number(name, "max_weight", max_weight)
        self.max_weight = math.inf if number > torch.finfo(torch.float32).max else number
        if not self.max_weight > 0:
            raise UsageError(f"max_weight must be positive (inf allowed), got {max_weight!r}")
        self._exact_weights = None if weight is None else ExactWeights(weight)
        buffer = None
        if self._exact_weights is not None:
            buffer = self._exact_weights.numbers.float()
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
        self._function = BoundedLoss(self.spec, self._params, self.max_weight)
        self.kernel: Kernel | None = self._fused_kernel()

    def _fused_kernel(self) -> Kernel | None:
        """The kernel that computes loss and gradient from logits; None if there is none."""
        if self.label_smoothing or self.problem_type != SINGLE_LABEL:
            return None
        if not self.spec.is_full:
            return Sparse(self._function)
        # The kernel applies the cap to the true class and to the top wrong class alone.
        if self.spec.wrong_class_function is None or self._function.boundary > 0:
            return None
        return Full(self._function)

    def _options(self) -> dict[str, Any]:
        options = super()._options()
        if self.ignore_index != IGNORE_INDEX:
            options["ignore_index"] = self.ignore_index
        if self.weight is not None:
            exact = self.weight.cpu()
            if self._exact_weights is not None:
                exact = self._exact_weights.on_device_of(exact, torch.float64)
            options["weight"] = exact.tolist()
        if self.label_smoothing:
            options["label_smoothing"] = self.label_smoothing
        if self.max_weight != 1e4:
            # JSON has no infinity; get_loss takes the word.
            options["max_weight"] = self.max_weight if math.isfinite(self.max_weight) else "inf"
        if self.problem_type != SINGLE_LABEL:
            options["problem_type"] = self.problem_type
        return options

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
        dtype = upcast_dtype(logits)
        if self._exact_weights and not weight.dtype == dtype == torch.float32:
            # A module that holds this loss may have been cast, which would round the buffer.
            weight = self._exact_weights.on_device_of(weight, dtype)
        return weight.to(logits.device, dtype)

    def _check_ignore_index(self) -> None:
        if 0 <= self.ignore_index <= 1:
            raise UsageError(
                f"ignore_index={self.ignore_index} would leave out targets in [0, 1] that mean "
                "something: mark those to leave out with another number, such as -100"
            )

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        count: Tensor | float | None = None,
        *,
        item_weight: Tensor | None = None,
    ) -> Tensor:
        """Computes the loss.

        Args:
            logits: `[..., C]`, any floating dtype; computed in float32 (float64 stays).
            target: `[...]` integer class indices, or `[..., C]` floating probabilities; for
                multi-label problems `[..., C]` in [0, 1], any dtype.
            count: Divisor of a mean. By default the sum of the class weights for class indices,
                otherwise the number of items that are not ignored.
            item_weight: `[...]`, one finite, non-negative number per item, or per row of items,
                by which its loss is multiplied; for multi-label problems an item is a label. A mean
                does not divide by it. No gradient flows into it.

        Returns:
            A scalar, or with `reduction="none"` one value per item: `[...]`, and `[..., C]` for
            multi-label problems. float32 (float64 for float64 logits). Ignored items are 0.

        Raises:
            ValueError: If shapes or dtypes do not fit, a class index is out of range, or an item
                weight on the CPU is negative or not finite.
        """
        shape = tuple(logits.shape)
        of_class = self.weight_for(logits)
        if of_class is not None and of_class.shape != logits.shape[-1:]:
            raise UsageError(
                f"weight has {of_class.numel()} entries, one per class, for logits of shape "
                f"{shape}{way_out(shape, target)}"
            )
        items = shape if self.problem_type == MULTI_LABEL else shape[:-1]
        weighting = Weighting(of_class, checked_item_weight(item_weight, items, logits), count)
        if self.problem_type == MULTI_LABEL:
            return self._multi_label(upcast(logits), target, weighting)
        if len(shape) == 0 or shape[-1] < 2:
            raise UsageError(
                f"logits of shape {shape} have fewer than two classes; for a single "
                "yes/no output set problem_type='multi_label_classification', for a number "
                "use a regression loss such as 'mse'"
            )
        if target.is_floating_point() and target.shape == shape:
            return self._probabilities(upcast(logits), target, weighting)
        if target.is_floating_point() or target.dtype == torch.bool or target.shape != shape[:-1]:
            raise UsageError(
                f"target of shape {tuple(target.shape)} and dtype {target.dtype} does not fit "
                f"logits of shape {shape}: give integer class indices of shape "
                f"{shape[:-1]}, or floating probabilities of shape {shape}"
                f"{way_out(shape, target)}"
            )
        try:
            return self._class_indices(logits, target.long(), weighting)
        except RuntimeError as error:
            # Checking the indices first would make a GPU wait at every step; it asserts by itself.
            self.check_indices(target, shape[-1], error)
            raise

    def check_indices(self, target: Tensor, classes: int, cause: Exception | None = None) -> None:
        """Raises a ValueError that names the class indices that do not exist, if there are any."""
        target = target.long()  # A narrow dtype has no -100.
        outside = target[(target != self.ignore_index) & ((target < 0) | (target >= classes))]
        if outside.numel():
            raise UsageError(
                f"labels must lie in [0, {classes}) for {classes} classes, got "
                f"{sorted(set(outside.tolist()))[:10]}; check num_labels, or mark items to leave "
                f"out with {self.ignore_index}"
            ) from cause

    def _class_indices(self, logits: Tensor, target: Tensor, weighting: Weighting) -> Tensor:
        if self._is_fused(logits):
            return self._fused(logits, target, weighting)
        z, mask = upcast(logits), target != self.ignore_index
        target, scale, of_class = self._mask_and_weigh(target, weighting, z.dtype)
        divisor = of_class.sum()
        if not self.label_smoothing:
            return self._reduce(self._item_losses(z, target, scale), divisor, weighting.count)
        kept = weighting.kept(mask).unsqueeze(-1)
        z = z.where(kept, 0.0)  # Backward would multiply a NaN there by 0.
        share = self._smooth(one_hot(z, target).where(kept, 0.0))
        losses = weighting.times(self._all_classes(z, share, weighting.classes))
        # Smoothing gives items whose own class weighs 0 a loss too; the mean of such alone is 0.
        return self._reduce(losses, divisor.where(divisor > 0, torch.inf), weighting.count)

    def _mask_and_weigh(
        self, target: Tensor, weighting: Weighting, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Targets with 0 for ignored items, the items' weights, and those by their class alone.

        An ignored item weighs 0. The last, whose sum a mean divides by, leave out the item weights.
        """
        mask = target != self.ignore_index
        target, scale = target * mask, mask.to(dtype)
        if weighting.classes is not None:
            # gather rather than weight[target]: torch.func.vmap takes it too.
            of_class = weighting.classes.gather(0, target.reshape(-1))
            scale = scale * of_class.reshape(target.shape)
        return target, weighting.times(scale), scale

    def _item_losses(self, logits: Tensor, target: Tensor, scale: Tensor) -> Tensor:
        """The losses of the items, times their scale, as PyTorch differentiates them."""
        mask = scale != 0
        z = upcast(logits).where(mask.unsqueeze(-1), 0.0)
        if self.spec.is_full:
            share = one_hot(z, target).where(mask.unsqueeze(-1), 0.0)
            return scale * self._all_classes(z, share, None)
        return scale * self._scalar(class_margin(z, target))

    def _is_fused(self, logits: Tensor) -> bool:
        """Whether a kernel computes value and gradient at once: the only place to decide it."""
        return (
            self.kernel is not None
            and logits.dtype in DTYPES
            and self._function.fits(logits.dtype)
            and not torch.compiler.is_compiling()
            and not torch._C._are_functorch_transforms_active()
            and forward_ad._current_level < 0  # Not within a dual_level; unpack_dual takes longer.
        )

    def _fused(self, logits: Tensor, target: Tensor, weighting: Weighting) -> Tensor:
        target, scale, factor = self.prepare_targets(target, weighting, logits.dtype)
        differentiate = torch.is_grad_enabled() and logits.requires_grad
        options = (self.reduction != "none", differentiate, self.overwrite_logits)
        out: Tensor = Fused.apply(  # type: ignore[no-untyped-call]
            logits, target, scale, self.kernel, self._item_losses, options
        )
        return out if factor is None else out / factor

    def prepare_targets(
        self, target: Tensor, weighting: Weighting, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What a kernel takes beside the logits.

        Args:
            target: Class indices.
            weighting: Class weights in float32, item weights and the divisor of a mean.
            dtype: That of the gradients.

        Returns:
            The targets with 0 for ignored items; the scale of the items' losses, a scalar tensor
            if it is the same for all; and the power of two by which the sum of the scaled losses
            has to be divided (see `headroom`), or None.
        """
        number = target.numel()
        plain = weighting.classes is None and weighting.items is None
        # On a GPU asking for the smallest target would take longer than multiplying.
        if plain and number and may_wait(target) and target.min().item() > self.ignore_index:
            of_each = 1.0
            if self.reduction == "mean":
                divisor = float(number if weighting.count is None else weighting.count)
                of_each = 1 / divisor if divisor else math.inf
            scale = torch.full((), of_each, dtype=torch.float32, device=target.device)
        else:
            target, scale, of_class = self._mask_and_weigh(target, weighting, torch.float32)
            if self.reduction == "mean":
                count = weighting.count
                scale = scale / (at_least_tiny(of_class.sum()) if count is None else count)
        factor = headroom(scale, dtype, self._function.steepest)
        return target, scale if factor is None else scale * factor, factor

    def _probabilities(self, z: Tensor, target: Tensor, weighting: Weighting) -> Tensor:
        self._check_ignore_index()
        mask = target[..., 0] != self.ignore_index
        kept = weighting.kept(mask).unsqueeze(-1)
        z = z.where(kept, 0.0)
        share = self._smooth(target.to(z.dtype).where(kept, 0.0))
        losses = weighting.times(self._all_classes(z, share, weighting.classes))
        return self._reduce(losses, mask.sum(), weighting.count)

    def _multi_label(self, z: Tensor, target: Tensor, weighting: Weighting) -> Tensor:
        if target.shape != z.shape:
            raise UsageError(
                f"multi-label targets must have the logits' shape {tuple(z.shape)}, "
                f"got {tuple(target.shape)}"
            )
        mask = target != self.ignore_index
        kept = weighting.kept(mask)
        yes = target.to(z.dtype).where(kept, 0.0)
        yes = yes * (1 - self.label_smoothing) + self.label_smoothing / 2
        losses = self._weighted_sum(z.where(kept, 0.0), yes, 1 - yes) + propagate_nan(z)
        losses = losses if weighting.classes is None else losses * weighting.classes
        return self._reduce(weighting.times(losses).where(kept, 0.0), mask.sum(), weighting.count)

    def _smooth(self, share: Tensor) -> Tensor:
        total = share.sum(-1, keepdim=True) if self.label_smoothing else 0.0
        return share * (1 - self.label_smoothing) + total * (self.label_smoothing / share.shape[-1])

    def _all_classes(self, z: Tensor, share: Tensor, weight: Tensor | None) -> Tensor:
        """Sum over classes k of share_k · weight_k · (loss if k were the true class)."""
        share = share if weight is None else share * weight
        margins = class_margins(z)
        # In a full form class k also pays, with the opposite sign, wherever it is not the true one.
        against = share.sum(-1, keepdim=True) - share if self.spec.is_full else None
        return self._weighted_sum(margins, share, against).sum(-1)

    def _weighted_sum(self, margins: Tensor, share: Tensor, against: Tensor | None) -> Tensor:
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
            the options of `ClassificationLoss` or `RegressionLoss`.

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
