"""What paired runs show: differences to the baseline, their intervals and tests, by scipy.

Every loss ran on the same seeds as the baseline, so each seed gives one difference, and the tests
ask whether these differ from zero: a sign-flip permutation test, corrected over the losses by
Holm's method. Differences are positive where the loss is better, whatever the metric.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from hf_losses.compare.intervals import bootstrap_interval
from hf_losses.compare.p_values import ALPHA, holm, sign_flip_p, smallest_p
from hf_losses.compare.power import POWER, detectable_difference, difference_spread, seeds_needed
from hf_losses.compare.speed import time_to_baseline

VERDICTS = ("better", "worse", "tie", "incomplete")

CALIBRATION = ("cross_entropy", "ece")


def statistics(results: Mapping[str, Any]) -> dict[str, Any]:
    """What a comparison shows so far; the entry `statistics` of `results.json`.

    Args:
        results: What `compare.collect` returns.

    Returns:
        `stages`, each with what it can find and its `losses`: mean, standard deviation, values by
        seed, calibration, `time_to_baseline` and `comparison` with the baseline (None for that
        itself). JSON types alone.
    """
    plan = results["plan"]
    names = ("screen", "confirm") if plan["screen"] else ("main",)
    stages = [
        _stage(results, name, [run for run in results["runs"] if run["stage"] == name])
        for name in names
    ]
    return {
        "alpha": ALPHA,
        "power": POWER,
        "lower_is_better": plan["lower_is_better"],
        "stages": [stage for stage in stages if stage],
    }


def _stage(
    results: Mapping[str, Any], stage: str, runs: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    if not runs:
        return None
    plan, baseline = results["plan"], results["plan"]["baseline"]
    tested = stage != "screen"
    first = 1 + (plan["screen"] if stage == "confirm" else 0)
    count = {"main": plan["seeds"], "screen": plan["screen"], "confirm": plan["confirm"]}[stage]
    seeds = list(range(first, first + count))
    # The confirmation leaves most losses out; the other stages have all of them.
    in_it = [x for x in plan["losses"] if stage != "confirm" or any(r["loss"] == x for r in runs)]
    by_loss = {loss: [run for run in runs if run["loss"] == loss] for loss in in_it}
    values = {
        loss: {run["seed"]: run["value"] for run in of_loss if run["status"] == "finished"}
        for loss, of_loss in by_loss.items()
    }
    comparisons = compare(
        values, baseline, seeds, lower_is_better=plan["lower_is_better"], tested=tested
    )
    metric = results["metric"]
    losses = []
    for loss, of_loss in by_loss.items():
        found = list(values[loss].values())
        done = {run["seed"] for run in of_loss}
        losses.append(
            {
                "loss": loss,
                "mean": fmean(found) if found else None,
                "sd": stdev(found) if len(found) > 1 else None,
                "values": {str(seed): value for seed, value in sorted(values[loss].items())},
                "failed": {
                    str(run["seed"]): run["reason"]
                    for run in of_loss
                    if run["status"] != "finished"
                },
                "missing": [seed for seed in seeds if seed not in done],
                **{name: _mean_of(of_loss, metric, name) for name in CALIBRATION},
                "time_to_baseline": time_to_baseline(
                    of_loss, by_loss.get(baseline, []), metric["name"], plan["lower_is_better"]
                )
                if metric
                else None,
                "comparison": comparisons.get(loss),
            }
        )
    sign = 1 if plan["lower_is_better"] else -1
    losses.sort(
        key=lambda x: (
            x["loss"] != baseline,
            x["mean"] is None,
            0 if x["mean"] is None else sign * x["mean"],
        )
    )
    tests = plan["top"] or len(plan["losses"]) - 1
    spread = difference_spread(comparisons)
    found_at = math.inf if spread is None else detectable_difference(spread, len(seeds), tests)
    return {
        "stage": stage,
        "tested": tested,
        "seeds": seeds,
        "comparisons": tests,
        "smallest_p": smallest_p(len(seeds), tests),
        "seeds_needed": seeds_needed(tests),
        "detectable_difference": found_at if math.isfinite(found_at) else None,
        "losses": losses,
    }


def _mean_of(
    runs: Sequence[Mapping[str, Any]], metric: Mapping[str, str] | None, name: str
) -> float | None:
    """The mean of another metric on the compared set, over the runs that finished."""
    if not metric:
        return None
    found = [run["metrics"][metric["set"]].get(name) for run in runs if run["status"] == "finished"]
    return fmean(found) if found and None not in found else None


def compare(
    values: Mapping[str, Mapping[int, float]],
    baseline: str,
    seeds: Sequence[int],
    *,
    lower_is_better: bool = False,
    tested: bool = True,
) -> dict[str, dict[str, Any]]:
    """Compares every loss with the baseline, seed by seed.

    Args:
        values: The metric by loss and seed; a seed that failed is absent.
        baseline: One of the losses.
        seeds: Those that the design has. A loss or a baseline that lacks one is `incomplete`: what
            failed may have failed because of the loss, so the rest is no fair sample. It counts in
            Holm's correction all the same, as p = 1.
        lower_is_better: Whether the better value is the smaller one.
        tested: False gives no p values and no verdicts, as for a screening.

    Returns:
        By loss, without the baseline: `pairs`, `differences` by seed (positive is better), their
        mean `difference`, `sd`, `interval` (95 %, BCa bootstrap; None for less than five pairs),
        `p`, `p_holm`, `probability_better` (share of the seeds, ties count half) and `verdict`.
    """
    sign = -1.0 if lower_is_better else 1.0
    reference = values.get(baseline, {})
    found: dict[str, dict[str, Any]] = {}
    for loss, of_loss in values.items():
        if loss == baseline:
            continue
        pairs = [seed for seed in seeds if seed in of_loss and seed in reference]
        differences = [sign * (of_loss[seed] - reference[seed]) for seed in pairs]
        found[loss] = {
            "pairs": len(pairs),
            "differences": {str(s): d for s, d in zip(pairs, differences, strict=True)},
            "difference": fmean(differences) if pairs else None,
            "sd": stdev(differences) if len(pairs) > 1 else None,
            "interval": bootstrap_interval(differences),
            "p": sign_flip_p(differences) if tested and len(pairs) == len(seeds) else None,
            "p_holm": None,
            "probability_better": fmean((d > 0) + (d == 0) / 2 for d in differences)
            if pairs
            else None,
            "verdict": None,
        }
    if not tested or not found:
        return found
    p_values = [1.0 if entry["p"] is None else entry["p"] for entry in found.values()]
    for entry, p_holm in zip(found.values(), holm(p_values), strict=True):
        if entry["p"] is None:
            entry["verdict"] = "incomplete"
            continue
        entry["p_holm"] = p_holm
        better_or_worse = "better" if entry["difference"] > 0 else "worse"
        entry["verdict"] = better_or_worse if p_holm <= ALPHA else "tie"
    return found


def describe_spread(
    values: Mapping[str, Mapping[int, float]], baseline: str, comparisons: int, seeds: int
) -> str:
    """What a design can show, judged by the spread of the first runs, in words.

    Args:
        values: The metric by loss and seed, of the first seeds.
        baseline: One of the losses.
        comparisons: Losses beside the baseline that will be tested.
        seeds: Pairs per loss that the tests will have.

    Returns:
        Words; empty if no loss has two pairs or the design can show nothing.
    """
    first = sorted({seed for of_loss in values.values() for seed in of_loss})
    spread = difference_spread(compare(values, baseline, first, tested=False))
    if spread is None:
        return ""
    found_at = detectable_difference(spread, seeds, comparisons)
    if not math.isfinite(found_at):
        return ""
    return (
        f"By the first {len(first)} seeds, paired differences have a standard deviation of "
        f"{spread:.2g}; {seeds} seeds find a true difference of {found_at:.2g} four times out of "
        "five, and larger ones more often."
    )
