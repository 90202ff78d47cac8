"""How a test runs the recipe of its module, and how it is refused.

A module that uses these names its recipe `RECIPE`, the flags of every run `FLAGS`, and has a
fixture `tiny`: the folder of a model.
"""

import json

import pytest


@pytest.fixture
def run(request, tmp_path, tiny, monkeypatch, no_pictures):
    """Runs the recipe on the tiny model in an empty folder; returns the result and the output."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, name="out", model=tiny):
        out = tmp_path / name
        request.module.RECIPE.main(
            [
                *(("--model_name_or_path", model) if model else ()),
                *("--output_dir", str(out), "--use_cpu", "--disable_tqdm", "true"),
                *(*request.module.FLAGS, *arguments),
            ]
        )
        # Strict JSON: no NaN, no infinity.
        return json.loads((out / "result.json").read_text(), parse_constant=pytest.fail), out

    return run


@pytest.fixture
def refused(run, tmp_path, capsys):
    """Runs the recipe with a mistake; returns the message after one line of usage."""

    def refused(*arguments, **options):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        with pytest.raises(SystemExit) as stop:
            run(*arguments, **options)
        assert stop.value.code == 2
        after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        assert after.keys() == before.keys()
        lines = capsys.readouterr().err.splitlines()
        (start,) = [i for i, line in enumerate(lines) if line.startswith("usage: ")]
        # A list, such as that of images that cannot be read, is indented.
        assert all(line.startswith("  ") for line in lines[start + 2 :])
        return "\n".join(lines[start + 1 :]).partition("error: ")[2]

    return refused


@pytest.fixture
def check_best_metrics(run, refused):
    """Holds the metrics that a model may be chosen by against those that an evaluation reports."""

    def check(*arguments, names=("validation",), **options):
        message = refused(*arguments, "--metric_for_best_model", "no_such_metric", **options)
        start, _, choices = message.partition("choose one of: task, ")
        assert start.startswith("unknown --metric_for_best_model 'no_such_metric'")
        metrics = run(*arguments, **options)[0]["metrics"]
        several = len(names) > 1
        reported = {
            f"{name}_{metric}" if several else metric for name in names for metric in metrics[name]
        }
        assert set(choices.split(", ")) == {
            name for name in reported if not name.endswith(("runtime", "per_second"))
        }

    return check
