"""Values and gradients of rows of logits, by PyTorch's operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_losses.losses.bound import BoundedLoss
from hf_losses.losses.fused.chunk import Chunk

# Probabilities below this have lost digits, or all of them; float32 ends at 1e-38.
SMALLEST = 1e-30
# With so few classes some row of a batch nearly always needs the exact method: all rows take it.
FEW_CLASSES = 16


@dataclass(frozen=True, eq=False)
class Sparse:
    """Losses of the true class's margin, and their gradients.

    Attributes:
        loss: The loss of the margin.
    """

    loss: BoundedLoss

    def __call__(self, chunk: Chunk) -> Tensor:
        """Makes the gradients of a chunk; see `Kernel`."""
        if not chunk.may_wait:  # To find the rows that need the exact method, a GPU would wait.
            return _all_exact(self.exact, chunk)
        p, scale = chunk.gradient, chunk.scale
        index, p_true, others = _probabilities(chunk)
        least = torch.minimum(p_true, others)
        lowest = least.min().item()
        if scale.dim():
            scale = scale.unsqueeze(-1)
            p_true.masked_fill_(scale == 0, 0.5)  # Not 0 · inf.
        uncapped = lowest >= max(SMALLEST, self.loss.least)
        function = self.loss.within if uncapped else self.loss.of_probabilities
        value, weight = function(p_true, others)
        if chunk.differentiate:
            p.scatter_(-1, index, -others).mul_(weight * scale)
        if not lowest >= SMALLEST:  # NaN compares as False.
            _recompute(self.exact, chunk, ~(least >= SMALLEST), scale, value)
        return value.squeeze(-1)

    def exact(self, z: Tensor, target: Tensor, scale: Tensor, differentiate: bool) -> Tensor:
        """The losses `[N, 1]` of logits of any size, -inf too.

        Args:
            z: `[N, C]`, float32; the gradients are made in its place.
            target: `[N]`.
            scale: `[N]`.
            differentiate: Whether to make gradients.
        """
        scale = scale.unsqueeze(-1)
        z.masked_fill_(scale == 0, 0.0)
        index = target.unsqueeze(-1)
        z_true = z.gather(-1, index)
        # Not -inf: if all other logits are -inf, softmax would be NaN.
        z.scatter_(-1, index, torch.finfo(z.dtype).min)
        highest = z.amax(-1, keepdim=True)
        torch.softmax(z, -1, out=z)
        margin = z_true - highest + z.amax(-1, keepdim=True).log()
        value, slope = self.loss(_checked_margin(margin, z_true, highest))
        if differentiate:
            slope = slope * scale
            z.mul_(-slope).scatter_(-1, index, slope)
        return value


@dataclass(frozen=True, eq=False)
class Full:
    """Losses of every class's margin, and their gradients.

    Attributes:
        loss: The loss of the margin, whose record has a `wrong_class_function`.
    """

    loss: BoundedLoss

    def __call__(self, chunk: Chunk) -> Tensor:
        """Makes the gradients of a chunk; see `Kernel`."""
        p, scale = chunk.gradient, chunk.scale
        if p.shape[-1] <= FEW_CLASSES or not chunk.may_wait:
            return _all_exact(self.exact, chunk)
        index, p_true, others = _probabilities(chunk)
        highest = p.amax(-1, keepdim=True)
        scale = scale.unsqueeze(-1)
        margin = (p_true / others).log_().masked_fill_(scale == 0, 0.0)  # Not 0 · inf.
        value, slope = self.loss(margin)
        if not chunk.spare:
            chunk.spare += [torch.empty_like(p) for _ in range(3)]
        values, over_q, rest = (memory[: len(p)] for memory in chunk.spare)
        self.loss.wrong(p, values, over_q, rest)
        value = value + values.sum(-1, keepdim=True)
        if chunk.differentiate:
            # d margin_k / d z_j = -p_j / (1 - p_k)
            summed = over_q.sum(-1, keepdim=True)
            torch.addcmul(over_q, p, -summed - slope / others, out=p).mul_(scale)
            p.scatter_(-1, index, (slope - p_true * summed) * scale)
        # A wrong class above 1/2 has a 1 - p that cancels.
        least = torch.minimum(p_true, others).masked_fill_(highest > 0.5, 0.0)
        if not least.min().item() >= SMALLEST:
            _recompute(self.exact, chunk, ~(least >= SMALLEST), scale, value)
        return value.squeeze(-1)

    def exact(self, z: Tensor, target: Tensor, scale: Tensor, differentiate: bool) -> Tensor:
        """The losses `[N, 1]` of logits of any size, -inf too; see `Sparse.exact`."""
        scale = scale.unsqueeze(-1)
        z.masked_fill_(scale == 0, 0.0)
        # A large offset that all logits share would cost digits below; no margin depends on it.
        z.sub_(z.amax(-1, keepdim=True))
        lowest = torch.finfo(z.dtype).min
        index = target.unsqueeze(-1)
        z_true = z.gather(-1, index)
        z.scatter_(-1, index, lowest)
        # The only wrong class whose probability can exceed 1/2.
        top, top_index = z.max(-1, keepdim=True)
        z.scatter_(-1, top_index, lowest)
        highest = z.amax(-1, keepdim=True)
        torch.softmax(z, -1, out=z)  # Softmax over the rest, all classes but these two.
        # logsumexp over the rest; then over all but the true class, all but `top`, and all.
        rest = highest - z.amax(-1, keepdim=True).log()
        beside_true, beside_top = torch.logaddexp(rest, top), torch.logaddexp(rest, z_true)
        every = torch.logaddexp(beside_true, z_true)
        value, slope = self.loss(_checked_margin(z_true - beside_true, z_true, top))
        top_value, top_slope = self.loss(-_checked_margin(top - beside_top, top, z_true))
        values, over_q, spare = z.new_empty(3, *z.shape).unbind()
        self.loss.wrong((rest - every).exp() * z, values, over_q, spare)
        if differentiate:
            summed = over_q.sum(-1, keepdim=True)
            of_rest = slope * (rest - beside_true).exp() - top_slope * (rest - beside_top).exp()
            of_rest += summed * (rest - every).exp()
            of_true = slope + top_slope * (z_true - beside_top).exp()
            of_true -= summed * (z_true - every).exp()
            of_top = -top_slope - slope * (top - beside_true).exp() - summed * (top - every).exp()
            torch.addcmul(over_q, z, -of_rest, out=z).mul_(scale)
            z.scatter_(-1, top_index, of_top * scale).scatter_(-1, index, of_true * scale)
        total: Tensor = value + top_value + values.sum(-1, keepdim=True)
        return total


def _probabilities(chunk: Chunk) -> tuple[Tensor, Tensor, Tensor]:
    """Makes the gradient's memory the softmax without the true class.

    Returns:
        The index of the true class, its probability and that of all others, each `[N, 1]`.
    """
    z, p = chunk.logits, chunk.gradient
    if z.dtype != torch.float32:
        z = p.copy_(z)
    torch.softmax(z, -1, out=p)
    index = chunk.target.unsqueeze(-1)
    p_true = p.gather(-1, index)
    p.scatter_(-1, index, torch.zeros_like(p_true))  # A scalar would take three times as long.
    return index, p_true, p.sum(-1, keepdim=True)  # Not 1 - p_true, which cancels.


def _all_exact(exact: Callable[..., Tensor], chunk: Chunk) -> Tensor:
    """The losses `[N]` of all rows by the exact method, which makes their gradients too."""
    z = chunk.gradient
    if z is not chunk.logits:
        z.copy_(chunk.logits)
    values: Tensor = exact(z, chunk.target, chunk.scale, chunk.differentiate)
    return values.squeeze(-1)


def _recompute(
    exact: Callable[..., Tensor], chunk: Chunk, which: Tensor, scale: Tensor, value: Tensor
) -> None:
    """Overwrites the losses and gradients of some rows with those of the exact method."""
    rows = which.squeeze(-1).nonzero().squeeze(-1)
    z = chunk.logits_of(rows).float()
    of_rows = scale.expand_as(value)[rows].squeeze(-1)
    value[rows] = exact(z, chunk.target[rows], of_rows, chunk.differentiate)
    chunk.gradient[rows] = z


def _checked_margin(margin: Tensor, true_logit: Tensor, highest: Tensor) -> Tensor:
    """The margin; NaN if a logit is +inf or all are -inf, lest a bounded loss hide that."""
    none = true_logit.isneginf() & (highest <= torch.finfo(true_logit.dtype).min)
    return margin.masked_fill(none | (margin == torch.inf), torch.nan)
