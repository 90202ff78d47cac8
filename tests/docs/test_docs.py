"""What is generated cannot drift from the registry, nor the citation from the version."""

import importlib.util
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml

import hf_losses
from hf_losses.citation import SUMMARY

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def build():
    spec = importlib.util.spec_from_file_location("build", ROOT / "docs" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copied(build, tmp_path, monkeypatch):
    """The script, at work on a copy of what it generates."""
    (tmp_path / "docs").mkdir()
    for name in (*build.PICTURES, *build.DOCUMENTS):
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(build, "ROOT", tmp_path)
    return build


def test_readme_and_pictures_are_up_to_date(build):
    assert build.stale() == [], "run `make docs`"


def test_a_changed_registry_makes_all_stale_and_a_build_makes_them_true(
    copied, eleventh_loss, capsys
):
    assert copied.main(["--check"]) == 1
    message = capsys.readouterr().err
    assert all(
        f"stale: {name} " in message for name in (*copied.PICTURES, "README.md", "docs/losses.md")
    )
    assert copied.main([]) == 0
    assert copied.main(["--check"]) == 0
    assert f"`{eleventh_loss}`" in (copied.ROOT / "README.md").read_text(encoding="utf-8")


def test_an_edited_table_and_a_missing_picture_are_stale(copied):
    readme = copied.ROOT / "docs" / "losses.md"
    readme.write_text(readme.read_text(encoding="utf-8").replace("`1/p - 1`", "`1/p`"), "utf-8")
    (copied.ROOT / "docs" / "losses.png").unlink()
    assert copied.stale() == ["docs/losses.png", "docs/losses.md"]


def test_an_edited_table_of_the_official_scripts_is_stale(copied):
    document = copied.ROOT / "docs" / "swap.md"
    text = document.read_text(encoding="utf-8")
    assert "| `text-classification/run_xnli.py` | BERT | runs |" in text
    document.write_text(text.replace("run_xnli.py` | BERT", "run_xnli.py` | T5"), encoding="utf-8")
    assert copied.stale() == ["docs/swap.md"]
    assert copied.main([]) == 0
    assert document.read_text(encoding="utf-8") == text


RUNS, REFUSED, FAILS = {"outcome": "runs"}, {"outcome": "refused"}, {"outcome": "fails"}


@pytest.mark.parametrize(
    ("run", "shown"),
    [
        ({"stock": RUNS, "ours": RUNS}, "runs"),
        (
            {"stock": RUNS, "ours": RUNS, "wrong": "evaluation lacks x"},
            "runs, but evaluation lacks x",
        ),
        ({"stock": RUNS, "ours": REFUSED, "own": "a matching"}, "refused: its loss is a matching"),
        ({"stock": FAILS, "ours": REFUSED, "own": "a matching"}, "refused: its loss is a matching"),
        ({"stock": RUNS, "ours": REFUSED | {"why": "a|b"}}, "refused: a\\|b"),
        ({"stock": RUNS, "ours": FAILS | {"why": "KeyError"}}, "fails: KeyError"),
        ({"stock": FAILS | {"why": "E"}, "ours": FAILS}, "does not run without us either: E"),
        ({"stock": RUNS, "ours": RUNS, "repairs": ["It errs."]}, "runs (It errs.)"),
    ],
)
def test_how_a_run_of_a_script_is_told(build, run, shown):
    assert build._outcome({"own": "", "wrong": "", "repairs": []} | run) == shown


def test_a_readme_without_markers_is_an_error(copied):
    (copied.ROOT / "README.md").write_text("# hf_losses\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="losses_in_short:begin"):
        copied.main([])


def test_citation_and_changelog_name_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == hf_losses.__version__
    assert f"## [{hf_losses.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_library_is_described_in_the_same_words_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["description"] == SUMMARY
    assert hf_losses.__doc__ == f"{SUMMARY}."
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["title"] == f"hf_losses: {SUMMARY[0].lower()}{SUMMARY[1:]}"
    assert f"\n{SUMMARY}: " in (ROOT / "README.md").read_text(encoding="utf-8")
