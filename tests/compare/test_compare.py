"""`hf-losses compare`: paired runs that can be interrupted anywhere, and that fail one by one."""

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from comparing import refused, runs_still, wait_for
from filelock import FileLock

import hf_losses
from hf_losses.cli.main import main
from hf_losses.compare import experiment, tuning
from hf_losses.compare.engines import guard
from hf_losses.compare.engines.local_pool import beside_others, environments
from hf_losses.compare.engines.pool import failure
from hf_losses.compare.experiment import best_losses
from hf_losses.compare.plan import Plan, add_seeds, expand, make_plan, open_folder, read_plan
from hf_losses.compare.ranges import parse_range, spread_evenly
from hf_losses.compare.results import Metric, RunRecord
from hf_losses.compare.runs import run_folder
from hf_losses.compare.tuning import trials
from hf_losses.files import strict
from hf_losses.metrics.direction import check_comparable
from hf_losses.options import cores
from hf_losses.training.recipe.arguments import RecipeTrainingArguments

SCRIPT = str(Path(__file__).with_name("compare_script.py"))
ROOT = Path(hf_losses.__file__).parents[1]
LOSSES = ["cross_entropy", "strict_l", "liberal_exp"]

# Module fixtures draw the pictures of their reports, the comparisons of single tests do not.
pytestmark = pytest.mark.usefixtures("no_pictures")


def command(folder, *flags, losses=LOSSES, script=SCRIPT, script_flags=()):
    """The command line of a comparison, after `hf-losses`."""
    flags = flags or ("--seeds", "2")
    return [
        *("compare", "--losses", *losses, *flags, "--output_dir", str(folder)),
        *("--", script, *script_flags),
    ]


def start(arguments):
    """Starts `hf-losses` with these arguments as a separate process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "hf_losses", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def results(folder):
    return json.loads((folder / "results.json").read_text())


def timeless(folder):
    """The results without run times, which differ between any two comparisons."""
    comparison = results(folder)
    for run in comparison["runs"]:
        del run["wall_seconds"]
    return comparison


def runs(folder, stage="main"):
    return [run for run in results(folder)["runs"] if run["stage"] == stage]


def records(folder):
    return [path for path in folder.glob("runs/*/*.json") if not path.name.startswith(".")]


# ---- What a comparison does ------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare") / "two seeds"
    assert main(command(folder)) == 0
    return folder


def test_every_loss_runs_on_every_seed(two_seeds):
    comparison = results(two_seeds)
    assert [(r["loss"], r["seed"], r["status"]) for r in comparison["runs"]] == [
        (loss, seed, "finished") for loss in LOSSES for seed in (1, 2)
    ]
    assert comparison["metric"] == {"set": "test", "name": "accuracy"}
    assert (comparison["task"], comparison["model"]) == ("toy", "none")
    for run in comparison["runs"]:
        folder = run_folder(two_seeds, run["loss"], f"seed-{run['seed']}")
        script = json.loads((folder / "result.json").read_text())
        assert run["value"] == script["metrics"]["test"]["accuracy"]
        assert run["metrics"] == script["metrics"]
        assert run["history"] == script["history"]
        assert run["steps"] == 100
        assert run["wall_seconds"] > 0


def test_the_best_loss_stands_first_after_the_baseline(two_seeds):
    (stage,) = results(two_seeds)["statistics"]["stages"]
    assert [entry["loss"] for entry in stage["losses"]] == [
        "cross_entropy",
        "liberal_exp",
        "strict_l",
    ]
    # Two seeds find nothing, however large it is.
    assert {e["comparison"]["verdict"] for e in stage["losses"][1:]} == {"undecided"}


def test_table_report_and_pictures_are_written(two_seeds):
    files = {path.name for path in two_seeds.iterdir()}
    assert {"plan.json", "results.json", "table.md", "report.html"} <= files
    assert any(name.endswith(".png") for name in files)
    assert "liberal_exp" in (two_seeds / "table.md").read_text()


def test_logs_stay_and_weights_go(two_seeds):
    folder = run_folder(two_seeds, "strict_l", "seed-2")
    assert "threads" in folder.with_name("seed-2.log").read_text()
    assert {path.name for path in folder.iterdir()} == {"result.json"}


def test_cores_are_shared_among_the_jobs(tmp_path):
    folder = tmp_path / "x"
    assert main(command(folder, "--seeds", "1", "--jobs", "2", losses=LOSSES[:2])) == 0
    log = run_folder(folder, "strict_l", "seed-1").with_name("seed-1.log").read_text()
    assert log == f"threads {max(1, cores() // 2)}\n"


def test_what_can_be_shown_is_said_before_anything_runs(tmp_path, capfd):
    main(command(tmp_path / "x", "--seeds", "6", losses=["*_exp", *LOSSES]))
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("6 paired seeds, 2 losses against the baseline")
    assert "0.094" in lines[0]
    assert "takes 7 seeds" in lines[0]
    assert lines[1].startswith("1/18 cross_entropy, seed 1: accuracy 0.")
    main(command(tmp_path / "y", "--seeds", "7", losses=LOSSES))
    out = capfd.readouterr().out
    spread = next(i for i, line in enumerate(out.splitlines()) if "By the first 3 seeds" in line)
    assert out.splitlines()[spread - 1].startswith("9/21 ")


def test_weights_are_kept_on_demand(tmp_path):
    main(command(tmp_path / "x", "--seeds", "1", "--keep_models", losses=LOSSES[:2]))
    folder = run_folder(tmp_path / "x", "strict_l", "seed-1")
    assert {path.name for path in folder.iterdir()} == {
        "checkpoint-10",
        "model.safetensors",
        "result.json",
    }


def test_the_scripts_flags_and_those_behind_a_loss_reach_it(tmp_path):
    folder = tmp_path / "x"
    losses = ["cross_entropy", "strict_l", "strict_l --bonus 0.5"]
    main(command(folder, "--seeds", "1", losses=losses, script_flags=["--learning_rate", "0.3"]))
    plain, flagged = (r["value"] for r in runs(folder) if r["loss"].startswith("strict_l"))
    assert flagged - plain == pytest.approx(0.5)
    assert len(list(folder.glob("runs/*"))) == 3
    main(command(tmp_path / "y", "--seeds", "1", losses=losses))
    assert runs(folder)[0]["value"] - runs(tmp_path / "y")[0]["value"] == pytest.approx(0.04)


def test_a_launcher_starts_the_script(tmp_path):
    launcher = f"{shlex.quote(sys.executable)} -X utf8"
    folder = tmp_path / "x"
    main(command(folder, "--seeds", "1", "--launcher", launcher, losses=LOSSES[:2]))
    assert [run["status"] for run in runs(folder)] == ["finished", "finished"]
    assert results(folder)["plan"]["launcher"] == [sys.executable, "-X", "utf8"]


def test_another_metric_where_less_is_more(tmp_path):
    folder = tmp_path / "x"
    main(command(folder, "--seeds", "2", "--metric", "cross_entropy"))
    comparison = results(folder)
    assert comparison["plan"]["lower_is_better"] is True
    assert comparison["metric"]["name"] == "cross_entropy"
    best = comparison["statistics"]["stages"][0]["losses"][1]
    assert best["loss"] == "liberal_exp"
    assert best["comparison"]["difference"] == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("metric", ["error_celsius", "val/errorCount"])
def test_where_the_direction_is_not_known_it_is_asked_for(tmp_path, capfd, metric):
    folder = tmp_path / "x"
    flags = ["--result", json.dumps({"metric": metric, "metrics": {"test": {metric: 0.5}}})]
    message = refused(command(folder, "--seeds", "2", script_flags=flags), capfd)
    assert f"is a smaller '{metric}' better" in message
    assert "--lower_is_better or --no-lower_is_better" in message
    for answer, word in (("--lower_is_better", "lower"), ("--no-lower_is_better", "higher")):
        folder = tmp_path / word
        assert main(command(folder, "--seeds", "2", answer, script_flags=flags)) == 0
        out = " ".join(capfd.readouterr().out.split())
        assert f"Compared: model not told, {metric} on the test set ({word} is better)" in out
        again = (folder / "table.md").read_text().partition("```sh")[2].partition("```")[0]
        assert answer in shlex.split(again)


def test_the_direction_can_be_said_afterwards(tmp_path):
    folder = tmp_path / "x"
    main(command(folder, losses=LOSSES[:2]))
    made = {path: path.read_bytes() for path in records(folder)}
    assert "higher is better" in (folder / "table.md").read_text()
    main(command(folder, "--seeds", "2", "--lower_is_better", losses=LOSSES[:2]))
    assert "lower is better" in (folder / "table.md").read_text()
    assert {path: path.read_bytes() for path in records(folder)} == made


def test_a_losss_own_value_compares_nothing(tmp_path, capfd):
    folder = tmp_path / "x"
    for metric in ("test_loss", "eval_loss", "validation_matched_loss", "loss"):
        message = f"the metric '{metric}' is every loss's own value"
        assert message in refused(command(folder, "--seeds", "2", "--metric", metric), capfd)
        assert not folder.exists()
    gammas = [f"focal --loss_kwargs '{{\"gamma\": {gamma}}}'" for gamma in (1, 5)]
    flags = ["--seeds", "2", "--metric", "loss", "--baseline", gammas[0]]
    assert message in refused(command(folder, *flags, losses=gammas), capfd)
    check_comparable("loss", ["focal", "focal --loss_warmup_ratio 0.3"])
    check_comparable("hamming_loss", LOSSES)
    content = {"metric": "loss", "metrics": {"test": {"loss": 0.5}}}
    flags = ["--result", json.dumps(content)]
    with pytest.raises(SystemExit):
        main(command(folder, "--seeds", "2", script_flags=flags))
    assert message in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize("number", ["null", "NaN"])
def test_a_model_of_nan_has_diverged_whatever_its_accuracy(tmp_path, number):
    folder = tmp_path / "x"
    scores = f'{{"accuracy": 0.9, "cross_entropy": {number}}}'
    content = f'{{"metric": "accuracy", "metrics": {{"test": {scores}}}}}'
    main(command(folder, "--seeds", "1", losses=LOSSES[:2], script_flags=["--result", content]))
    for run in runs(folder):
        assert (run["status"], run["value"]) == ("diverged", None)
        assert run["reason"] == "cross_entropy on the test set is not finite"


@pytest.mark.parametrize("changed", ["script", "file"])
def test_runs_of_another_script_or_of_other_data_are_told(tmp_path, capfd, changed):
    script, data, folder = tmp_path / "mine.py", tmp_path / "data" / "a.json", tmp_path / "x"
    shutil.copy(SCRIPT, script)
    data.parent.mkdir()
    data.write_text("")
    flags = ["--unless", str(data)]
    main(command(folder, losses=LOSSES[:2], script=str(script), script_flags=flags))
    words = "runs differ in versions, hardware, script or files"
    answer = "the runs were not made with one script and the same files"
    warning = "has changed since the runs that are here"
    assert words not in (folder / "table.md").read_text()
    assert answer not in (folder / "table.md").read_text()
    assert warning not in capfd.readouterr().out
    with open(script if changed == "script" else data, "a") as file:
        file.write("# mended")
    more = ("--seeds", "2", "--add_seeds", "1")
    main(command(folder, *more, losses=LOSSES[:2], script=str(script), script_flags=flags))
    assert len(runs(folder)) == 6
    assert words in (folder / "table.md").read_text()
    assert answer in (folder / "table.md").read_text()
    out = capfd.readouterr().out
    assert out.index(warning) < out.index("seed 3")
    assert answer in " ".join(out.split())
    (folder / "plan.json").unlink()  # As it is published.
    main(["report", str(folder)])
    assert answer in (folder / "table.md").read_text()


@pytest.mark.parametrize(
    ("more", "told"), [({"cpu": "AMD EPYC (AVX2)"}, False), ({"cpu_count": 96}, True)]
)
def test_a_record_that_names_more_of_the_same_machine_is_no_other(tmp_path, more, told):
    folder = tmp_path / "x"
    main(command(folder))
    record = run_folder(folder, "strict_l", "seed-2").with_name("seed-2.json")
    content = json.loads(record.read_text())
    content["facts"]["hardware"] |= more
    record.write_text(json.dumps(content))
    main(command(folder))
    assert ("runs differ in versions, hardware" in (folder / "table.md").read_text()) == told


def test_machines_are_compared_with_each_other_too():
    old, one, other = {"cpu_count": 2}, {"cpu_count": 2, "cpu": "a"}, {"cpu_count": 2, "cpu": "b"}
    assert experiment._agree([old, one, one])
    assert not experiment._agree([old, one, other])
    assert not experiment._agree([old, None])
    assert experiment._agree([None, None])


def test_a_record_that_is_damaged_is_made_again(tmp_path):
    folder = tmp_path / "x"
    main(command(folder))
    before = timeless(folder)
    for damaged in ("", "null", "[]", "{}"):
        run_folder(folder, "strict_l", "seed-2").with_name("seed-2.json").write_text(damaged)
        main(command(folder))
        assert timeless(folder) == before


# ---- Screening and tuning --------------------------------------------------------------------


def test_a_confirmation_that_has_begun_keeps_its_losses(tmp_path):
    folder, mended = tmp_path / "x", tmp_path / "mended"
    losses = ["cross_entropy", "strict_m", "strict_l", "liberal_exp"]
    flags = ["--crash", "liberal_exp", "--unless", str(mended)]
    stages = ("--screen", "2", "--top", "1", "--confirm", "2")
    assert main(command(folder, *stages, losses=losses, script_flags=flags)) == 0
    mended.touch()  # Now this loss would be the best of the screening.
    again = command(folder, *stages, "--retry_failed", losses=losses, script_flags=flags)
    assert main(again) == 0
    assert all(run["status"] == "finished" for run in runs(folder, "screen"))
    assert {run["loss"] for run in runs(folder, "confirm")} == {"cross_entropy", "strict_l"}
    more = command(folder, *stages, "--add_seeds", "1", losses=losses, script_flags=flags)
    assert main(more) == 0
    assert len(runs(folder, "confirm")) == 6


def test_the_best_of_a_screening_are_tested_on_fresh_seeds(tmp_path, capfd):
    folder = tmp_path / "x"
    losses = ["strict_*", "liberal_exp", "cross_entropy"]
    main(command(folder, "--screen", "2", "--top", "1", "--confirm", "6", losses=losses))
    assert {run["seed"] for run in runs(folder, "screen")} == {1, 2}
    assert {(run["loss"], run["seed"]) for run in runs(folder, "confirm")} == {
        (loss, seed) for loss in ("cross_entropy", "liberal_exp") for seed in range(3, 9)
    }
    screen, confirm = results(folder)["statistics"]["stages"]
    assert {e["comparison"]["p"] for e in screen["losses"] if e["comparison"]} == {None}
    assert confirm["comparisons"] == 1
    (comparison,) = [e["comparison"] for e in confirm["losses"] if e["comparison"]]
    assert comparison["p"] == 2 / 2**6
    assert comparison["p_adjusted"] == pytest.approx(3 / 2**6)
    assert comparison["verdict"] == "better"
    assert "Screening leaves: cross_entropy, liberal_exp" in capfd.readouterr().out


def test_what_can_be_shown_counts_the_losses_that_came_through(tmp_path):
    folder = tmp_path / "x"
    losses = ["cross_entropy", "strict_m", "strict_l", "liberal_exp"]
    flags = ["--crash", "strict_m", "strict_l"]
    stages = ("--screen", "2", "--top", "2", "--confirm", "6")
    assert main(command(folder, *stages, losses=losses, script_flags=flags)) == 0
    confirm = results(folder)["statistics"]["stages"][1]
    assert (confirm["comparisons"], confirm["seeds_needed"]) == (1, 6)
    text = (folder / "table.md").read_text()
    assert "too few for an answer" not in text
    assert "nothing can be decided" not in text


def test_a_screening_that_nothing_survives_is_told(tmp_path):
    folder = tmp_path / "x"
    flags = ["--crash", "strict_l", "liberal_exp"]
    main(command(folder, "--screen", "2", "--top", "1", "--confirm", "2", script_flags=flags))
    assert "None of the losses came through the screening" in (folder / "table.md").read_text()


def test_a_loss_that_failed_is_not_among_the_best():
    plan = Plan("x.py", [], LOSSES, "cross_entropy", screen=2, confirm=2, top=1)

    def record(loss, value):
        status = "failed" if value is None else "finished"
        return RunRecord(loss, "screen", 1, {}, status, value=value, metric=Metric("test", "mse"))

    records = [record("strict_l", 0.1), record("strict_l", None)]
    records += [record("liberal_exp", 0.9), record("cross_entropy", 0.5)]
    assert best_losses(plan, records) == ["cross_entropy", "liberal_exp"]
    records[1] = record("strict_l", 0.2)
    assert best_losses(plan, records) == ["cross_entropy", "strict_l"]  # Of mse, less is more.


TUNE = ("--tune", "learning_rate=0.1:0.5", "--trials", "11", "--seeds", "1")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned") / "x"
    assert main(command(folder, *TUNE, losses=LOSSES[:2])) == 0
    return folder


def test_every_loss_is_tuned_on_the_validation_set(tuned):
    comparison = results(tuned)
    for loss in LOSSES[:2]:
        trials = [run for run in runs(tuned, "tune") if run["loss"] == loss]
        assert len(trials) == 11
        assert {run["seed"] for run in trials} == {0}
        for run in trials:
            assert run["value"] == run["metrics"]["validation"]["accuracy"]
            assert 0.1 <= run["parameters"]["learning_rate"] <= 0.5
        best = max(trials, key=lambda run: run["value"])
        assert comparison["tuned"][loss] == {
            "parameters": best["parameters"],
            "value": best["value"],
        }
        (test,) = [run for run in runs(tuned) if run["loss"] == loss]
        assert test["parameters"] == best["parameters"]
        assert test["seed"] == 1
        assert abs(best["parameters"]["learning_rate"] - 0.3) < 0.1
    first = [r["parameters"] for r in runs(tuned, "tune") if r["loss"] == LOSSES[0]]
    other = [r["parameters"] for r in runs(tuned, "tune") if r["loss"] == LOSSES[1]]
    assert first[:10] == other[:10]
    assert [round(parameters["learning_rate"], 10) for parameters in first[:3]] == [0.3, 0.2, 0.4]
    assert first[10] not in first[:10]  # TPE's.


def test_the_first_trials_are_spread_evenly():
    ranges = {"learning_rate": [1e-5, 1e-3], "weight_decay": [0.0, 0.3]}
    points = [spread_evenly(number, ranges) for number in range(8)]
    assert points[0] == pytest.approx({"learning_rate": 1e-4, "weight_decay": 0.1})
    shares = np.array(
        [[math.log10(p["learning_rate"] / 1e-5) / 2, p["weight_decay"] / 0.3] for p in points]
    )
    for column in shares.T:
        # No gap between neighbours, or at an end, is wider than a quarter of the range.
        assert max(np.diff([0, *sorted(column), 1])) <= 0.25 + 1e-9


@pytest.mark.slow
def test_tuning_that_was_killed_goes_on_as_it_would_have(tuned, tmp_path):
    folder = tmp_path / "x"
    arguments = command(folder, *TUNE, losses=LOSSES[:2])
    process = start(arguments)
    wait_for(lambda: len(records(folder)) >= 3)
    process.kill()
    process.communicate()
    assert main(arguments) == 0
    assert timeless(folder) == timeless(tuned)


def test_a_trial_that_was_killed_while_it_was_made_is_made_again_as_it_was(tmp_path, monkeypatch):
    ranges = {"learning_rate": [0.1, 0.5], "weight_decay": [0.0, 0.2]}
    plan = Plan("x.py", [], LOSSES, "cross_entropy", seeds=1, tune=ranges, trials=1)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tuning, "EVENLY_SPREAD", 0)
    expected = next(trials(plan, tmp_path / "whole", "strict_l")).settings
    sample = optuna.samplers.TPESampler.sample_independent

    def killed(self, study, trial, name, distribution):
        if name == "weight_decay":
            raise KeyboardInterrupt
        return sample(self, study, trial, name, distribution)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.samplers.TPESampler, "sample_independent", killed)
        with pytest.raises(KeyboardInterrupt):
            next(trials(plan, tmp_path / "killed", "strict_l"))
    assert next(trials(plan, tmp_path / "killed", "strict_l")).settings == expected
    assert len(expected.parameters) == 2


# ---- What goes wrong in a run ----------------------------------------------------------------


def test_a_run_that_crashes_or_diverges_is_a_row(tmp_path, capfd):
    folder = tmp_path / "x"
    losses = [*LOSSES, "strict_m"]
    script_flags = ["--crash", "liberal_exp:2", "--diverge", "strict_m"]
    assert main(command(folder, losses=losses, script_flags=script_flags)) == 0
    run_of = {(run["loss"], run["seed"]): run for run in runs(folder)}
    crashed = run_of["liberal_exp", 2]
    assert crashed["status"] == "failed"
    assert crashed["reason"] == "RuntimeError: liberal_exp does not like | seed 2"
    assert run_of["strict_m", 1]["status"] == "diverged"
    assert run_of["strict_m", 1]["reason"] == "accuracy on the test set is not finite"
    assert sum(run["status"] == "finished" for run in run_of.values()) == 5
    verdicts = {
        entry["loss"]: entry["comparison"]["verdict"]
        for entry in results(folder)["statistics"]["stages"][0]["losses"]
        if entry["comparison"]
    }
    assert verdicts == {
        "strict_l": "undecided",
        "liberal_exp": "incomplete",
        "strict_m": "incomplete",
    }
    out = capfd.readouterr().out
    assert "liberal_exp, seed 2: failed: RuntimeError: liberal_exp does not like" in out


def test_what_crashed_is_run_again_on_demand(tmp_path):
    folder, repaired = tmp_path / "x", tmp_path / "repaired"
    script_flags = ["--crash", "strict_l:2", "--unless", str(repaired)]
    main(command(folder, script_flags=script_flags))
    kept = {p.name: p.stat().st_mtime_ns for p in records(folder) if "cross" in str(p)}
    repaired.touch()
    main(command(folder, script_flags=script_flags))
    assert [r["status"] for r in runs(folder)].count("failed") == 1
    main(command(folder, "--seeds", "2", "--retry_failed", script_flags=script_flags))
    assert {run["status"] for run in runs(folder)} == {"finished"}
    assert kept == {p.name: p.stat().st_mtime_ns for p in records(folder) if "cross" in str(p)}


def test_flags_that_the_script_refuses_end_it_at_once(tmp_path, capsys):
    folder = tmp_path / "x"
    message = refused(command(folder, script_flags=["--lerning_rate", "1"]), capsys)
    assert "error: unrecognized arguments: --lerning_rate 1; the command was: " in message
    assert f"{SCRIPT} --lerning_rate 1 --loss cross_entropy --seed 1" in message
    assert not folder.exists()
    main(command(folder))  # The corrected command takes the same folder.


FLAGGED = "liberal_exp --bonus"  # The flag lacks its value.
REFUSAL = "compare_script.py: error: argument --bonus: expected one argument"


def test_a_loss_whose_flags_the_script_refuses_stops_before_the_others_run(tmp_path, capfd):
    folder = tmp_path / "x"
    losses = ["cross_entropy", "strict_l", FLAGGED]
    with pytest.raises(SystemExit) as stopped:
        main(command(folder, "--seeds", "4", losses=losses))
    assert stopped.value.code == 2
    out, err = capfd.readouterr()
    said = out.splitlines()
    assert said[1].startswith(f"{FLAGGED} is left out, since the script refuses it: {REFUSAL}")
    assert said[2].startswith("1/12 cross_entropy")
    assert "the script refused 1 of 3 losses" in err
    assert f"{FLAGGED}: {REFUSAL}; the command was: " in err
    assert len(list(folder.rglob("*.log"))) == 4 + 4 + 1
    assert [run["status"] for run in runs(folder)] == ["finished"] * 8
    assert "incomplete" in (folder / "table.md").read_text()
    kept = {path: path.stat().st_mtime_ns for path in records(folder)}
    corrected = ["cross_entropy", "strict_l", f"{FLAGGED} 0.5"]
    assert main(command(folder, "--seeds", "4", losses=corrected)) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(runs(folder)) == 12
    assert "incomplete" not in (folder / "table.md").read_text()
    # A loss with results cannot be exchanged.
    flags = ("--seeds", "4")
    assert "other flags: losses was" in refused(command(folder, *flags, losses=losses), capfd)


def test_of_a_loss_with_flags_one_run_goes_ahead(tmp_path, capfd):
    folder = tmp_path / "x"
    losses = ["cross_entropy", "strict_l", FLAGGED]
    assert REFUSAL in refused(command(folder, "--seeds", "3", "--jobs", "8", losses=losses), capfd)
    assert len([*run_folder(folder, FLAGGED, "x").parent.glob("*.log")]) == 1
    assert len(runs(folder)) == 6


def test_where_no_other_loss_is_left_nothing_runs(tmp_path, capfd):
    folder = tmp_path / "x"
    message = refused(command(folder, losses=["cross_entropy", FLAGGED]), capfd)
    assert f"error: {REFUSAL}; the command was: " in message
    assert not folder.exists()


def test_tuned_values_may_be_refused_but_not_three_times_with_the_same_words(tmp_path, capfd):
    script = tmp_path / "picky.py"
    check = "if args.learning_rate > 0.3:\n    parser.error(f'too high: {args.learning_rate}')\n"
    code = Path(SCRIPT).read_text().replace("if args.output_dir", f"{check}if args.output_dir")
    script.write_text(code)
    tune = ("--tune", "learning_rate=0.1:0.5", "--trials", "3", "--seeds", "1")
    assert main(command(tmp_path / "x", *tune, losses=LOSSES[:2], script=str(script))) == 0
    trials = runs(tmp_path / "x", "tune")
    assert {run["status"] for run in trials} == {"finished", "failed"}
    capfd.readouterr()
    with pytest.raises(SystemExit):
        main(command(tmp_path / "y", *TUNE, losses=["cross_entropy", FLAGGED]))
    out, err = capfd.readouterr()
    assert f"error: {REFUSAL}; the command was: " in err
    assert out.count(f"failed: {REFUSAL}") == 2  # The third is the error.
    assert "cross_entropy" not in out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1]", "contract"),
        ('{"metrics": {"test": {"accuracy": 1}}}', "contract: KeyError('metric')"),
        ('{"metrics": {}, "metric": "accuracy"}', "metrics of no set"),
        ('{"metrics": {"accuracy": 0.8}, "metric": "accuracy"}', "contract: AttributeError"),
        ('{"metrics": {"test": {"acuracy": 1}}, "metric": "accuracy"}', "Did you mean 'acuracy'?"),
        ('{"metrics": {"test": {"a": "0.5"}}, "metric": "a"}', "a = '0.5', which is not a number"),
    ],
)
def test_results_that_do_not_hold_to_the_contract_end_it_at_once(tmp_path, capsys, text, says):
    assert says in refused(command(tmp_path / "x", script_flags=["--result", text]), capsys)
    assert not (tmp_path / "x").exists()


def test_the_documented_contract_is_the_contract(tmp_path):
    text = (ROOT / "docs" / "compare.md").read_text()
    documented = text.split("```json\n")[1].split("```")[0]
    folder = tmp_path / "x"
    main(command(folder, "--seeds", "1", losses=LOSSES[:2], script_flags=["--result", documented]))
    expected = json.loads(documented)
    for run in runs(folder):
        assert run["value"] == expected["metrics"]["test"]["accuracy"]
        assert run["history"] == expected["history"]
        assert run["steps"] == expected["training"]["global_step"]
        assert run["seconds"] == pytest.approx(61.5 - 4.1)
    comparison = results(folder)
    assert all(
        comparison[key] == expected[key] for key in ("task", "model", "versions", "hardware")
    )
    # The least that a script may write.
    least = json.dumps({"metrics": {"x": {"accuracy": 0.5}}})
    flags = ("--seeds", "1", "--metric", "accuracy")
    main(command(tmp_path / "y", *flags, losses=LOSSES[:2], script_flags=["--result", least]))
    assert [run["value"] for run in runs(tmp_path / "y")] == [0.5, 0.5]


@pytest.mark.parametrize(
    "more",
    [
        {"history": [{"epoch": 1, "accuracy": 0.5}, {"step": None}, 3]},
        {"history": {"step": 1}},
        {"training": {"global_step": "7", "runtime": "3.0"}},
        {"training": [1]},
        {"versions": "2.0", "hardware": ["a GPU"]},
    ],
)
def test_what_a_script_means_by_other_fields_does_no_harm(tmp_path, more):
    content = {"metric": "accuracy", "metrics": {"test": {"accuracy": 0.5}}} | more
    flags = ["--result", json.dumps(content)]
    assert main(command(tmp_path / "x", losses=LOSSES[:2], script_flags=flags)) == 0
    assert [run["value"] for run in runs(tmp_path / "x")] == [0.5] * 4


def test_a_script_without_results_ends_it_at_once(tmp_path, capsys):
    script = tmp_path / "empty.py"
    script.touch()
    message = refused(command(tmp_path / "x", script=str(script)), capsys)
    assert "the script ended well, but wrote no result.json" in message


def test_three_runs_that_fail_alike_end_it(tmp_path, capsys):
    script = tmp_path / "broken.py"
    # As with the amounts of an error of memory, and the process that it names.
    script.write_text("import os; raise MemoryError(f'{os.getpid()} has {os.getpid() / 9} GiB')")
    message = refused(command(tmp_path / "x", script=str(script)), capsys)
    assert re.search(r"MemoryError: \d+ has [\d.]+ GiB; the command was", message)
    assert "Its log ends: Traceback" in message


def test_a_metric_that_there_is_not_is_named(tmp_path, capsys):
    message = refused(command(tmp_path / "x", "--seeds", "1", "--metric", "accurcy"), capsys)
    assert "there is no metric 'accurcy'. Did you mean 'accuracy'? Choose --metric from" in message


@pytest.mark.parametrize(
    ("log", "code", "reason"),
    [
        ("a\nValueError: b\n", 1, "ValueError: b"),
        ("torch.cuda.OutOfMemoryError: all gone\nW1 elastic\n", 1, "torch.cuda.OutOfMemoryError"),
        ("x.py: error: bad\n", 2, "x.py: error: bad"),
        ("ValueError: b\nsubprocess.CalledProcessError: Command '…'\n", 1, "ValueError: b"),
        ("what is this\n", 3, "what is this"),
        ("", 3, "exit code 3, and nothing was printed"),
        ("", -9, "ended by SIGKILL (out of memory?)"),
        ("ValueError: " + "x" * 999, 1, "ValueError: xxx"),
    ],
)
def test_the_reason_of_a_failure_is_one_line(tmp_path, log, code, reason):
    (tmp_path / "log").write_text(log)
    message = failure(tmp_path / "log", code)
    assert message.startswith(reason)
    assert len(message) <= 300
    assert "\n" not in message


# ---- Stopped and continued -------------------------------------------------------------------


@pytest.mark.slow
def test_killed_and_started_again_it_finds_the_same(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    script_flags = ["--sleep", "0.3"]
    process = start(command(killed, script_flags=script_flags))
    wait_for(lambda: len(records(killed)) >= 2)
    wait_for(lambda: len(list(killed.rglob("*.log"))) > len(records(killed)))
    before = {path: path.stat().st_mtime_ns for path in records(killed)}
    process.kill()
    process.communicate()
    assert 2 <= len(before) < 6
    assert main(command(killed, script_flags=script_flags)) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before  # Kept, not made again.
    assert main(command(whole, script_flags=script_flags)) == 0
    assert timeless(killed) == timeless(whole)
    for name in ("table.md", "plan.json"):
        mine, other = (
            # The seconds stand before the steps.
            re.sub(r"\| [\d.]+ \| 100 \|", "| | 100 |", (folder / name).read_text())
            for folder in (killed, whole)
        )
        assert mine.replace(str(killed), "") == other.replace(str(whole), "")


def test_no_run_outlives_a_killed_comparison(tmp_path):
    folder = tmp_path / "x"
    process = start(command(folder, script_flags=["--sleep", "60", "--child"]))
    log = run_folder(folder, "cross_entropy", "seed-1").with_name("seed-1.log")
    wait_for(lambda: log.exists() and "child" in log.read_text())
    child = int(log.read_text().split()[1])
    assert runs_still(child)
    process.kill()
    process.communicate()
    wait_for(lambda: not runs_still(child), seconds=20)


def test_a_run_waits_for_what_still_writes_to_its_log(tmp_path):
    ending = "import signal, time; signal.signal(15, lambda *_: exit(time.sleep(0.5) or 'late'));"
    ending += "print('ready', flush=True); time.sleep(60)"
    path = tmp_path / "log"
    with guard.open_log(path) as log:
        first = guard.start([sys.executable, "-c", ending], log, {})
    wait_for(lambda: "ready" in path.read_text())
    first.stdin.close()
    with guard.open_log(path) as log:
        assert path.read_text() == ""
        assert first.wait(timeout=5) != 0  # Has ended, not only been asked to.
        second = guard.start([sys.executable, "-c", "print('second')"], log, {})
    assert second.wait() == 0
    second.stdin.close()
    assert path.read_text() == "second\n"


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_keeps_what_is_finished(tmp_path, stop):
    folder = tmp_path / "x"
    script_flags = ["--sleep", "0.5", "--child"]
    process = start(command(folder, script_flags=script_flags))
    wait_for(lambda: len(records(folder)) >= 1)
    logs = [path for path in folder.rglob("*.log")]
    wait_for(lambda: len(list(folder.rglob("*.log"))) > len(logs) or len(records(folder)) > 1)
    process.send_signal(stop)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "The same command continues" in err
    assert "Traceback" not in err
    for log in folder.rglob("*.log"):
        for line in log.read_text().splitlines():
            if line.startswith("child"):
                assert not runs_still(int(line.split()[1]))
    finished = len(runs(folder))
    assert 1 <= finished < 6
    again = start(command(folder, script_flags=script_flags))
    out, err = again.communicate(timeout=60)
    assert (again.returncode, err) == (0, "")
    kept = "1 finished run is kept" if finished == 1 else f"{finished} finished runs are kept"
    assert f"{kept} from before" in out
    assert len(runs(folder)) == 6


def test_interrupted_at_the_start_of_a_run_nothing_goes_on(tmp_path, monkeypatch):
    processes, start_alone = [], guard.start

    def start_and_interrupt(*arguments):
        processes.append(start_alone(*arguments))
        signal.setitimer(signal.ITIMER_REAL, 0.01)  # When the start has returned, or nearly.
        return processes[-1]

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(guard, "start", start_and_interrupt)
    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        assert main(command(tmp_path / "x", script_flags=["--sleep", "60"])) == 130
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert len(processes) == 1
    assert not runs_still(processes[0].pid)


def test_other_flags_under_the_same_folder_are_an_error(two_seeds, capsys):
    before = {path: path.read_bytes() for path in two_seeds.glob("*.*")}
    message = refused(command(two_seeds, "--seeds", "3", script_flags=["--bonus", "1"]), capsys)
    assert "holds a comparison with other flags" in message
    assert "seeds was 2 and is 3" in message
    assert "arguments" in message
    assert "losses" not in message.split("other flags: ")[1].split(". Take")[0]
    assert {path: path.read_bytes() for path in two_seeds.glob("*.*")} == before
    # How many runs there are at a time does not matter for what is found.
    assert main([*command(two_seeds, "--seeds", "2", "--jobs", "2")]) == 0


def test_two_comparisons_in_one_folder_are_an_error(two_seeds, capsys):
    with FileLock(two_seeds / ".lock"):
        assert "another hf-losses compare is at work in" in refused(command(two_seeds), capsys)


def test_the_plan_of_a_comparison_at_work_stays(two_seeds, tmp_path, capsys):
    folder = shutil.copytree(two_seeds, tmp_path / "x")
    shutil.rmtree(folder / "runs" / "liberal_exp")  # As long as it has no result, it may go.
    before = (folder / "plan.json").read_bytes()
    with FileLock(folder / ".lock"):
        assert "is at work in" in refused(command(folder, losses=LOSSES[:2]), capsys)
    assert (folder / "plan.json").read_bytes() == before


def test_the_report_is_made_again_from_the_files(two_seeds, capsys):
    table = (two_seeds / "table.md").read_text()
    for name in ("results.json", "table.md", "report.html"):
        (two_seeds / name).unlink()
    assert main(["report", str(two_seeds)]) == 0
    assert (two_seeds / "table.md").read_text() == table
    assert (two_seeds / "report.html").exists()
    assert "liberal_exp" in capsys.readouterr().out
    assert "holds no comparison" in refused(["report", str(two_seeds.parent)], capsys)


def test_a_report_does_not_lose_runs_whose_folders_are_gone(two_seeds, tmp_path, capsys):
    folder = shutil.copytree(two_seeds, tmp_path / "x")
    before = (folder / "results.json").read_bytes()
    shutil.rmtree(folder / "runs" / "liberal_exp")
    message = refused(["report", str(folder)], capsys)
    assert "would lose 2 finished runs" in message
    assert (folder / "results.json").read_bytes() == before
    (folder / "plan.json").unlink()
    assert main(["report", str(folder)]) == 0
    assert (folder / "results.json").read_bytes() == before


# ---- What is refused before anything runs ----------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--seeds", "0"), "--seeds must be at least 1, got 0"),
        (("--seeds", "2", "--jobs", "0"), "--jobs must be at least 1, got 0"),
        (("--seeds", "2", "--screen", "2"), "give either --seeds K, or --screen K"),
        (("--baseline", "cross_entropy"), "give either --seeds K, or --screen K"),
        (("--screen", "2", "--top", "1"), "go together; add --confirm"),
        (("--screen", "2", "--top", "2", "--confirm", "3"), "--top 2 of 2 losses"),
        (("--seeds", "2", "--trials", "3"), "--tune and --trials go together"),
        (("--seeds", "2", "--tune", "learning_rate"), "--tune and --trials go together"),
        (("--seeds", "2", "--tune", "bonus", "--trials", "2"), "NAME=LOW:HIGH"),
        (("--seeds", "2", "--tune", "bonus=2:1", "--trials", "2"), "no range"),
        (
            ("--seeds", "2", "--tune", "bonus=0:1", "--tune", "learning_rate", "bonus=0:2"),
            "--tune has two ranges of bonus",
        ),
        (("--seeds", "2", "--tasks", "bonus=1,2", "--tasks", "sleep=0,1"), "was given twice"),
        (("--seeds", "2", "--baseline", ""), "unknown loss ''"),
        (("--seeds", "2", "--baseline", "strict_m"), "not among the losses"),
        (("--seeds", "2", "--baseline", "strict_k"), "Did you mean"),
        (("--seeds", "2", "--baseline", "mse"), "no regression loss matches 'cross_entropy'"),
        (("--seeds", "2", "--launcher", "acelerate launch"), "no program 'acelerate'"),
        (("--seeds", "two"), "invalid int value: 'two'"),
        (("--seeds", "2", "--launcher", "'python"), '--launcher "\'python": no closing quotation'),
        (("--seeds", "2", "--baseline", "focal 'x"), '--baseline "focal \'x": no closing'),
    ],
)
def test_flags_that_do_not_fit(tmp_path, capsys, flags, says):
    assert says in refused(command(tmp_path / "x", *flags), capsys)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        (["strict_k", "cross_entropy"], "Did you mean"),
        (["medium_*", "cross_entropy"], "no classification loss matches 'medium_*'"),
        (["smae", "cross_entropy"], "no classification loss matches 'smae'"),
        (["cross_entropy"], "needs two losses or more"),
        (["strict_l", "strict_m"], "add it to --losses"),
        (["", "cross_entropy"], "empty entry"),
        (["focal --loss_kwargs '{", "cross_entropy"], "no closing quotation"),
    ],
)
def test_losses_that_do_not_fit(tmp_path, capsys, losses, says):
    assert says in refused(command(tmp_path / "x", losses=losses), capsys)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("script_flags", [["--seed", "3"], ["--loss=smae"], ["--output_dir", "x"]])
def test_flags_that_compare_gives_itself(tmp_path, capsys, script_flags):
    message = refused(command(tmp_path / "x", script_flags=script_flags), capsys)
    assert f"compare itself gives {script_flags[0].partition('=')[0]} to the script" in message


@pytest.mark.parametrize("flag", ["--seed 3", "--loss=focal", "--learning-rate 1"])
def test_flags_that_compare_gives_itself_behind_a_loss(tmp_path, capsys, flag):
    message = refused(
        command(tmp_path / "x", *TUNE, losses=["cross_entropy", f"strict_l {flag}"]), capsys
    )
    assert message.endswith("to the script; leave it out behind -- and in --losses")


def test_files_that_do_not_fit(tmp_path, capsys):
    missing = str(tmp_path / "missing.py")
    assert "there is no script" in refused(command(tmp_path / "x", script=missing), capsys)
    (tmp_path / "file").touch()
    assert "is a file" in refused(command(tmp_path / "file"), capsys)
    assert "holds something else" in refused(command(tmp_path), capsys)


def test_a_package_that_is_missing_is_named(tmp_path, capsys, monkeypatch):
    find = hf_losses.cli.compare.importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "optuna" else find(name)
    )
    message = refused(command(tmp_path / "x", *TUNE), capsys)
    assert "compare needs optuna: pip install 'hf-losses[compare]'" in message


# ---- Its parts -------------------------------------------------------------------------------


def test_losses_that_are_given_twice_are_joined(tmp_path):
    folder = tmp_path / "x"
    flags = ("--seeds", "1", "--losses", "strict_l", "--losses", "cross_entropy", "focal")
    main(command(folder, *flags, losses=["liberal_exp"]))
    found = {run["loss"] for run in runs(folder)}
    assert found == {"cross_entropy", "strict_l", "focal", "liberal_exp"}


def test_wildcards_and_flags_of_losses():
    losses, baseline = expand(["strict_l* --a 'b c'", "liberal_exp", "cross_entropy"], None)
    assert baseline == "cross_entropy"
    assert losses == [
        "cross_entropy",
        "strict_l --a 'b c'",
        "strict_l_full --a 'b c'",
        "liberal_exp",
    ]
    losses, baseline = expand(["smae", "mse"], None)
    assert (losses[0], baseline) == ("mse", "mse")
    assert expand(["strict_l", "strict_m"], "strict_m")[0] == ["strict_m", "strict_l"]


def test_ranges():
    assert parse_range("learning_rate") == ("learning_rate", [1e-5, 1e-2])
    assert parse_range("--weight_decay=0:0.1") == ("weight_decay", [0.0, 0.1])


def test_losses_never_share_a_folder(tmp_path):
    names = [
        "strict_l",
        "strict_l --a 1",
        "strict_l --a -1",
        "strict_l --a=1",
        "strict_l --a ../../b",
    ]
    folders = [run_folder(tmp_path, name, "seed-1") for name in names]
    assert len(set(folders)) == len(names)
    assert all(folder.parents[1] == tmp_path / "runs" for folder in folders)


def test_each_job_has_its_gpus_and_cores(monkeypatch):
    plan = make_plan(SCRIPT, [], LOSSES, seeds=1)
    launched = make_plan(SCRIPT, [], LOSSES, seeds=1, launcher=sys.executable)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def visible(plan, jobs):
        return [environment["CUDA_VISIBLE_DEVICES"] for environment in environments(plan, jobs)]

    def threads(plan, jobs):
        plan = replace(plan, threads=16 // jobs)
        return [environment["OMP_NUM_THREADS"] for environment in environments(plan, jobs)]

    assert visible(plan, 2) == ["0", "1"]
    assert visible(plan, 4) == ["0", "1", "2", "0"]
    assert visible(launched, 2) == ["0,2", "1"]
    with pytest.raises(ValueError, match="--jobs 4 leaves some without a GPU; there are 3"):
        environments(launched, 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert visible(plan, 3) == ["5", "7", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")  # There are three.
    assert visible(plan, 4) == ["0", "1", "2", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    assert visible(plan, 2) == ["GPU-a", "GPU-b"]
    on_cpu = make_plan(SCRIPT, ["--use_cpu"], LOSSES, seeds=1, launcher=sys.executable)
    assert all("CUDA_VISIBLE_DEVICES" not in each for each in environments(on_cpu, 4))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    # Else every job of the 16 would take 16 threads.
    assert threads(plan, 16) == ["1"] * 16
    assert threads(plan, 2) == ["8", "8"]
    assert threads(launched, 1) == ["8"]


def test_the_threads_of_a_job_stay_what_they_are_under_a_launcher(monkeypatch, tmp_path):
    """Launchers set 1 by default, which a recipe undoes; here it is the job's share."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    plan = make_plan(SCRIPT, [], LOSSES, seeds=1, launcher=sys.executable, jobs=10**6)
    (environment,) = environments(plan, 1)
    assert environment["OMP_NUM_THREADS"] == "1"
    monkeypatch.setattr("joblib.cpu_count", lambda: 14)
    monkeypatch.setattr("hf_losses.options.LOCAL_PROCESSES", 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    asked = []
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    RecipeTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert asked == [7]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    RecipeTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert asked == [7, 1]
    for name, value in environments(replace(plan, threads=8), 1)[0].items():
        monkeypatch.setenv(name, value)
    RecipeTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert asked == [7, 1, 4]


def test_cores_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.delenv("HF_LOSSES_THREADS", raising=False)
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert cores() == 1
        assert make_plan(SCRIPT, [], LOSSES, seeds=1).threads == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_more_jobs_leave_a_comparison_fewer_threads(tmp_path, monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 16)
    threads = [
        open_folder(tmp_path / "x", make_plan(SCRIPT, [], LOSSES, seeds=1, jobs=jobs)).threads
        for jobs in (2, 16, 1)
    ]
    assert threads == [8, 1, 8]
    reduced = open_folder(tmp_path / "x", make_plan(SCRIPT, [], LOSSES, seeds=1, jobs=16))
    add_seeds(tmp_path / "x", reduced, 1)
    assert read_plan(tmp_path / "x").threads == 8


@pytest.mark.parametrize(
    ("launcher", "more"),
    [
        ("/bin/accelerate launch --config_file x.yaml", "--gpu_ids all --main_process_port 0"),
        ("accelerate launch --main_process_port=7 --gpu_ids 1", ""),
        ("torchrun --nproc_per_node 2", ""),
        ("", ""),
    ],
)
def test_accelerate_takes_the_gpus_and_a_port_that_other_jobs_leave(launcher, more):
    words = launcher.split()
    command = [*words, "train.py", "--gpu_ids"]
    expected = [*words, *more.split(), "train.py", "--gpu_ids"]
    assert beside_others(command, words) == expected


def test_numbers_that_json_does_not_have_become_null():
    written = strict({"a": [float("nan"), 1.5], "b": (float("inf"), {"c": -float("inf")})})
    assert written == {"a": [None, 1.5], "b": [None, {"c": None}]}


# ---- The recipes -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_recipe_holds_to_the_contract(tmp_path):
    folder = tmp_path / "x"
    script_flags = ["--config_overrides", "hidden_size=16,num_hidden_layers=1", "--use_cpu"]
    script_flags += ["--max_train_samples", "64", "--max_eval_samples", "32"]
    script_flags += ["--num_train_epochs", "2", "--dataloader_num_workers", "0"]
    recipe = str(ROOT / "recipes" / "image_classification.py")
    options = {"losses": LOSSES[:2], "script": recipe, "script_flags": script_flags}
    assert main(command(folder, "--seeds", "1", "--jobs", "2", **options)) == 0
    comparison = results(folder)
    assert comparison["task"] == "digits"
    assert comparison["metric"] == {"set": "test", "name": "accuracy"}
    assert comparison["versions"]["torch"]
    for run in comparison["runs"]:
        assert run["status"] == "finished"
        assert [entry["step"] for entry in run["history"]] == [2, 4]
        assert {"accuracy", "cross_entropy", "ece"} <= run["history"][0].keys()
        assert {"accuracy", "cross_entropy", "ece"} <= run["metrics"]["test"].keys()
        assert 0 < run["seconds"] <= run["wall_seconds"]
    (stage,) = comparison["statistics"]["stages"]
    assert all(entry["ece"] is not None for entry in stage["losses"])
