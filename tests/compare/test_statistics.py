"""The statistics of a comparison, against scipy, hand-made cases and simulation."""

import itertools
import json
import math
from dataclasses import asdict
from statistics import NormalDist

import numpy as np
import pytest
from hf_losses.compare.statistics.intervals import bootstrap_interval
from scipy import stats

from hf_losses.compare.plan import Plan
from hf_losses.compare.results import Metric, Results, RunRecord
from hf_losses.compare.statistics import intervals
from hf_losses.compare.statistics.p_values import holm, sign_flip_p, smallest_p
from hf_losses.compare.statistics.power import (
    describe_design,
    detectable_difference,
    median_spread,
    seeds_needed,
)
from hf_losses.compare.statistics.speed import time_to_baseline
from hf_losses.compare.statistics.summary import compare, describe_spread, statistics

# ---- The sign-flip test ----------------------------------------------------------------------


def by_enumeration(differences):
    """The share of all sign patterns whose sum is at least as far from zero as the observed one."""
    total = abs(math.fsum(differences))
    patterns = list(itertools.product((-1, 1), repeat=len(differences)))
    sums = (
        abs(math.fsum(s * abs(d) for s, d in zip(p, differences, strict=True))) for p in patterns
    )
    return sum(other >= total - 1e-12 for other in sums) / len(patterns)


@pytest.mark.parametrize("seeds", [2, 3, 7, 10])
def test_p_is_that_of_all_sign_patterns(seeds):
    generator = np.random.default_rng(seeds)
    for shift in (0, 0.5, 2):
        differences = list(generator.normal(shift, 1, seeds))
        assert sign_flip_p(differences) == pytest.approx(by_enumeration(differences))


def test_p_of_accuracies_whose_sums_are_equal_but_for_rounding():
    # Accuracies are counts of one test set, so many patterns have exactly the observed sum.
    generator = np.random.default_rng(0)
    for total in (359, 872, 1044, 10_000):
        for _ in range(20):
            counts = generator.integers(-3, 5, 10)
            first = generator.integers(total // 2, total - 10, 10)
            differences = [(a + c) / total - a / total for a, c in zip(first, counts, strict=True)]
            exact = by_enumeration(counts.tolist())
            assert sign_flip_p(differences) == pytest.approx(exact), counts


@pytest.mark.parametrize("seeds", range(1, 13))
def test_the_smallest_p_of_k_seeds(seeds):
    assert sign_flip_p([0.1] * seeds) == pytest.approx(min(1, 2 / 2**seeds))
    assert sign_flip_p([-0.1] * seeds) == pytest.approx(min(1, 2 / 2**seeds))


def test_no_difference_at_all():
    assert sign_flip_p([0.0] * 10) == 1
    assert sign_flip_p([0.1, -0.1] * 4) == 1


def test_many_seeds_take_random_patterns_and_still_agree():
    generator = np.random.default_rng(1)
    differences = generator.normal(0.25, 1, 24)
    # So many seeds are nearly normal.
    expected = stats.ttest_1samp(differences, 0).pvalue
    assert sign_flip_p(list(differences)) == pytest.approx(expected, rel=0.1)
    assert sign_flip_p(list(differences)) == sign_flip_p(list(differences))


# ---- The interval ----------------------------------------------------------------------------


def by_efron(values, seed=5, resamples=40_000):
    """BCa as in Efron and Tibshirani (1993), equations 14.9 to 14.15."""
    values = np.asarray(values)
    generator = np.random.default_rng(seed)
    means = generator.choice(values, (resamples, len(values))).mean(1)
    normal = NormalDist()
    below = (means < values.mean()).mean() + (means == values.mean()).mean() / 2
    z0 = normal.inv_cdf(below)
    left_out = np.array([np.delete(values, i).mean() for i in range(len(values))])
    away = left_out.mean() - left_out
    a = (away**3).sum() / (6 * (away**2).sum() ** 1.5)
    limits = []
    for share in (0.025, 0.975):
        z = z0 + normal.inv_cdf(share)
        limits.append(np.quantile(means, normal.cdf(z0 + z / (1 - a * z))))
    return limits


@pytest.mark.parametrize("values", ["normal", "skewed"])
def test_the_interval_is_bca(values):
    generator = np.random.default_rng(2)
    draw = {"normal": generator.normal, "skewed": generator.exponential}[values]
    differences = [float(draw()) for _ in range(12)]
    width = np.ptp(by_efron(differences))
    assert bootstrap_interval(differences) == pytest.approx(by_efron(differences), abs=0.03 * width)


def test_no_interval_of_few_and_none_of_no_width_where_there_is_a_spread():
    assert bootstrap_interval([0.1, 0.2, 0.3, 0.4]) is None
    assert bootstrap_interval([]) is None
    assert bootstrap_interval([0.1] * 6) == [0.1, 0.1]
    low, high = bootstrap_interval([0.1, 0.2, 0.3, 0.4, 0.5])
    assert low < 0.3 < high


def test_the_interval_misses_about_as_often_as_its_docstring_says(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 499)
    generator = np.random.default_rng(3)
    inside = 0
    for _ in range(200):
        low, high = bootstrap_interval(list(generator.normal(0.3, 1, 10)))
        inside += low <= 0.3 <= high
    assert 0.85 < inside / 200 < 0.97


# ---- Correction and power --------------------------------------------------------------------


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]


def test_what_seeds_can_show():
    assert smallest_p(6, 9) == pytest.approx(9 * 2 / 2**6)
    assert smallest_p(6, 9) > 0.05 > smallest_p(10, 9)
    assert smallest_p(1, 9) == 1
    for comparisons in (1, 2, 9, 20):
        needed = seeds_needed(comparisons)
        assert smallest_p(needed, comparisons) <= 0.05 < smallest_p(needed - 1, comparisons)
    assert detectable_difference(0.01, 6, 9) == math.inf


@pytest.mark.parametrize(
    ("seeds", "comparisons"),
    [(12, 2), (10, 1), pytest.param(14, 9, marks=pytest.mark.slow)],
)
def test_the_detectable_difference_is_found_four_times_out_of_five(seeds, comparisons):
    # Of a family whose other losses differ in nothing, this is Holm's first step.
    true = detectable_difference(0.01, seeds, comparisons)
    generator = np.random.default_rng(4)
    rejected = [
        sign_flip_p(list(generator.normal(true, 0.01, seeds))) <= 0.05 / comparisons
        for _ in range(150)
    ]
    assert 0.65 < np.mean(rejected) < 0.92


def test_spread_is_the_median_over_the_losses():
    assert median_spread([0.1, 0.3, None, 9.0]) == 0.3
    assert median_spread([None]) is None


# ---- Verdicts --------------------------------------------------------------------------------

SEEDS = list(range(1, 11))


def draw(generator, planted=0.0, losses=9, seeds=SEEDS):
    """Accuracies that share what the seed decides; one loss is better by `planted` deviations."""
    shared = generator.normal(0.8, 0.05, len(seeds))
    accuracies = {}
    for number in range(losses + 1):
        values = shared + generator.normal(0, 0.01, len(seeds))
        if number == 1:
            values = values + planted * 0.01
        accuracies[f"loss{number}"] = dict(zip(seeds, values.tolist(), strict=True))
    return accuracies


@pytest.fixture
def no_intervals(monkeypatch):
    """Verdicts do not depend on them, and 500 repetitions would take minutes."""
    monkeypatch.setattr(
        "hf_losses.compare.statistics.summary.bootstrap_interval", lambda differences: None
    )
    monkeypatch.setattr("gc.collect", lambda: 0)  # statsmodels collects garbage at every call.


@pytest.mark.slow
def test_no_difference_is_called_a_tie_at_the_nominal_rate(no_intervals):
    generator = np.random.default_rng(6)
    wrong = 0
    for _ in range(500):
        comparisons = compare(draw(generator), "loss0", SEEDS)
        wrong += any(entry.verdict != "tie" for entry in comparisons.values())
    # All nine share the baseline's noise: the rate is below 5 %, and 8 % is 3 deviations above.
    assert 0 < wrong / 500 < 0.08


def test_a_single_comparison_is_wrong_once_in_twenty(no_intervals):
    generator = np.random.default_rng(7)
    verdicts = [
        compare(draw(generator, losses=1), "loss0", SEEDS)["loss1"].verdict for _ in range(500)
    ]
    assert 0.02 < 1 - verdicts.count("tie") / 500 < 0.08
    assert {"better", "worse"} < set(verdicts)


@pytest.mark.parametrize(("planted", "verdict"), [(4, "better"), (-4, "worse")])
def test_a_planted_difference_is_found_and_no_other(no_intervals, planted, verdict):
    generator = np.random.default_rng(8)
    repetitions = [compare(draw(generator, planted), "loss0", SEEDS) for _ in range(60)]
    assert np.mean([comparisons["loss1"].verdict == verdict for comparisons in repetitions]) > 0.8
    others = [
        comparison.verdict
        for comparisons in repetitions
        for loss, comparison in comparisons.items()
        if loss != "loss1"
    ]
    assert others.count("tie") / len(others) > 0.97


def test_numbers_of_a_comparison_by_hand():
    values = {
        "b": dict.fromkeys(range(1, 7), 0.5),
        "x": {1: 0.6, 2: 0.7, 3: 0.5, 4: 0.4, 5: 0.6, 6: 0.6},
    }
    comparison = compare(values, "b", range(1, 7))["x"]
    differences = [0.1, 0.2, 0.0, -0.1, 0.1, 0.1]
    assert list(comparison.differences) == ["1", "2", "3", "4", "5", "6"]
    assert list(comparison.differences.values()) == pytest.approx(differences)
    assert comparison.difference == pytest.approx(np.mean(differences))
    assert comparison.sd == pytest.approx(np.std(differences, ddof=1))
    assert comparison.probability_better == pytest.approx(4.5 / 6)
    assert comparison.p == comparison.p_holm == pytest.approx(by_enumeration(differences))
    low, high = comparison.interval
    assert low < comparison.difference < high
    reversed_comparison = compare(values, "b", range(1, 7), lower_is_better=True)["x"]
    assert reversed_comparison.difference == pytest.approx(-comparison.difference)
    assert reversed_comparison.probability_better == pytest.approx(1.5 / 6)
    assert reversed_comparison.p == comparison.p


def test_a_missing_seed_makes_no_verdict_but_counts_in_the_correction():
    values = {
        "b": dict.fromkeys(SEEDS, 0.5),
        "x": {seed: 0.6 + seed / 1000 for seed in SEEDS},
        "y": {seed: 0.9 for seed in SEEDS[1:]},
    }
    comparisons = compare(values, "b", SEEDS)
    assert comparisons["y"].verdict == "incomplete"
    assert comparisons["y"].p is comparisons["y"].p_holm is None
    assert comparisons["y"].pairs == 9
    assert comparisons["x"].p_holm == pytest.approx(2 * comparisons["x"].p)
    del values["b"][3]
    assert {e.verdict for e in compare(values, "b", SEEDS).values()} == {"incomplete"}
    assert compare({"b": {}, "x": {}}, "b", SEEDS)["x"].difference is None


def test_a_screening_tests_nothing():
    values = {"b": dict.fromkeys(SEEDS, 0.5), "x": dict.fromkeys(SEEDS, 0.6)}
    comparison = compare(values, "b", SEEDS, tested=False)["x"]
    assert comparison.p is comparison.p_holm is comparison.verdict is None
    assert comparison.difference == pytest.approx(0.1)


# ---- Time to the baseline --------------------------------------------------------------------


def run(seed, scores, seconds=10.0, **fields):
    history = [{"step": 10 * (i + 1), "accuracy": score} for i, score in enumerate(scores)]
    measured = {"history": history, "steps": 10 * len(scores), "seconds": seconds}
    return RunRecord("x", "main", seed, {}, **{"status": "finished", **measured, **fields})


def test_time_to_the_baseline_by_hand():
    baseline = [run(1, [0.1, 0.5, 0.4]), run(2, [0.2, 0.3, 0.6]), run(3, [0.5, 0.5, 0.5])]
    loss = [run(1, [0.5, 0.2, 0.9]), run(2, [0.1, 0.6, 0.1], seconds=30.0), run(3, [0.4, 0.4, 0.4])]
    times = time_to_baseline(loss, baseline, "accuracy", False)
    assert times.by_seed == {"1": 10, "2": 20, "3": None}
    assert (times.reached, times.runs) == (2, 3)
    assert times.steps == 20  # The median of 10, 20 and never.
    assert times.seconds == pytest.approx(20.0)
    baseline_times = time_to_baseline(baseline, baseline, "accuracy", False)
    assert baseline_times.by_seed == {"1": 20, "2": 30, "3": 10}
    lower = time_to_baseline(loss, baseline, "accuracy", True)
    assert lower.by_seed == {"1": None, "2": 10, "3": 10}


def test_a_loss_that_seldom_gets_there_has_no_median():
    baseline = [run(seed, [0.5]) for seed in (1, 2, 3)]
    loss = [run(1, [0.6]), run(2, [0.4]), run(3, [], status="failed", history=(), seconds=None)]
    times = time_to_baseline(loss, baseline, "accuracy", False)
    assert (times.steps, times.seconds, times.reached, times.runs) == (None, None, 1, 3)
    assert time_to_baseline([run(1, [])], [run(1, [])], "accuracy", False) is None
    nothing = [run(1, [math.nan]), run(2, [None])]
    assert time_to_baseline(nothing, nothing, "accuracy", False) is None


# ---- A whole comparison ----------------------------------------------------------------------


def make_results(stages, losses, value, **plan):
    runs = []
    for stage, (names, seeds) in stages.items():
        for loss, seed in itertools.product(names, seeds):
            accuracy = value(loss, seed)
            done = accuracy is not None
            scores = {"accuracy": accuracy, "cross_entropy": 0.5, "ece": seed / 100}
            ended = {"status": "failed", "reason": "RuntimeError: no"}
            if done:
                ended = {"status": "finished", "value": accuracy, "metrics": {"test": scores}}
            runs.append(RunRecord(loss, stage, seed, {}, **ended))
    return Results(
        Plan("x.py", [], losses, losses[0], lower_is_better=False, **plan),
        task=None,
        model=None,
        metric=Metric("test", "accuracy"),
        versions={},
        hardware={},
        same_everywhere=True,
        tuned={},
        runs=runs,
    )


def test_a_whole_comparison():
    losses = ["b", "x", "y"]

    def value(loss, seed):
        return None if (loss, seed) == ("y", 2) else {"b": 0.5, "x": 0.6, "y": 0.9}[loss]

    results = make_results({"main": (losses, range(1, 8))}, losses, value, seeds=8)
    summary = statistics(results)
    json.dumps(asdict(summary), allow_nan=False)
    (stage,) = summary.stages
    assert stage.seeds == list(range(1, 9))
    assert [entry.loss for entry in stage.losses] == ["b", "y", "x"]
    _, y, x = stage.losses
    assert y.failed == {"2": "RuntimeError: no"}
    assert (x.missing, y.missing) == ([8], [8])
    assert x.mean == pytest.approx(0.6)
    assert x.values["7"] == 0.6
    assert x.ece == pytest.approx(0.04)
    assert {x.comparison.verdict, y.comparison.verdict} == {"incomplete"}
    assert stage.losses[0].comparison is None


def test_only_what_was_confirmed_is_tested_and_corrected_for():
    losses = ["b", "v", "w", "x", "y"]
    stages = {"screen": (losses, (1, 2, 3)), "confirm": (["b", "x"], range(4, 16))}
    results = make_results(
        stages,
        losses,
        lambda loss, seed: (loss == "x") / 10 + seed / 100,
        screen=3,
        confirm=12,
        top=1,
    )
    screen, confirm = statistics(results).stages
    assert (screen.tested, confirm.tested) == (False, True)
    assert screen.seeds == [1, 2, 3]
    assert confirm.seeds == list(range(4, 16))
    assert [entry.loss for entry in confirm.losses] == ["b", "x"]
    comparison = confirm.losses[1].comparison
    assert comparison.p_holm == comparison.p == pytest.approx(2 / 2**12)
    assert comparison.verdict == "better"


# ---- In words --------------------------------------------------------------------------------


def test_the_design_in_words():
    assert "9 losses" in describe_design(9, 6)
    assert "no difference, however large, can be significant at 5%" in describe_design(9, 6)
    assert "takes 9 seeds" in describe_design(9, 6)
    assert "so a difference can be found at 5%" in describe_design(9, 10)
    assert "1 paired seed, 1 loss against" in describe_design(1, 1)


def test_the_spread_in_words():
    values = {"b": {1: 0.5, 2: 0.5, 3: 0.5}, "x": {1: 0.5, 2: 0.51, 3: 0.52}}
    text = describe_spread(values, "b", 1, 10)
    assert "first 3 seeds" in text
    assert "standard deviation of 0.01;" in text
    assert f"{detectable_difference(0.01, 10, 1):.2g} four times out of five" in text
    assert describe_spread(values, "b", 9, 6) == ""  # Such a design finds nothing at all.
    assert describe_spread({"b": {1: 0.5}, "x": {1: 0.4}}, "b", 1, 10) == ""
