"""A report is one to decide from: the answer first, nothing squashed, every number defined."""

import copy
from html.parser import HTMLParser

import pytest
import test_report
from test_report import BASE, FLAGS, FOUND, make_results, report

from hf_losses.compare.report.pictures.differences import axis_limits, differences_figure
from hf_losses.compare.report.terminal import text_table
from hf_losses.compare.report.words import view_of
from hf_losses.compare.results import Results
from hf_losses.compare.statistics.summary import statistics

# Drawing takes most of the time of a report; tests of pictures ask for `pictures`.
pytestmark = pytest.mark.usefixtures("no_pictures")
BETTER = FOUND["strict_l"]
CHANCE = [0.1] * 8
WORSE = [value - 0.2 - 0.01 * (i % 2) for i, value in enumerate(BASE)]
# Differences of both signs, beyond the margin of 0.0104.
UNDECIDED = [value + 0.05 * (-1) ** i for i, value in enumerate(BASE)]
# Better by 0.009, which is known to be within the margin, and by 0.008, which is not.
STEADY = [value + 0.009 + 0.0001 * (i % 2) for i, value in enumerate(BASE)]
VARYING = [value + 0.002 + 0.012 * (i % 2) for i, value in enumerate(BASE)]
SLIGHTLY = [value + 0.001 + 0.0001 * i for i, value in enumerate(BASE)]


def read(values, **settings):
    results = Results.from_json(make_results(values, **settings))
    return results, statistics(results)


@pytest.mark.parametrize(
    ("losses", "answer"),
    [
        (
            {"strict_l": BETTER, FLAGS: FOUND[FLAGS]},
            "Use `strict_l`: it is better than `cross_entropy` by 0.0110 [0.0100, 0.0120] in "
            "accuracy.",
        ),
        (
            {"a": BETTER, "b": [value + 0.01 for value in BETTER], "c": WORSE},
            "Use `b` or `a`: each is better than `cross_entropy`, by 0.0110 to 0.0210 in accuracy; "
            "they were not tested against each other.",
        ),
        (
            {"a": SLIGHTLY},
            "It hardly matters: `a` is better than `cross_entropy` by 0.0013 in accuracy, less "
            "than the margin of 0.0104.",
        ),
        (
            # What matters goes before what is too small to matter.
            {"a": SLIGHTLY, "b": [value + 0.1 for value in BETTER]},
            "Use `b`: it is better than `cross_entropy` by 0.1110 [0.1100, 0.1120] in accuracy.",
        ),
        (
            {"a": STEADY, "b": VARYING, "c": SLIGHTLY},
            "Use `a` or `b`: each is better than `cross_entropy`, by 0.0080 to 0.0091 in accuracy; "
            "they were not tested against each other.",
        ),
        (
            {"a": FOUND[FLAGS]},
            "It makes no difference that matters: `a` is equivalent to `cross_entropy`, within "
            "0.0104 in accuracy.",
        ),
        (
            {"a": FOUND[FLAGS], "b": FOUND[FLAGS]},
            "It makes no difference that matters: all 2 losses tested are equivalent to "
            "`cross_entropy`, within 0.0104 in accuracy.",
        ),
        ({"a": WORSE}, "Keep `cross_entropy`: `a` is worse."),
        (
            {"a": UNDECIDED},
            "Keep `cross_entropy` for now: `a` is not shown to be better, nor equivalent.",
        ),
        (
            {"a": FOUND[FLAGS], "b": WORSE},
            "Keep `cross_entropy`: none of the 2 losses tested is better (1 equivalent, 1 worse).",
        ),
        (
            {"a": UNDECIDED, "b": [*WORSE[:7], "ValueError"]},
            "Keep `cross_entropy` for now: none of the 2 losses tested is shown to be better "
            "(1 undecided, 1 incomplete).",
        ),
        ({"a": ["ValueError"] * 8}, "Nothing can be said yet, since runs are missing."),
    ],
)
def test_the_answer_is_one_sentence_that_fits_the_verdicts(losses, answer):
    assert view_of(*read({"cross_entropy": BASE, **losses})).answer == answer


def test_too_few_seeds_are_no_answer():
    few = {loss: values[:3] for loss, values in FOUND.items()}
    assert view_of(*read(few)).answer == (
        "3 seeds are too few for an answer: with 2 losses to test, it takes at least 7."
    )


def test_the_answer_to_a_screening_counts_what_was_tested():
    values = {"cross_entropy": BASE * 2, "a": UNDECIDED * 2, "b": FOUND[FLAGS] * 2}
    results = make_results(values | {"c": WORSE[:4] + [None] * 12}, screened=4)
    results["plan"] |= {"top": 2}
    results = Results.from_json(results)
    assert "none of the 2 losses tested (chosen from 3) is shown to be better" in (
        view_of(results, statistics(results)).answer
    )


def test_the_answer_comes_first_everywhere(tmp_path, pictures):
    report(tmp_path, make_results(FOUND))
    answer = "it is better than cross_entropy by 0.0110 [0.0100, 0.0120] in accuracy."
    page = Page(tmp_path / "report.html")
    words = " ".join("".join(page.words).split())
    picture, table = words.index("Paired differences"), words.index("Losses Definitions")
    assert words.index(answer) < words.index("is equivalent to") < picture < table
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert text.index("**Use `strict_l`: ") < text.index("is equivalent to") < text.index("## ")
    shown = " ".join(text_table(view_of(*read(FOUND))).split())
    assert answer in shown.replace("`", "")


class Page(HTMLParser):
    """The cells of a page's tables, with their attributes, and all its words."""

    def __init__(self, path):
        super().__init__()
        self.cells, self.words = [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        if tag in ("th", "td"):
            self.cells.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)


def all_tables():
    """Results that fill every table: with failures, a tuning and a screening."""
    values = {**FOUND, "strict_m": [*BETTER[:5], "ValueError", "ValueError", None]}
    results = make_results({loss: 2 * of_loss for loss, of_loss in values.items()}, screened=8)
    results["plan"] |= {"tune": {"learning_rate": [1e-5, 1e-2]}, "trials": 2}
    for loss in FOUND:
        for rate in (1e-4, 1e-3):
            settings = {"stage": "tune", "loss": loss, "parameters": {"learning_rate": rate}}
            results["runs"].append(results["runs"][0] | settings)
    return results


def test_every_number_and_every_column_has_its_definition(tmp_path):
    report(tmp_path, all_tables())
    page = Page(tmp_path / "report.html")
    undefined = [cell for cell in page.cells if not cell[1].get("title")]
    assert len(page.cells) > 100
    assert not undefined
    headings = [attributes for _, attributes in page.cells if attributes.get("scope") == "col"]
    assert len(headings) > 30
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    for name in ("wall seconds", "steps", "p (adj.)", "NLL", "± sd of the best"):
        assert f"\n- {name}: " in text


def test_cards_of_a_narrow_page_name_their_numbers(tmp_path):
    report(tmp_path, make_results(FOUND))
    labels = [
        attributes.get("data-label") for tag, attributes in Page(tmp_path / "report.html").cells
    ]
    for column in test_report.table_of(tmp_path, "Losses")[0]:
        assert column == "loss" or labels.count(column) == 3


@pytest.fixture
def picture():
    """Panels of losses of which two fell to chance, and one on a single seed."""
    once = [*BETTER[:7], 0.1]
    values = {"cross_entropy": BASE, "strict_l": BETTER, "a": CHANCE, "b": CHANCE, "c": once}
    return differences_figure(*read(values))


def test_losses_at_chance_do_not_squash_the_axis(picture):
    (axes,) = picture.axes
    low, high = axes.get_xlim()
    assert -0.1 < low < 0
    assert 0.01 < high < 0.1


def test_what_is_beyond_the_axis_is_an_arrow_with_its_number(picture):
    (axes,) = picture.axes
    texts = [text.get_text() for text in axes.texts]
    # By hand: 0.1 minus the mean 0.8025 of the baseline; the last seed of c is 0.1 - 0.79.
    assert sum(text.startswith("−0.7025 [") for text in texts) == 2
    assert texts.count("8 seeds to −0.7200") == 2
    assert "a seed at −0.6900" in texts
    low, high = axes.get_xlim()
    arrows = [line for line in axes.lines if line.get_marker() == "<"]
    assert len(arrows) == len(texts)
    for line in axes.lines:
        assert all(low <= x <= high for x in line.get_xdata())


def test_nothing_is_clipped_where_all_losses_are_alike_or_all_at_chance():
    for values in (FOUND, {"cross_entropy": BASE, "a": CHANCE, "b": CHANCE}):
        (axes,) = differences_figure(*read(values)).axes
        assert not axes.texts
    assert axes.get_xlim()[0] < -0.7


def test_a_better_loss_far_away_is_clipped_on_its_side():
    far = {"cross_entropy": CHANCE[:4] + [0.11] * 4, "a": [0.105] * 8, "b": [0.106] * 8}
    results, stats = read(far | {"c": [0.9] * 8})
    (axes,) = differences_figure(results, stats).axes
    assert axes.get_xlim()[1] < 0.1
    assert any(text.get_text().startswith("+0.7950 [") for text in axes.texts)
    assert [line.get_marker() for line in axes.lines].count(">") == 2


def test_differences_of_zero_have_an_axis():
    results, stats = read({"cross_entropy": [0.5] * 8, "a": [0.5] * 8})
    rows = [entry.comparison for entry in stats.stages[0].losses if entry.comparison]
    assert axis_limits(rows, 0.0) == (-1.0, 1.0)
    assert differences_figure(results, stats) is not None


def test_the_narrow_picture_says_the_same(picture):
    values = {"cross_entropy": BASE, "strict_l": BETTER, "a": CHANCE}
    wide, narrow = (differences_figure(*read(values), narrow=narrow) for narrow in (False, True))
    assert narrow.get_figwidth() < 0.6 * wide.get_figwidth()
    texts = [text.get_text() for text in narrow.axes[0].texts]
    labels = [label.get_text() for label in wide.axes[0].get_yticklabels()]
    assert {*texts} == {*(text.get_text() for text in wide.axes[0].texts), *labels}


def test_cost_is_a_median_and_unknown_steps_are_left_out():
    results = make_results(FOUND)
    for run, seconds in zip(results["runs"][:8], (1, 2, 3, 4, 6, 7, 8, 900), strict=True):
        run["wall_seconds"] = seconds
    unknown = copy.deepcopy(results)
    for run in unknown["runs"]:
        run["steps"] = None
    for content, columns in ((results, {"wall seconds", "steps"}), (unknown, {"wall seconds"})):
        content = Results.from_json(content)
        row = view_of(content, statistics(content)).stages[0].rows[0]
        assert {"wall seconds", "steps"} & {*row} == columns
        assert row["wall seconds"] == "5.0"
