"""Loss warm-up: training that begins with one loss and goes over to another.

Bounded losses give an example of probability p a gradient weight of about p², so that they hardly
learn from a cold start. A first part of the training with cross-entropy takes them past it.
"""

from __future__ import annotations

import math
from typing import Any

from hf_losses.losses.registry import get_spec, list_losses
from hf_losses.messages import UsageError


def check_warmup(loss: str | None, ratio: float, steps: int, initial_loss: str | None) -> None:
    """Raises a ValueError unless these settings describe a warm-up, or none.

    Args:
        loss: The loss that is trained in the end; None if it is not named.
        ratio: Share of the training's steps that the warm-up takes, from 0 (none) to 1.
        steps: Number of optimizer steps that it takes instead, 0 (none) or more.
        initial_loss: The loss that it begins with; None for the baseline of the task.
    """
    if not 0 <= ratio <= 1:
        raise UsageError(f"loss_warmup_ratio must be from 0 to 1, got {ratio!r}")
    if steps < 0 or steps != int(steps):
        raise UsageError(f"loss_warmup_steps must be a whole number, 0 or more, got {steps!r}")
    if ratio and steps:
        raise UsageError(
            f"loss_warmup_ratio={ratio} and loss_warmup_steps={steps} name two lengths; keep one"
        )
    if initial_loss is None:
        return
    spec = get_spec(initial_loss)
    if not (ratio or steps):
        raise UsageError(
            f"loss_warmup_from={initial_loss!r} needs a length: add loss_warmup_ratio or "
            "loss_warmup_steps"
        )
    if loss is not None and spec.task != get_spec(loss).task:
        task = get_spec(loss).task
        raise UsageError(
            f"loss_warmup_from={initial_loss!r} is for {spec.task}, but loss {loss!r} for {task}; "
            f"choose one of: {', '.join(list_losses(task=task))}"
        )


def check_warmup_ends(args: Any, max_steps: int) -> None:
    """Raises a ValueError if a training would end in its warm-up, on a mixture of two losses.

    Args:
        args: Training arguments, with or without `loss_warmup_steps`.
        max_steps: Optimizer steps of the whole training.
    """
    steps = getattr(args, "loss_warmup_steps", 0)
    if steps > max_steps:
        raise UsageError(
            f"loss_warmup_steps={steps} is more than the {max_steps} steps of this training, which "
            "would end before the loss is reached: take fewer, or loss_warmup_ratio, such as 0.3"
        )


def warmup_share(args: Any, step: int, max_steps: int) -> float | None:
    """The weight of the target loss in an optimizer step; the initial loss has the rest.

    Args:
        args: Training arguments, with or without `loss_warmup_ratio` and `loss_warmup_steps`.
        step: Optimizer steps made before this one.
        max_steps: Optimizer steps of the whole training.

    Returns:
        A share that rises linearly from 0 in the first step to 1 after the warm-up; None without
        a warm-up.
    """
    steps = getattr(args, "loss_warmup_steps", 0) or math.ceil(
        getattr(args, "loss_warmup_ratio", 0) * max_steps
    )
    return min(1.0, step / steps) if steps else None
