"""The regression losses: functions of the error e = prediction - target, with their derivatives."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hf_losses.lazy import lazy
from hf_losses.losses.registry import LossParameter, register_loss

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch")


@register_loss(
    "mse",
    kind="neutral",
    formula="e**2",
    task="regression",
    reference="squared error",
    use="The baseline: begin with it.",
    avoid="With outliers: an error pulls in proportion to its size.",
)
def mse(e: Tensor) -> tuple[Tensor, Tensor]:
    """e²."""
    return e * e, 2 * e


@register_loss(
    "mae",
    kind="robust",
    formula="abs(e)",
    task="regression",
    reference="Laplace 1774",
    use="For targets with outliers of any size: every error pulls equally.",
    avoid="Near the target it pulls as hard as far from it, so that training does not "
    "settle without a falling learning rate.",
)
def mae(e: Tensor) -> tuple[Tensor, Tensor]:
    """|e|."""
    return e.abs(), e.sign()


@register_loss(
    "huber",
    kind="robust",
    formula="e**2/2 if abs(e) <= delta else delta*(abs(e) - delta/2)",
    task="regression",
    parameters={"delta": LossParameter(1.0, above=0.0, help="error at which e²/2 turns linear")},
    reference="Huber 1964, doi:10.1214/aoms/1177703732",
    use="For targets with outliers; delta is the error from which they stop pulling harder.",
    avoid="Where delta does not fit the scale of the targets: scale them, or set it.",
)
def huber(e: Tensor, *, delta: float) -> tuple[Tensor, Tensor]:
    """e²/2 up to delta, linear beyond: c(|e| - c/2) with c = min(|e|, delta)."""
    clipped = e.clamp(-delta, delta)
    return clipped * (e - clipped / 2), clipped


@register_loss(
    "log_cosh",
    kind="robust",
    formula="log(cosh(e))",
    task="regression",
    reference="log cosh error",
    use="For targets with outliers, like huber with delta 1, and smooth everywhere.",
    avoid="Where the scale of the targets is far from 1: scale them.",
)
def log_cosh(e: Tensor) -> tuple[Tensor, Tensor]:
    """Ln cosh e."""
    # The usual |e| + ln(1 + e^(-2|e|)) - ln 2 cancels for small e; -ln(1 - tanh²)/2 does not.
    size, slope = e.abs(), torch.tanh(e)
    near = -0.5 * torch.log1p(-(torch.tanh(size.clamp(max=1.0)) ** 2))
    far = size + torch.log1p(torch.exp(-2 * size)) - math.log(2)
    return torch.where(size < 1.0, near, far), slope


@register_loss(
    "smae",
    kind="robust",
    formula="e*tanh(e/2)",
    task="regression",
    reference="smooth mean absolute error, a later version of arXiv:2303.09935",
    use="For targets with outliers, like mae, and smooth at 0.",
    avoid="Where the scale of the targets is far from 1: scale them.",
)
def smae(e: Tensor) -> tuple[Tensor, Tensor]:
    """e·tanh(e/2)."""
    slope = torch.tanh(e / 2)
    return e * slope, slope + 2 * e * torch.sigmoid(e) * torch.sigmoid(-e)
