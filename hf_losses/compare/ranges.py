"""The ranges of tuned flags: how a user writes them, how they are searched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from hf_losses.messages import UsageError


def parse_range(text: str) -> tuple[str, list[float]]:
    """Reads `NAME=LOW:HIGH`; `learning_rate` alone has a default range.

    Args:
        text: An argument of `--tune`.

    Raises:
        ValueError: If the text is not of that form.
    """
    name, equals, limits = text.removeprefix("--").partition("=")
    if name == "learning_rate" and not equals:
        return name, [1e-5, 1e-2]
    low, colon, high = limits.partition(":")
    try:
        if not (name and colon):
            raise UsageError
        return name, [float(low), float(high)]
    except ValueError:
        raise UsageError(
            f"--tune takes NAME=LOW:HIGH, such as learning_rate=1e-5:1e-3, got {text!r}"
        ) from None


def parse_ranges(texts: Iterable[str]) -> dict[str, list[float]]:
    """Reads the arguments of `--tune`.

    Args:
        texts: As `parse_range` takes them.

    Raises:
        ValueError: If one is not of that form, or a flag has two ranges.
    """
    ranges: dict[str, list[float]] = {}
    for name, limits in map(parse_range, texts):
        if name.replace("-", "_") in {known.replace("-", "_") for known in ranges}:
            raise UsageError(f"--tune has two ranges of {name}; keep one")
        ranges[name] = limits
    return ranges


def by_logarithm(low: float, high: float) -> bool:
    """Whether a tuned range is searched by the logarithm: it is positive, and tenfold or wider."""
    return low > 0 and high >= 10 * low


def spread_evenly(number: int, ranges: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """A point of Halton's sequence in these ranges.

    Args:
        number: Which point, from 0; the first one is the middle of the first range.
        ranges: Lowest and highest value by name.
    """
    from scipy.stats import qmc  # It would load torch for every command.

    sequence = qmc.Halton(len(ranges), scramble=False)
    sequence.fast_forward(1 + number)  # Its first point is the lower end of every range.
    shares = sequence.random(1)[0].tolist()
    return {
        name: low * (high / low) ** share if by_logarithm(low, high) else low + share * (high - low)
        for (name, (low, high)), share in zip(ranges.items(), shares, strict=True)
    }
