"""Every number of a committed comparison follows from its runs, with scipy and nothing of ours."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import hf_losses

COMMITTED = Path(hf_losses.__file__).parents[1] / "results" / "untuned"
STEP = 1e-7  # Beside a limit of an interval.


def sign_flip_p(differences, alternative="two-sided"):
    """The p value of a mean of zero by scipy, whose patterns are all of 2^n."""
    scale = max(map(abs, differences))
    return stats.permutation_test(
        (np.asarray(differences),),
        lambda x, axis: np.round(np.mean(x, axis=axis) / scale, 9),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
        alternative=alternative,
    ).pvalue


def holm(p_values):
    """Holm (1979), step by step."""
    adjusted, largest = {}, 0.0
    for step, (p, loss) in enumerate(sorted((p, loss) for loss, p in p_values.items())):
        largest = max(largest, min(1.0, (len(p_values) - step) * p))
        adjusted[loss] = largest
    return adjusted


def confirmed(folder):
    """The stage with verdicts: its statistics, and the values of the runs by loss and seed."""
    content = json.loads((COMMITTED / folder / "results.json").read_text(encoding="utf-8"))
    stage = content["statistics"]["stages"][-1]
    values = {}
    for run in content["runs"]:
        if run["stage"] == stage["stage"]:
            values.setdefault(run["loss"], {})[run["seed"]] = run["value"]
    return content, stage, values


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in COMMITTED.glob("*/*.json")))
def test_the_numbers_of_a_comparison(folder):
    content, stage, values = confirmed(folder)
    assert content["plan"]["lower_is_better"] is False
    baseline = values.pop(content["plan"]["baseline"])
    margin = stats.tstd(list(baseline.values()))
    assert stage["margin"] == pytest.approx(margin)
    differences = {
        loss: [of_loss[seed] - baseline[seed] for seed in stage["seeds"]]
        for loss, of_loss in values.items()
        if len(of_loss) == len(stage["seeds"])
    }
    share = 2 / 3  # Of 5 %, at the first look.
    p_values = {loss: sign_flip_p(of_loss) for loss, of_loss in differences.items()}
    adjusted = holm(p_values)
    shown = {entry["loss"]: entry["comparison"] for entry in stage["losses"][1:]}
    assert list(shown) == sorted(shown, key=lambda loss: -np.mean(list(values[loss].values())))
    assert set(shown) == set(differences)
    for loss, of_loss in differences.items():
        entry = shown[loss]
        assert list(entry["differences"].values()) == pytest.approx(of_loss)
        assert entry["difference"] == pytest.approx(np.mean(of_loss))
        assert entry["sd"] == pytest.approx(stats.tstd(of_loss))
        assert entry["p"] == pytest.approx(p_values[loss])
        assert entry["p_adjusted"] == pytest.approx(min(1, adjusted[loss] / share))
        sides = [
            sign_flip_p([difference + margin for difference in of_loss], "greater"),
            sign_flip_p([difference - margin for difference in of_loss], "less"),
        ]
        equivalent = min(1, 2 * max(sides) * len(differences) / share)
        assert entry["p_equivalent"] == pytest.approx(equivalent)
        low, high = entry["interval"]
        for value, rejected in [
            (low - STEP, True),
            (low + STEP, False),
            (high - STEP, False),
            (high + STEP, True),
        ]:
            p = sign_flip_p([difference - value for difference in of_loss])
            assert (p <= entry["level"]) == rejected
        verdict = "undecided"
        if adjusted[loss] / share <= 0.05:
            verdict = "better" if np.mean(of_loss) > 0 else "worse"
        elif equivalent <= 0.05:
            verdict = "equivalent"
        assert entry["verdict"] == verdict
        assert {"better": low > 0, "worse": high < 0}.get(verdict, low <= 0 <= high)
        assert (verdict == "equivalent") <= (-margin < low and high < margin)
    assert [look["seeds"] for look in stage["looks"]] == [len(stage["seeds"])]


def paired(values, others):
    """The mean of the differences, and its interval by Student's t."""
    differences = np.subtract(values, others)
    error = stats.sem(differences)
    reach = stats.t.ppf(0.975, len(differences) - 1) * error
    return differences.mean(), [differences.mean() - reach, differences.mean() + reach]


def test_bf16_and_threads_beside_float32():
    path = COMMITTED.parent / "precision" / "results.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert len(content["comparisons"]) == 4
    for names, found in content["comparisons"].items():
        way, other = (content["ways"][name] for name in names.split(" / "))
        ratios = np.divide(way["seconds_per_run"], other["seconds_per_run"])
        assert found["time"]["median_ratio"] == pytest.approx(np.median(ratios))
        for metric in ("accuracy", "cross_entropy"):
            assert len(way[metric]) == len(content["seeds"])
            difference, interval = paired(way[metric], other[metric])
            assert found[metric]["difference"] == pytest.approx(difference, abs=1e-12)
            assert found[metric]["interval"] == pytest.approx(interval, abs=1e-12)


def test_the_defaults_of_the_recipe_beside_others():
    path = COMMITTED.parent / "glue_baseline" / "defaults.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert "cola" in content
    for stored in content.values():
        first, *others = stored["settings"].values()
        assert others
        for entry in others:
            difference, interval = paired(entry["scores"], first["scores"])
            assert entry["difference"] == pytest.approx(difference)
            assert entry["interval"] == pytest.approx(interval)
