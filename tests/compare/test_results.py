"""What is stored keeps its form: records and results are read and written without any loss."""

import json
import runpy
from dataclasses import asdict
from pathlib import Path
from statistics import geometric_mean

import pytest

import hf_losses
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
GROUPS = ("untuned", "imbalanced", "which_loss", "same_rate", "label_noise")
FOLDERS = [
    path.parent for group in GROUPS for path in sorted(COMMITTED.glob(f"{group}/*/results.json"))
]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_committed_results_are_read_and_written_unchanged(folder, tmp_path):
    text = (folder / "results.json").read_text(encoding="utf-8")
    results = read_results(folder)
    write_results(tmp_path, results, json.loads(text)["statistics"])
    assert (tmp_path / "results.json").read_text(encoding="utf-8") == text


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_committed_tables_follow_from_the_committed_runs(folder):
    results = read_results(folder)
    table = table_md(view_of(results, statistics(results)))
    assert table == (folder / "table.md").read_text(encoding="utf-8")


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
    for entry in content["losses"]:  # Recomputed from the runs.
        rates = {
            name: [
                best[name][loss]["parameters"]["learning_rate"]
                for loss in (entry["loss"], "cross_entropy")
            ]
            for name in names
        }
        assert entry["learning_rates"] == {name: pair[0] for name, pair in rates.items()}
        ratios = [pair[0] / pair[1] for pair in rates.values()]
        assert entry["relative_learning_rate"] == pytest.approx(geometric_mean(ratios))


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
