"""The statistics of a comparison, against scipy, hand-made cases and simulation."""

import itertools
import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats

from hf_losses.compare.plan import Plan
from hf_losses.compare.report.words import steps_to_most
from hf_losses.compare.results import Metric, Results, RunRecord
from hf_losses.compare.statistics.comparison import compare, describe_spread, with_outlook
from hf_losses.compare.statistics.p_values import SignFlips, holm, share_of_look, smallest_p
from hf_losses.compare.statistics.power import (
    Outlook,
    describe_design,
    detectable_difference,
    median_spread,
    outlook,
    seeds_needed,
)
from hf_losses.compare.statistics.speed import time_to_baseline
from hf_losses.compare.statistics.summary import statistics


def sign_flip_p(differences):
    return SignFlips.of(differences).p_different()


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


@pytest.mark.parametrize("seeds", [3, 7, 12, 20])
@pytest.mark.parametrize("alpha", [0.05, 0.3])
def test_the_interval_holds_what_the_test_does_not_reject(seeds, alpha):
    generator = np.random.default_rng(seeds)
    differences = list(generator.exponential(1, seeds))
    limits = SignFlips.of(differences).interval(alpha)
    if 2 / 2**seeds > alpha:
        assert limits is None
        return
    low, high = limits
    for value, rejected in [
        (low - 1e-6, True),
        (low + 1e-6, False),
        (np.mean(differences), False),
        (high - 1e-6, False),
        (high + 1e-6, True),
    ]:
        shifted = [difference - value for difference in differences]
        assert (SignFlips.of(shifted).p_different() <= alpha) == rejected, value


def test_the_limits_are_means_of_subsets():
    # Of the seven subsets of three differences the smallest mean is 1 and the largest 6.
    assert SignFlips.of([1.0, 2.0, 6.0]).interval(0.25) == pytest.approx([1, 6])
    assert SignFlips.of([1.0, 2.0, 6.0]).interval(0.5) == pytest.approx([1.5, 4])
    assert SignFlips.of([1.0, 2.0, 6.0]).interval(0.2) is None
    assert SignFlips.of([0.1] * 6).interval(0.05) == pytest.approx([0.1, 0.1])


def test_equivalence_is_the_interval_within_the_margin():
    generator = np.random.default_rng(2)
    for margin in (0.2, 0.5, 1.0):
        for _ in range(40):
            flips = SignFlips.of(list(generator.normal(0.1, 0.5, 9)))
            low, high = flips.interval(0.04)
            assert (flips.p_equivalent(margin) <= 0.04) == (-margin < low and high < margin)


def test_a_difference_of_just_the_margin_is_not_within_it():
    # Rounding errors: 0.875 - 0.87 is larger than 0.005, 0.905 - 0.9 is smaller on its way.
    for high, low in ((0.875, 0.87), (0.88, 0.875), (0.305, 0.3), (0.605, 0.6), (0.905, 0.9)):
        assert SignFlips.of([high - low] * 10).p_equivalent(0.005) == 1
        assert SignFlips.of([low - high] * 10).p_equivalent(0.005) == 1
    assert SignFlips.of([0.875 - 0.87] * 10).p_equivalent(0.006) == pytest.approx(2 / 2**10)


# ---- Correction and power --------------------------------------------------------------------


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]


def test_what_seeds_can_show():
    assert smallest_p(9, 9) == pytest.approx(9 * 2 / 2**9 * 3 / 2)
    assert smallest_p(9, 9) > 0.05 > smallest_p(10, 9)
    assert smallest_p(1, 9) == 1
    for comparisons, look in itertools.product((1, 2, 9, 20), (1, 2, 3)):
        needed = seeds_needed(comparisons, look)
        assert smallest_p(needed, comparisons, look) <= 0.05
        assert smallest_p(needed - 1, comparisons, look) > 0.05
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
        sign_flip_p(list(generator.normal(true, 0.01, seeds))) <= 0.05 * 2 / 3 / comparisons
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
def no_collection(monkeypatch):
    """Statsmodels collects garbage at every call, and 500 repetitions would take minutes."""
    monkeypatch.setattr("gc.collect", lambda: 0)


@pytest.mark.slow
def test_no_difference_is_undecided_at_the_nominal_rate(no_collection):
    generator = np.random.default_rng(6)
    wrong = 0
    for _ in range(500):
        comparisons = compare(draw(generator), "loss0", SEEDS)
        wrong += any(entry.verdict != "undecided" for entry in comparisons.values())
    # All nine share the baseline's noise: the rate is below 5 %, and 8 % is 3 deviations above.
    assert 0 < wrong / 500 < 0.08


def test_a_single_comparison_is_wrong_once_in_thirty(no_collection):
    generator = np.random.default_rng(7)
    verdicts = [
        compare(draw(generator, losses=1), "loss0", SEEDS)["loss1"].verdict for _ in range(500)
    ]
    # The first look has two thirds of 5 %.
    assert 0.01 < 1 - verdicts.count("undecided") / 500 < 0.06
    assert {"better", "worse"} < set(verdicts)


@pytest.mark.parametrize(("planted", "verdict"), [(4, "better"), (-4, "worse")])
def test_a_planted_difference_is_found_and_no_other(no_collection, planted, verdict):
    generator = np.random.default_rng(8)
    repetitions = [compare(draw(generator, planted), "loss0", SEEDS) for _ in range(60)]
    assert np.mean([comparisons["loss1"].verdict == verdict for comparisons in repetitions]) > 0.8
    others = [
        comparison.verdict
        for comparisons in repetitions
        for loss, comparison in comparisons.items()
        if loss != "loss1"
    ]
    assert others.count("undecided") / len(others) > 0.97


@pytest.mark.parametrize("look", [1, 2, 3])
def test_the_interval_says_what_the_verdict_says(no_collection, look):
    generator = np.random.default_rng(9)
    seen = set()
    for planted in (0, 1, 2, 4) * 15:
        comparisons = compare(
            draw(generator, planted, losses=4, seeds=range(14)),
            "loss0",
            range(14),
            margin=0.01,
            look=look,
        )
        for entry in comparisons.values():
            low, high = entry.interval
            within = -0.01 < low and high < 0.01
            expected = "equivalent" if within else "undecided"
            if low > 0 or high < 0:
                expected = "better" if low > 0 else "worse"
            assert entry.verdict == expected
            assert (entry.p_adjusted <= 0.05) == (entry.verdict in ("better", "worse"))
            if entry.verdict == "equivalent":
                assert entry.p_equivalent <= 0.05
            seen.add(entry.verdict)
    assert {"better", "equivalent", "undecided"} <= seen


def test_a_loss_that_only_holms_second_step_finds_has_the_interval_of_that_step():
    b, clear = dict.fromkeys(range(8), 0.5), {seed: 0.6 + seed / 100 for seed in range(8)}
    # Two of its 255 subsets have no positive mean: p = 2 * 3 / 256, between 1/60 and 1/30.
    close = dict(enumerate([0.49, 0.51, 0.6, 0.61, 0.62, 0.63, 0.64, 0.65]))
    found = compare({"b": b, "clear": clear, "close": close}, "b", range(8))
    assert found["close"].p == pytest.approx(6 / 256)
    assert found["close"].p_adjusted == pytest.approx(6 / 256 * 3 / 2)
    assert found["close"].level == pytest.approx(1 / 30)
    assert found["clear"].level == pytest.approx(1 / 60)
    assert {entry.verdict for entry in found.values()} == {"better"}
    assert found["close"].interval[0] > 0
    # Beside a loss that is not found, it is not found either.
    found = compare({"b": b, "same": b, "close": close}, "b", range(8))
    assert found["close"].verdict == "undecided"
    assert found["close"].level == pytest.approx(1 / 60)
    assert found["close"].interval[0] <= 0


def test_a_later_look_pays_for_the_earlier_ones():
    values = {"b": dict.fromkeys(SEEDS, 0.5), "x": {seed: 0.5 + seed / 99 for seed in SEEDS}}
    first, second = (compare(values, "b", SEEDS, look=look)["x"] for look in (1, 2))
    assert first.p == second.p == pytest.approx(2 / 2**10)
    assert first.p_adjusted == pytest.approx(first.p * 3 / 2)
    assert second.p_adjusted == pytest.approx(first.p * 9 / 2)
    assert sum(map(share_of_look, range(1, 60))) == pytest.approx(1)


def test_seven_seeds_and_two_losses_as_users_met_them():
    # A difference of -0.12 whose corrected p value is above 5 % was once called "= tie".
    values = {
        "b": dict.fromkeys(range(7), 0.7),
        "x": dict(enumerate([0.52, 0.50, 0.71, 0.55, 0.60, 0.62, 0.55])),
        "y": dict.fromkeys(range(7), 0.7),
    }
    entry = with_outlook(compare(values, "b", range(7), margin=0.02), 0.02, 1)["x"]
    low, high = entry.interval
    assert entry.verdict == "undecided"
    assert low < 0 < high
    assert entry.p_adjusted > 0.05
    assert entry.outlook.shows == "difference"
    assert 0 < entry.outlook.seeds < 20


# ---- What would decide -----------------------------------------------------------------------


def power_by_simulation(difference, spread, margin, seeds, alpha):
    """How often t intervals exclude zero, and how often they lie within the margin."""
    draws = np.random.default_rng(0).normal(difference, spread, (20_000, seeds))
    half = stats.t.isf(alpha / 2, seeds - 1) * draws.std(1, ddof=1) / math.sqrt(seeds)
    means = np.abs(draws.mean(1))
    return np.mean(means > half), np.mean(means + half < margin)


@pytest.mark.parametrize(
    ("difference", "margin", "shows"), [(0.01, 0.012, "difference"), (0.001, 0.01, "equivalence")]
)
def test_the_seeds_it_asks_for_decide_four_times_out_of_five(difference, margin, shows):
    ahead = outlook(difference, 0.012, margin, 8, 2, 1)
    assert ahead.shows == shows
    level = 0.05 * share_of_look(2) / 2
    total = 8 + ahead.seeds
    different, within = power_by_simulation(difference, 0.012, margin, total, level)
    assert 0.78 < (different if shows == "difference" else within) < 0.86


def test_what_no_seeds_would_decide():
    assert outlook(0.01, 0.1, 0.0101, 8, 2, 1) == Outlook(None, None)
    assert outlook(0.0, 0.1, None, 8, 2, 1) == Outlook(None, None)
    # Equal differences of too few seeds: the seeds that the test needs.
    assert outlook(0.1, 0.0, 0.01, 5, 2, 1) == Outlook(seeds_needed(2, 2) - 5, "difference")
    assert outlook(0.0, 0.0, 0.01, 5, 2, 1) == Outlook(seeds_needed(2, 2) - 5, "equivalence")


def test_numbers_of_a_comparison_by_hand():
    values = {
        "b": dict.fromkeys(range(1, 7), 0.5),
        "x": {1: 0.6, 2: 0.7, 3: 0.5, 4: 0.4, 5: 0.6, 6: 0.6},
    }
    comparison = compare(values, "b", range(1, 7), margin=0.2)["x"]
    differences = [0.1, 0.2, 0.0, -0.1, 0.1, 0.1]
    assert list(comparison.differences) == ["1", "2", "3", "4", "5", "6"]
    assert list(comparison.differences.values()) == pytest.approx(differences)
    assert comparison.difference == pytest.approx(np.mean(differences))
    assert comparison.sd == pytest.approx(np.std(differences, ddof=1))
    assert comparison.probability_better == pytest.approx(4.5 / 6)
    assert comparison.p == pytest.approx(by_enumeration(differences))
    assert comparison.p_adjusted == pytest.approx(comparison.p * 3 / 2)
    assert comparison.level == pytest.approx(0.05 * 2 / 3)
    # One of the 64 subsets of each side: the limits are the extreme differences.
    assert comparison.interval == pytest.approx([-0.1, 0.2])
    # Minus 0.2 no difference is positive and one is zero: 2 of the 64 patterns have so small a sum.
    # Plus 0.2 all are positive, which makes the smaller p value of the two.
    assert comparison.p_equivalent == pytest.approx(2 * 2 / 64 * 3 / 2)
    assert comparison.verdict == "undecided"
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
    assert comparisons["y"].p is comparisons["y"].p_adjusted is comparisons["y"].interval is None
    assert comparisons["y"].pairs == 9
    assert comparisons["x"].p_adjusted == pytest.approx(2 * comparisons["x"].p * 3 / 2)
    del values["b"][3]
    assert {e.verdict for e in compare(values, "b", SEEDS).values()} == {"incomplete"}
    assert compare({"b": {}, "x": {}}, "b", SEEDS)["x"].difference is None


def test_a_screening_tests_nothing():
    values = {"b": dict.fromkeys(SEEDS, 0.5), "x": dict.fromkeys(SEEDS, 0.6)}
    comparison = compare(values, "b", SEEDS, tested=False)["x"]
    assert comparison.p is comparison.p_adjusted is comparison.verdict is None
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


def test_time_to_most_of_the_baselines_value_by_hand():
    baseline = [run(seed, [0.2, 0.77, 0.8]) for seed in range(1, 8)]  # 0.95 · 0.8 = 0.76 at 20.
    loss = [run(seed, [0.76 if seed > 3 else 0.7, 0.7, 0.9]) for seed in range(1, 8)]
    times = time_to_baseline(loss, baseline, "accuracy", False, 0.95)
    assert times.by_seed == {str(seed): 10 if seed > 3 else 30 for seed in range(1, 8)}
    assert times.steps == 10
    assert times.ratio == pytest.approx((0.5**4 * 1.5**3) ** (1 / 7))
    # With 7 seeds the interval ends at the second subset mean from either end (2 · 3 / 128 < 5 %).
    means = sorted(
        np.mean([math.log(1.5 if i < 3 else 0.5) for i in subset])
        for size in range(1, 8)
        for subset in itertools.combinations(range(7), size)
    )
    assert times.ratio_interval == pytest.approx([math.exp(means[2]), math.exp(means[-3])])
    own = time_to_baseline(baseline, baseline, "accuracy", False, 0.95)
    assert (own.ratio, own.ratio_interval) == (1.0, [1.0, 1.0])
    loss[0] = run(1, [0.7, 0.7, 0.7])  # It never gets there: its ratio is above 30 / 20, as before.
    times = time_to_baseline(loss, baseline, "accuracy", False, 0.95)
    assert (times.ratio, times.reached) == (None, 6)
    assert times.ratio_interval == [pytest.approx(math.exp(means[2])), None]
    assert steps_to_most(times, False) == f"10, × [{math.exp(means[2]):.2f}, ∞) (6/7)"
    loss[0] = run(1, [], status="failed", history=(), seconds=None)  # At no step is it known.
    times = time_to_baseline(loss, baseline, "accuracy", False, 0.95)
    assert (times.ratio, times.ratio_interval, times.reached) == (None, None, 6)


@pytest.mark.parametrize("before", ["baseline", "loss"])
def test_there_is_no_ratio_to_what_is_reached_before_the_first_step(before):
    scores = {"baseline": [0.2, 0.8], "loss": [0.8, 0.8]} | {before: [0.8, 0.8]}
    runs = {name: [run(seed, scores[name]) for seed in range(1, 8)] for name in scores}
    for one in runs[before]:
        for number, entry in enumerate(one.history):
            entry["step"] = 10 * number
    times = time_to_baseline(runs["loss"], runs["baseline"], "accuracy", False, 0.95)
    assert times.reached == 7
    assert (times.ratio, times.ratio_interval) == (None, None)


def test_most_of_an_error_and_of_what_is_not_positive():
    baseline, loss = [run(1, [0.9, 0.19])], [run(1, [0.201, 0.199])]
    times = time_to_baseline(loss, baseline, "accuracy", True, 0.95)  # 0.19 / 0.95 = 0.2.
    assert times.by_seed == {"1": 20}
    few = times.ratio, times.ratio_interval
    assert few == (1.0, None)
    correlation = [run(1, [-0.1, 0.0]), run(2, [0.5, 0.6])]  # A seed collapsed.
    assert time_to_baseline(loss, correlation, "accuracy", False, 0.95) is None
    assert time_to_baseline(loss, correlation, "accuracy", False) is not None


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
    assert comparison.p == pytest.approx(2 / 2**12)
    assert comparison.p_adjusted == pytest.approx(3 / 2**12)
    assert comparison.verdict == "better"


# ---- In words --------------------------------------------------------------------------------


def test_the_design_in_words():
    assert "9 losses" in describe_design(9, 6)
    assert "nothing can be decided at 5%, however large" in describe_design(9, 6)
    assert "takes 10 seeds" in describe_design(9, 6)
    assert ", look 2 at the results: " in describe_design(9, 20, 2)
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
