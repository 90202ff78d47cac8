"""Whose forward a model runs, and whose loss that uses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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
