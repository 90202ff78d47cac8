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
    use="The baseline, for errors that are close to normal: by its formula the best prediction is "
    "the mean of the targets.",
    avoid="With outliers: by its formula an error pulls in proportion to its size, and outliers "
    "spoil a mean (Huber 1964, doi:10.1214/aoms/1177703732).",
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
    use="For targets with outliers of any size: by its formula every error pulls equally, and the "
    "best prediction is the median of the targets.",
    avoid="By its formula it pulls as hard near the target as far from it, so that training "
    "oscillates there unless the learning rate falls (Noel et al. 2026, arXiv:2606.22068v1).",
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
    use="For errors that are close to normal but for some outliers: delta is the error from which "
    "they stop pulling harder (Huber 1964, doi:10.1214/aoms/1177703732).",
    avoid="Where delta does not fit the scale of the targets: by its formula it is half of mse if "
    "all errors are below delta, and delta times mae, but for a constant, if all are above.",
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
    use="For targets with outliers, like huber with delta 1, and smooth everywhere: by its formula "
    "nearly e²/2 for small errors, and nearly mae − ln 2 for large ones (Saleh and Saleh 2022, "
    "arXiv:2208.04564).",
    avoid="Where the scale of the targets is far from 1: by its formula it turns from a square to "
    "a line at errors of about 1, and no parameter moves that.",
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
    use="For targets with many outliers: it is closer to mae than huber and log_cosh are, and "
    "smooth at 0 (Noel et al. 2023, arXiv:2303.09935).",
    avoid="Where the scale of the targets is far from 1: by its formula it turns from a square to "
    "a line at errors of about 1, and no parameter moves that.",
)
def smae(e: Tensor) -> tuple[Tensor, Tensor]:
    """e·tanh(e/2)."""
    slope = torch.tanh(e / 2)
    return e * slope, slope + 2 * e * torch.sigmoid(e) * torch.sigmoid(-e)
