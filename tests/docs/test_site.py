"""The documentation site is built without a warning, with a page for every loss."""

import subprocess
import sys
from pathlib import Path

import pytest

from hf_losses import list_losses
from hf_losses.citation import SUMMARY

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_site_is_whole_and_asks_no_other_server(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    done = subprocess.run(
        [*command, "--site-dir", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in list_losses():
        page = (tmp_path / "losses" / name / "index.html").read_text(encoding="utf-8")
        assert f"{name}.svg" in page
        assert "When to use it" in page
    for page, name in (("python", "LossTrainer"), ("data", "TextData"), ("training", "check_loss")):
        assert name in (tmp_path / "reference" / page / "index.html").read_text(encoding="utf-8")
    first = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert f'<meta name="description" content="{SUMMARY}">' in first
    assert 'href="site.css"' in first
    assert "invert" in (tmp_path / "site.css").read_text(encoding="utf-8")
    for tag in ('<script src="http', '<link rel="stylesheet" href="http', "fonts.g"):
        assert tag not in first
