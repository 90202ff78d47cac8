"""Optimizer steps whose gradient is not finite: counted on the device, reported at the end."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class NonfiniteSteps:
    """Counts the optimizer steps whose gradient norm is NaN or infinite.

    Args:
        counted: Steps counted up to the checkpoint that training resumes from.
    """

    def __init__(self, counted: int = 0) -> None:
        self._counted: Any = counted
        self._last: Any = False

    def add(self, norm: Tensor | float | None, skipped: bool = False) -> None:
        """Counts one step if its gradient is not finite.

        Args:
            norm: The norm of its gradient; None if it is not known. DeepSpeed gives -1 for a norm
                that is not finite.
            skipped: Whether the optimizer has skipped the step for that reason.
        """
        if isinstance(norm, Tensor):
            # Stays on the device: asking for its value would make every step wait.
            self._last = ~torch.isfinite(norm)
        else:
            self._last = skipped or (norm is not None and not 0 <= norm < math.inf)
        self._counted = self._counted + self._last

    @property
    def count(self) -> int:
        """Steps counted so far; waits for the device."""
        return int(self._counted)

    def warning(self, steps: int, last_was_skipped: bool) -> str:
        """What to tell the user when the count is not 0.

        Args:
            steps: Optimizer steps in all.
            last_was_skipped: Whether the optimizer skipped the very last step, as it does in fp16
                when a gradient overflows.
        """
        if self._last and not last_was_skipped:
            outcome = (
                "the last one too, so the weights are probably NaN: go back to a checkpoint, or "
                "start again"
            )
        else:
            outcome = (
                "but training went on: fp16 leaves out a step that overflows and lowers its loss "
                "scale, and a few of these are no harm"
            )
        return (
            f"The gradient was not finite in {self.count} of {steps} optimizer steps, {outcome}. "
            "What helps: a lower learning_rate, max_grad_norm, bf16 rather than fp16, and for a "
            "strict loss a smaller max_weight (loss_kwargs '{\"max_weight\": 100}')."
        )
