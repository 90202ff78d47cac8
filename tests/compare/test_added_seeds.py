"""`--add_seeds` is a further look at the results: allowed for, recorded and told."""

import json
from pathlib import Path
from statistics import stdev

import pytest
from comparing import refused

from hf_losses.cli.main import main
from hf_losses.compare.plan import Plan
from hf_losses.compare.report.words import view_of
from hf_losses.compare.results import Metric, Results, RunRecord
from hf_losses.compare.runs import run_folder
from hf_losses.compare.statistics.summary import statistics

# Drawing takes most of the time of a report; tests of pictures ask for `pictures`.
pytestmark = pytest.mark.usefixtures("no_pictures")
SCRIPT = str(Path(__file__).with_name("compare_script.py"))
LOSSES = ["cross_entropy", "strict_l"]


def command(folder, *flags, seeds=("--seeds", "2"), losses=LOSSES):
    return [
        *("compare", "--losses", *losses, *seeds, "--output_dir", str(folder), *flags),
        *("--", SCRIPT),
    ]


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_a_finished_comparison_goes_on_and_tells_of_it(tmp_path, capsys):
    folder = tmp_path / "x"
    assert main(command(folder)) == 0
    first = {run["seed"]: run for run in results(folder)["runs"] if run["loss"] == "strict_l"}
    capsys.readouterr()
    assert main(command(folder, "--add_seeds", "2")) == 0
    out = capsys.readouterr().out
    assert "4 paired seeds, 1 loss against the baseline, look 2 at the results" in out
    assert "4 finished runs are kept from before" in out
    content = results(folder)
    runs = {run["seed"]: run for run in content["runs"] if run["loss"] == "strict_l"}
    assert sorted(runs) == [1, 2, 3, 4]
    assert {seed: runs[seed] for seed in first} == first
    assert content["plan"]["seeds"] == 2
    assert content["plan"]["added"] == [2]
    (stage,) = content["statistics"]["stages"]
    assert [look["seeds"] for look in stage["looks"]] == [2, 4]
    assert [look["alpha"] for look in stage["looks"]] == pytest.approx([0.05 * 2 / 3, 0.05 * 2 / 9])
    assert [look["verdicts"] for look in stage["looks"]] == [{"strict_l": "undecided"}] * 2
    table = (folder / "table.md").read_text()
    assert "Seeds were added after the results of 2 had been seen: this is look 2" in table
    assert "Look 1 (2 seeds, 3.33%): strict_l undecided." in table
    assert "hf-losses compare --add_seeds 2 --losses" in table

    # The command without the flag shows what there is; what was interrupted is continued.
    assert main(command(folder)) == 0
    assert results(folder)["plan"]["added"] == [2]
    run_folder(folder, "strict_l", "seed-4").with_name("seed-4.json").unlink()
    message = refused(command(folder, "--add_seeds", "3"), capsys)
    assert "lacks runs, so seeds cannot be added yet" in message
    assert "with --add_seeds 2 finish it" in message
    assert main(command(folder, "--add_seeds", "2")) == 0
    assert results(folder)["plan"]["added"] == [2]


def test_seeds_are_added_to_a_confirmation_alone(tmp_path):
    folder = tmp_path / "x"
    staged = ("--screen", "1", "--top", "1", "--confirm", "1")
    arguments = {"seeds": staged, "losses": [*LOSSES, "liberal_exp"]}
    assert main(command(folder, **arguments)) == 0
    assert main(command(folder, "--add_seeds", "1", **arguments)) == 0
    seeds = {}
    for run in results(folder)["runs"]:
        seeds.setdefault((run["stage"], run["loss"]), []).append(run["seed"])
    assert {seeds["screen", loss][0] for loss in arguments["losses"]} == {1}
    assert seeds["confirm", "cross_entropy"] == seeds["confirm", "liberal_exp"] == [2, 3]
    assert ("confirm", "strict_l") not in seeds


def test_what_cannot_be_continued_is_refused_before_any_run(tmp_path, capsys):
    folder = tmp_path / "x"
    message = refused(command(folder, "--add_seeds", "2"), capsys)
    assert "continues a finished comparison" in message
    assert not folder.exists()
    main(command(folder))
    assert "--add_seeds must be at least 1, got 0" in refused(
        command(folder, "--add_seeds", "0"), capsys
    )
    run_folder(folder, "strict_l", "seed-2").with_name("seed-2.json").unlink()
    message = refused(command(folder, "--add_seeds", "2"), capsys)
    assert "let the same command with no --add_seeds finish it" in message
    message = refused(command(folder, seeds=("--seeds", "5")), capsys)
    assert (
        "seeds was 2 and is 5. Take those to continue it, --add_seeds K for more seeds" in message
    )
    # A margin chosen after the results have been seen is another comparison.
    message = refused(command(folder, "--margin", "0.3"), capsys)
    assert "margin was None and is 0.3" in message


@pytest.mark.parametrize("margin", ["0", "-0.1", "nan", "inf"])
def test_a_margin_is_a_positive_number(tmp_path, capsys, margin):
    message = refused(command(tmp_path / "x", f"--margin={margin}"), capsys)
    assert "--margin must be a positive number in units of the metric, such as 0.005" in message
    assert f"got {margin}" in message
    assert not (tmp_path / "x").exists()


def looked_at(values, added, **plan):
    """Results of a baseline with these values, and of a loss ahead by them."""
    runs = []
    for seed, (base, ahead) in enumerate(values, 1):
        for loss, value in (("b", base), ("x", base + ahead)):
            score = {"test": {"accuracy": value}}
            runs.append(RunRecord(loss, "main", seed, {}, "finished", value=value, metrics=score))
    design = {"seeds": len(values) - sum(added), "added": added, "lower_is_better": False}
    plan = Plan("x.py", [], ["b", "x"], "b", **design, **plan)
    metric = Metric("test", "accuracy")
    return Results(plan, None, None, metric, {}, {}, True, {}, runs)


def test_every_look_is_judged_by_the_seeds_it_had():
    ahead = [0.01, 0.02, -0.01, 0.03, 0.01, 0.02, 0.01, *[0.02, 0.03] * 6]
    bases = [0.7 + 0.001 * (seed % 5) for seed in range(len(ahead))]
    values = list(zip(bases, ahead, strict=True))
    (stage,) = statistics(looked_at(values, [12], margin=0.001)).stages
    first, second = stage.looks
    assert (first.seeds, second.seeds) == (7, 19)
    assert (first.verdicts, second.verdicts) == ({"x": "undecided"}, {"x": "better"})
    (alone,) = statistics(looked_at(values[:7], [], margin=0.001)).stages
    assert alone.looks == [first]
    # Without --margin, each look has the margin of its own seeds.
    (default,) = statistics(looked_at(values, [12])).stages
    assert default.looks[0].margin == pytest.approx(stdev(bases[:7]))
    assert default.looks[1].margin == default.margin == pytest.approx(stdev(bases))
    comparison = stage.losses[1].comparison
    assert comparison.level == pytest.approx(0.05 * 2 / 9)
    assert comparison.p_adjusted == pytest.approx(4.5 * comparison.p)


def test_a_difference_within_the_margin_is_told():
    values = [(0.7 + 0.01 * (seed % 3), 0.001 + 0.0001 * (seed % 2)) for seed in range(9)]
    results = looked_at(values, [], margin=0.005)
    view = view_of(results, statistics(results))
    assert view.stages[0].rows[1]["verdict"] == "better: by less than the margin"
    assert "Equivalent means a difference of less than 0.0050 (--margin)." in " ".join(view.design)
    same = looked_at([(0.7, 0.0)] * 9, [])
    view = view_of(same, statistics(same))
    assert "Nothing can be equivalent, since b does not vary" in " ".join(view.design)
