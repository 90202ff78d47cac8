"""Tuning is part of a comparison: where the best values lie, how sure they are, on which data."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hf_losses.cli.main import main
from hf_losses.compare.plan import Plan
from hf_losses.compare.results import RunRecord
from hf_losses.compare.statistics.tuned import tuned_losses

# Drawing takes most of the time of a report; tests of pictures ask for `pictures`.
pytestmark = pytest.mark.usefixtures("no_pictures")
SCRIPT = str(Path(__file__).with_name("compare_script.py"))
RANGES = {"learning_rate": [1e-4, 1e-1], "weight_decay": [0.0, 0.2]}
PLAN = Plan("x.py", [], ["b", "x"], "b", seeds=1, tune=RANGES, trials=4)


def trial(rate, decay, value, loss="x", seed=0):
    parameters = {"learning_rate": rate, "weight_decay": decay}
    status = "failed" if value is None else "finished"
    return RunRecord(loss, "tune", seed, parameters, status, value=value)


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


@pytest.mark.parametrize(
    ("best", "others", "at_edge"),
    [
        (3e-2, [(1e-2, 0.5), (1e-3, 0.4)], True),  # The highest that was tried.
        (3e-4, [(1e-2, 0.5), (1e-3, 0.4)], True),
        (3e-3, [(1e-2, 0.5), (1e-3, 0.4)], False),
        (1e-2, [(3e-2, None), (1e-3, 0.4)], False),  # A higher one failed.
        (1e-2, [(1e-3, 0.4)], False),  # Of two values each lies at an end.
    ],
)
def test_the_edge_is_also_the_end_of_what_was_tried(best, others, at_edge):
    runs = [trial(best, 0.1, 0.9), *(trial(rate, 0.1, value) for rate, value in others)]
    (tuned,) = tuned_losses(PLAN, runs, lower_is_better=False)
    assert tuned.at_edge == ["learning_rate"] * at_edge


@pytest.mark.parametrize("lower_is_better", [False, True])
def test_the_spread_of_the_best_is_that_of_trials_drawn_again(lower_is_better):
    values = np.random.default_rng(0).normal(0.8, 0.02, 8)
    runs = [trial(1e-2, 0.02 * n, float(value)) for n, value in enumerate(values)]
    (tuned,) = tuned_losses(PLAN, runs, lower_is_better)
    draws = np.random.default_rng(1).choice(values, (200_000, 8))
    best = draws.min(axis=1) if lower_is_better else draws.max(axis=1)
    assert tuned.spread == pytest.approx(best.std(), rel=0.02)


def test_one_trial_has_no_spread_and_none_is_not_told():
    (tuned,) = tuned_losses(PLAN, [trial(1e-2, 0.1, 0.9), trial(1e-2, 0.1, None, "b")], False)
    assert (tuned.loss, tuned.spread) == ("x", None)


@pytest.mark.parametrize("lower_is_better", [False, True])
def test_the_spread_by_seed_is_that_of_the_trials_that_single_seeds_would_choose(lower_is_better):
    sign = -1 if lower_is_better else 1
    values = {  # By learning rate: of the seeds 0, 7 and 8.
        1e-3: (0.80, 0.86, 0.77),
        1e-2: (0.81, 0.84, 0.84),  # The best on average.
        5e-2: (0.84, 0.78, 0.78),
        8e-2: (0.99, 0.99, None),  # Not finished with every seed, so out of the question.
    }
    records = [
        trial(rate, 0.1, score and sign * score, seed=seed)
        for rate, scores in values.items()
        for seed, score in zip((0, 7, 8), scores, strict=True)
    ]
    plan = replace(PLAN, tuning_seeds=3)
    (tuned,) = tuned_losses(plan, records, lower_is_better)
    assert tuned.parameters["learning_rate"] == 1e-2
    assert (tuned.trials, tuned.value) == (3, pytest.approx(sign * 0.83))
    # The seeds choose the third, the first and the second trial, which are worth these means.
    assert tuned.seed_spread == pytest.approx(np.std([0.80, 0.81, 0.83], ddof=1))
    (tuned,) = tuned_losses(PLAN, [run for run in records if run.seed == 0], lower_is_better)
    assert tuned.seed_spread is None


def test_a_trial_is_judged_by_the_mean_over_the_tuning_seeds(tmp_path, capsys):
    folder = tmp_path / "x"
    losses = ["cross_entropy", "strict_l"]
    # One of the seeds fails for strict_l: it has no finished trial, and is told to be incomplete.
    script = [SCRIPT, "--crash", "strict_l:1000001"]
    flags = ["--seeds", "2", "--tune", "learning_rate=0.1:0.5", "--trials", "2"]
    arguments = ["compare", "--losses", *losses, *flags, "--tuning_seeds", "3"]
    assert main([*arguments, "--output_dir", str(folder), "--", *script]) == 0
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    runs = [(run["loss"], run["stage"], run["seed"], run["value"]) for run in content["runs"]]
    tried = [run for run in runs if run[:2] == ("cross_entropy", "tune")]
    assert [seed for _, _, seed, _ in tried] == [0, 1_000_000, 1_000_001] * 2
    first, second = ([value for *_, value in trial] for trial in (tried[:3], tried[3:]))
    assert content["plan"]["tuning_seeds"] == 3
    assert list(content["tuned"]) == ["cross_entropy"]
    best = content["tuned"]["cross_entropy"]
    assert best["value"] == pytest.approx(max(np.mean(first), np.mean(second)))
    assert best["parameters"]["learning_rate"] == pytest.approx(0.3)
    assert not [run for run in runs if run[:2] == ("strict_l", "main")]
    text = (folder / "table.md").read_text(encoding="utf-8")
    assert "tuned with 3 seeds, each of which alone would have chosen the same values." in text
    assert "`strict_l` was not run with other seeds, since none of its trials finished" in text
    assert "± sd by seed" in text
    shown = capsys.readouterr().out
    assert "1/16 cross_entropy, trial of {'learning_rate': 0.30000000000000004}, seed 0: " in shown
    assert "14/16 " in shown  # Two seeds of strict_l are missing.
    assert "--tuning_seeds 3" in text
    assert "| `cross_entropy` | 0.3 | 1000000 |" in text
    again = [*arguments[:-1], "2", "--output_dir", str(folder), "--", *script]
    with pytest.raises(SystemExit):
        main(again)
    assert "tuning_seeds was 3 and is 2" in " ".join(capsys.readouterr().err.split())


MSE = json.dumps({"metric": "mse", "metrics": {"validation": {"mse": 0.5}, "test": {"mse": 0.4}}})


@pytest.mark.parametrize(
    ("metric", "script"),
    [(["--metric", "cross_entropy"], [SCRIPT]), ([], [SCRIPT, "--result", MSE])],
    ids=["named by the user", "named by the script"],
)
def test_a_comparison_that_was_interrupted_while_tuning_is_reported(tmp_path, metric, script):
    folder = tmp_path / "x"
    flags = ["--seeds", "1", "--tune", "learning_rate=0.1:0.5", "--trials", "3"]
    arguments = ["compare", "--losses", "cross_entropy", "strict_l", *flags]
    arguments += [*metric, "--output_dir", str(folder), "--", *script]
    assert main(arguments) == 0
    whole = json.loads((folder / "results.json").read_text(encoding="utf-8"))["tuned"]
    for path in [*folder.glob("runs/*/seed-1.json"), folder / "results.json"]:
        path.unlink()
    assert main(["report", str(folder)]) == 0
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert content["tuned"] == whole
    assert content["statistics"]["tuned"][0]["value"] == whole["cross_entropy"]["value"]
    assert content["plan"]["lower_is_better"]


def test_a_damaged_store_of_trials_is_named_and_without_it_nothing_is_lost(tmp_path, capsys):
    folder = tmp_path / "x"
    flags = ["--seeds", "1", "--tune", "learning_rate=0.1:0.5", "--trials", "2"]
    arguments = ["compare", "--losses", "cross_entropy", "strict_l", *flags]
    arguments += ["--output_dir", str(folder), "--", SCRIPT]
    assert main(arguments) == 0
    whole = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    records = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*.json")}
    (folder / "tuning.db").write_bytes(b"no database" * 100)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "file is not a database). Delete that file: the same command makes it again" in error
    (folder / "tuning.db").unlink()
    assert main(arguments) == 0
    assert json.loads((folder / "results.json").read_text(encoding="utf-8")) == whole
    assert {path: path.stat().st_mtime_ns for path in records} == records


def test_seeds_can_be_added_though_a_loss_has_no_finished_trial(tmp_path):
    folder = tmp_path / "x"
    tune = ("--tune", "learning_rate=0.1:0.5", "--trials", "1", "--seeds", "1")
    arguments = ["compare", "--losses", "cross_entropy", "strict_l", "strict_m", *tune]
    arguments += ["--output_dir", str(folder)]
    script = ["--", SCRIPT, "--crash", "strict_l:0"]
    assert main([*arguments, *script]) == 0
    assert main([*arguments, "--add_seeds", "1", *script]) == 0
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert [run["loss"] for run in content["runs"] if run["seed"] == 2] == [
        "cross_entropy",
        "strict_m",
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tuning_seeds", "2"], "--tuning_seeds is for --tune"),
        (
            ["--tune", "learning_rate", "--trials", "1", "--tuning_seeds", "0"],
            "--tuning_seeds must be at least 1, got 0",
        ),
    ],
)
def test_tuning_seeds_that_make_no_sense_are_refused(tmp_path, capsys, flags, message):
    arguments = ["compare", "--losses", "cross_entropy", "strict_l", "--seeds", "2", *flags]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--output_dir", str(tmp_path / "x"), "--", SCRIPT])
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


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
