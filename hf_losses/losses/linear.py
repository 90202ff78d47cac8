"""A loss straight from hidden states and the weight of the last layer, for large vocabularies.

Projection, loss and gradients are made some rows at a time, so that the logits of all rows never
exist. On a CPU, only rows with a label are projected.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hf_losses.losses.base import Weighting, checked_item_weight
from hf_losses.losses.bound import MOST_IN_FLOAT16
from hf_losses.losses.fused import triton_launch
from hf_losses.losses.fused.chunk import DTYPES, Chunk, Kernel, chunk_rows, may_wait
from hf_losses.losses.fused.function import multiply_
from hf_losses.losses.modules import ClassificationLoss, get_loss
from hf_losses.losses.registry import get_spec
from hf_losses.messages import UsageError

# The fewest and the most rows that are projected together. Fewer take less memory, but more time
# for the matrix products. In between, logits and hidden states are as large as the gradient of the
# weight: in half precision backward makes that one, of the float32 sum, when the logits are gone.
ROWS = (224, 512)
# On a GPU fewer would spend more time on adding to the gradient of the weight than on the products.
ROWS_ON_GPU = (512, 8192)
# Rows of odd widths, such as 50257, make a GPU's matrix products slower.
ALIGNMENT = 64
# Whether addmm takes factors in half precision and a sum in float32. Run on CUDA with PyTorch 2.11.
HAS_ADDMM_DTYPE = torch.__version__ >= "2.11" and not torch.version.hip


def _project(rows: Tensor, weight: Tensor, bias: Tensor | None, out: Any = None) -> Tensor:
    if bias is None:
        return torch.mm(rows, weight.T, out=out)
    return torch.addmm(bias, rows, weight.T, out=out)


def _add_product(total: Tensor, one: Tensor, other: Tensor) -> None:
    """Adds `one @ other` to a total in float32."""
    if total.is_cuda and HAS_ADDMM_DTYPE and one.dtype != torch.float32:
        torch.addmm(total, one, other, out_dtype=torch.float32, out=total)
    elif one.dtype == torch.bfloat16:
        total += one @ other
    else:
        # A product over many rows could leave the range of float16.
        total.addmm_(one.float(), other.float())


def _rows_together(weight: Tensor) -> int:
    """How many rows are projected together, at most."""
    fewest, most = ROWS if may_wait(weight) else ROWS_ON_GPU
    return min(max(weight.numel() // sum(weight.shape), fewest), most)


def _in_place(kernel: Kernel, whole: Chunk, scratch: Tensor | None, size: int) -> Tensor:
    """The losses `[N]` of logits, which are overwritten with their gradients.

    Args:
        kernel: The kernel of the loss.
        whole: The logits, in whose memory the gradients are made.
        scratch: `[size, C]`, float32, for logits of another dtype.
        size: Number of rows that are processed together.
    """
    values = whole.logits.new_empty(len(whole.logits), dtype=torch.float32)
    for start in range(0, len(values), size):
        part = slice(start, start + size)
        z = whole.logits[part]

        def logits_of(which: Tensor, start: int = start) -> Tensor:
            return whole.logits_of(which + start)

        chunk = dataclasses.replace(
            whole,
            logits=z,
            gradient=z if scratch is None else scratch[: len(z)],
            target=whole.target[part],
            scale=whole.scale[part],
            logits_of=logits_of,
        )
        values[part] = kernel(chunk)
        if scratch is not None:
            z.copy_(chunk.gradient)
    return values


class _Linear(torch.autograd.Function):
    """Sum of scaled losses of rows of hidden states."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        scale: Tensor,
        kernel: Kernel,
        differentiate: bool,
    ) -> Tensor:
        """The loss, and the gradients that backward will hand over."""
        needs = [differentiate and needed for needed in ctx.needs_input_grad[:3]]
        of_hidden = torch.empty_like(hidden) if needs[0] else None
        # In half precision the sum over chunks would lose small addends.
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if needs[1] else None
        of_bias = weight.new_zeros(len(weight), dtype=torch.float32) if needs[2] else None
        total = hidden.new_zeros((), dtype=torch.float32)
        classes, count = len(weight), len(hidden)
        may_leave_out = scale.dim() > 0 and not (may_wait(scale) and scale.all())
        scale = scale.expand(count)
        most = _rows_together(weight)
        together = max(1, math.ceil(count / max(1, math.ceil(count / most))))
        width = classes if may_wait(hidden) else -(-classes // ALIGNMENT) * ALIGNMENT
        logits = hidden.new_empty(together, width)[:, :classes]
        by_triton = triton_launch.serves(kernel, logits)
        size = chunk_rows(classes, hidden.device)
        scratch: Any = None
        if hidden.dtype != torch.float32 and not by_triton:
            scratch = hidden.new_empty(min(size, together), classes, dtype=torch.float32)
        spare: list[Tensor] = []
        for start in range(0, count, together):
            part = slice(start, start + together)
            rows = hidden[part]
            if may_leave_out:  # A scale of 0 would not remove a NaN.
                rows = rows.where((scale[part] != 0).unsqueeze(-1), 0.0)
            z = logits[: len(rows)]
            _project(rows, weight, bias, out=z)
            if by_triton:
                gradient = z if any(needs) else None
                values = triton_launch.losses(kernel, z, target[part], scale[part], gradient)
            else:

                def logits_of(which: Tensor, rows: Tensor = rows) -> Tensor:
                    return _project(rows[which], weight, bias)

                whole = Chunk(
                    z,
                    z,
                    target[part],
                    scale[part],
                    any(needs),
                    may_wait(z),
                    spare,
                    logits_of,
                )
                values = _in_place(kernel, whole, scratch, size)
            total += (values * scale[part]).sum()
            if of_hidden is not None:
                torch.mm(z, weight, out=of_hidden[part])
            if of_weight is not None:
                _add_product(of_weight, z.T, rows)
            if of_bias is not None:
                of_bias += z.sum(0, dtype=torch.float32)
        ctx.gradients = of_hidden, of_weight, of_bias
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients made in forward, once."""
        if ctx.gradients is None:
            raise RuntimeError(
                "the gradients of this loss were made in the forward pass and are used up: compute "
                "the loss again for another backward pass"
            )
        gradients, ctx.gradients = ctx.gradients, None
        for gradient in gradients:
            if gradient is not None:
                multiply_(gradient, grads[0])
        of_each = (
            None if gradient is None else gradient.to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
        return (*of_each, None, None, None, None)


def _named(name: str, params: dict[str, Any]) -> Any:
    """A loss by name: the same one as before if its parameters are numbers and texts.

    To find its bound and its kernel takes longer than a small layer does.
    """
    if not all(isinstance(value, int | float | str) for value in params.values()):
        return get_loss(name, **params)
    return _made(id(get_spec(name)), name, tuple(sorted(params.items())))


@functools.lru_cache(maxsize=64)
def _made(_: int, name: str, params: tuple[tuple[str, Any], ...]) -> Any:
    return get_loss(name, **dict(params))


def linear_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    loss: str | ClassificationLoss = "cross_entropy",
    bias: Tensor | None = None,
    count: Tensor | float | None = None,
    item_weight: Tensor | None = None,
    **params: Any,
) -> Tensor:
    """The loss of `hidden @ weight.T + bias`, without its logits in memory.

    Args:
        hidden: `[..., H]`, float32, bfloat16 or float16.
        weight: `[C, H]`, the same dtype; the weight of `nn.Linear(H, C)`.
        target: `[...]`, integer class indices; on a CPU ignored ones are not even projected.
        loss: A registered name, or what `get_loss` made of one.
        bias: `[C]` or None.
        count: Divisor of a mean; by default the number of targets that are not ignored, or the sum
            of their class weights.
        item_weight: `[...]`, one finite, non-negative number per target; see `ClassificationLoss`.
        **params: Of the loss, as for `get_loss`, if it is given by name; class weights, whose name
            is taken here, by `loss=get_loss(name, weight=...)`.

    Returns:
        A scalar, float32. Its gradients are made in the forward pass, once: there is no second
        derivative, and no second backward through the same graph.

    Raises:
        ValueError: If the loss is not one that can be made so (several labels per example,
            smoothing, a regression loss, `reduction="none"`), or shapes or dtypes do not fit.

    Example:
        >>> linear_loss(hidden, model.lm_head.weight, labels, loss="strict_m_power", alpha=0.3)
    """
    criterion: Any = _named(loss, params) if isinstance(loss, str) else loss
    check_linear(criterion)
    if params and not isinstance(loss, str):
        raise UsageError(f"parameters {params} need a loss given by name, not {loss!r}")
    if hidden.dtype not in DTYPES or weight.dtype != hidden.dtype:
        raise UsageError(
            f"hidden is {hidden.dtype} and weight {weight.dtype}; both must be the same, one of "
            f"{', '.join(map(str, DTYPES))} (for float64 take get_loss of the logits)"
        )
    if not criterion._function.fits(hidden.dtype):
        raise UsageError(
            "float16 cannot hold the gradients of a loss whose weights go up to "
            f"{criterion._function.steepest:g}, which are made in the forward pass: give the loss "
            f"a max_weight of at most {MOST_IN_FLOAT16 / 2:g}, or take bfloat16"
        )
    if weight.dim() != 2 or len(weight) < 2 or hidden.shape[-1:] != weight.shape[1:]:
        raise UsageError(
            f"hidden of shape {tuple(hidden.shape)} does not fit weight of shape "
            f"{tuple(weight.shape)}: give [..., H] and [C, H], of two classes or more"
        )
    if (
        target.shape != hidden.shape[:-1]
        or target.is_floating_point()
        or target.dtype == torch.bool
    ):
        raise UsageError(
            f"target of shape {tuple(target.shape)} and dtype {target.dtype} does not fit hidden "
            f"of shape {tuple(hidden.shape)}: give class indices, {tuple(hidden.shape[:-1])}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise UsageError(f"bias of shape {tuple(bias.shape)} does not fit {len(weight)} classes")
    if bias is not None and bias.dtype != weight.dtype:
        raise UsageError(f"weight is {weight.dtype} and bias {bias.dtype}: give both one dtype")
    if criterion.weight is not None and criterion.weight.shape != weight.shape[:1]:
        raise UsageError(
            f"the loss has {criterion.weight.numel()} class weights for {len(weight)} classes"
        )
    flat = target.flatten().long()
    rows = hidden.reshape(-1, hidden.shape[-1])
    items = checked_item_weight(item_weight, target.shape, hidden)
    items = items if items is None else items.flatten()
    # To select the rows with a label, a GPU would wait for their number.
    if may_wait(hidden) and not (counts := flat != criterion.ignore_index).all():
        rows, flat = rows[counts], flat[counts]
        items = items if items is None else items[counts]
    weighting = Weighting(criterion.weight_for(hidden), items, count)
    device = hidden.device.type
    has_autocast = torch.amp.is_autocast_available(device)
    with torch.autocast(device, enabled=False) if has_autocast else contextlib.nullcontext():
        try:
            labels, scale, factor = criterion.prepare_targets(flat, weighting, hidden.dtype)
            out: Tensor = _Linear.apply(  # type: ignore[no-untyped-call]
                rows, weight, bias, labels, scale, criterion.kernel, torch.is_grad_enabled()
            )
        except RuntimeError as error:
            criterion.check_indices(flat, len(weight), error)
            raise
    return out if factor is None else out / factor


def check_linear(criterion: Any) -> None:
    """Raises a ValueError unless a loss can be made straight from hidden states.

    Args:
        criterion: Any loss.
    """
    kernel = getattr(criterion, "kernel", None)
    if kernel is None or getattr(criterion, "reduction", None) == "none":
        raise UsageError(
            f"{criterion!r} cannot be fused with the last layer: that takes a classification loss "
            "of this project for class indices, without label smoothing, with reduction 'mean' or "
            "'sum' (and for strict_m_full a max_weight above 2, for strict_l_full at least 0.39)"
        )


def plain_head(model: Any) -> Any:
    """The last layer of a causal language model, if its logits are nothing but that layer's output.

    Args:
        model: The model without wrappers.

    Returns:
        The `nn.Linear`.

    Raises:
        ValueError: If something else makes the logits, such as soft-capping or a scaled output.
    """
    name, head = type(model).__name__, model.get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        raise UsageError(
            f"fused_linear needs a model whose head is a plain linear layer; that of {name} is "
            f"{type(head).__name__}: switch it off (with PEFT, adapt the body alone)"
        )
    outputs = []
    # The version counts changes in place.
    hook = head.register_forward_hook(
        lambda module, inputs, output: outputs.append((output, output._version))
    )
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            ids = torch.zeros(1, 2, dtype=torch.long, device=head.weight.device)
            # Not what Accelerate, for mixed precision, made of it in an earlier training.
            forward = getattr(model, "_original_forward", model)
            logits = forward(input_ids=ids).logits
    finally:
        hook.remove()
        model.train(training)
    if len(outputs) != 1 or logits is not outputs[0][0] or logits._version != outputs[0][1]:
        raise UsageError(
            f"fused_linear cannot be used with {name}: it changes what its head puts out (such as "
            "by soft-capping or scaling), so the loss needs the logits themselves; switch it off"
        )
    return head


class HeadOutput:
    """Within this context the head puts out what a function makes of its hidden states.

    Args:
        head: The last layer, as `plain_head` returns it.
        function: Of the hidden states, `[..., H]`.
    """

    def __init__(self, head: Any, function: Callable[[Tensor], Tensor]) -> None:
        self.head, self.function = head, function
        self.before = head.__dict__.get("forward")  # Accelerate's hooks set one on the instance.

    def __enter__(self) -> None:
        self.head.forward = self.function

    def __exit__(self, *_: Any) -> None:
        del self.head.forward
        if self.before is not None:
            self.head.forward = self.before


def linear_of_head(
    hidden: Tensor,
    head: Any,
    target: Tensor,
    criterion: ClassificationLoss,
    count: Any,
    item_weight: Tensor | None = None,
) -> Tensor:
    """`linear_loss` of a layer; under autocast in the dtype that the layer would compute in."""
    weight, bias = head.weight, head.bias
    device = hidden.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    return linear_loss(
        hidden, weight, target, loss=criterion, bias=bias, count=count, item_weight=item_weight
    )
