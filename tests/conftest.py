import pytest
import torch
from torch.nn.functional import logsigmoid

from hf_losses import register_loss, registry


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
