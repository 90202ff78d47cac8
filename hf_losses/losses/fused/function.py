"""The autograd function: gradients made in the forward pass, handed over in backward."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hf_losses.losses.fused import triton_launch
from hf_losses.losses.fused.chunk import Chunk, Kernel, chunk_rows, may_wait


def multiply_(gradient: Tensor, factor: Tensor) -> None:
    """Multiplies in place by the upstream gradient, a scalar."""
    if may_wait(factor):
        if factor.item() != 1:
            gradient.mul_(factor)
    elif not triton_launch.multiply(gradient, factor):
        gradient.mul_(factor.unsqueeze(-1))  # A scalar would be rounded to half precision first.


def headroom(scale: Tensor, dtype: torch.dtype, steepest: float) -> Tensor | None:
    """The factor that keeps float16 gradients, which are made in forward, from underflowing.

    Divided by the count of a mean, they could round to 0 before a loss scaler multiplies them. So
    they are made with this factor, and the loss is divided by it, which backward applies to them.

    Args:
        scale: The factors by which the items' gradients are multiplied.
        dtype: The dtype of the gradients.
        steepest: The largest gradient weight of an item, finite.

    Returns:
        A power of two, which rounds nothing, or None for 1.
    """
    if dtype != torch.float16 or not scale.numel():
        return None
    largest = scale.amax().clamp(min=torch.finfo(torch.float32).tiny)
    return (largest * max(1.0, steepest / 2**15)).log2().ceil().neg().exp2()


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
            ctx: The context that PyTorch passes.
            logits: `[..., C]`.
            target: `[...]`, int64, in [0, C).
            scale: `[...]`, or `[]` for one number that is not 0, float32.
            kernel: `Sparse` or `Full` of the loss.
            plain: The same loss of logits, target and scale by PyTorch's operations, for second
                derivatives.
            options: Whether to sum, to make gradients, and to overwrite the logits with them.
        """
        summed, differentiate, overwrite = options
        rows, targets, scales = logits.detach() if overwrite else logits, target, scale
        if logits.dim() != 2:
            rows, targets = rows.reshape(-1, logits.shape[-1]), target.flatten()
            scales = scale.flatten() if scale.dim() == target.dim() else scale
        gradient: Any = None
        # Rows that share memory cannot hold a gradient each.
        overwrite = overwrite and torch._debug_has_internal_overlap(rows) != 1
        if differentiate:
            gradient = rows if overwrite else torch.empty_like(rows)
        by_triton = triton_launch.serves(kernel, rows)
        make = triton_launch.losses if by_triton else _chunk_by_chunk
        values = make(kernel, rows, targets, scales, gradient)
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
        """The gradient made in forward, once; further ones are made by PyTorch's operations."""
        upstream, gradient = grads[0], ctx.gradient
        if gradient is None or torch.is_grad_enabled():
            return _gradient_of_plain_loss(ctx, upstream), None, None, None, None, None
        functorch = torch._C._functorch
        if functorch.is_legacy_batchedtensor(upstream) or functorch.is_batchedtensor(upstream):
            # Several upstream gradients.
            return gradient * upstream.unsqueeze(-1), None, None, None, None, None
        ctx.gradient = None  # Autograd may now add to it in place.
        if ctx.summed:
            multiply_(gradient, upstream)
        else:
            gradient.mul_(upstream.unsqueeze(-1))
        return gradient, None, None, None, None, None


def _chunk_by_chunk(
    kernel: Kernel, rows: Tensor, target: Tensor, scale: Tensor, gradient: Tensor | None
) -> Tensor:
    """The losses `[N]` of rows, and their gradients in `gradient`, which may be the rows."""
    count, size = rows.shape[0], chunk_rows(rows.shape[-1], rows.device)
    waits, differentiate = may_wait(rows), gradient is not None
    scratch: Any = None
    if gradient is None or gradient is rows or rows.dtype != torch.float32:
        scratch = rows.new_empty(min(size, count), rows.shape[-1], dtype=torch.float32)
    elif 0 < count <= size:
        return kernel(Chunk(rows, gradient, target, scale, True, waits, [], rows.__getitem__))
    values = rows.new_empty(count, dtype=torch.float32)
    spare: list[Tensor] = []
    for start in range(0, count, size):
        part = slice(start, start + size)
        z = rows[part]
        p: Any = scratch[: len(z)] if gradient is None or scratch is not None else gradient[part]
        of_rows = scale[part] if scale.dim() else scale
        chunk = Chunk(z, p, target[part], of_rows, differentiate, waits, spare, z.__getitem__)
        values[part] = kernel(chunk)
        if scratch is not None and gradient is not None:
            gradient[part] = p
    return values


def _gradient_of_plain_loss(ctx: Any, upstream: Tensor) -> Tensor:
    """The gradient by PyTorch's operations, which is differentiable itself."""
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
        gradient: Tensor = torch.autograd.grad(value, logits, upstream, create_graph=twice)[0]
    return gradient
