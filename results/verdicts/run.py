"""How often the verdicts of `hf-losses compare` are false, and how often one is given: simulation.

    python results/verdicts/run.py [PART]  # writes results.json beside this file, in 15 minutes

With PART, only conditions with this in their name are simulated, and the others are kept.

Every repetition is a whole comparison of several losses with a baseline: accuracies are drawn, and
the package's own functions judge them. A comparison is false if any of its verdicts is. `null` has
losses whose accuracies are those of the baseline in distribution; `edge` has losses that are better
or worse by exactly the margin, which must not be called equivalent. `asymmetric` leaves what the
test assumes: differences that are skewed themselves, with a mean of zero or of the margin.
"""

from __future__ import annotations

import gc
import json
import sys
import zlib
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from hf_losses.compare.statistics.comparison import (
    Comparison,
    compare,
    seed_spread,
    with_outlook,
)
from hf_losses.compare.statistics.p_values import ALPHA

SHARED = 0.3  # Correlation of two losses with the same seed.
DESIGNS = ((5, 3), (7, 2), (12, 5))  # Seeds, and losses beside the baseline.
WIDE = 3  # Margins in standard deviations: within narrow ones no interval of few seeds fits.
MOST_ADDED = 15  # Seeds added at a time, where the report asks for more.
# Accuracies as functions of a uniform number, and the step between two possible ones.
LAWS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "normal": (lambda u: stats.norm.ppf(u, 0.8, 0.02), 0.0),
    "skewed": (lambda u: 1 - stats.lognorm.ppf(u, 0.8, scale=0.1), 0.0),
    "tied: 40 test rows": (lambda u: stats.binom.ppf(u, 40, 0.95) / 40, 1 / 40),
    "discrete: 1000 test rows": (lambda u: stats.binom.ppf(u, 1000, 0.8) / 1000, 1 / 1000),
    "one run in ten at chance": (
        lambda u: np.where(u < 0.1, 0.1, stats.norm.ppf((u - 0.1) / 0.9, 0.8, 0.02)),
        0.0,
    ),
}
GRID = (np.arange(20_000) + 0.5) / 20_000
# Differences with a mean of zero and a standard deviation of about one.
ASYMMETRIC: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "gamma, skewness 1.0": lambda rng, k: (rng.gamma(4, size=k) - 4) / 2,
    "lognormal, skewness 1.75": lambda rng, k: (
        (rng.lognormal(0, 0.5, k) - np.exp(1 / 8)) / np.sqrt(np.exp(0.5) - np.exp(0.25))
    ),
    "exponential, skewness 2.0": lambda rng, k: rng.exponential(size=k) - 1,
    "one run in ten fails": lambda rng, k: (
        ((rng.random(k) < 0.1) - 0.1) / 0.3 + rng.normal(0, 0.1, k)
    ),
}

Values = dict[str, dict[int, float]]


def accuracies(
    rng: np.random.Generator, law: str, seeds: range, losses: int, shift: float
) -> Values:
    """Accuracies of a baseline and of losses that differ from it by `shift` up and down in turn."""
    quantile, _ = LAWS[law]
    shared = rng.normal(size=len(seeds))
    values = {}
    for number in range(losses + 1):
        own = rng.normal(size=len(seeds))
        uniform = stats.norm.cdf(np.sqrt(SHARED) * shared + np.sqrt(1 - SHARED) * own)
        moved = quantile(uniform) + (shift * (-1) ** number if number else 0.0)
        values[f"loss{number}"] = dict(zip(seeds, moved.tolist(), strict=True))
    return values


def spread(law: str) -> float:
    """The standard deviation of a law, rounded to its step."""
    quantile, step = LAWS[law]
    deviation = float(np.std(quantile(GRID)))
    return round(deviation / step) * step if step else deviation


def errors(
    comparisons: dict[str, Comparison], shift: float, margin: float | None
) -> dict[str, bool]:
    """Whether anything false is said of any of the losses, which all differ by `shift`."""
    if shift == 0:
        verdicts = {comparison.verdict for comparison in comparisons.values()}
        return {"false_different": bool({"better", "worse"} & verdicts)}
    # Of a loss that is better or worse, too, the report says if that is less than the margin.
    p_values = [comparison.p_equivalent for comparison in comparisons.values()]
    within = any(p is not None and p <= ALPHA for p in p_values)
    return {"false_equivalent": within and abs(shift) >= (margin or 0.0)}


def one_look(
    rng: np.random.Generator, law: str, seeds: int, losses: int, shift: float, margin: float | None
) -> dict[str, bool]:
    """A comparison with one look; without a margin, its margin is the default one."""
    values = accuracies(rng, law, range(1, seeds + 1), losses, shift)
    margin = margin or seed_spread(values, "loss0")
    found = compare(values, "loss0", range(1, seeds + 1), margin=margin)
    return errors(found, shift, margin)


def looks(
    rng: np.random.Generator,
    law: str,
    seeds: int,
    losses: int,
    shift: float,
    fixed_margin: float | None,
    added: int | None,
    most_looks: int,
) -> dict[str, bool]:
    """A comparison to which seeds are added while any loss is undecided.

    As many as `added`, or else as the report itself asks for. Without a margin, every look has the
    default one of its seeds. An error at any look counts. `naive` are those of somebody who looks
    as often, each time at 5 %.
    """
    values = accuracies(rng, law, range(1, seeds + 1), losses, shift)
    wrong: dict[str, bool] = {}
    for look in range(1, most_looks + 1):
        count = len(values["loss0"])
        margin = fixed_margin or seed_spread(values, "loss0")
        found = compare(values, "loss0", range(1, count + 1), margin=margin, look=look)
        now = errors(found, shift, margin)
        if shift == 0:
            smallest = min(comparison.p or 0.0 for comparison in found.values())
            now["naive"] = smallest * losses <= ALPHA
        wrong = {kind: wrong.get(kind, False) or is_wrong for kind, is_wrong in now.items()}
        undecided = {loss: entry for loss, entry in found.items() if entry.verdict == "undecided"}
        if not undecided:
            break
        more = added
        if more is None:
            asked = with_outlook(undecided, margin, look).values()
            numbers = [entry.outlook.seeds for entry in asked if entry.outlook]
            more = min(number or MOST_ADDED for number in [*numbers, MOST_ADDED])
        fresh = accuracies(rng, law, range(count + 1, count + more + 1), losses, shift)
        values = {loss: values[loss] | fresh[loss] for loss in values}
    return wrong


def asymmetric(
    rng: np.random.Generator, law: str, seeds: int, side: int, shift: float
) -> dict[str, bool]:
    """One loss whose differences follow an asymmetric law."""
    differences = side * (ASYMMETRIC[law](rng, seeds) + shift)
    values = {
        "loss0": dict.fromkeys(range(seeds), 0.0),
        "loss1": dict(enumerate(differences.tolist())),
    }
    return errors(compare(values, "loss0", range(seeds), margin=WIDE), shift, WIDE)


def decided(
    rng: np.random.Generator, law: str, seeds: int, losses: int, shift: float
) -> dict[str, bool]:
    """Which verdict the first loss gets, with a margin of one standard deviation of the seeds."""
    values = accuracies(rng, law, range(seeds), losses, shift)
    verdict = compare(values, "loss0", range(seeds), margin=spread(law))["loss1"].verdict
    return {name: verdict == name for name in ("better", "worse", "equivalent", "undecided")}


def conditions() -> dict[str, tuple[Callable[..., dict[str, bool]], tuple[Any, ...]]]:
    """Function and arguments of every condition, by its name."""
    named: dict[str, tuple[Callable[..., dict[str, bool]], tuple[Any, ...]]] = {}
    for law in LAWS:
        margin = WIDE * spread(law)
        for seeds, losses in DESIGNS:
            title = f"{law}; {seeds} seeds; {losses} losses"
            design = (law, seeds, losses)
            named[f"null; {title}"] = one_look, (*design, 0.0, margin)
            named[f"edge; {title}"] = one_look, (*design, margin, margin)
            named[f"edge, default margin; {title}"] = one_look, (*design, spread(law), None)
        for how, added, most in (("as advised", None, 3), ("one by one", 1, 8)):
            title = f"{law}; 7 seeds, added {how}, {most} looks; 2 losses"
            narrow = spread(law)  # So that it takes several looks.
            named[f"null; {title}"] = looks, (law, 7, 2, 0.0, narrow, added, most)
            named[f"edge; {title}"] = looks, (law, 7, 2, narrow, narrow, added, most)
            if added is None:
                named[f"edge, default margin; {title}"] = looks, (law, 7, 2, narrow, None, None, 3)
    for law in ASYMMETRIC:
        for seeds, (side, way) in product((7, 12), ((1, "up"), (-1, "down"))):
            title = f"{law}, {way}; {seeds} seeds; 1 loss"
            named[f"asymmetric null; {title}"] = asymmetric, (law, seeds, side, 0.0)
            named[f"asymmetric edge; {title}"] = asymmetric, (law, seeds, side, WIDE)
    for seeds, deviations in product((7, 12, 20, 30), (0.0, 0.5, 1.0, 2.0)):
        title = f"true difference {deviations} sd; {seeds} seeds; 3 losses"
        shift = -deviations * spread("normal")  # `accuracies` moves the first loss the other way.
        named[f"decided; {title}"] = decided, ("normal", seeds, 3, shift)
    return named


REPETITIONS = {one_look: 2000, looks: 2000, asymmetric: 2000, decided: 500}


def rates(name: str, repetitions: int) -> dict[str, float]:
    """The rates of a condition, which depend on its name and the number of repetitions only."""
    function, arguments = conditions()[name]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    outcomes = [function(rng, *arguments) for _ in range(repetitions)]
    return {kind: float(np.mean([outcome[kind] for outcome in outcomes])) for kind in outcomes[0]}


def main(part: str = "") -> None:
    """Runs the conditions with this in their name."""
    path = Path(__file__).with_name("results.json")
    stored = json.loads(path.read_text())["conditions"] if part else {}
    rates(next(iter(conditions())), 1)
    gc.freeze()  # statsmodels collects garbage in every correction.
    found = {}
    for name, (function, _) in conditions().items():
        if part not in name:
            found[name] = stored[name]
            continue
        repetitions = REPETITIONS[function]
        found[name] = {"repetitions": repetitions, **rates(name, repetitions)}
        print(name, found[name], flush=True)
    content = {"alpha": ALPHA, "conditions": found}
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
