"""What every loss module has: a record, its parameters, a dtype and a reduction; and regression."""

from __future__ import annotations

import functools
import inspect
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from hf_losses.losses.margin import kind_of
from hf_losses.losses.registry import LossSpec, get_spec
from hf_losses.messages import UsageError, nearest

REDUCTIONS = ("mean", "sum", "none")
# What the function and the kernel of a loss are made of, once.
FIXED = ("spec", "params", "label_smoothing", "max_weight", "problem_type")

# From x to the value and its derivative, both like x.
ScalarFunction = Callable[[Tensor], tuple[Tensor, Tensor]]


class _Scalar(torch.autograd.Function):
    """An element-wise function with its declared derivative; twice differentiable through it."""

    # It defines no jvp, since torch.compile cannot trace a Function that does.

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, function: ScalarFunction) -> Tensor:
        return function(x)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ScalarFunction], output: Tensor) -> None:
        x, ctx.function = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grads[0] * ctx.function(x)[1], None


class _ForwardScalar(_Scalar):
    """`_Scalar` with forward-mode differentiation (`torch.func.jvp`, `hessian`)."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ScalarFunction], output: Tensor) -> None:
        _Scalar.setup_context(ctx, inputs, output)
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        (x,) = ctx.saved_tensors
        out: Tensor = tangents[0] * ctx.function(x)[1]
        return out


def differentiable(function: ScalarFunction, x: Tensor) -> Tensor:
    """The value of an element-wise function, differentiated by its declared derivative.

    Args:
        function: Value and derivative.
        x: Any shape, floating.

    Returns:
        A tensor like x; twice differentiable, and outside of `torch.compile` in forward mode too.
    """
    node = _Scalar if torch.compiler.is_compiling() else _ForwardScalar
    out: Tensor = node.apply(x, function)  # type: ignore[no-untyped-call]
    return out


@dataclass(frozen=True, eq=False)
class Weighting:
    """How the losses of items are weighed, and what their mean is divided by.

    Attributes:
        classes: `[C]`, or None if all classes weigh the same.
        items: One number per item, or None if all items weigh the same.
        count: Divisor of a mean; None for the loss's default, the number of items that are not
            ignored, or the sum of their class weights.
    """

    classes: Tensor | None
    items: Tensor | None
    count: Tensor | float | None

    def times(self, losses: Tensor) -> Tensor:
        """The losses of items, multiplied by the item weights."""
        return losses if self.items is None else losses * self.items

    def kept(self, mask: Tensor) -> Tensor:
        """A mask without the items of weight 0, which may hold anything, such as NaN."""
        return mask if self.items is None else mask & (self.items != 0)


def item_weight_tensor(weight: Any) -> Tensor:
    """Item weights of any shape as a tensor; a ValueError if they are no numbers."""
    try:
        return torch.as_tensor(weight)
    except (TypeError, ValueError, RuntimeError):  # Text, a dict, ragged rows, ….
        raise UsageError(
            f"the weight of an item must be a number, got {reprlib.repr(weight)}"
        ) from None


def checked_item_weight(weight: Any, shape: Sequence[int], like: Tensor) -> Tensor | None:
    """Item weights in the shape of the items.

    Args:
        weight: One number per item, or per row of items; None.
        shape: That of the items.
        like: A tensor on the device of the loss; its dtype, or float32 if that is half precision,
            is the result's.

    Returns:
        A tensor of that shape without a gradient; None if `weight` is None.

    Raises:
        ValueError: If they are no numbers or the shapes do not fit, or if one on the CPU is
            negative or not finite.
    """
    if weight is None:
        return None
    numbers = item_weight_tensor(weight).detach().to(like.device, upcast_dtype(like))
    if numbers.shape != tuple(shape) and numbers.shape == tuple(shape[:-1]):
        numbers = numbers.unsqueeze(-1).expand(*shape)
    if numbers.shape != tuple(shape):
        raise UsageError(
            f"item_weight of shape {tuple(numbers.shape)} does not fit items of shape "
            f"{tuple(shape)}: give one number for each"
        )
    # On a GPU the check would wait for queued work; in transforms there are no values.
    plain = numbers.is_cpu and not torch.compiler.is_compiling()
    if plain and not torch._C._are_functorch_transforms_active():
        check_item_weight_values(numbers)
    return numbers


def check_item_weight_values(weight: Tensor) -> None:
    """Raises a ValueError if an item weight is negative or not finite; it waits for the device."""
    wrong = weight[~((weight >= 0) & weight.isfinite())]
    if wrong.numel():
        raise UsageError(
            f"the weight of an item must be finite and not negative, got {wrong[0].item():g}"
        )


class LossModule(nn.Module):
    """What both tasks share: a record, its parameters and the reduction."""

    task: str
    options: tuple[str, ...]
    _function: ScalarFunction

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Takes the names of the options from the signature, where they are declared."""
        super().__init_subclass__(**kwargs)
        parameters = inspect.signature(cls.__init__).parameters.values()
        cls.options = tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)

    def __init__(self, name: str, reduction: str, params: dict[str, Any]) -> None:
        super().__init__()
        self.spec: LossSpec = get_spec(name)
        if self.spec.task != self.task:
            raise UsageError(
                f"{name!r} is a {self.spec.task} loss, not a {self.task} loss; "
                f"use get_loss({name!r})"
            )
        if reduction not in REDUCTIONS:
            raise UsageError(
                f"unknown reduction {reduction!r}; choose one of {', '.join(REDUCTIONS)}."
                + nearest(str(reduction), REDUCTIONS)
            )
        self.reduction = reduction
        self._params = self.spec.resolve(params, self.options)
        self._function = functools.partial(self.spec.function, **self._params)
        self._check_function()

    def _check_function(self) -> None:
        """Refuses a registered function that returns no derivative: rows could be taken for it."""
        with torch.device("cpu"):  # A function may make constants, and transformers builds on meta.
            x = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float32)
            returned = self._function(x)
        pair = isinstance(returned, tuple | list) and len(returned) == 2
        if not pair or any(getattr(part, "shape", None) != x.shape for part in returned):
            raise UsageError(
                f"the function of loss {self.spec.name!r} must return its value and its "
                "derivative, two tensors like its argument"
            )

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuses to change what the loss was built from, which would have no effect, or half."""
        built = self.__dict__
        if (name in FIXED and name in built) or (
            "spec" in built and (name == "params" or name in self.spec.parameters)
        ):
            raise UsageError(
                f"{name} of a loss that is built cannot be changed: build another, "
                f"get_loss(**(loss.config | {{{name!r}: {value!r}}}))"
            )
        super().__setattr__(name, value)

    @property
    def kind(self) -> str:
        """`strict`, `liberal` and so on, with these parameters."""
        return kind_of(self.spec, self._params)

    @property
    def params(self) -> Mapping[str, float]:
        """The loss's own parameters by name, which cannot be changed."""
        return MappingProxyType(self._params)

    @property
    def config(self) -> dict[str, Any]:
        """Name and parameters as JSON; `get_loss(**loss.config)` builds the same loss again.

        Where gradients are written (`overwrite_logits`) is no part of a loss.
        """
        return {"name": self.spec.name, **self.params, **self._options()}

    def _options(self) -> dict[str, Any]:
        return {} if self.reduction == "mean" else {"reduction": self.reduction}

    def _scalar(self, x: Tensor) -> Tensor:
        return differentiable(self._function, x)

    def _reduce(
        self, losses: Tensor, default_count: Tensor, count: Tensor | float | None
    ) -> Tensor:
        if self.reduction == "none":
            return losses
        if self.reduction == "sum":
            return losses.sum()
        return losses.sum() / (at_least_tiny(default_count) if count is None else count)

    def extra_repr(self) -> str:
        """The configuration, for `print(loss)`."""
        return ", ".join(f"{key}={value!r}" for key, value in self.config.items())


def upcast(x: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 as they are."""
    return x.to(upcast_dtype(x))


def upcast_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a loss is computed in: float32 for half precision, else that of x."""
    if not x.is_floating_point():  # Targets would be cut to whole numbers.
        raise UsageError(f"logits and predictions must be floating-point numbers, got {x.dtype}")
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def at_least_tiny(count: Tensor) -> Tensor:
    """A count to divide by, which is never 0: a mean over no items is 0, since their sum is."""
    return count.clamp(min=torch.finfo(torch.float32).tiny)


def way_out(shape: tuple[int, ...], target: Tensor) -> str:
    """What to do about yes/no labels, and about logits `[N, C, ...]` as PyTorch's losses take them.

    Args:
        shape: That of the logits.
        target: It does not fit them, or their weight does not.
    """
    if target.shape == shape:
        return "; for several yes/no labels set problem_type='multi_label_classification'"
    if len(shape) < 3 or target.shape != (shape[0], *shape[2:]):
        return ""
    return "; the classes come last here: give logits.movedim(1, -1)"


class RegressionLoss(LossModule):
    """A regression loss of the registry.

    Args:
        name: A registered name, such as `smae`.
        reduction: `mean`, `sum` or `none`.
        **params: The loss's own parameters, such as `delta`.

    Raises:
        ValueError: If any of these is unknown or out of range.
    """

    task = "regression"

    def __init__(self, name: str, *, reduction: str = "mean", **params: Any) -> None:
        super().__init__(name, reduction, params)

    def forward(
        self,
        prediction: Tensor,
        target: Tensor,
        count: Tensor | float | None = None,
        *,
        item_weight: Tensor | None = None,
    ) -> Tensor:
        """Computes the loss.

        Args:
            prediction: `[...]` or `[..., 1]`, any floating dtype; computed in float32 (float64
                stays).
            target: `[...]`, the same shape up to a trailing 1, any real dtype.
            count: Divisor of a mean; by default the number of items.
            item_weight: One finite, non-negative number per item, or per row of items, by which
                its loss is multiplied; a mean does not divide by it. No gradient flows into it.

        Returns:
            A scalar, or with `reduction="none"` one value per number in the target's shape.

        Raises:
            ValueError: If the shapes do not fit, or an item weight on the CPU is negative or not
                finite.
        """
        x = upcast(prediction)
        if x.shape == (*target.shape, 1):
            x = x.squeeze(-1)
        if x.shape != target.shape:
            raise UsageError(
                f"prediction of shape {tuple(prediction.shape)} does not fit "
                f"target of shape {tuple(target.shape)}"
            )
        weight = checked_item_weight(item_weight, x.shape, x)
        difference = x - target.to(x.dtype)
        if weight is not None:  # A target of weight 0 may be missing.
            difference = difference.where(weight != 0, 0.0)
        losses = Weighting(None, weight, count).times(self._scalar(difference))
        return self._reduce(losses, losses.new_full((), losses.numel()), count)
