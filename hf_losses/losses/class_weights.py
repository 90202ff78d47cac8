"""Class weights in the precision that they were given in."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_losses.losses.registry import as_json
from hf_losses.messages import UsageError


class ExactWeights:
    """Class weights, whatever a buffer that holds them is cast to.

    Args:
        weight: One finite, non-negative number per class: a sequence, an array or a tensor.

    Raises:
        ValueError: If it is anything else.
    """

    def __init__(self, weight: Any) -> None:
        self.numbers = exact_class_weights(weight)
        self._moved = self.numbers

    def on_device_of(self, buffer: Tensor, dtype: torch.dtype) -> Tensor:
        """The weights.

        Args:
            buffer: `[C]`, which was made of them, and may have been cast, moved or modified since.
            dtype: float32 or float64.

        Returns:
            `[C]`, on the buffer's device; the buffer's own numbers where they were modified.
        """
        exact = self._moved
        if exact.shape != buffer.shape:
            return buffer.to(dtype)
        if exact.device != buffer.device or exact.dtype != dtype:
            exact = self.numbers.to(buffer.device, dtype)
            if not torch.compiler.is_compiling():
                self._moved = exact  # A GPU would wait for the copy at every step.
        return torch.where(exact.float().to(buffer.dtype) == buffer, exact, buffer.to(dtype))


def exact_class_weights(weight: Any) -> Tensor:
    """Class weights in the precision they were given in: `[C]`, float64, on the CPU."""
    values = as_json(weight)
    try:
        numbers = torch.tensor(values, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError):  # Text, a dict, ragged rows, ….
        numbers = torch.full((), math.nan, device="cpu")
    else:
        values = numbers.tolist()
    if numbers.dim() == 1 and len(numbers) and ((numbers >= 0) & numbers.float().isfinite()).all():
        return numbers
    named = isinstance(weight, str | Mapping)
    raise UsageError(
        "weight must be one finite, non-negative number per class, as a list, an array or a "
        f"tensor, got {reprlib.repr(values)}"
        + ("; by label name, or 'balanced', it is for the loss_kwargs of a training" * named)
    )
