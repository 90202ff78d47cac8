"""The curves are the formulas, and a picture appears whole, the same everywhere, or not at all."""

import sys

import matplotlib
import mpmath
import pytest
from matplotlib.figure import Figure
from PIL import Image

from hf_losses import get_spec, list_losses
from hf_losses.losses.plots import digest, loss_figure, plot_losses

CLASSIFICATION = list_losses(task="classification")
REGRESSION = list_losses(task="regression")
FUNCTIONS = {
    name: getattr(mpmath, name) for name in "sqrt log exp cos sin pi cosh tanh".split()
} | {"abs": abs}


def evaluate(formula, name, **variables):
    defaults = {key: value.default for key, value in get_spec(name).parameters.items()}
    return eval(formula, dict(FUNCTIONS), defaults | variables)


def drawn(figure):
    """(x, y) of every curve, by its id."""
    lines = [line for panel in figure.axes for line in panel.get_lines()]
    return {line.get_gid(): (line.get_xdata(), line.get_ydata()) for line in lines}


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_curves_are_the_formulas_of_p(name):
    spec = get_spec(name)

    def loss(p):  # of two classes: p of the true one and q = 1 - p of the wrong one
        wrong = evaluate(spec.wrong_class_formula, name, q=1 - p) if spec.is_full else 0
        return evaluate(spec.formula, name, p=p) + wrong

    curves = drawn(loss_figure([name]))
    for p, value in zip(*curves[f"{name}-loss"], strict=True):
        assert value == pytest.approx(float(loss(mpmath.mpf(p))), rel=1e-9)
    for p, weight in zip(*curves[f"{name}-weight"], strict=True):
        exact = p * abs(mpmath.diff(loss, mpmath.mpf(p)))
        assert weight == pytest.approx(float(exact), rel=1e-9)
        if spec.weight_formula:
            assert weight == pytest.approx(evaluate(spec.weight_formula, name, p=p), rel=1e-9)


@pytest.mark.parametrize("name", REGRESSION)
def test_curves_are_the_formulas_of_e(name):
    formula = get_spec(name).formula
    curves = drawn(loss_figure([name]))
    for e, value in zip(*curves[f"{name}-loss"], strict=True):
        assert value == pytest.approx(float(evaluate(formula, name, e=mpmath.mpf(e))), abs=1e-12)
    for e, slope in zip(*curves[f"{name}-weight"], strict=True):
        if e not in (-1, 0, 1):  # the corners of mae and huber
            exact = mpmath.diff(lambda e: evaluate(formula, name, e=e), mpmath.mpf(e))
            assert slope == pytest.approx(float(exact), rel=1e-9)


@pytest.mark.parametrize("names", [CLASSIFICATION, ["liberal_exp"], REGRESSION, ["smae"]])
def test_every_loss_is_drawn_once_in_both_panels_beside_the_reference(names):
    figure = loss_figure(names)
    reference = "mse" if names[0] in REGRESSION else "cross_entropy"
    expected = {reference, *names}
    ids = [line.get_gid() for panel in figure.axes for line in panel.get_lines()]
    assert sorted(ids) == sorted(f"{n}-{part}" for n in expected for part in ("loss", "weight"))
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert expected <= {entry.split(" ")[0] for entry in entries}
    lines = {line.get_gid(): line for line in figure.axes[0].get_lines()}
    widths = {gid: line.get_linewidth() for gid, line in lines.items()}
    assert max(widths, key=widths.get) == f"{reference}-loss"


def test_legend_says_kinds_defaults_and_that_full_forms_are_for_two_classes():
    legend = loss_figure(CLASSIFICATION).legends[0]
    entries = [text.get_text().strip() for text in legend.get_texts()]
    assert "strict_m_power (alpha=0.5)" in entries
    assert "strict_m_full (two classes)" in entries
    order = ["Reference", "cross_entropy", "Strict: hard examples weigh more", "strict_m"]
    assert [entry for entry in entries if entry in order] == order
    assert entries.index("Liberal: hard examples weigh less") < entries.index("liberal_exp")


def test_kinds_have_lines_of_their_own_and_losses_colours_of_their_own():
    panel = loss_figure(CLASSIFICATION).axes[0]
    style_of = {line.get_gid()[: -len("-loss")]: line.get_linestyle() for line in panel.lines}
    assert style_of["strict_m"] != style_of["liberal_exp"]
    colors = [line.get_color() for line in panel.lines]
    assert len(set(colors)) == len(colors)
    alone = loss_figure(["liberal_exp"]).axes[0].lines[-1]
    assert alone.get_color() == next(
        line.get_color() for line in panel.lines if line.get_gid() == "liberal_exp-loss"
    )


def test_a_new_loss_is_drawn_at_once(eleventh_loss):
    before = digest(CLASSIFICATION)
    names = list_losses(task="classification")
    assert f"{eleventh_loss}-loss" in drawn(loss_figure(names))
    assert digest(names) != before


@pytest.mark.parametrize("ending", ["svg", "png", "PNG"])
def test_the_same_losses_give_the_same_bytes_whatever_the_users_settings(tmp_path, ending):
    plot_losses(["strict_m"], tmp_path / f"a.{ending}")
    with matplotlib.rc_context({"font.size": 30, "savefig.bbox": "tight", "lines.marker": "o"}):
        plot_losses(["strict_m"], tmp_path / f"b.{ending}")
    assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


def test_svg_is_svg_with_the_digest_and_no_date(tmp_path):
    plot_losses(CLASSIFICATION, tmp_path / "losses.svg")
    text = (tmp_path / "losses.svg").read_text(encoding="utf-8")
    assert "<svg" in text
    assert digest(CLASSIFICATION) in text
    assert "dc:date" not in text
    assert all(f'id="{name}-weight"' in text for name in CLASSIFICATION)


def test_png_is_png_with_the_digest(tmp_path):
    plot_losses(REGRESSION, tmp_path / "losses.png")
    with Image.open(tmp_path / "losses.png") as image:
        assert image.format == "PNG"
        assert digest(REGRESSION) in image.text["Description"]
        assert image.width > image.height > 500


@pytest.mark.parametrize(
    ("names", "output", "message"),
    [
        (["strict_m"], "a.pdf", r"a\.pdf'.*\.png or \.svg"),
        (["strict_m"], "a", r"\.png or \.svg"),
        (["strict_n"], "a.png", "'strict_n'.*Did you mean 'strict_m'"),
        (["strict_m", "mae"], "a.png", "strict_m and mae in two pictures"),
        ([], "a.png", "at least one name"),
    ],
)
def test_what_cannot_be_drawn_is_said_and_nothing_is_written(tmp_path, names, output, message):
    with pytest.raises(ValueError, match=message):
        plot_losses(names, tmp_path / output)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.a\.png"):
        plot_losses(["strict_m"], tmp_path / "nowhere" / "a.png")


def test_a_failed_write_leaves_the_old_picture(tmp_path, monkeypatch):
    def fill_the_disk(figure, path, **_):
        path.write_bytes(b"half a pict")
        raise OSError(28, "No space left on device")

    (tmp_path / "a.png").write_bytes(b"old")
    monkeypatch.setattr(Figure, "savefig", fill_the_disk)
    with pytest.raises(OSError, match=r"No space left on device.*a\.png"):
        plot_losses(["strict_m"], tmp_path / "a.png")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.style", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-losses\[plots\]'"):
        plot_losses(["strict_m"], tmp_path / "a.png")
