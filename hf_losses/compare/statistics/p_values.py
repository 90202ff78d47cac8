"""What is significant: the level, and its division among losses and looks."""

from __future__ import annotations

from collections.abc import Sequence

ALPHA = 0.05  # Of a whole comparison: all its losses, and all its looks.
FIRST_LOOK = 2 / 3


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
