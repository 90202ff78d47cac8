"""The pictures of what classifiers predict: calibration and F1 by class."""

import json
import math

import numpy as np
import pytest
from test_report import FOUND, make_results

from hf_losses.compare.plan import Plan
from hf_losses.compare.report.files import write_report
from hf_losses.compare.report.pictures.predictions import calibration_figure, classes_figure
from hf_losses.compare.results import Results, RunSettings
from hf_losses.compare.runs import read_result
from hf_losses.compare.statistics.summary import statistics

CLASSES = [f"intent {i}" for i in range(15)]


def with_predictions(classes=2, **options):
    """Results whose runs predict, by seed and loss, other classes and probabilities."""
    content = make_results(FOUND, **options)
    for run in content["runs"]:
        shift = run["seed"] + 10 * (run["loss"] == "strict_l")
        true = [100.0] * classes
        right = [80.0 + shift / 2] + [50.0] * (classes - 1)
        predicted = true
        count = [0.0] * 13 + [40.0 + shift, 60.0 - shift]
        run["predictions"] = {
            "calibration": {
                "count": count,
                "probability": [0.0] * 13 + [0.9 * count[13], 0.98 * count[14]],
                "right": [0.0] * 13 + [0.75 * count[13], 0.5 * count[14]],
            },
            "classes": {"true": true, "predicted": predicted, "right": right},
        }
    content["classes"] = CLASSES[:classes]
    results = Results.from_json(content)
    return content, results, statistics(results)


def test_calibration_is_that_of_all_seeds_together():
    _, results, stats = with_predictions()
    figure = calibration_figure(results, stats)
    panels = {axes.get_title(): axes for axes in figure.axes}
    losses = [entry.loss for entry in stats.stages[-1].losses[1:]]
    assert [title.replace("\n", " ") for title in panels] == losses
    for axes in panels.values():
        _, reference, own = axes.lines
        for line in (reference, own):
            np.testing.assert_allclose(line.get_xdata(), [0.9, 0.98])
            np.testing.assert_allclose(line.get_ydata(), [0.75, 0.5])
    # The dots say how many predictions a bin holds: 40 + 10 + seed of 100, on the average of 8.
    sizes = panels["strict_l"].collections[0].get_sizes() / 120
    np.testing.assert_allclose(sizes, [0.545, 0.455])


def test_f1_by_class_is_shown_with_names_and_seeds():
    _, results, stats = with_predictions()
    figure = classes_figure(results, stats)
    axes = next(axes for axes in figure.axes if axes.get_title() == "strict_l")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["intent 1", "intent 0"]
    *seeds, reference, mean = axes.lines
    f1 = [(80 + (seed + 10) / 2) / 100 for seed in range(1, 9)]
    np.testing.assert_allclose(sorted(line.get_xdata()[1] for line in seeds), f1)
    np.testing.assert_allclose(mean.get_xdata(), [0.5, np.mean(f1)])
    np.testing.assert_allclose(reference.get_xdata(), [0.5, np.mean(f1) - 0.05])


def test_of_many_classes_those_are_shown_that_differ():
    _, results, stats = with_predictions(classes=15)
    axes = classes_figure(results, stats).axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) == 12
    assert labels[-1] == "intent 0"
    assert "the 12 of 15 classes" in classes_figure(results, stats)._supxlabel.get_text()


def test_nothing_is_drawn_without_the_baselines_predictions():
    content, *_ = with_predictions()
    for run in content["runs"]:
        if run["loss"] == "cross_entropy":
            del run["predictions"]
    results = Results.from_json(content)
    assert calibration_figure(results, statistics(results)) is None
    assert classes_figure(results, statistics(results)) is None
    results = Results.from_json(make_results(FOUND))
    assert calibration_figure(results, statistics(results)) is None
    assert classes_figure(results, statistics(results)) is None


@pytest.mark.parametrize(
    ("predictions", "kept"),
    [
        ([0, 1, 1], {}),
        ({"test": [0, 1]}, {}),
        ({"test": {"classes": [0, 1]}}, {}),
        ({"validation": {"classes": {"true": [1], "predicted": [1], "right": [1]}}}, {}),
        ({"test": {"classes": {"true": [1, 2], "predicted": [3], "right": [1]}}}, {}),
        ({"test": {"classes": {"true": [1], "predicted": [math.nan], "right": [1]}}}, {}),
        # NaN probabilities are null in the file; the counts by class are still true.
        (
            {
                "test": {
                    "calibration": {"count": [2], "probability": [None], "right": [1]},
                    "classes": {"true": [1], "predicted": [1], "right": [1], "more": 0},
                }
            },
            {"classes": {"true": [1], "predicted": [1], "right": [1]}},
        ),
    ],
)
def test_what_a_script_means_otherwise_is_left_out(tmp_path, predictions, kept):
    result = {"metric": "accuracy", "metrics": {"test": {"accuracy": 0.5}}, "classes": 2}
    (tmp_path / "result.json").write_text(json.dumps(result | {"predictions": predictions}))
    plan = Plan("x.py", [], ["a", "b"], "a", seeds=1)
    run = read_result(tmp_path, RunSettings("a", "main", 1, {}), plan)
    assert run.predictions == kept
    assert run.facts.classes is None


def test_classes_may_have_numbers_for_names(tmp_path):
    result = {"metric": "accuracy", "metrics": {"test": {"accuracy": 0.5}}, "classes": [0, 1]}
    (tmp_path / "result.json").write_text(json.dumps(result))
    run = read_result(
        tmp_path,
        RunSettings("a", "main", 1, {}),
        Plan("x.py", [], ["a", "b"], "a", seeds=1),
    )
    assert run.facts.classes == ["0", "1"]


def test_a_baseline_with_other_classes_than_the_losses_is_not_drawn():
    content, *_ = with_predictions()
    for run in content["runs"]:
        if run["loss"] == "cross_entropy":
            run["predictions"]["classes"] = {
                name: [1.0] * 3 for name in ("true", "predicted", "right")
            }
    results = Results.from_json(content)
    assert classes_figure(results, statistics(results)) is None


def test_losses_whose_counts_cannot_be_drawn_are_left_out():
    content, *_ = with_predictions()
    for run in content["runs"]:
        if run["loss"] == "strict_l":  # No prediction at all; and other classes in one run.
            run["predictions"]["calibration"]["count"] = [0.0] * 15
            if run["seed"] == 2:
                run["predictions"]["classes"] = {
                    name: [1.0] * 3 for name in ("true", "predicted", "right")
                }
    results = Results.from_json(content)
    for figure in (calibration_figure, classes_figure):
        titles = [axes.get_title() for axes in figure(results, statistics(results)).axes]
        assert titles
        assert "strict_l" not in titles


def test_the_report_has_both(tmp_path):
    content, *_ = with_predictions(screened=2)
    (tmp_path / "results.json").write_text(json.dumps(content))
    _, files = write_report(tmp_path)
    assert {"calibration.png", "classes.png"} <= {path.name for path in files}
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Calibration</h2>" in page
    assert "<h2>F1 of each class</h2>" in page
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["classes"] == content["classes"]
    assert stored["runs"][0]["predictions"] == content["runs"][0]["predictions"]
