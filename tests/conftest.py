import signal

import hypothesis
import pytest
import torch
from torch.nn.functional import logsigmoid

from hf_losses import register_loss, registry

# The same examples on every run, and no verdict on how fast the machine is.
hypothesis.settings.register_profile(
    "tests", derandomize=True, database=None, deadline=None, max_examples=25
)
hypothesis.settings.load_profile("tests")

# A shell ignores Ctrl-C for what it starts in the background, and so would every script here.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The tensors here are tiny, and the tests may run in several processes.
torch.set_num_threads(1)


@pytest.fixture
def eleventh_loss(monkeypatch):
    """A loss that a user registers, forgotten again after the test."""
    monkeypatch.setattr(registry, "_SPECS", dict(registry._SPECS))

    @register_loss(
        "strict_square",
        kind="strict",
        formula="p**(-2) - 1",
        weight_formula="2*p**(-2)",
        reference="somebody 2026, arXiv:2601.00001",
    )
    def strict_square(m):
        exponent = -2 * logsigmoid(m)
        return torch.expm1(exponent), -2 * torch.exp(exponent) * torch.sigmoid(-m)

    return "strict_square"
