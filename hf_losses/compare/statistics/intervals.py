"""Confidence intervals of paired differences, by resampling."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np

CONFIDENCE = 0.95

RESAMPLES = 9999

FEWEST = 5  # With fewer differences, the interval misses the truth too often to be shown.


def bootstrap_interval(differences: Sequence[float]) -> list[float] | None:
    """The 95 % interval of the mean difference, by the BCa bootstrap (Efron 1987).

    With few seeds it is too narrow: for normal differences it holds the true mean in about 85 % of
    comparisons with 5 seeds, 91 % with 10 and 93 % with 15. The sign-flip test has no such flaw.

    Args:
        differences: One per seed.

    Returns:
        Both limits; None if there are fewer than five differences or BCa gives no interval. Equal
        differences have an interval of no width.
    """
    from scipy.stats import DegenerateDataWarning, bootstrap

    if len(differences) < FEWEST:
        return None
    if len(set(differences)) == 1:
        return [differences[0], differences[0]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)
        interval = bootstrap(
            (np.asarray(differences),),
            np.mean,
            confidence_level=CONFIDENCE,
            n_resamples=RESAMPLES,
            method="BCa",
            rng=np.random.default_rng(0),
        ).confidence_interval
    limits = [float(interval.low), float(interval.high)]
    return limits if all(map(math.isfinite, limits)) else None
