"""Tuning is part of a comparison: where the best values lie, how sure they are, on which data."""

import json
from pathlib import Path

import numpy as np
import pytest

from hf_losses.cli.main import main
from hf_losses.compare.plan import Plan
from hf_losses.compare.results import RunRecord
from hf_losses.compare.statistics.tuned import tuned_losses

SCRIPT = str(Path(__file__).with_name("compare_script.py"))
RANGES = {"learning_rate": [1e-4, 1e-1], "weight_decay": [0.0, 0.2]}
PLAN = Plan("x.py", [], ["b", "x"], "b", seeds=1, tune=RANGES, trials=4)


def trial(rate, decay, value, loss="x"):
    parameters = {"learning_rate": rate, "weight_decay": decay}
    status = "failed" if value is None else "finished"
    return RunRecord(loss, "tune", 0, parameters, status, value=value)


@pytest.mark.parametrize(
    ("rate", "decay", "at_edge"),
    [
        # A tenth of three decades is a factor of two, a tenth of 0.2 is 0.02.
        (1.9e-4, 0.1, ["learning_rate"]),
        (2.1e-4, 0.1, []),
        (4.9e-2, 0.021, []),
        (5.1e-2, 0.019, ["learning_rate", "weight_decay"]),
        (1e-2, 0.19, ["weight_decay"]),
    ],
)
def test_the_edge_is_the_outer_tenth_of_the_range_as_searched(rate, decay, at_edge):
    runs = [trial(rate, decay, 0.9), trial(1e-2, 0.1, 0.5), trial(1e-2, 0.1, None)]
    (tuned,) = tuned_losses(PLAN, runs, lower_is_better=False)
    assert (tuned.loss, tuned.value, tuned.trials) == ("x", 0.9, 2)
    assert tuned.at_edge == at_edge
    lowest, *_ = tuned_losses(PLAN, runs, lower_is_better=True)
    assert (lowest.value, lowest.at_edge) == (0.5, [])


@pytest.mark.parametrize("lower_is_better", [False, True])
def test_the_spread_of_the_best_is_that_of_trials_drawn_again(lower_is_better):
    values = np.random.default_rng(0).normal(0.8, 0.02, 8)
    runs = [trial(1e-2, 0.1, float(value)) for value in values]
    (tuned,) = tuned_losses(PLAN, runs, lower_is_better)
    draws = np.random.default_rng(1).choice(values, (200_000, 8))
    best = draws.min(axis=1) if lower_is_better else draws.max(axis=1)
    assert tuned.spread == pytest.approx(best.std(), rel=0.02)


def test_one_trial_has_no_spread_and_none_is_not_told():
    (tuned,) = tuned_losses(PLAN, [trial(1e-2, 0.1, 0.9), trial(1e-2, 0.1, None, "b")], False)
    assert (tuned.loss, tuned.spread) == ("x", None)


@pytest.mark.parametrize("sets", [["validation"], ["validation", "dev"]])
def test_values_chosen_on_the_set_of_the_comparison_are_refused(tmp_path, capsys, sets):
    metrics = {name: {"accuracy": 0.5} for name in sets}
    result = json.dumps({"metric": "accuracy", "metrics": metrics})
    folder = tmp_path / "x"
    flags = ["--seeds", "1", "--tune", "learning_rate=0.1:0.5", "--trials", "1"]
    losses = ["cross_entropy", "strict_l"]
    arguments = ["compare", "--losses", *losses, *flags, "--output_dir", str(folder)]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--", SCRIPT, "--result", result])
    assert stopped.value.code == 2
    message = " ".join(capsys.readouterr().err.split())
    assert f"metrics of {', '.join(sets)}, not test" in message
    assert "compared on a test set apart from it" in message
    assert not folder.exists()
