"""P values: the sign-flip test of paired differences, and the level they are held to.

Flipping the signs of the differences that belong to a subset makes a sum that is at least as large
as the observed one exactly if the mean over the subset is not positive. So the p value of a centre
of any value counts the subsets whose mean is at most this value (or, for the other side, at least),
and the limits of the interval are such means (Hartigan 1969, "Using subsample values as typical
values", JASA 64). One sorted list thus holds every p value and every limit, and they cannot
contradict each other.

The test is exact, with any number of seeds, if the differences are symmetric about their centre:
so they are whenever two losses give the same distribution of the metric, or the same but for a
shift, however skewed, tied or discrete this distribution is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

ALPHA = 0.05  # Of a whole comparison: all its losses, and all its looks.
FIRST_LOOK = 2 / 3
EXACT = 16  # Up to this many seeds all 2^seeds subsets are used, above it 2^16 random ones.
# Accuracies over the same rows take few values, so that many means are equal; a rounding error must
# not make them differ.
TOLERANCE = 1e-9  # Relative to the largest difference.


@dataclass(frozen=True)
class SignFlips:
    """The sign-flip tests of a number of paired differences.

    Attributes:
        means: The mean of every subset, sorted.
        tolerance: Means that differ by less are equal.
    """

    means: np.ndarray
    tolerance: float

    @classmethod
    def of(cls, differences: Sequence[float]) -> SignFlips:
        """The tests of these differences, of which there must be at least one.

        Args:
            differences: One per seed.
        """
        means = np.sort(_subsets(len(differences)) @ np.asarray(differences, dtype=float))
        tolerance = TOLERANCE * max(map(abs, differences))
        means[np.abs(means) <= tolerance] = 0.0
        return cls(means, tolerance)

    def p_greater(self, value: float) -> float:
        """The p value of a centre of at most `value`, against a greater one."""
        count = np.searchsorted(self.means, value + self.tolerance, side="right")
        return float(1 + count) / (1 + len(self.means))

    def p_less(self, value: float) -> float:
        """The p value of a centre of at least `value`, against a smaller one."""
        count = len(self.means) - np.searchsorted(self.means, value - self.tolerance, side="left")
        return float(1 + count) / (1 + len(self.means))

    def p_different(self) -> float:
        """The two-sided p value of a centre of zero."""
        return min(1.0, 2 * self.p_greater(0.0), 2 * self.p_less(0.0))

    def p_equivalent(self, margin: float) -> float:
        """The p value of a centre that is not within the margin, by two one-sided tests.

        Args:
            margin: A positive number.

        Returns:
            Twice the larger of both p values, so that it is at most alpha exactly if the interval
            at 1 - alpha lies within the margin: half of what is usual, for the sake of one interval
            for both questions.
        """
        return min(1.0, 2 * max(self.p_greater(-margin), self.p_less(margin)))

    def interval(self, alpha: float) -> list[float] | None:
        """All centres that the two-sided test does not reject at `alpha`.

        Args:
            alpha: Between 0 and 1.

        Returns:
            Both limits; None if the differences are too few for any p value of `alpha`.
        """
        rank = math.floor(alpha / 2 * (1 + len(self.means)))
        return [float(self.means[rank - 1]), float(self.means[-rank])] if rank else None


@cache
def _subsets(count: int) -> np.ndarray:
    """Rows that take the mean over a subset: over every one, or over random ones if they are many.

    The empty subset, which is the observed pattern itself, is left out; the p values add it.
    """
    if count <= EXACT:
        members = (np.arange(1, 2**count)[:, None] >> np.arange(count)) & 1
    else:
        members = np.random.default_rng(0).integers(0, 2, (2**EXACT - 1, count))
        members = members[members.any(axis=1)]
    weights: np.ndarray = members / members.sum(axis=1, keepdims=True)
    return weights


def share_of_look(look: int) -> float:
    """The share of `ALPHA` that a look at the results may spend.

    The first look takes two thirds, and each further one, after `--add_seeds`, two thirds of what
    is left. The shares of all looks together never exceed 1, so that the probability of an error
    at any of them is at most `ALPHA`: alpha is spent by the number of the look (Slud and Wei 1982,
    JASA 77), without any assumption on how the looks depend on each other.

    Args:
        look: 1, 2, …
    """
    return FIRST_LOOK * (1 - FIRST_LOOK) ** (look - 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction (1979) of p values for their number.

    Args:
        p_values: The p values of all comparisons of one family.

    Returns:
        The corrected p values in the same order, at most 1.
    """
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]]


def smallest_p(seeds: int, comparisons: int, look: int = 1) -> float:
    """The smallest corrected p value that a design can give.

    Args:
        seeds: Number of pairs per loss.
        comparisons: Number of losses beside the baseline.
        look: Which look at the results it is.

    Returns:
        2/2^k times the number of comparisons, divided by the look's share, for k seeds; at most 1.
    """
    return min(1.0, comparisons * 2.0 ** (1 - seeds) / share_of_look(look))
