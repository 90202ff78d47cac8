"""Losses straight from the logits: value and gradient in one go, some rows at a time.

Every loss is a function of margins, so its gradient is a reweighted softmax. It is made in the
forward pass, in the buffer that backward hands over: nothing else has the size of the logits, and
what lies between is as large as `CHUNK`. The numbers are those of the plain path.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_losses.losses.bound import BoundedLoss

# Numbers of the logits that are worked on together, so that they stay in the cache.
CHUNK = 2**20
# A GPU has no use for small pieces; its scratch memory is what this limits.
CHUNK_ON_GPU = 2**26
# Probabilities below this have lost digits, or all of them; float32 ends at 1e-38.
SMALLEST = 1e-30
# Of a batch with so few classes, some row nearly always needs the exact way: all take it at once.
FEW_CLASSES = 16
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Some rows' logits, by their indices.
Rows = Callable[[Tensor], Tensor]


@dataclass
class Chunk:
    """Rows of logits that are worked on together, and the memory that their gradients go to.

    Attributes:
        logits: `[N, C]`, of one of `DTYPES`.
        gradient: `[N, C]`, float32; overwritten with the gradients, or with anything if there are
            none. May be the logits themselves.
        target: `[N]`, int64, in [0, C).
        scale: `[N]`, by which every row's gradient is multiplied; a row with 0 may hold anything.
            `[]` if it is the same number, and not 0, for all.
        differentiate: Whether to make gradients.
        spare: Memory that the chunks of one loss share; empty for the first, which is the largest.
        logits_of: Asked for the logits of some rows after `gradient` was overwritten.
    """

    logits: Tensor
    gradient: Tensor
    target: Tensor
    scale: Tensor
    differentiate: bool
    spare: list[Tensor]
    logits_of: Rows


# Makes the gradients of a chunk; returns its losses, `[N]`, float32, not scaled.
Kernel = Callable[[Chunk], Tensor]


def chunk_rows(classes: int, device: torch.device) -> int:
    """How many rows of logits are worked on together."""
    return max(1, (CHUNK if device.type == "cpu" else CHUNK_ON_GPU) // classes)


def multiply_(gradient: Tensor, factor: Tensor) -> None:
    """Multiplies in place by the upstream gradient, a scalar."""
    if not factor.is_cpu:  # Which a comparison would make wait.
        gradient.mul_(factor.unsqueeze(-1))  # A scalar would be rounded to half precision first.
    elif factor.item() != 1:
        gradient.mul_(factor)


def headroom(scale: Tensor, dtype: torch.dtype, steepest: float) -> Tensor | None:
    """What gradients that are made in forward are multiplied by there, and divided by later.

    float16 would round a small share of a mean to 0, before a loss scaler can save it.

    Args:
        scale: By which the items' gradients are multiplied.
        dtype: That of the gradients.
        steepest: The largest gradient weight of an item.

    Returns:
        A power of two, which rounds nothing, or None for 1.
    """
    if dtype != torch.float16 or not scale.numel() or steepest == math.inf:
        return None
    largest = scale.amax().clamp(min=torch.finfo(torch.float32).tiny)
    return (largest * max(1.0, steepest / 2**15)).log2().ceil().neg().exp2()


@dataclass(frozen=True, eq=False)
class Sparse:
    """Losses of the true class's margin, and their gradients.

    Attributes:
        loss: The loss of the margin.
    """

    loss: BoundedLoss

    def __call__(self, chunk: Chunk) -> Tensor:
        """Makes the gradients of a chunk; see `Kernel`."""
        p, scale = chunk.gradient, chunk.scale
        index, own, others = _true_and_others(chunk)
        least = torch.minimum(own, others)
        lowest = least.min().item()
        if scale.dim():
            scale = scale.unsqueeze(-1)
            own.masked_fill_(scale == 0, 0.5)  # Not 0 · inf.
        uncapped = lowest >= max(SMALLEST, self.loss.least)
        value, weight = (self.loss.within if uncapped else self.loss.of_probabilities)(own, others)
        if chunk.differentiate:
            p.scatter_(-1, index, -others).mul_(weight * scale)
        if not lowest >= SMALLEST:  # NaN compares as False.
            _again(self.exact, chunk, ~(least >= SMALLEST), scale, value)
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
        own = z.gather(-1, index)
        # Not -inf: with all others at -inf, softmax would be NaN rather than nothing.
        z.scatter_(-1, index, torch.finfo(z.dtype).min)
        highest = z.amax(-1, keepdim=True)
        torch.softmax(z, -1, out=z)
        margin = own - highest + z.amax(-1, keepdim=True).log()
        value, slope = self.loss(_seen(margin, own, highest))
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
        if p.shape[-1] <= FEW_CLASSES:
            z = p.copy_(chunk.logits)
            return self.exact(z, chunk.target, scale, chunk.differentiate).squeeze(-1)
        index, own, others = _true_and_others(chunk)
        highest = p.amax(-1, keepdim=True)
        scale = scale.unsqueeze(-1)
        margin = (own / others).log_().masked_fill_(scale == 0, 0.0)  # Not 0 · inf.
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
            p.scatter_(-1, index, (slope - own * summed) * scale)
        # A wrong class above 1/2 has a 1 - p that cancels.
        least = torch.minimum(own, others).masked_fill_(highest > 0.5, 0.0)
        if not least.min().item() >= SMALLEST:
            _again(self.exact, chunk, ~(least >= SMALLEST), scale, value)
        return value.squeeze(-1)

    def exact(self, z: Tensor, target: Tensor, scale: Tensor, differentiate: bool) -> Tensor:
        """The losses `[N, 1]` of logits of any size, -inf too; see `Sparse.exact`."""
        scale = scale.unsqueeze(-1)
        z.masked_fill_(scale == 0, 0.0)
        z.sub_(z.amax(-1, keepdim=True))  # What all share would cost digits below.
        lowest = torch.finfo(z.dtype).min
        index = target.unsqueeze(-1)
        own = z.gather(-1, index)
        z.scatter_(-1, index, lowest)
        # The one class beside the true one whose probability can exceed 1/2.
        top, top_index = z.max(-1, keepdim=True)
        z.scatter_(-1, top_index, lowest)
        highest = z.amax(-1, keepdim=True)
        torch.softmax(z, -1, out=z)  # Shares among the rest.
        rest = highest - z.amax(-1, keepdim=True).log()  # Its logsumexp; so are the next ones.
        beside_own, beside_top = torch.logaddexp(rest, top), torch.logaddexp(rest, own)
        every = torch.logaddexp(beside_own, own)
        value, slope = self.loss(_seen(own - beside_own, own, top))
        top_value, top_slope = self.loss(-_seen(top - beside_top, top, own))
        values, over_q, spare = z.new_empty(3, *z.shape).unbind()
        self.loss.wrong((rest - every).exp() * z, values, over_q, spare)
        if differentiate:
            summed = over_q.sum(-1, keepdim=True)
            of_rest = slope * (rest - beside_own).exp() - top_slope * (rest - beside_top).exp()
            of_rest += summed * (rest - every).exp()
            of_own = slope + top_slope * (own - beside_top).exp() - summed * (own - every).exp()
            of_top = -top_slope - slope * (top - beside_own).exp() - summed * (top - every).exp()
            torch.addcmul(over_q, z, -of_rest, out=z).mul_(scale)
            z.scatter_(-1, top_index, of_top * scale).scatter_(-1, index, of_own * scale)
        total: Tensor = value + top_value + values.sum(-1, keepdim=True)
        return total


def _true_and_others(chunk: Chunk) -> tuple[Tensor, Tensor, Tensor]:
    """Makes the gradient's memory the softmax without the true class.

    Returns:
        The index of the true class, its probability and that of all others, each `[N, 1]`.
    """
    z, p = chunk.logits, chunk.gradient
    if z.dtype != torch.float32:
        z = p.copy_(z)
    torch.softmax(z, -1, out=p)
    index = chunk.target.unsqueeze(-1)
    own = p.gather(-1, index)
    p.scatter_(-1, index, torch.zeros_like(own))  # A scalar would take three times as long.
    return index, own, p.sum(-1, keepdim=True)  # Not 1 - own, which cancels.


def _again(
    exact: Callable[..., Tensor], chunk: Chunk, which: Tensor, scale: Tensor, value: Tensor
) -> None:
    """Puts the exact numbers into the rows whose probabilities are too small."""
    rows = which.squeeze(-1).nonzero().squeeze(-1)
    again = chunk.logits_of(rows).float()
    of_rows = scale.expand_as(value)[rows].squeeze(-1)
    value[rows] = exact(again, chunk.target[rows], of_rows, chunk.differentiate)
    chunk.gradient[rows] = again


def _seen(margin: Tensor, own: Tensor, highest: Tensor) -> Tensor:
    """The margin, NaN where a logit is infinite, or none is possible: this must not look normal."""
    none = own.isneginf() & (highest <= torch.finfo(own.dtype).min)
    return margin.masked_fill(none | (margin == torch.inf), torch.nan)


class Fused(torch.autograd.Function):
    """Scaled losses of rows of logits, summed or one by one."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        scale: Tensor,
        kernel: Kernel,
        plain: Callable[..., Tensor],
        options: tuple[bool, bool, bool],
    ) -> Tensor:
        """Values, and the gradient that backward will hand over.

        Args:
            ctx: PyTorch's.
            logits: `[..., C]`.
            target: `[...]`, int64, in [0, C).
            scale: `[...]`, or `[]` for one number that is not 0, float32.
            kernel: `Sparse` or `Full` of the loss.
            plain: The same loss of logits, target and scale as PyTorch's own operations: the way
                to second derivatives.
            options: Whether to sum, to make gradients, and to overwrite the logits with them.
        """
        summed, differentiate, overwrite = options
        rows, targets, scales = logits.detach() if overwrite else logits, target, scale
        if logits.dim() != 2:
            rows, targets = rows.reshape(-1, logits.shape[-1]), target.flatten()
            scales = scale.flatten() if scale.dim() == target.dim() else scale
        count, size = rows.shape[0], chunk_rows(logits.shape[-1], logits.device)
        gradient: Any = None
        scratch: Any = None
        if differentiate:
            gradient = rows if overwrite else torch.empty_like(rows)
        if gradient is None or overwrite or rows.dtype != torch.float32:
            scratch = rows.new_empty(min(size, count), rows.shape[-1], dtype=torch.float32)
        if scratch is None and 0 < count <= size:
            chunk = Chunk(rows, gradient, targets, scales, True, [], rows.__getitem__)
            values = kernel(chunk)
        else:
            values = rows.new_empty(count, dtype=torch.float32)
            spare: list[Tensor] = []
            for start in range(0, count, size):
                part = slice(start, start + size)
                z = rows[part]
                p = gradient[part] if scratch is None else scratch[: len(z)]
                of_rows = scales[part] if scales.dim() else scales
                chunk = Chunk(z, p, targets[part], of_rows, differentiate, spare, z.__getitem__)
                values[part] = kernel(chunk)
                if scratch is not None and gradient is not None:
                    gradient[part] = p
        ctx.summed, ctx.plain, ctx.overwrite = summed, plain, overwrite
        if gradient is not None and logits.dim() != 2:
            gradient = gradient.view(logits.shape)
        ctx.gradient = gradient
        ctx.logits = weakref.ref(logits)
        ctx.version = logits._version if differentiate else 0
        ctx.save_for_backward(target, scale)
        values = values * scales
        return values.sum() if summed else values.view(target.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient made in forward, once; anything more goes the plain way."""
        upstream, gradient = grads[0], ctx.gradient
        if gradient is None or torch.is_grad_enabled():
            return _plainly(ctx, upstream), None, None, None, None, None
        if torch._C._functorch.is_legacy_batchedtensor(upstream):  # Several of them, one gradient.
            return gradient * upstream.unsqueeze(-1), None, None, None, None, None
        ctx.gradient = None  # It is the engine's now, which may add to it.
        if ctx.summed:
            multiply_(gradient, upstream)
        else:
            gradient.mul_(upstream.unsqueeze(-1))
        return gradient, None, None, None, None, None


def _plainly(ctx: Any, upstream: Tensor) -> Tensor:
    logits = ctx.logits()
    if logits is None or ctx.overwrite:
        raise RuntimeError(
            "the gradient of this loss was made in the forward pass and is used up: for a second "
            "derivative, or a second backward through the same graph, keep the logits (a variable "
            "that holds them will do) and do not overwrite them, or give the loss float64 logits"
        )
    if logits._version != ctx.version:
        raise RuntimeError(
            "the logits were modified by an inplace operation after this loss was computed from "
            "them, and a second derivative, or a second backward, needs them as they were"
        )
    target, scale = ctx.saved_tensors
    twice = torch.is_grad_enabled()
    with torch.enable_grad():
        losses = ctx.plain(logits, target, scale)
        value = losses.sum() if ctx.summed else losses
        found: Tensor = torch.autograd.grad(value, logits, upstream, create_graph=twice)[0]
    return found
