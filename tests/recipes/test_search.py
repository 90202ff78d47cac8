"""recipes/search.py as users call it, on a tiny random BERT and data written here."""

import gc
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import optuna
import pytest
import test_glue
from filelock import FileLock, Timeout
from test_glue import RECIPES, glue, glue_folder, rows, write
from transformers.utils import logging

from hf_losses import LossTrainer, list_losses

import search  # isort: skip  (test_glue makes the recipes importable)
from hf_losses.search.space import SearchArguments  # isort: skip

tiny = test_glue.tiny
SPAN = ("--learning_rate_range", "1e-3", "1e-2")


@pytest.fixture(scope="module", autouse=True)
def quick_collection():
    # Three times a trial Trainer has the garbage collected, among all that pytest has imported.
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def files(tmp_path):
    data = tmp_path / "my data"  # A path that the printed command must quote.
    return [
        *("--train_file", write(data / "train.csv", rows(64, 0))),
        *("--validation_file", write(data / "validation.csv", rows(40, 1))),
    ]


@pytest.fixture
def run(tmp_path, tiny, monkeypatch):
    """Runs the recipe on the tiny model in an empty folder; returns what search.json says."""
    monkeypatch.chdir(tmp_path)
    verbosity = logging.get_verbosity()

    def run(*flags, name="out", model=tiny):
        fixed_flags = ["--model_name_or_path", model, "--output_dir", name, "--use_cpu"]
        search.main([*fixed_flags, *flags])
        return result(tmp_path / name)

    yield run
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


def result(folder):
    # Strict JSON: no NaN, no infinity.
    return json.loads((folder / "search.json").read_text(), parse_constant=pytest.fail)


def timeless(trials):
    """Parameters and value of the trials that came to one."""
    return [(trial["params"], trial["value"]) for trial in trials if trial["value"] is not None]


# ---- What it does ------------------------------------------------------------------------------


def test_searches_and_says_how_to_train_the_winner(run, files, tmp_path, capsys):
    for name in ("train", "validation"):
        scores = rows(64, 0, label=lambda good, rng: (1.5 if good else -1.0) + rng.random() / 2)
        write(tmp_path / "my data" / f"{name}.csv", scores)
    flags = ("--num_train_epochs", "3", "--max_length", "16", "--seed", "7", "--lora")
    flags = (*flags, "--lora_r", "4", "--lora_target_modules", "query", "dense")
    # Other random numbers have been drawn before the training: these two settings take none.
    flags = (*flags, "--lora_dropout", "0", "--train_sampling_strategy", "random")
    sizes = ("--max_train_samples", "100", "--max_eval_samples", "100")
    record = run(*files, *SPAN, *sizes, "--losses", "hub*", "--n_trials", "3", *flags)

    trials = record["trials"]
    assert [trial["state"] for trial in trials] == ["COMPLETE"] * 3
    for trial in trials:
        assert set(trial["params"]) == {"loss", "learning_rate", "huber.delta"}
        assert 1e-3 <= trial["params"]["learning_rate"] <= 1e-2
    assert record["metric"] == "spearmanr"
    assert record["best"] == max(trials, key=lambda trial: trial["value"])
    assert len({trial["value"] for trial in trials}) > 1
    assert (record["seed"], record["n_trials"], record["task"]) == (7, 3, "train")
    settings = {"lora_target_modules": ["query", "dense"], "seed": 7, "num_train_epochs": 3.0}
    assert settings.items() <= record["settings"].items()
    assert record["settings"]["losses"] == ["huber"]
    assert record["settings"]["huber.delta"] == [0.2, 5.0]
    assert {"hf-losses", "optuna", "torch", "python"} <= set(record["versions"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *(".lock", "search.json", "study.db")
    }

    shown = capsys.readouterr().out
    assert f"{record['best']['value']:.4f}" in shown
    command = shown.splitlines()[-1]
    assert command == record["command"]
    python, script, *arguments = shlex.split(command)
    assert python == "python"
    assert os.path.samefile(script, RECIPES / "glue.py")
    assert not {"--max_train_samples", "--max_eval_samples", "--losses"} & set(arguments)
    glue.main([*arguments, "--output_dir", "winner"])
    winner = json.loads((tmp_path / "winner" / "result.json").read_text())
    assert winner["metrics"]["validation"]["spearmanr"] == pytest.approx(record["best"]["value"])
    assert winner["loss"] == {"name": "huber", "delta": record["best"]["params"]["huber.delta"]}


def test_loss_parameters_and_learning_rate_reach_the_training(run, files, monkeypatch):
    seen = []

    class Watched(LossTrainer):
        def training_step(self, *args, **kwargs):
            seen.append((self.loss_config, self.optimizer.param_groups[0]["initial_lr"]))
            return super().training_step(*args, **kwargs)

    monkeypatch.setattr(search, "LossTrainer", Watched)
    record = run(
        *(*files, "--per_device_train_batch_size", "64", "--n_trials", "4"),
        *("--losses", "strict_m_power", "cross_entropy", "strict_l"),
        *("--loss_ranges", "strict_l.max_weight=2:50", "strict_m_power.alpha=0.3:0.4"),
    )
    expected = []
    for trial in record["trials"]:
        params = dict(trial["params"])
        name, rate = params.pop("loss"), params.pop("learning_rate")
        loss_params = {key.removeprefix(f"{name}."): value for key, value in params.items()}
        expected.append(({"name": name, **loss_params}, rate))
    assert seen == expected
    assert [list(config) for config, _ in seen][:3] == [
        *(["name", "alpha"], ["name"], ["name", "max_weight"])
    ]
    assert 0.3 <= seen[0][0]["alpha"] <= 0.4


def test_several_validation_sets(run, tmp_path):
    folder, _ = glue_folder(tmp_path / "glue", "mnli")
    record = run("--task_name", "mnli", "--dataset_name", folder, "--n_trials", "1")
    assert record["metric"] == "accuracy"
    assert record["best"]["value"] * 16 == pytest.approx(round(record["best"]["value"] * 16))


def test_a_trial_that_crashes_is_one_failed_trial(run, files):
    record = run(
        *(*files, "--losses", "strict_l", "cross_entropy", "--n_trials", "2"),
        # In strict_l there are two values for the label smoothing: an error when it is trained.
        *("--label_smoothing_factor", "0.1", "--loss_ranges", "strict_l.label_smoothing=0.2:0.3"),
    )
    assert [trial["state"] for trial in record["trials"]] == ["FAIL", "COMPLETE"]
    assert record["best"]["params"]["loss"] == "cross_entropy"


def test_a_model_that_diverged_has_no_value(run, files, tmp_path, capsys):
    # Its accuracy is that of the first class: a number as good as any.
    with pytest.raises(SystemExit, match="No trial came to a value"):
        run(*files, "--learning_rate_range", "1e30", "1e30", "--n_trials", "2")
    record = result(tmp_path / "out")
    assert [trial["state"] for trial in record["trials"]] == ["FAIL", "FAIL"]
    assert (record["best"], record["command"]) == (None, None)


def test_long_texts_are_cut_to_the_positions_of_the_model(run, files, tiny, tmp_path, capsys):
    model = test_glue.remade(tiny, tmp_path / "model", **test_glue.NO_LIMIT)
    table = [row | {"sentence": f"{row['sentence']} {'film ' * 40}"} for row in rows(32, 0)]
    write(tmp_path / "my data" / "train.csv", table)
    record = run(*files, *SPAN, "--losses", "strict_m", "--n_trials", "1", model=model)
    assert [trial["state"] for trial in record["trials"]] == ["COMPLETE"]
    assert "Length  32 tokens, since the model takes no more" in capsys.readouterr().out


def test_refuses_a_tokenizer_that_cannot_pad(refused, files, tiny, tmp_path):
    nothing = ["pad_token", "eos_token"]
    model = test_glue.remade(tiny, tmp_path / "model", drop=nothing)
    assert "has neither a padding token nor an EOS" in refused(*files, model=model)


def test_the_default_space():
    search_all = SearchArguments()
    losses = search_all.expand("classification")
    assert losses[0] == "cross_entropy"
    assert losses == list_losses(task="classification")
    assert search_all.ranges(losses) == {
        "learning_rate": [2e-5, 5e-4],
        "strict_m_power.alpha": [0.1, 2.5],
        "gce.q": pytest.approx([0.14, 3.5]),
        "poly1.epsilon": [-0.6, 9.0],
        "focal.gamma": [0.4, 10.0],
    }
    some = SearchArguments(
        losses=["strict_l", "strict_l*"], loss_ranges=["strict_l.max_weight=2:9"]
    )
    losses = some.expand("classification")
    assert losses == ["strict_l", "strict_l_full"]
    assert some.ranges(losses) == {"learning_rate": [2e-5, 5e-4], "strict_l.max_weight": [2, 9]}


# ---- Stopped, and gone on with -----------------------------------------------------------------


def states(folder):
    store = optuna.storages.RDBStorage(f"sqlite:///{folder / 'study.db'}")
    study = optuna.load_study(study_name="search", storage=store)
    states = [trial.state.name for trial in study.get_trials(deepcopy=False)]
    store.remove_session()
    store.engine.dispose()
    return states


@pytest.mark.slow
def test_killed_it_goes_on_as_if_it_had_not_been(run, files, tiny, tmp_path):
    flags = [*files, *SPAN, "--losses", "cross_entropy", "strict_m_power", "--n_trials", "3"]
    flags += ["--num_train_epochs", "4"]
    whole = run(*flags, name="whole")
    fixed_flags = ["--model_name_or_path", tiny, "--output_dir", "out", "--use_cpu"]
    with subprocess.Popen(
        [sys.executable, str(RECIPES / "search.py"), *fixed_flags, *flags],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        line = next(line for line in process.stderr if "Trial 0 finished" in line)
        assert "Best is trial 0" in line
        while len(states(tmp_path / "out")) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        with pytest.raises(Timeout):
            FileLock(tmp_path / "out" / ".lock").acquire(timeout=0)
        process.send_signal(signal.SIGKILL)
    assert states(tmp_path / "out") == ["COMPLETE", "RUNNING"]
    assert not (tmp_path / "out" / "search.json").exists()

    record = run(*flags)
    assert [trial["state"] for trial in record["trials"]] == [
        *("COMPLETE", "FAIL", "COMPLETE", "COMPLETE")
    ]
    assert timeless(record["trials"]) == timeless(whole["trials"])
    assert run(*flags)["trials"] == record["trials"]


def test_goes_on_to_more_trials_but_not_with_other_flags(run, refused, files):
    flags = [*files, "--losses", "strict_*", "--seed", "5"]
    run(*flags, "--n_trials", "1")
    for changed, message in [
        (["--num_train_epochs", "2"], "num_train_epochs was not given and is 2.0. Take those"),
        (["--seed", "6"], "seed was 5 and is 6"),
        (["--seed", "42"], "seed was 5 and is not given"),
        (["--losses", "mse", "strict_m"], "no classification loss matches 'mse'"),
        (
            ["--losses", "strict_m"],
            "'strict_l_full'] and is ['strict_m']; strict_m_power.alpha was ",
        ),
        (SPAN, "learning_rate was [2e-05, 0.0005] and is [0.001, 0.01]"),
    ]:
        assert message in refused(*flags, "--n_trials", "2", *changed)
    record = run(*flags, "--n_trials", "2", "--max_train_samples", "512")
    assert [trial["state"] for trial in record["trials"]] == ["COMPLETE", "COMPLETE"]
    assert [trial["params"]["loss"] for trial in record["trials"]] == ["strict_m", "strict_m_power"]


def test_a_damaged_database_is_named_and_left_alone(refused, files, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").touch()
    database = tmp_path / "out" / "study.db"
    database.write_text("no database")
    assert "study.db (file is not a database): restore" in refused(*files, "--n_trials", "1")
    assert database.read_text() == "no database"


def test_two_searches_do_not_share_a_folder(run, refused, files, tmp_path):
    run(*files, "--n_trials", "1")
    with FileLock(tmp_path / "out" / ".lock"):
        assert "another search is at work in out; choose" in refused(*files, "--n_trials", "2")


# ---- What it refuses ---------------------------------------------------------------------------

RANGE = "--loss_ranges takes LOSS.PARAMETER=LOW:HIGH, such as strict_l.max_weight=2:50, got "


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--losses", "cross_entropi"],
            "--losses: no classification loss matches 'cross_entropi'. Did you mean "
            "'cross_entropy'? Choose from: cross_entropy, strict_m, ",
        ),
        (["--losses", "strict_l", "x*"], "no classification loss matches 'x*'. Choose from: "),
        (["--losses", "mae"], "no classification loss matches 'mae'."),
        (["--n_trials", "0"], "--n_trials must be at least 1, got 0"),
        (
            ["--learning_rate_range", "1e-3"],
            "learning_rate: 0.001 is no range; give the lowest and",
        ),
        (["--learning_rate_range", "1e-3", "1e-4"], "learning_rate: 0.001 0.0001 is no range"),
        (["--learning_rate_range", "0", "1e-4"], "such as --learning_rate_range 2e-5 5e-4"),
        (["--learning_rate_range", "1e-3", "inf"], "learning_rate: 0.001 inf is no range"),
        (["--loss_ranges", "strict_l"], f"{RANGE}'strict_l'"),
        (["--loss_ranges", "strict_l.max_weight=2"], f"{RANGE}'strict_l.max_weight=2'"),
        (["--loss_ranges", "strict_l.max_weight=a:b"], f"{RANGE}'strict_l.max_weight=a:b'"),
        (["--loss_ranges", "strict_l.max_weight=9:2"], "strict_l.max_weight: 9 2 is no range; "),
        (["--loss_ranges", "strict_l.max_weight=9:inf"], "strict_l.max_weight: 9 inf is no range"),
        (
            ["--loss_ranges", "strict_m_power.alpa=0.1:1"],
            "loss 'strict_m_power' has no parameter 'alpa'; it takes alpha, ",
        ),
        (
            ["--loss_ranges", "strict_m_power.alpha=-1:1"],
            "alpha must be finite and above 0, got -1.0",
        ),
        (
            ["--losses", "liberal_*", "--loss_ranges", "liberal_expo.max_weight=1:2"],
            "'liberal_expo' is not among the losses of this search. Did you mean 'liberal_exp'? "
            "They are: liberal_parabolic, ",
        ),
        (["--loss", "strict_l"], "a search chooses --loss itself: see --losses"),
        (["--learning_rate", "5e-5"], "chooses --learning_rate itself: see --learning_rate_range"),
        (["--loss_kwargs", "{}"], "a search chooses --loss_kwargs itself: see --loss_ranges"),
        (["--do_predict"], "--do_predict is for glue.py: add it to the command shown at the end"),
        (["--resume_from_checkpoint", "true"], "--resume_from_checkpoint is for glue.py"),
        (["--task_name", "sst"], "unknown task 'sst'. Did you mean 'sst2'?"),
        (["--max_train_samples", "0"], "cannot take 0 rows of the train set"),
        (["--no_such_option", "1"], "--no_such_option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refuses(refused, flags, message):
    assert message in refused(*flags)


def test_refuses_several_gpus(monkeypatch, refused, files):
    monkeypatch.setattr(search.TrialArguments, "n_gpu", 8)
    assert "trains on one GPU, not 8: set CUDA_VISIBLE_DEVICES=0" in refused(*files)


def test_refuses_a_model_that_is_none(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "cannot load the model" in refused(model=str(tmp_path / "empty"))


def test_names_the_extra_when_optuna_is_missing(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "a search needs Optuna: pip install 'hf-losses[compare]'" in refused()


def test_is_a_page_that_a_user_reads():
    assert len((RECIPES / "search.py").read_text().splitlines()) < 200


@pytest.mark.slow
def test_the_bare_command_on_fewer_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = ["--max_train_samples", "64", "--max_eval_samples", "32", "--max_length", "16"]
    search.main(sizes)
    record = result(tmp_path / "runs/search/movie_reviews-seed42")
    assert [trial["state"] for trial in record["trials"]] == ["COMPLETE"] * 10
    assert record["best"]["value"] == max(trial["value"] for trial in record["trials"])
