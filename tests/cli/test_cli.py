"""`hf-losses`, as people type it: tables that fit, pictures, and one line for every mistake."""

import itertools
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import hf_losses
from hf_losses import get_spec, list_losses
from hf_losses.cli import list as list_command
from hf_losses.cli.main import main


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch):
    for variable in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(variable, raising=False)


def output(capsys, *argv):
    assert main(argv) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def names_in(table):
    return [line.split()[0] for line in table.splitlines() if line.split()[:1] != []]


def test_console_script():
    script = Path(sysconfig.get_path("scripts")) / "hf-losses"
    result = subprocess.run([script, "--version"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, f"hf-losses {hf_losses.__version__}\n")


@pytest.mark.parametrize(("flag", "shown"), [("list", "liberal_exp"), ("--version", "hf-losses")])
def test_python_m_lists_without_loading_what_it_does_not_need(flag, shown):
    command = [sys.executable, "-X", "importtime", "-m", "hf_losses", flag]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown in result.stdout
    loaded = {line.split("|")[-1].strip() for line in result.stderr.splitlines()}
    assert "hf_losses.losses.registry" in loaded
    assert not loaded & {"torch", "torch._C", "transformers", "matplotlib", "accelerate", "numpy"}


def test_in_a_pipe_each_loss_is_one_whole_line(capsys):
    lines = output(capsys, "list").splitlines()
    for spec in map(get_spec, list_losses()):
        (line,) = [line for line in lines if line.split()[:1] == [spec.name]]
        shown = [spec.kind, spec.full_formula, spec.weight_formula, spec.reference]
        shown += [f"{name}={p.default:g} ({p.bound})" for name, p in spec.parameters.items()]
        assert all(text in line for text in shown), line


def test_the_losses_stand_by_kind_and_those_of_the_paper_are_marked(capsys):
    names = list_losses(task="classification")
    lines = [line.split() for line in output(capsys, "list").splitlines()]
    rows = [line[:3] for line in lines if line[:1] and line[0] in names]
    assert [name for name, *_ in rows] == names
    kinds = [kind for _, kind, _ in rows]
    assert [kind for kind, _ in itertools.groupby(kinds)] == [
        *("neutral", "strict", "liberal", "mixed")
    ]
    assert [name for name, _, mark in rows if mark == "yes"] == [
        *("strict_m", "strict_m_power", "strict_l", "strict_m_full", "strict_l_full"),
        *("liberal_parabolic", "liberal_circle", "liberal_cosine"),
    ]


@pytest.mark.parametrize("width", [60, 80, 120, 163, 200, 300])
def test_nothing_is_cut_off_at_any_width(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    text = output(capsys, "list")
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert set(list_losses()) <= set(names_in(text))
    words = set(text.split())
    for spec in map(get_spec, list_losses()):
        pieces = f"{spec.full_formula} {spec.weight_formula} {spec.reference} {spec.kind}".split()
        assert words.issuperset(pieces), spec.name


@pytest.mark.parametrize("width", [80, 200])
def test_formulas_stay_on_one_line(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    text = output(capsys, "list")
    for spec in map(get_spec, list_losses()):
        assert spec.full_formula in text
        assert spec.weight_formula in text


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["liberal_*"], list_losses("liberal_*")),
        (["smae"], ["smae"]),
        (["--kind", "strict"], list_losses(kind="strict")),
        (["--task", "regression", "--kind", "robust"], list_losses(kind="robust")),
        (["*_m*", "--task", "classification"], ["strict_m", "strict_m_power", "strict_m_full"]),
    ],
)
def test_list_takes_a_wildcard_and_filters(capsys, argv, names):
    shown = json.loads(output(capsys, "list", *argv, "--format", "json"))
    assert [loss["name"] for loss in shown] == names


def test_json_is_the_registry(capsys):
    losses = {loss["name"]: loss for loss in json.loads(output(capsys, "list", "--format", "json"))}
    assert list(losses) == list_losses()
    assert losses["strict_m_power"] == {
        "name": "strict_m_power",
        "task": "classification",
        "kind": "strict",
        "paper": True,
        "formula": "p**(-alpha) - 1",
        "weight": "alpha*p**(-alpha)",
        "parameters": {
            "alpha": {
                "default": 0.5,
                "help": "power of 1/p; 1 gives strict_m",
                "above": 0.0,
                "minimum": None,
            }
        },
        "reference": "Noel et al. 2023, arXiv:2303.09935 (ParamMLoss)",
        "use": get_spec("strict_m_power").use,
        "avoid": get_spec("strict_m_power").avoid,
    }
    assert [name for name, loss in losses.items() if not loss["paper"]] == [
        "cross_entropy",
        *("liberal_exp", "gce", "dft", "poly1", "focal"),
        *list_losses(task="regression"),
    ]
    assert losses["strict_l_full"]["formula"] == get_spec("strict_l_full").full_formula
    assert losses["strict_l_full"]["weight"] is None


def test_markdown_has_a_row_per_loss_and_links(capsys):
    rows = [line for line in output(capsys, "list", "--format", "markdown").splitlines() if line]
    assert [row.split("`")[1] for row in rows if row.startswith("| `")] == list_losses()
    (row,) = [row for row in rows if row.startswith("| `strict_m_power`")]
    assert row == (
        "| `strict_m_power` | strict | yes | `p**(-alpha) - 1` | `alpha*p**(-alpha)` "
        "| alpha=0.5 (above 0): power of 1/p; 1 gives strict_m "
        "| Noel et al. 2023, [arXiv:2303.09935](https://arxiv.org/abs/2303.09935) (ParamMLoss) |"
    )


def test_a_new_loss_is_listed_by_its_kind_and_drawn_at_once(capsys, tmp_path, eleventh_loss):
    names = [name for name in names_in(output(capsys, "list")) if name in list_losses()]
    assert (
        names.index(eleventh_loss) == names.index("liberal_parabolic") - 1
    )  # The last strict one.
    output(capsys, "plot", "--output", str(tmp_path / "a.svg"))
    assert f'id="{eleventh_loss}-weight"' in (tmp_path / "a.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        ([], list_losses(task="classification")),
        (["strict_m", "liberal_*"], ["cross_entropy", "strict_m", *list_losses("liberal_*")]),
        (["smae", "h*"], ["mse", "smae", "huber"]),
    ],
)
def test_plot_draws_names_and_wildcards(capsys, tmp_path, argv, names):
    picture = tmp_path / "a.svg"
    assert output(capsys, "plot", *argv, "-o", str(picture)) == f"wrote {picture}\n"
    text = picture.read_text(encoding="utf-8")
    assert [name for name in list_losses() if f'id="{name}-loss"' in text] == sorted(
        names, key=list_losses().index
    )


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], ["a command is missing", "list, plot"]),
        (["lst"], ["'lst'", "list, plot", "Did you mean 'list'?"]),
        (["list", "liberal_ex"], ["'liberal_ex'", "Did you mean 'liberal_exp'?", "strict_m"]),
        (["list", "x*"], ["'x*'", "cross_entropy", "smae"]),
        (
            ["list", "strict_m", "--task", "regression"],
            ["no regression loss matches 'strict_m'", "mae"],
        ),
        (["list", "--kind", "stric"], ["--kind", "'stric'", "Did you mean 'strict'?", "liberal"]),
        (["list", "--task", "ranking"], ["--task", "'ranking'", "classification, regression"]),
        (["list", "--format", "jsn"], ["'jsn'", "text, markdown, json", "Did you mean 'json'?"]),
        (["list", "--colour"], ["--colour"]),
        (["plot"], ["--output"]),
        (["plot", "-o", "a.pdf"], ["a.pdf", ".png or .svg"]),
        (["plot", "strict_n", "-o", "a.png"], ["'strict_n'", "Did you mean 'strict_m'?"]),
        (["plot", "*", "-o", "a.png"], ["two pictures"]),
        (["plot", "-o", "nowhere/a.png"], ["nowhere/a.png", "No such file or directory"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, monkeypatch, tmp_path, argv, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    captured = capsys.readouterr()
    assert (stopped.value.code, captured.out) == (2, "")
    assert captured.err.startswith("hf-losses")
    assert captured.err.count("\n") == 1
    assert all(text in captured.err for text in says), captured.err
    assert not list(tmp_path.iterdir())


def test_a_bug_keeps_its_traceback(monkeypatch):
    def broken(*_, **__):
        raise ValueError("a bug of a library")

    monkeypatch.setattr(list_command, "match_losses", broken)
    with pytest.raises(ValueError, match="a bug of a library"):
        main(["list", "strict_m"])


@pytest.mark.parametrize("argv", [["list"], ["list", "--format", "json"], ["run", "--help"]])
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_an_encoding_without_our_signs_is_no_error(argv, encoding):
    result = subprocess.run(
        [sys.executable, "-m", "hf_losses", *argv],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"focal" in result.stdout
