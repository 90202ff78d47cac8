"""One comparison over several tasks, each with its own metric, direction and scale."""

import csv
import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from test_answer import Page

from hf_losses.cli.compare import INTERRUPTED
from hf_losses.cli.main import main
from hf_losses.compare import experiment, runs
from hf_losses.compare.report.pictures.over_tasks import tasks_figure
from hf_losses.compare.report.tasks import tasks_view
from hf_losses.compare.results import Results
from hf_losses.compare.statistics.tasks import critical_difference, over_tasks
from hf_losses.compare.tasks import TASKS, task_commands
from hf_losses.messages import UsageError

SCRIPT = str(Path(__file__).with_name("compare_script.py"))
LOSSES = ["cross_entropy", "strict_l", "liberal_exp"]

pytestmark = pytest.mark.usefixtures("no_pictures")


# ---- What is a task --------------------------------------------------------------------------


def test_a_single_section_is_a_single_task():
    assert task_commands("a.py", ["--x", "1", "2"]) == {"a": ["a.py", "--x", "1", "2"]}


def test_a_task_for_each_value_of_a_flag():
    assert task_commands("a.py", ["--x", "1"], "task_name=mrpc,rte") == {
        "mrpc": ["a.py", "--x", "1", "--task_name", "mrpc"],
        "rte": ["a.py", "--x", "1", "--task_name", "rte"],
    }


@pytest.mark.parametrize(
    ("sections", "names"),
    [
        ("a.py --t mrpc -- a.py --t rte", ["mrpc", "rte"]),
        ("a.py -- a.py --t rte", ["a", "--t rte"]),
        ("a.py --t mrpc -- b.py", ["a.py --t mrpc", "b.py"]),
        ("a.py --x 1 --y 2 -- a.py --x 2 --y 1", ["a.py --x 1 --y 2", "a.py --x 2 --y 1"]),
    ],
)
def test_a_section_is_named_by_what_distinguishes_it(sections, names):
    script, *arguments = sections.split()
    tasks = task_commands(script, arguments)
    assert list(tasks) == names
    assert [" ".join(command) for command in tasks.values()] == sections.split(" -- ")


@pytest.mark.parametrize(
    ("sections", "grid", "message"),
    [
        ("a.py -- a.py", None, "same task"),
        ("a.py --", None, "nothing behind a --"),
        ("a.py -- b.py", "x=1,2", "not both"),
        ("a.py --x 1", "x=1,2", "--tasks gives --x"),
        ("a.py --x=1", "x=1,2", "--tasks gives --x"),
        ("a.py", "x=1", "two different values"),
        ("a.py", "x=1,1", "two different values"),
        ("a.py", "mrpc,rte", "FLAG=VALUE"),
        ("a.py", "x=1,,2", "FLAG=VALUE"),
        ("a.py --task_name mrpc rte", None, "--tasks task_name=mrpc,rte before --"),
    ],
)
def test_what_is_ambiguous_is_refused(sections, grid, message):
    script, *arguments = sections.split()
    with pytest.raises(UsageError, match=message):
        task_commands(script, arguments, grid)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds", "2", "--tasks", "seed=1,2"], "compare itself gives --seed"),
        (["--seeds", "2", "--tasks", "x=1,2", "--add_seeds", "3"], "a finished comparison"),
        (["--screen", "2", "--confirm", "2", "--top", "1", "--tasks", "x=1,2"], "for one task"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_run(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(command(tmp_path / "x", *flags))
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


# ---- Runs and files --------------------------------------------------------------------------


def command(folder, *flags, sections=((SCRIPT,),), losses=LOSSES):
    sections = [word for section in sections for word in ("--", *section)]
    return ["compare", "--losses", *losses, *flags, "--output_dir", str(folder), *sections]


def results(folder):
    return json.loads((folder / "results.json").read_text())


GRID = ("--seeds", "2", "--tasks", "bonus=0.1,0.2")


@pytest.fixture(scope="module")
def two_tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks") / "x"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib.style", None)
        assert main(command(folder, *GRID)) == 0
    return folder


def test_every_task_has_its_runs(two_tasks):
    tasks = results(two_tasks)["tasks"]
    assert list(tasks) == ["0.1", "0.2"]
    for bonus, task in tasks.items():
        assert task["plan"]["arguments"] == ["--bonus", bonus]
        assert [(run["loss"], run["seed"]) for run in task["runs"]] == [
            (loss, seed) for loss in LOSSES for seed in (1, 2)
        ]
    for one, other in zip(tasks["0.1"]["runs"], tasks["0.2"]["runs"], strict=True):
        assert other["value"] == pytest.approx(one["value"] + 0.1)


def test_the_same_command_makes_no_run_again(two_tasks, capsys):
    before = {path: path.stat().st_mtime_ns for path in two_tasks.glob("tasks/*/runs/*/*.json")}
    assert len(before) == 12
    content = (two_tasks / "results.json").read_bytes()
    # The same two tasks as sections.
    sections = [[SCRIPT, "--bonus", bonus] for bonus in ("0.1", "0.2")]
    assert main(command(two_tasks, "--seeds", "2", sections=sections)) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert (two_tasks / "results.json").read_bytes() == content
    assert "6 finished runs are kept" in capsys.readouterr().out


def test_the_report_follows_from_the_results_alone(two_tasks, tmp_path):
    names = ["results.json", "table.md", "report.html", "tasks/0.1/table.md"]
    (tmp_path / "results.json").write_bytes((two_tasks / "results.json").read_bytes())
    assert main(["report", str(tmp_path)]) == 0
    for name in names:
        assert (tmp_path / name).read_bytes() == (two_tasks / name).read_bytes()


def test_the_report_does_not_lose_runs_whose_folders_are_gone(two_tasks, tmp_path, capsys):
    folder = shutil.copytree(two_tasks, tmp_path / "x")
    before = (folder / "results.json").read_bytes()
    shutil.rmtree(folder / "tasks" / "0.1" / "runs")
    with pytest.raises(SystemExit):
        main(["report", str(folder)])
    assert "would lose 6 finished runs" in capsys.readouterr().err
    (folder / "tasks.json").unlink()
    assert main(["report", str(folder)]) == 0
    assert (folder / "results.json").read_bytes() == before


def test_the_report_of_one_task_is_that_of_all(two_tasks, capsys):
    with pytest.raises(SystemExit):
        main(["report", str(two_tasks / "tasks" / "0.1")])
    assert f"hf-losses report {two_tasks}" in capsys.readouterr().err


def test_other_tasks_are_refused(two_tasks, capsys):
    with pytest.raises(SystemExit):
        main(command(two_tasks, "--seeds", "2", "--tasks", "bonus=0.1,0.3"))
    assert "over the tasks 0.1, 0.2, and not over 0.1, 0.3" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["md", "html", "csv", "latex"])
def test_formats(two_tasks, name, capsys):
    assert main(["report", str(two_tasks), "--format", name]) == 0
    text = capsys.readouterr().out
    if name == "csv":
        rows = list(csv.DictReader(io.StringIO(text)))
        assert [row["task"] for row in rows] == ["0.1"] * 3 + ["0.2"] * 3 + ["all"] * 3
        summary = results(two_tasks)["statistics"]["losses"]
        assert [row["rank"] for row in rows[6:]] == [str(entry["rank"]) for entry in summary]
    elif name == "latex":
        assert text.count("\\begin{tabular}") == 3
    else:
        path = two_tasks / {"md": "table.md", "html": "report.html"}[name]
        assert text == path.read_text()


def test_a_loss_that_fails_on_one_task_has_no_mean(tmp_path):
    sections = [[SCRIPT], [SCRIPT, "--crash", "liberal_exp:2"]]
    assert main(command(tmp_path / "x", "--seeds", "2", sections=sections)) == 0
    summary = results(tmp_path / "x")["statistics"]
    by_loss = {entry["loss"]: entry for entry in summary["losses"]}
    failed = by_loss["liberal_exp"]
    assert list(failed["verdicts"].values()) == ["undecided", "incomplete"]
    assert (failed["difference"], failed["rank"]) == (None, None)
    assert by_loss["strict_l"]["rank"] == 1
    table = (tmp_path / "x" / "table.md").read_text()
    assert "| `liberal_exp` | 1 undecided, 1 incomplete | – | – | – |" in table
    assert "`liberal_exp` is undecided on compare_script and incomplete on --crash" in table
    assert "liberal_exp does not like" in table


def test_a_task_whose_flags_are_refused_can_be_corrected(tmp_path, capsys):
    folder = tmp_path / "x"
    wrong = [[SCRIPT], [SCRIPT, "--bonos", "1"]]
    with pytest.raises(SystemExit) as stopped:
        main(command(folder, "--seeds", "2", sections=wrong))
    assert stopped.value.code == 2
    assert "task --bonos 1: " in capsys.readouterr().err
    assert main(["report", str(folder)]) == 0
    assert results(folder)["tasks"]["--bonos 1"] is None
    right = [[SCRIPT], [SCRIPT, "--bonus", "1"]]
    assert main(command(folder, "--seeds", "2", sections=right)) == 0
    assert json.loads((folder / TASKS).read_text()) == ["compare_script", "--bonus 1"]


def test_nothing_stays_if_the_first_task_is_refused(tmp_path):
    wrong = [[SCRIPT, "--bonos", "1"], [SCRIPT]]
    with pytest.raises(SystemExit):
        main(command(tmp_path / "x", "--seeds", "2", sections=wrong))
    assert not (tmp_path / "x").exists()


def test_every_number_of_the_page_has_its_definition(two_tasks):
    cells = Page(two_tasks / "report.html").cells
    assert len(cells) > 50
    assert all(attributes.get("title") for _, attributes in cells)


def test_an_interrupted_comparison_goes_on(two_tasks, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "x"
    calls = []

    def make_run(plan, *arguments, **more):
        calls.append(plan.arguments)
        if calls.count(["--bonus", "0.2"]) == 3:
            raise KeyboardInterrupt
        return runs.make_run(plan, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "make_run", make_run)
        assert main(command(folder, *GRID)) == INTERRUPTED
    assert f"hf-losses report {folder}" in capsys.readouterr().err
    assert main(["report", str(folder)]) == 0
    assert main(command(folder, *GRID)) == 0
    assert timeless(folder) == timeless(two_tasks)


def test_a_loss_that_the_script_refuses_can_be_corrected(tmp_path, capsys):
    folder = tmp_path / "x"
    with pytest.raises(SystemExit):
        main(command(folder, *GRID, losses=[*LOSSES, "strict_m --bonos 1"]))
    message = capsys.readouterr().err
    assert f"adds them in {folder}." in message
    assert "unrecognized arguments: --bonos 1" in message
    # The others have been compared on both tasks, and the report over tasks is there.
    assert [len(task["runs"]) for task in results(folder)["tasks"].values()] == [6, 6]
    assert "task 0.1: " in message
    assert "task 0.2: " in message
    assert main(command(folder, *GRID, losses=[*LOSSES, "strict_m --learning_rate 0.2"])) == 0
    for task in results(folder)["tasks"].values():
        assert [run["status"] for run in task["runs"]] == ["finished"] * 8


def test_seeds_are_added_on_every_task(tmp_path, capsys):
    folder = tmp_path / "x"
    losses = ["cross_entropy", "liberal_exp"]
    grid = ("--seeds", "1", "--tasks", "bonus=0.1,0.2")
    assert main(command(folder, *grid, losses=losses)) == 0
    one = json.loads((folder / "tasks" / "0.1" / "plan.json").read_text())
    assert main(command(folder, *grid, "--add_seeds", "2", losses=losses)) == 0
    seeds = [run["seed"] for task in results(folder)["tasks"].values() for run in task["runs"]]
    assert seeds == [1, 2, 3] * 4
    for task in results(folder)["tasks"].values():
        (stage,) = task["statistics"]["stages"]
        assert [look["seeds"] for look in stage["looks"]] == [1, 3]
        assert stage["losses"][1]["comparison"]["outlook"] is not None

    # As after a kill before the second task had its seeds, and in the midst of the runs.
    uninterrupted = timeless(folder)
    second = folder / "tasks" / "0.2"
    plan = json.loads((second / "plan.json").read_text())
    (second / "plan.json").write_text(json.dumps(plan | {"added": one["added"]}))
    for path in [*second.glob("runs/*/seed-3.json"), folder / "results.json"]:
        path.unlink()
    assert main(["report", str(folder)]) == 0
    assert results(folder)["statistics"]["losses"][0]["rank"] is None
    with pytest.raises(SystemExit):
        main(command(folder, *grid, "--add_seeds", "3", losses=losses))
    assert "--add_seeds 2 finish it" in capsys.readouterr().err
    assert main(command(folder, *grid, "--add_seeds", "2", losses=losses)) == 0
    assert timeless(folder) == uninterrupted


def timeless(folder):
    """The results without the times of the runs."""
    content = results(folder)
    for task in content["tasks"].values():
        for run in task["runs"]:
            del run["wall_seconds"]
    return content


# ---- The numbers -----------------------------------------------------------------------------

SEEDS = 10
# Task: metric, scale of the values; an error is better when it is smaller.
TASKS_OF = {"a": ("accuracy", 0.01), "b": ("mse", 30.0), "c": ("f1", 0.3), "d": ("mae", 1.0)}
EFFECTS = {"cross_entropy": 0.0, "strict_l": 0.1, "liberal_exp": 2.0, "focal": -1.5}


@pytest.fixture(scope="module")
def simulated():
    """Results of four tasks as they stand in `results.json`."""
    rng = np.random.default_rng(3)
    tasks = {}
    for task, (metric, scale) in TASKS_OF.items():
        sign = -1 if metric in ("mse", "mae") else 1
        common = rng.normal(size=SEEDS)
        runs = [
            {
                "loss": loss,
                "stage": "main",
                "seed": seed,
                "parameters": {},
                "status": "finished",
                "value": float(sign * scale * value),
                "metrics": {"test": {metric: float(sign * scale * value)}},
            }
            for loss, effect in EFFECTS.items()
            for seed, value in enumerate(common + effect + rng.normal(0, 0.5, SEEDS), 1)
        ]
        plan = {
            "script": "x.py",
            "arguments": [task],
            "losses": list(EFFECTS),
            "baseline": "cross_entropy",
            "seeds": SEEDS,
            "lower_is_better": sign < 0,
            "tasks": len(TASKS_OF),
        }
        tasks[task] = {
            "plan": plan,
            "task": "toy",
            "model": None,
            "metric": {"set": "test", "name": metric},
            "versions": {},
            "hardware": {},
            "tuned": {},
            "runs": runs,
        }
    return tasks


def values_of(task):
    """The values of a task by loss, as an array over the seeds; larger is better."""
    sign = -1 if task["plan"]["lower_is_better"] else 1
    return {
        loss: sign * np.array([run["value"] for run in task["runs"] if run["loss"] == loss])
        for loss in EFFECTS
    }


def sign_flip_p(differences, alternative="two-sided"):
    return stats.permutation_test(
        (differences,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
        alternative=alternative,
    ).pvalue


def test_the_numbers_over_all_tasks(simulated):
    by_task, summary = over_tasks(
        {name: Results.from_json(task) for name, task in simulated.items()}
    )
    values = {name: values_of(task) for name, task in simulated.items()}
    units = {name: stats.tstd(of_task["cross_entropy"]) for name, of_task in values.items()}
    assert summary.units == pytest.approx(units)
    entries = {entry.loss: entry for entry in summary.losses}

    # Holm over all losses and tasks, then the share of the first look.
    p_values = {
        (name, loss): sign_flip_p(of_task[loss] - of_task["cross_entropy"])
        for name, of_task in values.items()
        for loss in EFFECTS
        if loss != "cross_entropy"
    }
    largest, verdicts = 0.0, {}
    for step, (pair, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - step) * p))
        (name, loss) = pair
        (shown,) = [e.comparison for e in by_task[name].stages[0].losses if e.loss == loss]
        assert shown.p == pytest.approx(p)
        assert shown.p_adjusted == pytest.approx(min(1.0, largest * 3 / 2))
        differences = values[name][loss] - values[name]["cross_entropy"]
        unit = units[name]
        sides = [
            sign_flip_p(differences + unit, "greater"),
            sign_flip_p(differences - unit, "less"),
        ]
        equivalent = min(1.0, 2 * max(sides) * len(p_values) * 3 / 2)
        assert shown.p_equivalent == pytest.approx(equivalent)
        verdict = "equivalent" if equivalent <= 0.05 else "undecided"
        if largest * 3 / 2 <= 0.05:
            verdict = "better" if differences.mean() > 0 else "worse"
        verdicts[pair] = verdict
        assert shown.verdict == verdict
        assert entries[loss].verdicts[name] == verdict
    assert {"better", "worse", "undecided"} <= {*verdicts.values()}

    # Means, and scipy's own bootstrap of several samples, which draws from each of them.
    for loss in EFFECTS:
        entry = entries[loss]
        if loss == "cross_entropy":
            assert (entry.difference, entry.verdicts) == (None, None)
            continue
        scaled = [(v[loss] - v["cross_entropy"]) / units[name] for name, v in values.items()]
        assert entry.differences == pytest.approx(
            dict(zip(values, map(np.mean, scaled), strict=True))
        )
        assert entry.difference == pytest.approx(np.mean(list(map(np.mean, scaled))))
        better = [(sample > 0).astype(float) for sample in scaled]
        assert entry.probability_better == pytest.approx(np.mean(list(map(np.mean, better))))
        for samples, interval, tolerance in (
            (scaled, entry.interval, 0.02),
            (better, entry.probability_interval, 0.026),  # It moves in steps of 1/40.
        ):
            expected = stats.bootstrap(
                samples,
                lambda *drawn, axis: np.mean([part.mean(axis=axis) for part in drawn], axis=0),
                method="percentile",
                n_resamples=10_000,
                random_state=np.random.default_rng(1),
            ).confidence_interval
            assert interval == pytest.approx([*expected], abs=tolerance)

    # Ranks, Friedman, and Nemenyi's critical difference: q of Demšar's table 5 for four losses.
    ranks = np.array(
        [stats.rankdata([-v[loss].mean() for loss in EFFECTS]) for v in values.values()]
    )
    for column, loss in enumerate(EFFECTS):
        assert entries[loss].rank == pytest.approx(ranks[:, column].mean())
        assert list(entries[loss].ranks.values()) == list(ranks[:, column])
    assert [entry.rank for entry in summary.losses] == sorted(ranks.mean(axis=0))
    assert summary.friedman_p == pytest.approx(stats.friedmanchisquare(*ranks.T).pvalue)
    assert summary.critical_difference == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 4)), abs=1e-3)


def test_the_critical_difference_of_the_paper():
    # Demšar (2006), section 3.2.2: four classifiers on 14 data sets.
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=5e-3)
    assert critical_difference(1, 14) is None


def test_a_task_that_has_not_begun_counts_in_the_correction(simulated):
    results = {name: Results.from_json(task) for name, task in simulated.items()}
    by_task, summary = over_tasks(results | {"d": None})
    assert list(by_task) == ["a", "b", "c"]
    (best,) = [e for e in by_task["a"].stages[0].losses if e.loss == "liberal_exp"]
    assert best.comparison.level <= 0.05 * 2 / 3 / 4
    assert all(entry.rank is None for entry in summary.losses)
    assert summary.losses[1].verdicts["d"] == "incomplete"


def test_a_baseline_without_spread_leaves_no_mean_difference(simulated):
    tasks = json.loads(json.dumps(simulated))
    for run in tasks["a"]["runs"]:
        if run["loss"] == "cross_entropy":
            run["value"] = 0.0
    summary = over_tasks({name: Results.from_json(task) for name, task in tasks.items()})[1]
    entry = next(entry for entry in summary.losses if entry.loss == "liberal_exp")
    assert summary.units["a"] is None
    assert entry.differences["a"] is None
    assert (entry.difference, entry.interval) == (None, None)
    assert entry.rank == 1


def test_the_picture_shows_the_means_and_half_the_critical_difference(simulated):
    results = {name: Results.from_json(task) for name, task in simulated.items()}
    summary = over_tasks(results)[1]
    difference, rank = tasks_figure(summary).axes
    losses = [label.get_text() for label in difference.get_yticklabels()]
    assert losses == [entry.loss for entry in reversed(summary.losses)]
    half = summary.critical_difference / 2
    for height, entry in enumerate(reversed(summary.losses)):
        bar, mark = [line for line in rank.lines if line.get_ydata()[0] == height]
        assert mark.get_xdata() == [entry.rank]
        assert list(bar.get_xdata()) == pytest.approx([entry.rank - half, entry.rank + half])
        drawn = [list(line.get_xdata()) for line in difference.lines[1:]]
        if entry.difference is not None:
            assert [entry.difference] in drawn
            assert entry.interval in drawn
            assert list(entry.differences.values()) in drawn
    results["a"] = None
    assert tasks_figure(over_tasks(results)[1]) is None


def test_a_loss_at_chance_does_not_squash_the_picture_over_tasks(simulated):
    summary = over_tasks({name: Results.from_json(task) for name, task in simulated.items()})[1]
    *others, worst = [entry for entry in summary.losses if entry.difference is not None]
    differences = {"a": -1.0, "b": -90.0, "c": -89.0}
    lost = replace(worst, difference=-60.0, interval=[-61.0, -59.0], differences=differences)
    losses = [lost if entry is worst else entry for entry in summary.losses]
    axes, _ = tasks_figure(replace(summary, losses=losses)).axes
    low, high = axes.get_xlim()
    assert low > -30
    assert all(low < entry.difference < high for entry in others)
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["−60.0 [−61.0, −59.0]", "2 tasks to −90.0"]


def test_the_report_says_what_the_ranks_can_show(simulated):
    results = {name: Results.from_json(task) for name, task in simulated.items()}
    four = tasks_view(results, *over_tasks(results))
    assert "`liberal_exp` ranks before `focal`. Few tasks say little." in four.ranking[-1]
    two = {name: results[name] for name in ("a", "b")}
    few = tasks_view(two, *over_tasks(two))
    assert "possible is 3: 2 tasks are too few for the ranks to show anything" in few.ranking[-1]
    assert "`focal` is worse on all tasks" in four.findings[0]
