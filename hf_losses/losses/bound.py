"""A loss of the margin whose gradient weight is capped.

A strict loss's gradient weight w grows without limit as p falls. Where it would exceed
`max_weight`, the loss goes on linearly in log p, with that slope: once continuously differentiable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_losses.losses.margin import gradient_weight, value_and_weight
from hf_losses.losses.registry import LossSpec

MOST_IN_FLOAT16 = 2.0**20


@dataclass(frozen=True, eq=False)
class BoundedLoss:
    """A loss with its parameters, as a function of the margin or of probabilities.

    Attributes:
        spec: The record of the loss.
        params: Its parameters, resolved.
        max_weight: The cap, positive, `inf` allowed; without effect on a loss that is not strict.
        boundary: The margin below which the gradient weight is capped; -inf if it never is.
        least: The probability at the boundary.
    """

    spec: LossSpec
    params: Mapping[str, Any]
    max_weight: float

    boundary: float = field(init=False)
    least: float = field(init=False)

    def __post_init__(self) -> None:
        """Finds the boundary once: a compiled graph shall find a number."""
        boundary = self._find_boundary() if self.spec.has_max_weight else -math.inf
        object.__setattr__(self, "boundary", boundary)
        object.__setattr__(self, "least", 1 / (1 + math.exp(min(-boundary, 700.0))))

    def _find_boundary(self) -> float:
        low, high = -1e6, 700.0
        if not self._exceeds(low):
            return -math.inf
        if self._exceeds(high):
            return math.inf
        while high - low > 1e-13 * max(1.0, abs(low)):  # w falls in the margin.
            middle = (low + high) / 2
            low, high = (middle, high) if self._exceeds(middle) else (low, middle)
        return high

    @property
    def steepest(self) -> float:
        """The largest gradient weight that an item can have; full forms weigh a class twice."""
        most = self.max_weight if self.spec.has_max_weight else 1.0
        return 2 * most if self.spec.is_full else most

    def fits(self, dtype: torch.dtype) -> bool:
        """Whether a dtype holds gradients that are made in forward, the smallest with the largest.

        Float16 ends at 65,504, and what is scaled down to that must not round the others away.
        """
        return dtype != torch.float16 or self.steepest <= MOST_IN_FLOAT16

    def _exceeds(self, margin: float) -> bool:
        with torch.device("cpu"):
            m = torch.tensor(margin, dtype=torch.float64)
            return bool(gradient_weight(self.unbounded, m) > self.max_weight)

    def unbounded(self, m: Tensor) -> tuple[Tensor, Tensor]:
        """Value and derivative of the loss by the margin, by its formula."""
        value, derivative = self.spec.function(m, **self.params)
        return value, derivative

    def __call__(self, m: Tensor) -> tuple[Tensor, Tensor]:
        """Value and derivative of the bounded loss by the margin; two tensors like m."""
        if self.boundary == -math.inf:
            return self.unbounded(m)
        inside = m.clamp(min=self.boundary)
        value, derivative = self.unbounded(inside)
        value = value + self.max_weight * (F.logsigmoid(inside) - F.logsigmoid(m))
        slope = -self.max_weight * torch.sigmoid(-m)
        return value, torch.where(m < self.boundary, slope, derivative)

    def within(self, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient weight where the cap has no effect.

        Args:
            p: The probability of the true class, at least `least`.
            q: 1 - p, which need not be computed from p.
        """
        if self.spec.probability_function is None:
            return value_and_weight(self.unbounded, (p / q).log_(), q)
        value, weight = self.spec.probability_function(p, q, **self.params)
        return value, weight

    def of_probabilities(self, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient weight of the bounded loss; see `within`, without its limit on p."""
        if self.boundary == -math.inf:
            return self.within(p, q)
        if self.boundary > 0:
            return value_and_weight(self, (p / q).log_(), q)
        inside = p.clamp(min=self.least)
        value, weight = self.within(inside, q.clamp(max=1 - self.least))
        return value + (inside / p).log_().mul_(self.max_weight), weight

    def wrong(self, q: Tensor, value: Tensor, slope: Tensor, spare: Tensor) -> None:
        """What a wrong class of probability q ≤ 1/2 adds to a full form; see `LossSpec`."""
        assert self.spec.wrong_class_function is not None
        self.spec.wrong_class_function(q, value, slope, spare, **self.params)
