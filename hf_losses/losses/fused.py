"""Losses straight from the logits: value and gradient in one go, some rows at a time.

Every loss is a function of margins, so its gradient is a reweighted softmax. It is made in the
forward pass, in the buffer that backward hands over: nothing else has the size of the logits, and
what lies between is as large as `CHUNK`. The numbers are those of the plain path.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Numbers of the logits that are worked on together, so that they stay in the cache.
CHUNK = 2**20
# A GPU has no use for small pieces; its scratch memory is what this limits.
CHUNK_ON_GPU = 2**26
# Probabilities below this have lost digits, or all of them; float32 ends at 1e-38.
SMALLEST = 1e-30
# Of a batch with so few classes, some row nearly always needs the exact way: all take it at once.
FEW_CLASSES = 16
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

ScalarFunction = Callable[[Tensor], tuple[Tensor, Tensor]]
ProbabilityFunction = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
WrongFunction = Callable[[Tensor, Tensor, Tensor, Tensor], None]
Rows = Callable[[Tensor], Tensor]
Kernel = Callable[..., Tensor]


def chunk_rows(classes: int, device: torch.device) -> int:
    """How many rows of logits are worked on together."""
    return max(1, (CHUNK if device.type == "cpu" else CHUNK_ON_GPU) // classes)


def multiply_(gradient: Tensor, factor: Tensor) -> None:
    """Multiplies in place by the upstream gradient, a scalar."""
    if not factor.is_cpu:  # Which a comparison would make wait.
        gradient.mul_(factor.unsqueeze(-1))  # A scalar would be rounded to half precision first.
    elif factor.item() != 1:
        gradient.mul_(factor)


def sparse(
    z: Tensor,
    p: Tensor,
    target: Tensor,
    scale: Tensor,
    differentiate: bool,
    spare: list[Tensor],
    logits_of: Rows,
    function: ScalarFunction,
    bounded: ProbabilityFunction,
    within: ProbabilityFunction,
    floor: float,
) -> Tensor:
    """Losses of the true class's margin, and their gradients.

    Args:
        z: `[N, C]`, logits of one of `DTYPES`.
        p: `[N, C]`, float32; overwritten with the gradients, or with anything if there are none.
            May be the logits themselves.
        target: `[N]`, int64, in [0, C).
        scale: `[N]`, by which every row's gradient is multiplied; a row with 0 may hold anything.
            `[]` if it is the same number, and not 0, for all.
        differentiate: Whether to make gradients.
        spare: Memory that the chunks of one loss share; empty for the first, which is the largest.
        logits_of: Some rows' logits, by their indices; asked after `p` was overwritten.
        function: Value and derivative of the loss by the margin.
        bounded: Value and gradient weight of p and 1 - p while both are at least `SMALLEST`.
        within: The same in fewer operations while both are at least `floor`.
        floor: In (0, 1/2).

    Returns:
        `[N]`, float32, not scaled.
    """
    index, own, others = _true_and_others(z, p, target)
    least = torch.minimum(own, others)
    lowest = least.min().item()
    if scale.dim():
        scale = scale.unsqueeze(-1)
        own.masked_fill_(scale == 0, 0.5)  # Not 0 · inf.
    value, weight = (within if lowest >= floor else bounded)(own, others)
    if differentiate:
        p.scatter_(-1, index, -others).mul_(weight * scale)
    if not lowest >= SMALLEST:  # Nor if it is NaN.
        rows = ~(least >= SMALLEST)
        _again(sparse_exact, rows, logits_of, p, target, scale, differentiate, value, function)
    return value.squeeze(-1)


def full(
    z: Tensor,
    p: Tensor,
    target: Tensor,
    scale: Tensor,
    differentiate: bool,
    spare: list[Tensor],
    logits_of: Rows,
    function: ScalarFunction,
    wrong: WrongFunction,
) -> Tensor:
    """Losses of every class's margin, and their gradients.

    Args:
        z: As for `sparse`.
        p: The same.
        target: The same.
        scale: The same.
        differentiate: The same.
        spare: The same.
        logits_of: The same.
        function: The same.
        wrong: What a wrong class of probability p ≤ 1/2 adds; see `LossSpec`.

    Returns:
        As `sparse`.
    """
    if z.shape[-1] <= FEW_CLASSES:
        exact = full_exact(p.copy_(z), target, scale, differentiate, function, wrong)
        return exact.squeeze(-1)
    index, own, others = _true_and_others(z, p, target)
    highest = p.amax(-1, keepdim=True)
    scale = scale.unsqueeze(-1)
    value, slope = function((own / others).log_().masked_fill_(scale == 0, 0.0))  # Not 0 · inf.
    if not spare:
        spare += [torch.empty_like(p) for _ in range(3)]
    values, over_q, rest = (one[: len(p)] for one in spare)
    wrong(p, values, over_q, rest)
    value = value + values.sum(-1, keepdim=True)
    if differentiate:
        # d margin_k / d z_j = -p_j / (1 - p_k)
        summed = over_q.sum(-1, keepdim=True)
        torch.addcmul(over_q, p, -summed - slope / others, out=p).mul_(scale)
        p.scatter_(-1, index, (slope - own * summed) * scale)
    # A wrong class above 1/2 has a 1 - p that cancels.
    least = torch.minimum(own, others).masked_fill_(highest > 0.5, 0.0)
    if not least.min().item() >= SMALLEST:
        rows = ~(least >= SMALLEST)
        _again(full_exact, rows, logits_of, p, target, scale, differentiate, value, function, wrong)
    return value.squeeze(-1)


def _true_and_others(z: Tensor, p: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax in p less the true class; its index, its probability and that of all others."""
    if z.dtype != torch.float32:
        z = p.copy_(z)
    torch.softmax(z, -1, out=p)
    index = target.unsqueeze(-1)
    own = p.gather(-1, index)
    p.scatter_(-1, index, torch.zeros_like(own))  # A scalar would take three times as long.
    return index, own, p.sum(-1, keepdim=True)  # Not 1 - own, which cancels.


def _again(
    exact: Kernel,
    which: Tensor,
    logits_of: Rows,
    p: Tensor,
    target: Tensor,
    scale: Tensor,
    differentiate: bool,
    value: Tensor,
    *functions: Callable[..., Any],
) -> None:
    """Puts the exact numbers into those rows of p and value whose probabilities are too small."""
    rows = which.squeeze(-1).nonzero().squeeze(-1)
    again = logits_of(rows).float()
    of_rows = scale.expand_as(value)[rows].squeeze(-1)
    value[rows] = exact(again, target[rows], of_rows, differentiate, *functions)
    p[rows] = again


def sparse_exact(
    z: Tensor, target: Tensor, scale: Tensor, differentiate: bool, function: ScalarFunction
) -> Tensor:
    """`sparse` for logits of any size, -inf too; makes the gradients in place of the logits."""
    scale = scale.unsqueeze(-1)
    z.masked_fill_(scale == 0, 0.0)
    index = target.unsqueeze(-1)
    own = z.gather(-1, index)
    # Not -inf: with all others at -inf, softmax would be NaN rather than nothing.
    z.scatter_(-1, index, torch.finfo(z.dtype).min)
    highest = z.amax(-1, keepdim=True)
    torch.softmax(z, -1, out=z)
    margin = own - highest + z.amax(-1, keepdim=True).log()
    value, slope = function(_seen(margin, own, highest))
    if differentiate:
        slope = slope * scale
        z.mul_(-slope).scatter_(-1, index, slope)
    return value


def full_exact(
    z: Tensor,
    target: Tensor,
    scale: Tensor,
    differentiate: bool,
    function: ScalarFunction,
    wrong: WrongFunction,
) -> Tensor:
    """`full` for logits of any size, -inf too; makes the gradients in place of the logits."""
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
    value, slope = function(_seen(own - beside_own, own, top))
    top_value, top_slope = function(-_seen(top - beside_top, top, own))
    values, over_q, spare = z.new_empty(3, *z.shape).unbind()
    wrong((rest - every).exp() * z, values, over_q, spare)
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
        plain: Kernel,
        options: tuple[bool, bool, bool],
    ) -> Tensor:
        """Values, and the gradient that backward will hand over.

        Args:
            ctx: PyTorch's.
            logits: `[..., C]`.
            target: `[...]`, int64, in [0, C).
            scale: `[...]`, or `[]` for one number that is not 0, float32.
            kernel: `sparse` or `full`, with the functions that it takes.
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
            values = kernel(rows, gradient, targets, scales, True, [], rows.__getitem__)
        else:
            values = rows.new_empty(count, dtype=torch.float32)
            spare: list[Tensor] = []
            for start in range(0, count, size):
                part = slice(start, start + size)
                z = rows[part]
                p = gradient[part] if scratch is None else scratch[: len(z)]
                of_rows = scales[part] if scales.dim() else scales
                values[part] = kernel(
                    z, p, targets[part], of_rows, differentiate, spare, z.__getitem__
                )
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
