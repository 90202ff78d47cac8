"""Products of parameters: every combination is tested, the telling ones by the default suite."""

import itertools

import pytest


def product(*values, keep):
    """All combinations for `pytest.mark.parametrize`; those that `keep` refuses are slow.

    `keep` gets the position of each value in its list, and then the values.
    """
    combinations = []
    for indexed in itertools.product(*(list(enumerate(each)) for each in values)):
        places, combination = zip(*indexed, strict=True)
        marks = () if keep(places, combination) else pytest.mark.slow
        combinations.append(pytest.param(*combination, marks=marks))
    return combinations


def diagonals(number):
    """Keeps one of so many combinations, so that any two values of a list are met equally often."""
    return lambda places, _: sum(places) % number == 0
