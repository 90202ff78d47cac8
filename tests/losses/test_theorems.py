"""What holds for every loss at every margin."""

import functools
import math

import pytest
import torch
from formulas import evaluate
from hypothesis import assume, given
from hypothesis import strategies as st
from mpmath import mpf
from torch.nn import functional as F

from hf_losses import get_loss, get_spec, list_losses

LOSSES = list_losses(task="classification")
EVERY = pytest.mark.parametrize("name", LOSSES)
SPARSE = pytest.mark.parametrize("name", [n for n in LOSSES if not get_spec(n).is_full])
FULL = pytest.mark.parametrize("name", [n for n in LOSSES if get_spec(n).is_full])

built = functools.cache(get_loss)  # finding where to bound a weight takes longer than the loss

EPS = torch.finfo(torch.float64).eps

finite = st.floats(-20, 20)
classes = st.lists(finite, min_size=2, max_size=8)


def value(name, logits, label=0, **options):
    z = torch.tensor(logits, dtype=torch.float64)
    return built(name, **options)(z, torch.tensor(label)).item()


def gradient(name, logits, label=0, **options):
    z = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(built(name, **options)(z, torch.tensor(label)), z)[0]


@EVERY
@given(logits=classes)
def test_positive(name, logits):
    assert value(name, logits) > 0


@EVERY
def test_zero_at_certainty(name):
    assert value(name, [0.0, -math.inf, -math.inf]) == 0
    assert value(name, [2000.0, 0.0, 0.0]) < 1e-300


@EVERY
@given(m=st.floats(-12, 30), gap=st.floats(0.1, 5), others=classes)
def test_value_falls_strictly_in_the_margin(name, m, gap, others):
    # Margins at which float64 can still tell neighbouring values of 1 - p² apart.
    m += torch.tensor(others, dtype=torch.float64).logsumexp(0).item()
    assert value(name, [m + gap, *others]) < value(name, [m, *others])


@EVERY
@given(m=st.floats(-300, 200))  # Above, the slope of focal is less than float64 can write.
def test_slope_is_negative_at_every_margin(name, m):
    assert gradient(name, [m, 0.0])[0] < 0


@EVERY
@given(logits=classes, shift=st.floats(-100, 100))
def test_a_constant_on_all_logits_changes_nothing(name, logits, shift):
    moved = [z + shift for z in logits]
    # The sum rounds; e^(-m) returns that rounding as a relative error.
    allowed = 4 * EPS * (1 + max(map(abs, logits + moved)))
    assert math.isclose(value(name, logits), value(name, moved), rel_tol=allowed)
    g = gradient(name, logits)
    assert abs(g.sum()) <= allowed * g.abs().max()


@EVERY
@given(logits=classes, data=st.data())
def test_wrong_classes_are_alike(name, logits, data):
    order = data.draw(st.permutations(range(1, len(logits))))
    mixed = [logits[0], *(logits[k] for k in order)]
    assert math.isclose(value(name, logits), value(name, mixed), rel_tol=100 * EPS)
    before, after = gradient(name, logits), gradient(name, mixed)
    assert torch.allclose(before[[0, *order]], after, rtol=0, atol=100 * EPS * before.abs().max())


@EVERY
@given(logits=classes, label=st.integers(0, 7))
def test_the_label_names_the_class(name, logits, label):
    assume(label < len(logits))
    moved = [logits[label], *logits[:label], *logits[label + 1 :]]
    assert math.isclose(value(name, logits, label), value(name, moved), rel_tol=100 * EPS)


@SPARSE
@given(logits=classes)
def test_gradient_is_cross_entropys_times_the_weight(name, logits):
    z = torch.tensor(logits, dtype=torch.float64)
    wrong = torch.logsumexp(z[1:], 0) - z[0]
    p = 1 / (1 + mpf(wrong.item()).context.exp(wrong.item()))
    w = evaluate(get_spec(name).weight_formula, p=p, **get_spec(name).resolve({}))
    expected = gradient("cross_entropy", logits) * float(w)
    found = gradient(name, logits, max_weight=math.inf)
    assert torch.allclose(found, expected, rtol=0, atol=200 * EPS * expected.abs().max())


@FULL
@given(logits=st.lists(finite, min_size=2, max_size=2), label=st.integers(0, 1))
def test_full_form_of_two_classes_is_twice_the_sparse_one(name, logits, label):
    sparse = name.removesuffix("_full")
    assert math.isclose(
        value(name, logits, label), 2 * value(sparse, logits, label), rel_tol=100 * EPS
    )
    full, half = gradient(name, logits, label), gradient(sparse, logits, label)
    assert torch.allclose(full, 2 * half, rtol=100 * EPS, atol=0)


@FULL
@given(logits=st.lists(finite, min_size=3, max_size=8))
def test_full_form_exceeds_the_sparse_one(name, logits):
    assert value(name, logits) > value(name.removesuffix("_full"), logits)


@given(logits=classes)
def test_strict_m_power_of_one_is_strict_m(logits):
    power = value("strict_m_power", logits, alpha=1.0)
    assert math.isclose(power, value("strict_m", logits), rel_tol=100 * EPS)
    found, expected = gradient("strict_m_power", logits, alpha=1.0), gradient("strict_m", logits)
    assert torch.allclose(found, expected, rtol=0, atol=100 * EPS * expected.abs().max())


@given(logits=classes)
def test_liberal_exp_stays_below_cross_entropy_and_e_minus_1(logits):
    assert value("liberal_exp", logits) <= value("cross_entropy", logits) * (1 + 4 * EPS)
    assert value("liberal_exp", logits) < math.e - 1


@given(logits=classes)
def test_weight_of_liberal_exp_is_at_most_1(logits):
    ratio = gradient("liberal_exp", logits)[0] / gradient("cross_entropy", logits)[0]
    assert 0 < ratio <= 1 + 4 * EPS


def test_liberal_exp_has_the_slope_of_cross_entropy_at_certainty_alone():
    near = [20.0, 0.0]
    ratio = gradient("liberal_exp", near)[0] / gradient("cross_entropy", near)[0]
    assert ratio.item() == pytest.approx(1, abs=1e-15)  # w = 1 - q²/2 + ..., q = 2e-9
    assert gradient("liberal_exp", [1.0, 0.0])[0] / gradient("cross_entropy", [1.0, 0.0])[0] < 0.97


@given(logits=classes)
def test_cross_entropy_is_pytorchs(logits):
    z = torch.tensor(logits, dtype=torch.float64)
    expected = F.cross_entropy(z.unsqueeze(0), torch.tensor([0])).item()
    # Theirs rounds at the size of the logits, ours does not.
    assert abs(value("cross_entropy", logits) - expected) < 8 * EPS * (1 + z.abs().max())
