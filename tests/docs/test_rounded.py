"""results/precision/rounded.py computes what bfloat16 computes."""

import importlib.util
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertForSequenceClassification

FILE = Path(__file__).resolve().parents[2] / "results" / "precision" / "rounded.py"


@pytest.fixture(scope="module")
def rounded():
    spec = importlib.util.spec_from_file_location("rounded", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.RoundedProducts


class Multiplied(TorchDispatchMode):
    """Keeps what products compute in."""

    def __init__(self):
        super().__init__()
        self.dtypes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "mm" in func.__name__:
            self.dtypes.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


def test_products_are_those_of_bfloat16(rounded):
    a, b, bias = torch.randn(64, 96).bfloat16(), torch.randn(96, 32).bfloat16(), torch.randn(32)
    products = {
        "mm": lambda: a @ b,
        "addmm": lambda: torch.addmm(bias.bfloat16(), a, b),
        "bmm": lambda: torch.bmm(a[None], b[None]),
    }
    for product in products.values():
        with Multiplied() as multiplied, rounded():
            found = product()
        assert multiplied.dtypes == [torch.float32]
        assert found.dtype == torch.bfloat16
        # The order of a sum can tip a rounding.
        assert (found == product()).float().mean() > 0.99


def test_gradients_are_as_far_from_float32_as_those_of_bfloat16(rounded):
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    model = BertForSequenceClassification(
        BertConfig(vocab_size=100, intermediate_size=128, num_labels=5, **shape)
    ).eval()
    inputs = {"input_ids": torch.randint(100, (16, 12)), "labels": torch.randint(5, (16,))}

    def gradient(bfloat16, mode):
        model.zero_grad()
        with mode:
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = model(**inputs).loss
            loss.backward()
        grads = [each.grad.flatten() for each in model.parameters() if each.grad is not None]
        return torch.cat(grads)

    exact = gradient(False, nullcontext())
    error = (gradient(True, nullcontext()) - exact).norm()
    assert (gradient(True, rounded()) - exact).norm() / error == pytest.approx(1, abs=0.3)
    assert torch.equal(gradient(False, rounded()), exact)
