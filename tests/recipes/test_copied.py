"""A recipe is one file: copied into an empty folder, it runs there, and none imports another."""

import importlib
import json
import os
import shutil
import subprocess
import sys

import pytest
import test_glue
from huggingface_hub import constants
from test_glue import RECIPES, rows, write

from hf_losses.losses.fused import triton_launch
from hf_losses.messages import UsageError
from hf_losses.training.output_folder import check_folder

RECIPE, FLAGS, tiny = test_glue.RECIPE, test_glue.FLAGS, test_glue.tiny
NAMES = sorted(path.stem for path in RECIPES.glob("*.py"))


def start(folder, name, *flags):
    """Runs the copy of a recipe in its folder; nothing beside it can be imported."""
    shutil.copy(RECIPES / f"{name}.py", folder / "mine.py")
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    others = os.pathsep.join(path for path in paths if path and path != str(RECIPES))
    return subprocess.run(
        [sys.executable, "mine.py", *flags],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": others},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", NAMES)
def test_it_imports_nothing_beside_it(name):
    text = (RECIPES / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    siblings = {f"import {other}" for other in NAMES} | {f"from {other}" for other in NAMES}
    assert not [line for line in text.splitlines() if line.split(" import")[0] in siblings]


@pytest.mark.parametrize("name", NAMES)
def test_it_shows_its_flags(name, capsys):
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(name).main(["--help"])
    assert stop.value.code == 0
    assert "--learning_rate" in capsys.readouterr().out


FEW = ("--max_train_samples", "64", "--max_eval_samples", "32")


@pytest.mark.slow
def test_a_search_far_from_the_other_recipes_names_the_next_one(tmp_path):
    done = start(tmp_path, "search", *FEW, "--n_trials", "1", "--losses", "strict_l", "--use_cpu")
    assert done.returncode == 0, done.stderr
    assert "\n\npython glue.py --loss strict_l" in done.stdout


def test_it_trains(tmp_path, tiny):
    done = start(
        tmp_path,
        "glue",
        *("--train_file", write(tmp_path / "train.csv", rows(32, 0))),
        *("--validation_file", write(tmp_path / "validation.csv", rows(16, 1))),
        *("--model_name_or_path", tiny, "--loss", "liberal_exp", "--output_dir", "out"),
        "--use_cpu",
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["loss"] == {"name": "liberal_exp"}


def test_what_a_user_did_is_one_line_and_a_bug_a_traceback(run, refused, tmp_path, monkeypatch):
    train = write(tmp_path / "train.csv", rows(32, 0))
    flags = ("--train_file", train, "--validation_file", train)
    assert "mean 'liberal_exp'?" in refused(*flags, "--loss", "liberal_expo")

    def bug(*_):
        raise ValueError("a bug of a library")

    monkeypatch.setattr(RECIPE, "usable_length", bug)
    with pytest.raises(ValueError, match="a bug of a library"):
        run(*flags)


def test_an_output_folder_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    for folder in ("file", "file/below"):
        with pytest.raises(UsageError, match="choose another --output_dir"):
            check_folder(folder)
    check_folder("new/below")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_folder_of_a_file_is_refused_by_the_recipe(refused, tmp_path):
    train = write(tmp_path / "train.csv", rows(32, 0))
    message = refused("--train_file", train, "--validation_file", train, name="train.csv")
    assert f"cannot write to the folder '{train}' (File exists)" in message


def test_a_wrong_variable_leaves_no_folder(refused, tmp_path, monkeypatch):
    train = write(tmp_path / "train.csv", rows(32, 0))
    monkeypatch.setenv("HF_LOSSES_TRITON", "on")
    triton_launch.choice.cache_clear()
    try:
        message = refused("--train_file", train, "--validation_file", train)
        assert "HF_LOSSES_TRITON must be 0 or 1, got 'on'" in message
    finally:
        triton_launch.choice.cache_clear()


def test_a_missing_token_is_one_line(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "no such file")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    train = write(tmp_path / "train.csv", rows(32, 0))
    message = refused("--train_file", train, "--validation_file", train, "--push_to_hub")
    assert "no Hugging Face token" in message
