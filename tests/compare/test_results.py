"""What is stored keeps its form: records and results are read and written without any loss."""

import json
import runpy
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, geometric_mean

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hf_losses
from hf_losses import list_losses
from hf_losses.compare.report.table_md import table_md
from hf_losses.compare.report.words import view_of
from hf_losses.compare.results import (
    Facts,
    Metric,
    Results,
    RunRecord,
    read_results,
    write_results,
)
from hf_losses.compare.statistics.summary import statistics

COMMITTED = Path(hf_losses.__file__).parents[1] / "results"
GROUPS = ("untuned", "imbalanced", "which_loss", "same_rate", "label_noise", "precision")
FOLDERS = [
    path.parent for group in GROUPS for path in sorted(COMMITTED.glob(f"{group}/*/results.json"))
]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_committed_results_are_read_and_written_unchanged(folder, tmp_path):
    text = (folder / "results.json").read_text(encoding="utf-8")
    results = read_results(folder)
    write_results(tmp_path, results, json.loads(text)["statistics"])
    assert (tmp_path / "results.json").read_text(encoding="utf-8") == text


def near(content):
    """The content, but for the last digits of its numbers."""
    if isinstance(content, dict):
        return {key: near(value) for key, value in content.items()}
    if isinstance(content, list):
        return [near(value) for value in content]
    return pytest.approx(content, rel=1e-9, abs=1e-12) if isinstance(content, float) else content


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_committed_figures_and_tables_follow_from_the_committed_runs(folder):
    results = read_results(folder)
    of_runs = statistics(results)
    stored = json.loads((folder / "results.json").read_text(encoding="utf-8"))["statistics"]
    assert json.loads(json.dumps(asdict(of_runs))) == near(stored)
    table = table_md(view_of(results, of_runs))
    assert table == (folder / "table.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "folder",
    [folder for folder in FOLDERS if folder.parent.name == "which_loss"],
    ids=lambda folder: folder.name,
)
def test_which_loss_was_compared_by_its_protocol(folder):
    """All losses, tuned by the same trials; the best three on twelve fresh seeds."""
    runs, rates = read_results(folder).runs, {}
    for run in runs:
        if run.stage == "tune":
            rates.setdefault(run.loss, set()).add(run.parameters["learning_rate"])
    assert {loss.split()[0] for loss in rates} == set(list_losses(task="classification"))
    bounded = {loss for loss in rates if loss.endswith(" --loss_warmup_ratio 0.3")}
    assert bounded == {loss for loss in rates if loss.split()[0] in BOUNDED}
    assert {frozenset(tried) for tried in rates.values()} == {frozenset(rates["cross_entropy"])}
    assert len(rates["cross_entropy"]) == 5
    screened, confirmed = (
        {(run.loss, run.seed) for run in runs if run.stage == stage}
        for stage in ("screen", "confirm")
    )
    assert screened == {(loss, seed) for loss in rates for seed in (1, 2)}
    losses = {loss for loss, _ in confirmed}
    means = {
        loss: fmean(run.value for run in runs if (run.stage, run.loss) == ("screen", loss))
        for loss in rates
        if loss != "cross_entropy"
    }
    best = sorted(means, key=means.get, reverse=True)
    assert losses == {"cross_entropy", *best[:3]}
    assert confirmed == {(loss, seed) for loss in losses for seed in range(3, 15)}
    assert all(run.finished for run in runs)


BOUNDED = ("liberal_parabolic", "liberal_circle", "liberal_cosine")


def test_there_are_committed_results():
    assert {folder.parent.name for folder in FOLDERS} == {*GROUPS}


def test_what_all_comparisons_show_together_follows_from_their_results():
    folder = COMMITTED / "which_loss"
    program = runpy.run_path(str(folder / "overall.py"))
    content, _ = program["overall"](folder)
    assert json.loads((folder / "overall.json").read_text(encoding="utf-8")) == content
    assert (folder / "overall.md").read_text(encoding="utf-8") == program["as_markdown"](content)
    names = [path.parent.name for path in sorted(folder.glob("*/results.json"))]
    assert list(content["data"]) == names
    best = {
        name: json.loads((folder / name / "results.json").read_text(encoding="utf-8"))["tuned"]
        for name in names
    }
    tried, scores = {}, {}
    for name in names:
        for run in read_results(folder / name).runs:
            if run.stage == "tune":
                tried.setdefault(name, set()).add(run.parameters["learning_rate"])
                scores.setdefault(name, {}).setdefault(run.loss, []).append(run.value)
    for entry in content["losses"]:  # Recomputed from the runs.
        rates = {
            name: [
                best[name][loss]["parameters"]["learning_rate"]
                for loss in (entry["loss"], "cross_entropy")
            ]
            for name in names
        }
        assert entry["learning_rates"] == {name: pair[0] for name, pair in rates.items()}
        ratios = [
            pair[0] / pair[1]
            for name, pair in rates.items()
            if max(tried[name]) > max(pair)
            and min(tried[name]) < min(pair)
            # What learns nothing has the same score at all rates.
            and len(set(scores[name][entry["loss"]])) > 1
        ]
        assert entry["relative_learning_rate"] == pytest.approx(geometric_mean(ratios))


def test_labels_are_exchanged_in_the_share_that_was_asked_for(tmp_path, monkeypatch):
    count, clean = 2200, {"sentence": [str(i) for i in range(2200)], "label": [0, 1] * 1100}
    (tmp_path / "sst2").mkdir()
    for name in ("train", "validation"):
        pq.write_table(pa.table(clean), tmp_path / "sst2" / f"{name}-0.parquet")
    found = []
    for name in ("a", "b"):
        arguments = ["noise.py", str(tmp_path), "0.2", str(tmp_path / name)]
        monkeypatch.setattr(sys, "argv", arguments)
        runpy.run_path(str(COMMITTED / "which_loss" / "noise.py"))
        found.append(pq.read_table(tmp_path / name / "train.parquet").to_pylist())
        for other in ("validation", "test"):
            rows = pq.read_table(tmp_path / name / f"{other}.parquet").to_pylist()
            assert all(row["label"] == int(row["sentence"]) % 2 for row in rows)
    assert found[0] == found[1]
    assert len(found[0]) == count - 2000
    wrong = sum(row["label"] != int(row["sentence"]) % 2 for row in found[0])
    assert wrong == round(0.2 * len(found[0]))


RUN = ("strict_l", "main", 1, {"learning_rate": 0.1})
MEASURED = RunRecord(
    *RUN,
    status="finished",
    value=0.5,
    metric=Metric("test", "accuracy"),
    metrics={"test": {"accuracy": 0.5}},
    history=[{"step": 1, "accuracy": 0.4}],
    steps=2,
    seconds=1.5,
    facts=Facts("toy", "none", {"torch": "2"}, {"gpu": None}),
    wall_seconds=3.0,
)
FAILED = RunRecord(*RUN, status="failed", reason="KeyError: x", wall_seconds=3.0)


@pytest.mark.parametrize("record", [MEASURED, FAILED], ids=lambda record: record.status)
def test_a_record_survives_its_file(record):
    assert RunRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_a_failed_run_records_no_measurement():
    keys = ["loss", "stage", "seed", "parameters", "status", "reason", "wall_seconds"]
    assert list(FAILED.to_json()) == keys
    assert set(MEASURED.to_json()) == set(asdict(MEASURED))


@pytest.mark.parametrize("missing", ["metric", "tuned"])
def test_a_missing_field_is_named(tmp_path, missing):
    content = json.loads((FOLDERS[0] / "results.json").read_text(encoding="utf-8"))
    del content[missing]
    (tmp_path / "results.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=f"lacks '{missing}'"):
        read_results(tmp_path)
    with pytest.raises(KeyError):
        Results.from_json(content)
