"""From logits to margins: the one coordinate in which every loss of the paper stays finite.

The margin of class k is m_k = z_k - logsumexp(z_j, j != k), so that p_k = sigmoid(m_k) and
1 - p_k = sigmoid(-m_k), both without cancellation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from hf_losses.losses.registry import LossSpec


def class_margin(logits: Tensor, target: Tensor) -> Tensor:
    """Margin of one class per item.

    Args:
        logits: `[..., C]`, floating, C >= 2. -inf marks a class that cannot occur.
        target: `[...]`, int64, class indices in [0, C).

    Returns:
        `[...]`, the dtype of the logits. NaN where a logit is NaN or +inf, or all are -inf.
    """
    index = target.unsqueeze(-1)
    of_class = logits.gather(-1, index).squeeze(-1)
    others = logits.scatter(-1, index, -torch.inf)
    return of_class - _logsumexp(others) + propagate_nan(logits.amax(-1))


def class_margin_of_rows(logits: Tensor, target: Tensor) -> Tensor:
    """`class_margin` without a gradient: on a CPU it copies only those rows that need it.

    Args:
        logits: `[N, C]`, floating, C >= 2.
        target: `[N]`, int64, class indices in [0, C).

    Returns:
        `[N]`, the dtype of the logits; see `class_margin`.
    """
    if not logits.is_cpu:  # A GPU would wait for the number of those rows.
        return class_margin(logits, target)
    log_p = logits.gather(-1, target.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
    margin = log_p - torch.log1p(-log_p.exp())
    # From p = 1/2 on, 1 - p loses digits. NaN and infinite logits need class_margin too.
    inaccurate = (~((log_p > -torch.inf) & (log_p < -0.7))).nonzero().squeeze(-1)
    margin[inaccurate] = class_margin(logits[inaccurate], target[inaccurate])
    return margin


def class_margins(logits: Tensor) -> Tensor:
    """Margins of all classes.

    Args:
        logits: `[..., C]`, floating, C >= 2.

    Returns:
        `[..., C]`, the dtype of the logits.
    """
    # Only the class of the largest logit can have p > 1/2. Everywhere else 1 - p does not cancel,
    # so log p - log(1 - p) is accurate; that one class gets its own sum over the others.
    log_p = F.log_softmax(logits, dim=-1)
    top = logits.detach().argmax(-1)
    index = top.unsqueeze(-1)
    at_most_half = log_p.scatter(-1, index, -1.0)
    margins = at_most_half - torch.log1p(-at_most_half.exp())
    return margins.scatter(-1, index, class_margin(logits, top).unsqueeze(-1))


def value_and_weight(
    function: Callable[[Tensor], tuple[Tensor, Tensor]], margin: Tensor, q: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Loss and gradient weight w = -(dl/dm)/q, by which cross-entropy's gradient is multiplied.

    Args:
        function: Value and derivative of a loss by the margin, element-wise.
        margin: Any shape, floating.
        q: sigmoid(-margin), where it is known already.

    Returns:
        Two tensors like `margin`.
    """
    value, derivative = function(margin)
    return value, -derivative / (torch.sigmoid(-margin) if q is None else q)


def gradient_weight(function: Callable[[Tensor], tuple[Tensor, Tensor]], margin: Tensor) -> Tensor:
    """The gradient weight alone; see `value_and_weight`."""
    return value_and_weight(function, margin)[1]


def kind_of(spec: LossSpec, params: Mapping[str, float]) -> str:
    """The kind of a loss, which other parameters than the defaults may change.

    Args:
        spec: The record of the loss, whose own kind is that of its defaults.
        params: Its parameters, all of them.
    """
    if all(params[name] == record.default for name, record in spec.parameters.items()):
        return spec.kind
    if spec.is_full or spec.task != "classification":
        return spec.kind
    with torch.device("cpu"):
        p = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
        steps = gradient_weight(partial(spec.function, **params), p.logit()).log().diff()
    rises, falls = bool((steps > 1e-9).any()), bool((steps < -1e-9).any())
    if rises and falls:
        return "mixed"
    return "liberal" if rises else "strict" if falls else "neutral"


def _logsumexp(x: Tensor) -> Tensor:
    # torch.logsumexp over nothing but -inf (every other class masked) has a NaN gradient.
    empty = x.detach().isneginf().all(-1, keepdim=True)
    return x.masked_fill(empty, 0.0).logsumexp(-1).masked_fill(empty.squeeze(-1), -torch.inf)


def propagate_nan(x: Tensor) -> Tensor:
    """0 everywhere, NaN where x is NaN or +inf: added to what could hide such a logit.

    A bounded loss of an infinite margin would otherwise look like any other number.
    """
    x = x.detach().clamp(min=0)
    return x - x


def one_hot(z: Tensor, target: Tensor) -> Tensor:
    """Targets as probabilities, `[..., C]`, in the dtype of the logits."""
    # scatter rather than F.one_hot: torch.func.vmap takes it too.
    return torch.zeros_like(z).scatter(-1, target.unsqueeze(-1), 1.0)
