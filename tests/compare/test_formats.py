"""`hf-losses report --format`: the same numbers for other documents and programs."""

import csv
import io
import json
import re

import pytest
import test_report

from hf_losses.cli.compare import FORMATS
from hf_losses.cli.main import main
from hf_losses.compare.report import formats


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats")
    values = {**test_report.FOUND, "strict_m --note a_b&c": ["no"] * 8}
    test_report.report(folder, test_report.make_results(values))
    return folder


def printed(folder, name, capsys):
    """What the command prints; it must leave the folder alone."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(["report", str(folder), "--format", name]) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    return capsys.readouterr().out


def test_the_command_knows_every_format():
    assert tuple(formats.FORMATS) == FORMATS


@pytest.mark.parametrize(("name", "file"), [("md", "table.md"), ("html", "report.html")])
def test_text_and_page_are_those_of_the_report(folder, capsys, name, file):
    assert printed(folder, name, capsys) == (folder / file).read_text(encoding="utf-8")


def test_csv_has_every_digit(folder, capsys):
    rows = list(csv.DictReader(io.StringIO(printed(folder, "csv", capsys))))
    (stage,) = json.loads((folder / "results.json").read_text())["statistics"]["stages"]
    assert [row["loss"] for row in rows] == [entry["loss"] for entry in stage["losses"]]
    for row, entry in zip(rows, stage["losses"], strict=True):
        comparison = entry["comparison"] or {"verdict": "baseline"}
        assert row["verdict"] == comparison["verdict"]
        for name in ("difference", "p", "p_adjusted", "p_equivalent", "level"):
            value = comparison.get(name)
            assert row[name] == ("" if value is None else str(value))
        if comparison.get("interval"):
            assert [float(row["low"]), float(row["high"])] == comparison["interval"]
    assert [row["seeds"] for row in rows] == ["8", "8", "8", "0"]


def test_latex_is_a_table_without_bare_special_characters(folder, capsys):
    text = printed(folder, "latex", capsys)
    assert text.startswith("% \\usepackage{booktabs}\n")
    body = text.split("\\toprule\n")[1].split("\\bottomrule")[0].replace("\\midrule\n", "")
    lines = body.splitlines()
    kinds = re.search(r"begin{tabular}{(\w+)}", text)[1]
    assert len(lines) == 5
    for line in lines:
        assert line.endswith(r" \\")
        assert len(re.findall(r"(?<!\\)&", line)) == len(kinds) - 1
        assert not re.search(r"(?<!\\)[_%#]|--|[−±–×∞]", line)
    assert r"strict\_m -{}-note a\_b\&c" in body
    assert r"+0.0110" in body
    assert r"0.8025 $\pm$ 0.0104" in body


def test_an_unknown_format_is_refused(folder, capsys):
    with pytest.raises(SystemExit):
        main(["report", str(folder), "--format", "pdf"])
    assert "got 'pdf'; choose one of md, html, csv, latex" in capsys.readouterr().err
