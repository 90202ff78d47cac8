"""A report says what the results say, to anyone and everywhere: numbers, failures, no more."""

import copy
import json
import os
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from statistics import pstdev

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from hf_losses.compare.report.files import write_report
from hf_losses.compare.report.pictures.panels import tuning_figure
from hf_losses.compare.report.terminal import text_table
from hf_losses.compare.report.words import view_of
from hf_losses.compare.results import Results
from hf_losses.compare.statistics.summary import statistics

# Drawing takes most of the time of a report; tests of pictures ask for `pictures`.
pytestmark = pytest.mark.usefixtures("no_pictures")
FLAGS = "liberal_parabolic --loss_warmup_ratio 0.3"
PICTURES = [
    "differences.png",
    "learning_curves.png",
    "time_to_baseline.png",
    "gradient_weights.png",
]


def make_results(values, *, metric="accuracy", lower=False, history=True, screened=()):
    """Results of runs with these values, by loss; the first loss is the baseline.

    A text in place of a value is why the run failed, None a run that has not been made. The first
    `screened` seeds are a screening.
    """
    losses = list(values)
    count = len(values[losses[0]])
    plan = {
        "script": "recipes/glue.py",
        "arguments": ["--task_name", "mrpc"],
        "launcher": ["accelerate", "launch"],
        "losses": losses,
        "baseline": losses[0],
        "seeds": count,
        "screen": None,
        "confirm": None,
        "top": None,
        "tune": {},
        "trials": 0,
        "metric": None,
        "lower_is_better": lower,
        "threads": 1,
    }
    if screened:
        plan |= {"seeds": None, "screen": screened, "confirm": count - screened, "top": 1}
    runs = []
    for loss, of_loss in values.items():
        for seed, value in enumerate(of_loss, 1):
            if value is None:
                continue
            failed = isinstance(value, str)
            stage = ("screen" if seed <= screened else "confirm") if screened else "main"
            course = []
            if history and not failed:
                course = [{"step": 50 * k, metric: value - 0.1 / k} for k in (1, 2, 3, 4)]
            runs.append(
                {
                    "loss": loss,
                    "stage": stage,
                    "seed": seed,
                    "status": "failed" if failed else "finished",
                    "reason": value if failed else None,
                    "value": None if failed else value,
                    "metrics": {}
                    if failed
                    else {"test": {metric: value, "cross_entropy": 0.4321, "ece": 0.0567}},
                    "history": course,
                    "parameters": {},
                    "steps": 200,
                    "seconds": 20.0,
                    "wall_seconds": 25.0,
                }
            )
    return {
        "plan": plan,
        "task": "movie_reviews",
        "model": "all-MiniLM-L6-v2",
        "metric": {"set": "test", "name": metric},
        "versions": {"torch": "2.13.0"},
        "hardware": {"cpu_count": 2, "gpu": None},
        "same_everywhere": True,
        "tuned": {},
        "runs": runs,
    }


BASE = [0.80, 0.81, 0.79, 0.82, 0.80, 0.81, 0.80, 0.79]
FOUND = {  # By hand: differences of strict_l 0.010 and 0.012 in turn, of the other ±0.001.
    "cross_entropy": BASE,
    "strict_l": [v + 0.010 + 0.002 * (i % 2) for i, v in enumerate(BASE)],
    FLAGS: [v + 0.001 * (-1) ** i for i, v in enumerate(BASE)],
}


def report(folder, results):
    (folder / "results.json").write_text(json.dumps(results))
    _, files = write_report(folder)
    return files


def terminal(content):
    """The table for the terminal of the content of a `results.json`."""
    results = Results.from_json(content)
    return text_table(view_of(results, statistics(results)))


def table_of(folder, heading):
    """The first Markdown table below a heading, as dicts."""
    text = (folder / "table.md").read_text(encoding="utf-8").split(f"## {heading}\n", 1)[1]
    lines = text[text.index("|") :].split("\n\n", 1)[0].splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [dict(zip(head, row, strict=True)) for row in rows]


class Page(HTMLParser):
    """The tags of a page, its addresses and its text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.addresses, self.alts, self.words = [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        names = ("src", "href", "srcset", "data", "poster", "action")
        self.addresses += [v for name, v in attributes if name in names]
        self.alts += [v for name, v in attributes if name == "alt"]

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def report_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("found")
    return folder, report(folder, make_results(FOUND))


def test_the_table_has_the_numbers(report_files):
    baseline, best, other = table_of(report_files[0], "Losses")
    assert baseline["loss"] == "`cross_entropy`"
    assert baseline["accuracy ± sd"] == "0.8025 ± 0.0104"
    assert baseline["verdict"] == "baseline"
    assert baseline["p"] == baseline["difference [interval]"] == "–"
    assert best["difference [interval]"].startswith("+0.0110 [+0.01")
    # All of eight differences have one sign: 2 of 2^8 patterns, twice for two losses, and the first
    # look has two thirds of 5 %.
    assert (best["p"], best["p (adj.)"]) == ("0.00781", "0.0234")
    assert (best["P(better)"], best["verdict"]) == ("1.00", "better")
    assert (best["NLL"], best["ECE"]) == ("0.4321", "0.0567")
    # From 0.1/k below its value: 0.010 - 0.1/3 is above the baseline's best, -0.1/4.
    assert (best["steps to baseline"], best["seconds to baseline"]) == ("150 (8/8)", "15.0")
    assert (best["wall seconds"], best["steps"]) == ("25.0", "200")
    assert other["loss"] == f"`{FLAGS}`"
    # Differences of ±0.001 lie within a margin of 0.0104.
    assert other["difference [interval]"] == "+0.0000 [−0.0010, +0.0010]"
    assert (other["p (equiv.)"], other["verdict"]) == ("0.0234", "equivalent")


def test_every_seed_is_in_the_table(report_files):
    text = (report_files[0] / "table.md").read_text(encoding="utf-8")
    assert "| 2 | 0.8100 | 0.8220 | 0.8090 |" in text.split("<details>")[1]


def test_words_say_what_the_verdicts_say(report_files):
    text = (report_files[0] / "table.md").read_text(encoding="utf-8")
    assert "`strict_l` is better than `cross_entropy`." in text
    assert f"`{FLAGS}` is equivalent to `cross_entropy`: within a margin of 0.0104." in text
    assert "smallest p value possible is 0.023" in text
    assert "a true difference of 0.00" in text


def test_statistics_are_stored_and_files_named(report_files):
    folder, files = report_files
    stored = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert stored["statistics"]["stages"][0]["losses"][1]["comparison"]["verdict"] == "better"
    assert [path.name for path in files] == ["table.md", "report.html", *PICTURES]
    assert {path.name for path in folder.iterdir()} == {"results.json", *(p.name for p in files)}


def test_pictures_can_be_opened(report_files):
    for name in PICTURES:
        with Image.open(report_files[0] / name) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 200
            low, high = picture.convert("L").getextrema()
            assert (low < 50, high) == (True, 255), f"{name} is empty"


def test_page_asks_nobody_and_runs_nothing(report_files):
    page = Page(report_files[0] / "report.html")
    # The differences are there in a second form, for narrow windows.
    svgs = [a for a in page.addresses if a.startswith("data:image/svg+xml;")]
    assert len(svgs) == len(PICTURES) + 1
    assert all(a.startswith(("data:", "#")) for a in page.addresses)
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "link", "iframe", "object", "embed"} & set(tags)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    text = (report_files[0] / "report.html").read_text(encoding="utf-8")
    assert "@import" not in text
    assert "url(" not in text


def test_page_can_be_read_without_seeing_it(report_files):
    page = Page(report_files[0] / "report.html")
    assert ("html", {"lang": "en"}) in page.tags
    assert "title" in [tag for tag, _ in page.tags]
    assert len(page.alts) == len(set(page.alts)) == len(PICTURES)
    assert "▲ better" in page.text
    assert "strict_l is better than cross_entropy." in page.text.replace(" .", ".")
    assert "hf-losses compare --losses cross_entropy strict_l" in page.text
    assert "torch 2.13.0" in page.text
    assert "2 CPU cores" in page.text


def test_the_command_is_told_whole(report_files):
    text = (report_files[0] / "table.md").read_text(encoding="utf-8")
    command = text.split("```sh\n")[1].split("\n")[0]
    assert command == (
        f"hf-losses compare --losses cross_entropy strict_l '{FLAGS}' --baseline cross_entropy "
        "--seeds 8 --launcher 'accelerate launch' --output_dir FOLDER -- recipes/glue.py "
        "--task_name mrpc"
    )


def test_the_same_results_give_the_same_files_whatever_the_users_settings(
    report_files, tmp_path, pictures
):
    with matplotlib.rc_context({"font.size": 30, "lines.marker": "o", "svg.hashsalt": "x"}):
        report(tmp_path, make_results(FOUND))
    for path in report_files[1]:
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_few_seeds_say_that_nothing_can_be_found(tmp_path):
    values = {"cross_entropy": [0.8, 0.7, 0.8], "strict_l": [0.9, 0.9, 0.95]}
    results = make_results(values, history=False)
    report(tmp_path, results)
    for text in ((tmp_path / "table.md").read_text(encoding="utf-8"), terminal(results)):
        plain = " ".join(text.replace("`", "").split())
        assert "Undecided against cross_entropy: strict_l (about 5 more seeds would show" in plain
        assert "nothing can be decided at 5%, however large a difference is" in plain
        assert "is better than" not in plain


def test_undecided_is_not_incomplete():
    values = {"cross_entropy": [0.8, 0.7], "strict_l": [0.9, 0.6], "strict_m": [0.9, None]}
    plain = " ".join(terminal(make_results(values)).split())
    assert "Undecided against cross_entropy: strict_l (" in plain
    assert "runs are missing: strict_m." in plain


def test_failed_and_missing_runs_are_told_and_cannot_break_the_table(tmp_path):
    reason = "ValueError: a | b <script>x</script> `c` *d*\nmore"
    values = {
        **FOUND,
        "strict_m": [*FOUND["strict_l"][:5], reason, reason, None],
        "strict_l_full --note a|b": [reason] * 8,
    }
    results = make_results(values)
    results["runs"][-1] |= {"status": "diverged"}
    report(tmp_path, results)
    by_loss = {row["loss"]: row for row in table_of(tmp_path, "Losses")}
    assert by_loss["`strict_m`"]["verdict"] == "incomplete: 2 failed, 1 missing of 8 seeds"
    assert by_loss[r"`strict_l_full --note a\|b`"]["verdict"] == "incomplete: 8 failed of 8 seeds"
    assert by_loss[r"`strict_l_full --note a\|b`"]["accuracy ± sd"] == "–"
    failed = table_of(tmp_path, "Failed runs")
    assert len(failed) == 10
    assert failed[-1]["status"] == "diverged"
    escaped = r"ValueError: a \| b &lt;script&gt;x&lt;/script&gt; \`c\` \*d\* more"
    assert {row["reason"] for row in failed} == {escaped}
    page = Page(tmp_path / "report.html")
    assert "script" not in [tag for tag, _ in page.tags]
    assert "a | b <script>x</script> `c` *d* more" in page.text
    shown = terminal(results)
    assert "strict_m, main, seed 6 failed: ValueError: a | b <script>" in shown
    assert "Not judged, since runs are missing: strict_m and strict_l_full --note a|b." in " ".join(
        shown.split()
    )


def test_no_run_finished(tmp_path):
    results = make_results({"cross_entropy": ["KeyError: x"] * 2, "strict_l": ["KeyError: x"] * 2})
    results |= {"metric": None, "task": None, "model": None, "versions": {}, "hardware": {}}
    report(tmp_path, results)
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "No run has finished, so nothing was found." in text
    assert len(table_of(tmp_path, "Failed runs")) == 4
    assert not (tmp_path / "differences.png").exists()
    assert "KeyError: x" in terminal(results)


def test_no_history_leaves_pictures_out_and_old_ones_go(tmp_path, pictures):
    for name in PICTURES:
        (tmp_path / name).write_bytes(b"old")
    files = report(tmp_path, make_results(FOUND, history=False))
    drawn = [path.name for path in files if path.suffix == ".png"]
    assert drawn == ["differences.png", "gradient_weights.png"]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == sorted(drawn)
    assert "steps to baseline" not in table_of(tmp_path, "Losses")[0]
    assert "Learning curves" not in Page(tmp_path / "report.html").text


def test_a_screening_only_chooses(tmp_path):
    values = {loss: of_loss + of_loss for loss, of_loss in FOUND.items()}
    values[FLAGS] = values[FLAGS][:4] + [None] * 12
    results = make_results(values, screened=4)
    report(tmp_path, results)
    screened, confirmed = table_of(tmp_path, "Screening"), table_of(tmp_path, "Confirmation")
    assert len(screened) == 3
    assert not {"p", "p (adj.)", "verdict"} & set(screened[0])
    assert [row["verdict"] for row in confirmed] == ["baseline", "better"]
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "These seeds only chose which losses were confirmed." in text
    assert "--screen 4 --confirm 12 --top 1" in text
    assert terminal(results).index("Screening.") < terminal(results).index("Confirmation.")


def test_lower_is_better(tmp_path):
    values = {"mse": [10 * v for v in BASE], "huber": [10 * v for v in FOUND["strict_l"]]}
    results = make_results(values, metric="mse", lower=True)
    for run in results["runs"]:
        run["metrics"]["test"] = {"mse": run["value"]}
    report(tmp_path, results)
    _, row = table_of(tmp_path, "Losses")
    assert row["verdict"] == "worse"
    assert row["difference [interval]"].startswith("−0.110 [")
    assert row["P(better)"] == "0.00"
    assert not {"NLL", "ECE"} & set(row)
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "`huber` is worse than `mse`." in text
    assert "lower is better" in text
    assert "lower_is_better" not in text  # Known by the name mse.
    results["metric"]["name"] = "mistakes"
    for run in results["runs"]:
        run["metrics"]["test"] = {"mistakes": run["value"]}
    report(tmp_path, results)
    assert "--lower_is_better" in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_terminal_table_is_narrow_and_loses_nothing():
    text = terminal(make_results(FOUND))
    assert max(map(len, text.splitlines())) <= 100
    row = next(line for line in text.splitlines() if line.startswith("strict_l "))
    assert row.split()[-2:] == ["0.0234", "better"]
    assert "+0.0110 [+0.01" in row
    assert "--loss_warmup_ratio" in text
    results = make_results(FOUND)
    before = copy.deepcopy(results)
    terminal(results)
    assert results == before


def test_large_values_have_fewer_decimals_and_small_p_a_limit(tmp_path):
    base = [80 + v for v in BASE] * 2
    values = {"cross_entropy": base, "strict_l": [v + 1 + 0.01 * i for i, v in enumerate(base)]}
    values["strict_m"] = [v - 1e-6 for v in base]
    report(tmp_path, make_results(values, history=False))
    _, row, equal = table_of(tmp_path, "Losses")
    assert equal["difference [interval]"].startswith("+0.00 [")
    assert row["accuracy ± sd"].startswith("81.88 ± 0.")
    assert row["p"] == "&lt;0.001"


def test_one_huge_value_does_not_take_the_decimals_of_all_others(tmp_path):
    values = FOUND | {"strict_m": [*BASE[:-1], 3e7]}
    report(tmp_path, make_results(values, history=False))
    row = next(row for row in table_of(tmp_path, "Losses") if row["loss"] == "`strict_l`")
    assert row["accuracy ± sd"].startswith("0.8135 ± 0.")


def test_tuned_parameters_and_different_machines_are_told(tmp_path, pictures):
    results = make_results(FOUND, history=False) | {"same_everywhere": False}
    results["plan"] |= {"tune": {"learning_rate": [1e-5, 1e-2]}, "trials": 3}
    trials = [(0.00012345, 0.80), (0.001, 0.81), (0.009, 0.70)]
    for loss, shift in (("strict_l", 0.0), ("cross_entropy", 0.02)):
        for number, (rate, value) in enumerate(trials):
            rate = trials[(number + 1) % 3][0] if shift else rate  # Best at the largest one.
            settings = {"stage": "tune", "loss": loss, "parameters": {"learning_rate": rate}}
            results["runs"].append(results["runs"][0] | settings | {"value": value + shift})
    files = report(tmp_path, results)
    # The largest of three values drawn from these is the largest in 19 of 27 cases, the middle one
    # in 7 and the smallest in 1.
    draws = [0.81] * 19 + [0.80] * 7 + [0.70]
    spread = f"{pstdev(draws):.4f}"
    assert table_of(tmp_path, "Tuned parameters") == [
        {
            "loss": f"`{loss}`",
            "learning_rate": rate,
            "validation": value,
            "± sd of the best": spread,
            "at the edge": edge,
        }
        for loss, rate, value, edge in [
            ("cross_entropy", "0.009", "0.8300", "learning_rate"),
            ("strict_l", "0.001", "0.8100", "no"),
        ]
    ]
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    trial = "| `strict_l` | 0.0001234 | 0.8000 |"
    assert trial in text.split("<summary>Every trial</summary>")[1]
    assert "--tune learning_rate=1e-05:0.01 --trials 3" in text
    assert "runs differ in versions, hardware, script or files" in text
    assert "`cross_entropy` has its best value at the edge of what was tried" in text
    other = "The tuning chose another `learning_rate` for `strict_l` than for `cross_entropy`"
    assert other in text
    alike = [run for run in results["runs"] if (run["stage"], run["loss"]) == ("tune", "strict_l")]
    results["runs"] = [
        *(run for run in results["runs"] if run["stage"] != "tune"),
        *(run | {"loss": loss} for run in alike for loss in ("strict_l", "cross_entropy")),
    ]
    report(tmp_path, results)
    assert "The tuning chose" not in (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "What other trials or another tuning seed would have chosen" in text
    assert "Score over the tuned range" in Page(tmp_path / "report.html").text
    assert "tuning.png" in [path.name for path in files]


def test_what_another_tuning_seed_makes_is_told(tmp_path):
    results = make_results(FOUND, history=False)
    results["plan"] |= {"tune": {"learning_rate": [1e-4, 1e-1]}, "trials": 2, "tuning_seeds": 2}
    for loss, gap in (("cross_entropy", 0.0), ("strict_l", 0.1)):  # One seed chooses each trial.
        for rate, values in ((0.001, (0.80, 0.84)), (0.01, (0.83 + gap, 0.79 + gap))):
            for seed, value in zip((0, 1_000_000), values, strict=True):
                settings = {"stage": "tune", "loss": loss, "seed": seed, "value": value}
                settings["parameters"] = {"learning_rate": rate}
                results["runs"].append(results["runs"][0] | settings)
    report(tmp_path, results)
    spread = {
        row["loss"].strip("`"): row["± sd by seed"]
        for row in table_of(tmp_path, "Tuned parameters")
    }
    # The trials that the two seeds choose are worth 0.82 and 0.81; of strict_l both choose one.
    assert spread == {"cross_entropy": "0.0071", "strict_l": "0.0000"}
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "by a standard deviation of up to 0.0071 (`cross_entropy`)" in text
    assert "| `strict_l` | 0.01 | 1000000 | 0.8900 |" in text
    dots = [axes.lines[0] for axes in tuning_axes(results)]
    assert [sorted(line.get_ydata()) for line in dots] == [
        pytest.approx([0.81, 0.82]),
        pytest.approx([0.82, 0.91]),
    ]


def tuning_axes(results):
    content = Results.from_json(results)
    figure = tuning_figure(content, statistics(content))
    FigureCanvasAgg(figure).draw()
    return figure.axes


@pytest.mark.parametrize("limits", [(0.05, 0.8), (2e-5, 2e-3), (1e-6, 1.0)])
def test_labels_of_a_tuned_range_do_not_overlap(limits):
    results = make_results({loss: [0.8] * 3 for loss in ("cross_entropy", "strict_l", "strict_m")})
    results["plan"] |= {"tune": {"learning_rate": list(limits)}, "trials": 1}
    for loss in results["plan"]["losses"]:
        settings = {"stage": "tune", "loss": loss, "parameters": {"learning_rate": limits[0] * 2}}
        results["runs"].append(results["runs"][0] | settings)
    for axes in tuning_axes(results):
        ticks = axes.get_xticklabels(which="both")
        labels = [
            label.get_window_extent()
            for label in ticks
            if label.get_text() and limits[0] <= label.get_position()[0] <= limits[1]
        ]
        assert len(labels) >= 2
        assert all(one.x1 < other.x0 for one, other in pairwise(sorted(labels, key=lambda b: b.x0)))


def test_a_comparison_on_the_validation_set_says_so(tmp_path):
    results = make_results(FOUND, history=False)
    results["metric"]["set"] = "validation"
    for run in results["runs"]:
        run["metrics"] = {"validation": run["metrics"]["test"]}
    report(tmp_path, results)
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "There is no test set: the losses are compared on the validation set" in text


@pytest.mark.parametrize("content", [None, "{", "[1]", "{}", "\x00"])
def test_what_is_no_comparison_says_the_way_out(tmp_path, content):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=r"results\.json.*hf-losses report again"):
        write_report(tmp_path)
    assert not (tmp_path / "table.md").exists()


@pytest.mark.parametrize("name", ["results.json", "table.md", "differences.png", "report.html"])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, name, pictures):
    (tmp_path / "table.md").write_text("old")
    (tmp_path / "report.html").write_text("old")
    replace = os.replace

    def refuse(source, target):
        if target.name == name:
            raise OSError("no space")
        replace(source, target)

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="no space"):
        report(tmp_path, make_results(FOUND, history=False))
    assert not list(tmp_path.glob(".*"))
    assert not (tmp_path / "differences.png").exists() or name == "report.html"
    if name.endswith(("md", "html")):
        assert (tmp_path / name).read_text() == "old"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_page_is_no_wider_than_the_window(tmp_path, width):
    report(tmp_path, make_results(FOUND | {"strict_m": ["x" * 300] * 8}))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    (tmp_path / "report.html").write_text(page.replace("<details>", "<details open>"))
    # The page has no script: its frame measures it, and its main table.
    (tmp_path / "frame.html").write_text(
        f'<iframe src="report.html" width="{width}" height="800" onload="'
        "const page = this.contentDocument; document.title = "
        "[page.documentElement, ...page.querySelectorAll('.cards')]"
        '.map(part => part.scrollWidth).join()"></iframe>'
    )
    flags = ["--headless", "--no-sandbox", "--allow-file-access-from-files", "--dump-dom"]
    frame = (tmp_path / "frame.html").as_uri()
    command = ["chromium", *flags, f"--user-data-dir={tmp_path}/profile", frame]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    measured = [int(part) for part in dom.split("<title>")[1].split("<")[0].split(",")]
    assert len(measured) == 2
    assert 0 < min(measured) <= max(measured) <= width
