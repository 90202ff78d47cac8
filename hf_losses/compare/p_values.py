"""P values of paired differences: a sign-flip permutation test, and Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ALPHA = 0.05

EXACT = 2**16  # Up to so many sign patterns (16 seeds) are gone through one by one.


def sign_flip_p(differences: Sequence[float]) -> float:
    """The two-sided p value of the sign-flip permutation test of a mean of zero.

    Args:
        differences: One per seed.

    Returns:
        Exact for up to 16 seeds, and at least 2/2^k for k; beyond that from random sign patterns.
    """
    from scipy.stats import permutation_test

    if len(differences) < 2 or not any(differences):
        return 1.0
    largest = max(map(abs, differences))

    def mean(x: np.ndarray, axis: int) -> np.ndarray:
        # Accuracies are counts of the same rows, so that many patterns tie with the one found;
        # rounding must not decide which of them are as large.
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
    """Holm's correction (1979) of p values for how many there are.

    Args:
        p_values: Of all comparisons of one family.

    Returns:
        The corrected ones in their order, at most 1.
    """
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]]


def smallest_p(seeds: int, comparisons: int) -> float:
    """The smallest p value, after Holm's correction, that a design can give.

    Args:
        seeds: Pairs per loss.
        comparisons: Losses beside the baseline.

    Returns:
        2/2^k times the comparisons, at most 1.
    """
    return min(1.0, comparisons * 2.0 ** (1 - seeds))
