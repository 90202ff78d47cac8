"""P values of paired differences: a sign-flip permutation test, and Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ALPHA = 0.05

EXACT = 2**16  # Up to this many sign patterns (16 seeds), all of them are tried.


def sign_flip_p(differences: Sequence[float]) -> float:
    """The two-sided p value of the sign-flip permutation test of a mean of zero.

    Args:
        differences: One per seed.

    Returns:
        The p value, at least 2/2^k for k seeds: exact up to 16 seeds, from random sign patterns
        beyond.
    """
    from scipy.stats import permutation_test

    if len(differences) < 2 or not any(differences):
        return 1.0
    largest = max(map(abs, differences))

    def mean(x: np.ndarray, axis: int) -> np.ndarray:
        # Accuracies are counts of the same rows, so that many patterns tie with the observed one.
        # Rounding errors must not break these ties.
        rounded: np.ndarray = np.round(np.mean(x, axis=axis) / largest, 9)
        return rounded

    result = permutation_test(
        (np.asarray(differences),),
        mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=EXACT,
        batch=EXACT // 8,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction (1979) of p values for their number.

    Args:
        p_values: The p values of all comparisons of one family.

    Returns:
        The corrected p values in the same order, at most 1.
    """
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]]


def smallest_p(seeds: int, comparisons: int) -> float:
    """The smallest p value, after Holm's correction, that a design can give.

    Args:
        seeds: Number of pairs per loss.
        comparisons: Number of losses beside the baseline.

    Returns:
        2/2^k times the number of comparisons, for k seeds; at most 1.
    """
    return min(1.0, comparisons * 2.0 ** (1 - seeds))
