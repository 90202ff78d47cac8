"""The code of README and documents does what it says, and their links lead somewhere."""

import re
from pathlib import Path

import pytest
import torch

from hf_losses import get_loss
from hf_losses.losses import registry

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
README = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def block(having: str) -> str:
    (code,) = (block for block in BLOCKS if having in block)
    return code


def test_a_loss_of_ones_own_is_differentiated_as_it_says(monkeypatch):
    monkeypatch.setattr(registry, "_SPECS", dict(registry._SPECS))
    exec(block("@register_loss"), {})
    loss = get_loss("liberal_poly", reduction="none")
    logits = torch.randn(20, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(20) % 5
    p = logits.softmax(-1)[torch.arange(20), labels]
    expected = eval(loss.spec.formula, {"p": p, "log": torch.log})
    torch.testing.assert_close(loss(logits, labels), expected)
    ours, theirs = (
        torch.autograd.grad(value.sum(), logits, retain_graph=True)[0]
        for value in (loss(logits, labels), expected)
    )
    torch.testing.assert_close(ours, theirs)
    weight = theirs.abs().amax(-1).div(1 - p)[p.argsort()]
    assert (weight.diff() > 0).all()  # liberal


@pytest.mark.parametrize("line", re.findall(r'get_loss\(("\w+"[^)]*)\)', README))
def test_losses_that_the_readme_builds_exist(line):
    assert eval(f"get_loss({line})", {"get_loss": get_loss})


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#\s]+)", text)
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not missing
