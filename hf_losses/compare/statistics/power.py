"""Which differences a number of seeds can find, and how many seeds a difference needs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median

from hf_losses.compare.statistics.p_values import ALPHA, smallest_p

POWER = 0.8


def seeds_needed(comparisons: int) -> int:
    """The fewest seeds with which a difference can be significant at 5 %.

    Args:
        comparisons: Number of losses beside the baseline.
    """
    return math.ceil(1 + math.log2(comparisons / ALPHA))


def detectable_difference(spread: float, seeds: int, comparisons: int) -> float:
    """The true difference that a design finds four times out of five.

    It follows from the power of the paired t test at 5 % / comparisons, Holm's first step. This
    approximates the sign-flip test, whose power has no closed form.

    Args:
        spread: Standard deviation of the paired differences.
        seeds: Number of pairs per loss.
        comparisons: Number of losses beside the baseline.

    Returns:
        The difference in the units of `spread`; infinite if the seeds are too few to find any.
    """
    from statsmodels.stats.power import TTestPower

    if smallest_p(seeds, comparisons) > ALPHA:
        return math.inf
    effect = TTestPower().solve_power(nobs=seeds, alpha=ALPHA / comparisons, power=POWER)
    return float(effect) * spread


def median_spread(spreads: Iterable[float | None]) -> float | None:
    """The median over the losses of the standard deviation of the paired differences.

    It is the median since a loss that fails to learn on some seeds has a spread of its own.

    Args:
        spreads: Standard deviation of each loss; None for a loss with fewer than two pairs.

    Returns:
        The median; None if no loss has two pairs.
    """
    known = [spread for spread in spreads if spread is not None]
    return median(known) if known else None


def describe_design(comparisons: int, seeds: int) -> str:
    """What a design can show, in words, before any run has been made.

    Args:
        comparisons: Number of losses beside the baseline.
        seeds: Number of pairs per loss.
    """
    losses = "1 loss" if comparisons == 1 else f"{comparisons} losses"
    text = (
        f"{seeds} paired seed{'s' * (seeds != 1)}, {losses} against the baseline: the smallest p "
        f"value possible is {smallest_p(seeds, comparisons):.2g} after Holm's correction"
    )
    if smallest_p(seeds, comparisons) <= ALPHA:
        return f"{text}, so a difference can be found at {ALPHA:.0%}."
    return (
        f"{text}: no difference, however large, can be significant at {ALPHA:.0%}. That takes "
        f"{seeds_needed(comparisons)} seeds, or fewer losses (--screen, --confirm, --top)."
    )
