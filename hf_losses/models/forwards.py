"""Whose forward a model runs, whose loss that uses, and what it returns."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from hf_losses.messages import UsageError

# Those of these libraries compute what the checks of `models.builtin` know,
KNOWN = ("transformers.", "trl.", "liger_kernel.")
# and these wrap a forward without changing it.
WRAPPING = ("accelerate.", "torch.", "peft.", "deepspeed.")


def is_transformers(model: Any) -> bool:
    """Whether transformers defines the forward that a model runs, and not the user.

    Args:
        model: The model without wrappers. Its class or the model itself may have been given another
            forward than it was defined with.
    """
    modules = [
        f"{_module(function)}."
        for function in _chain(vars(model).get("forward", type(model).forward))
    ]
    return modules[-1].startswith(KNOWN) and all(
        module.startswith((*KNOWN, *WRAPPING)) for module in modules
    )


def has_own_loss(model: Any) -> bool:
    """Whether the user has registered the loss that transformers takes for a model.

    Args:
        model: The model without wrappers.
    """
    # `hf-losses run` must not import transformers before the script does.
    from transformers.loss.loss_utils import LOSS_MAPPING

    loss = LOSS_MAPPING.get(getattr(model, "loss_type", None))
    return loss is not None and not f"{_module(loss)}.".startswith(KNOWN)


def _chain(function: Any) -> Iterator[Any]:
    """A function, and those that it is wrapped around, as far as they can be seen."""
    while function is not None:
        if not hasattr(function, "__wrapped__"):
            function = getattr(function, "func", function)  # Of a partial.
        function = getattr(function, "__func__", function)
        yield function
        function = getattr(function, "__wrapped__", None)


def _module(function: Any) -> str:
    """The module that a function's code stands in, whatever decorators have copied."""
    names = getattr(function, "__globals__", {})
    return str(names.get("__name__", getattr(function, "__module__", "")))


def without_loss(outputs: Any, *, copies: int = 1) -> Any:
    """The outputs of a model as a `ModelOutput`, a dict, or a tuple that begins with the logits.

    Args:
        outputs: What the model returned.
        copies: Of a model that was given labels, the number of its copies of which DataParallel has
            gathered the losses.
    """
    if torch.is_tensor(outputs):
        return (outputs,)  # Some users' modules return nothing but the logits.

    if copies > 1 and isinstance(outputs, Mapping | tuple):
        outputs = _without_gathered(outputs, copies)
    if not isinstance(outputs, tuple):
        return outputs
    # Without labels some models return (None, logits), with labels (loss, logits).
    tensors = (out for out in outputs if not torch.is_tensor(out) or out.dim())
    return tuple(out for out in tensors if out is not None)


def with_loss(outputs: Any, loss: Tensor) -> Any:
    """The outputs with a loss where a model puts its own: first of a tuple, or as `loss`.

    Args:
        outputs: A `ModelOutput`, a dict, or a tuple without a loss.
        loss: The loss.
    """
    if isinstance(outputs, tuple):
        return (loss, *outputs)
    if not isinstance(outputs, Mapping):
        return outputs
    others = {name: out for name, out in outputs.items() if name != "loss"}
    if not dataclasses.is_dataclass(outputs):
        new: Any = copy.copy(outputs)  # Of its own class.
        new.clear()
        new.update({"loss": loss, **others})
        return new
    names = {field.name for field in dataclasses.fields(outputs)}
    if "loss" not in names:
        return outputs
    # A new one, in which the loss comes first.
    new = type(outputs)(loss=loss, **{n: out for n, out in others.items() if n in names})
    for name in others.keys() - names:
        new[name] = others[name]
    for name in vars(outputs).keys() - vars(new).keys():
        setattr(new, name, getattr(outputs, name))  # A script's own.
    return new


def _without_gathered(outputs: Any, copies: int) -> Any:
    """Outputs without the vector that holds the loss of each copy."""
    named = isinstance(outputs, Mapping)
    entries = list(outputs.items() if named else enumerate(outputs))
    vectors = [name for name, out in entries if torch.is_tensor(out) and out.shape == (copies,)]
    loss = "loss" if "loss" in vectors else next(iter(vectors), None)
    kept = {name: out for name, out in entries if name != loss}
    return kept if named else tuple(kept.values())


def logits_of(outputs: Any, *, known: bool = True) -> Tensor:
    """The logits of a model's outputs.

    Args:
        outputs: A `ModelOutput`, or a dict or tuple without a loss.
        known: Whether transformers knows the model. Of any other model's outputs, the first tensor
            that is not a scalar is taken.

    Raises:
        ValueError: If there are no logits.
    """
    if isinstance(outputs, Mapping) and (known or outputs.get("logits") is not None):
        logits = outputs.get("logits")
    else:
        values = outputs.values() if isinstance(outputs, Mapping) else outputs or ()
        logits = next((value for value in values if torch.is_tensor(value) and value.dim()), None)
    if logits is None and known:
        raise UsageError(
            "the model returned no logits, so no loss can be computed from them "
            "(is a fused head such as Liger's switched on?)"
        )
    if logits is None:
        names = list(outputs) if isinstance(outputs, Mapping) else outputs
        raise UsageError(
            f"the model returned no logits, but {names}: without labels, forward must return a "
            "tensor, a tuple with one, or a dict with 'logits'"
        )
    return logits  # type: ignore[no-any-return]
