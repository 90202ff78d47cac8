"""What the documentation site adds to the documents: true gradients, and docstrings for all."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

import hf_losses
import hf_losses.data
from hf_losses import LossSpec, get_spec, list_losses

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def hooks():
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def formula_after(text, page):
    """The formula that a page of a loss gives after some words."""
    return re.search(re.escape(text) + r"\s*`([^`]+)`", page)[1]


def evaluate(formula, spec, **variables):
    functions = {name: getattr(torch, name) for name in ("sign", "cosh", "tanh", "sqrt")}
    return eval(formula, functions | spec.resolve({}) | variables)


@pytest.mark.parametrize("name", list_losses(task="regression"))
def test_the_page_of_a_regression_loss_states_its_derivative(name, hooks):
    spec = get_spec(name)
    formula = formula_after("dℓ/de =", hooks.loss_page(spec))
    for e in torch.tensor([-3.0, -0.7, 0.2, 0.9, 2.5], dtype=torch.float64):
        torch.testing.assert_close(
            1.0 * evaluate(formula, spec, e=e), spec.function(e, **spec.resolve({}))[1]
        )


FULL = [name for name in list_losses() if get_spec(name).is_full]


@pytest.mark.parametrize("name", FULL)
def test_the_page_of_a_full_form_states_both_parts_of_its_gradient(name, hooks):
    spec = get_spec(name)
    page = hooks.loss_page(spec)
    m = torch.linspace(-4, 4, 9, dtype=torch.float64, requires_grad=True)
    p, q = torch.sigmoid(m), torch.sigmoid(m)
    (wrong,) = torch.autograd.grad(evaluate(spec.wrong_class_formula, spec, q=q).sum(), m)
    torch.testing.assert_close(evaluate(formula_after("is", page), spec, q=q), wrong)
    (true,) = torch.autograd.grad(evaluate(spec.formula, spec, p=p).sum(), m)
    weight = evaluate(formula_after("w(p) =", page), spec, p=p)
    torch.testing.assert_close(-weight * (1 - p), true)


def test_every_loss_page_states_a_gradient(hooks):
    assert all(hooks.gradient(get_spec(name)) for name in list_losses())


def test_a_loss_that_does_not_tell_its_gradient_has_a_page_all_the_same(hooks, monkeypatch):
    spec = LossSpec("mine", "classification", "liberal", "1 - p", lambda m: (m, m))
    assert hooks.gradient(spec) == []
    assert "ℓ(p) = `1 - p`" in hooks.loss_page(spec)


def test_the_reference_names_every_public_name_once(hooks):
    pages = "\n".join(map(hooks.python_reference, hooks.PACKAGES))
    described = re.findall(r"^::: hf_losses\.\S*?(\w+)$", pages, re.MULTILINE)
    modules = map(importlib.import_module, hooks.PACKAGES)
    assert sorted(described) == sorted({name for module in modules for name in module.__all__})


def test_a_name_without_a_docstring_fails(hooks, monkeypatch):
    from mkdocs.exceptions import PluginError

    with monkeypatch.context() as patch:
        patch.setattr(hf_losses.get_loss, "__doc__", None)
        with pytest.raises(PluginError, match=r"hf_losses\.get_loss has no docstring"):
            hooks.python_reference("hf_losses")
    with monkeypatch.context() as patch:
        patch.setattr(hf_losses.data.TextArguments.load, "__doc__", "")
        with pytest.raises(PluginError, match=r"hf_losses\.data\.TextArguments\.load has no"):
            hooks.python_reference("hf_losses.data")
    # What dataclass writes where nobody has written anything.
    monkeypatch.setattr(hf_losses.data.TextArguments, "__doc__", "TextArguments(task_name: str)")
    with pytest.raises(PluginError, match=r"hf_losses\.data\.TextArguments has no docstring"):
        hooks.python_reference("hf_losses.data")


def test_argument_classes_list_the_fields_that_they_add(hooks):
    page = hooks.python_reference("hf_losses.training")
    assert "| `logging_steps` | `25` | steps between two lines of the log |" in page
    assert "| `learning_rate` |" not in page  # One of transformers.
