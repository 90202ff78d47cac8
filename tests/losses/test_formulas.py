"""The torch code, the formula texts and the golden file are three statements of one truth."""

import functools
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from formulas import bounded, digits, evaluate, parts, reference, sigmoid, variants, weight
from mpmath import mp, mpf

from hf_losses import get_loss, get_spec, list_losses

REFERENCE = Path(__file__).parents[1] / "reference"
# The paper's losses with liberal_exp, and those beside them: the same cases.
GOLDEN, BESIDE = (
    json.loads((REFERENCE / name).read_text()) for name in ("losses.json", "losses_beside.json")
)
CASES = [a | b for a, b in zip(GOLDEN["cases"], BESIDE["cases"], strict=True)]
CLASSIFICATION = variants("classification")
REGRESSION = variants("regression")

# Relative, times 1 + max|z|: the rounding of the logits themselves comes back in exp(-m).
TOLERANCE = {torch.float32: 1e-6, torch.float64: 4e-15}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype)[6:])

VALUE, SLOPE = 0, 1

MARGINS = [0.0, *(s * m for m in (1e-6, 0.3, 1, 3, 9, 17, 20.5, 33, 60, 85) for s in (1, -1))]
SIZES = (1e-8, 1e-5, 1e-2, 0.4, 0.99, 1.01, 2.9, 3.1, 20, 90, 1e4)
ERRORS = [sign * size for size in SIZES for sign in (1, -1)]


def errors(name, case, dtype, **options):
    """Relative errors of value and gradient over the tolerance: below 1 is right."""
    z = torch.tensor(case["logits"], dtype=dtype, requires_grad=True)
    loss = get_loss(name, **options)(z, torch.tensor(case["label"]))
    (gradient,) = torch.autograd.grad(loss, z)
    exact = float(case[name]["loss"])
    exact_gradient = torch.tensor([float(g) for g in case[name]["gradient"]], dtype=torch.float64)
    allowed = TOLERANCE[dtype] * (1 + max(map(abs, case["logits"])))
    tiny = torch.finfo(dtype).tiny
    of_value = abs(loss.item() - exact) / (allowed * exact + tiny)
    largest = exact_gradient.abs().max().item()
    of_gradient = (gradient.double() - exact_gradient).abs().max().item()
    return of_value, of_gradient / (allowed * largest + tiny)


def heaviest(name, case):
    """The largest gradient weight among the classes that pay, of a loss whose weight falls in p."""
    e = [mp.exp(z) for z in case["logits"]]
    total = mp.fsum(e)
    p = [x / total for x in e]
    true, *wrong = parts(name)
    pays = [p.pop(case["label"])] + [1 - q for q in p if wrong]
    return weight(true, min(pays))


def test_golden_files_hold_every_loss():
    names = set(CASES[0]) - {"logits", "label"}
    assert len(CASES) == 32
    assert len(names) == 14
    assert names == set(list_losses(task="classification"))
    for golden in (GOLDEN, BESIDE):
        for key in golden.keys() - {"cases"}:
            name, parameter = key.split(".")
            assert get_loss(name).params[parameter] == golden[key]
    for a, b in zip(GOLDEN["cases"], BESIDE["cases"], strict=True):
        assert (a["logits"], a["label"]) == (b["logits"], b["label"])


GOLDEN_NAMES = pytest.mark.parametrize("name", sorted(set(CASES[0]) - {"logits", "label"}))


@DTYPES
@GOLDEN_NAMES
def test_golden_values_and_gradients(name, dtype):
    assert max(max(errors(name, case, dtype, max_weight=math.inf)) for case in CASES) < 1


@DTYPES
@GOLDEN_NAMES
def test_the_default_bound_changes_only_examples_beyond_it(name, dtype):
    beyond = [case for case in CASES if heaviest(name, case) >= 1e4]
    within = [case for case in CASES if case not in beyond]
    if get_spec(name).kind != "strict":
        beyond, within = [], CASES
    assert max(max(errors(name, case, dtype)) for case in within) < 1
    assert all(min(errors(name, case, dtype)) > 1 for case in beyond)
    assert bool(beyond) == (get_spec(name).kind == "strict")


@GOLDEN_NAMES
def test_golden_file_is_the_formula_text(name):
    for case in CASES:
        if len(case["logits"]) > 10:
            continue
        share = [float(k == case["label"]) for k in range(len(case["logits"]))]
        value, gradient = reference(name, case["logits"], share)
        golden = [mpf(g) for g in case[name]["gradient"]]
        assert abs(value / mpf(case[name]["loss"]) - 1) < 1e-18
        difference = max(abs(a - b) for a, b in zip(gradient, golden, strict=True))
        assert difference / max(map(abs, golden)) < 1e-18


@functools.cache
def exact_pairs(name, params):
    with digits(max(MARGINS)):
        return [bounded(parts(name, **dict(params))[0], m) for m in MARGINS]


@DTYPES
@pytest.mark.parametrize(("name", "params"), **CLASSIFICATION)
def test_function_and_declared_slope_are_the_formula(name, params, dtype):
    spec = get_spec(name)
    found = spec.function(torch.tensor(MARGINS, dtype=dtype), **spec.resolve(params))
    pairs = exact_pairs(name, tuple(params.items()))
    for what in (VALUE, SLOPE):
        assert found[what].dtype == dtype
        for m, x, exact in zip(MARGINS, found[what].tolist(), pairs, strict=True):
            true = exact[what]
            if abs(true) < torch.finfo(dtype).max:
                allowed = TOLERANCE[dtype] * (1 + abs(m)) * abs(true) + torch.finfo(dtype).tiny
                assert abs(x - true) < allowed, m
            else:
                assert x == math.copysign(math.inf, true), m


@pytest.mark.parametrize(("name", "params"), **CLASSIFICATION)
def test_weight_formula_is_p_times_the_slope(name, params):
    spec = get_spec(name)
    if spec.is_full:  # no single weight: every class has its own
        assert not spec.weight_formula
        return
    loss, *_ = parts(name, **params)
    for m in range(-30, 31, 3):
        p = sigmoid(mpf(m))
        stated = evaluate(spec.weight_formula, p=p, **spec.resolve(params))
        assert abs(stated / weight(loss, p) - 1) < 1e-15


@pytest.mark.parametrize(("name", "params"), **CLASSIFICATION)
def test_kind_says_how_the_weight_moves_with_p(name, params):
    # A full form counts as a whole, in its two-class case, where p alone decides.
    losses = parts(name, **params)
    weights = [
        mp.fsum(weight(loss, sigmoid(mpf(m) / 4)) for loss in losses) for m in range(-80, 81)
    ]
    pairs = list(itertools.pairwise(weights))
    holds = {
        "strict": all(a > b for a, b in pairs),
        "liberal": all(a < b for a, b in pairs),
        "neutral": all(abs(a / b - 1) < 1e-30 for a, b in pairs),
        "mixed": any(a / b - 1 > 1e-30 for a, b in pairs)
        and any(1 - a / b > 1e-30 for a, b in pairs),
    }
    assert [kind for kind in holds if holds[kind]] == [get_spec(name).kind]


def test_focal_weighs_like_cross_entropy_at_0_then_more_then_nothing():
    (loss,) = parts("focal")
    weights = [weight(loss, sigmoid(mpf(m))) for m in (-60, mp.log(mpf(1) / 9), 60)]
    assert [float(w) for w in weights] == pytest.approx([1, 1.2245, 0], abs=1e-4)


@DTYPES
@pytest.mark.parametrize("epsilon", [-1.0, -0.5])
def test_a_negative_epsilon_makes_poly1_strict_and_keeps_its_gradient_exact(epsilon, dtype):
    spec = get_spec("poly1")
    (loss,) = parts("poly1", epsilon=epsilon)
    margins = torch.tensor(MARGINS, dtype=dtype)
    values, slopes = spec.function(margins, epsilon=epsilon)
    for m, value, slope in zip(MARGINS, values.tolist(), slopes.tolist(), strict=True):
        with digits(100):
            exact, exact_slope = bounded(loss, m)
        allowed = TOLERANCE[dtype] * (1 + abs(m))
        # -ln p - (1 - p) cancels near certainty.
        assert abs(value - exact) <= allowed * (abs(exact) + sigmoid(mpf(-m))), m
        assert abs(slope - exact_slope) <= allowed * abs(exact_slope) + torch.finfo(dtype).tiny, m
    falls = [weight(loss, sigmoid(mpf(m) / 4)) for m in range(-80, 81)]
    assert falls == sorted(falls, reverse=True)


FAMILY = [-1.0, -0.5, 0.175, 0.7, 1.0, 2.0]


@pytest.mark.parametrize("power", FAMILY)
def test_one_line_of_losses_runs_from_strict_m_through_cross_entropy_to_dft(power):
    """(1 - p^λ)/λ: strict_m at -1, strict_m_power/alpha below 0, gce above 0, dft at 1."""
    m = torch.linspace(-9, 9, 37, dtype=torch.float64)
    p = torch.sigmoid(m)
    expected = (1 - p**power) / power
    if power < 0:
        value = get_spec("strict_m_power").function(m, alpha=-power)[0] / -power
    else:
        value = get_spec("gce").function(m, q=power)[0]
    torch.testing.assert_close(value, expected)
    for same, name in ((-1.0, "strict_m"), (1.0, "dft")):
        if power == same:
            torch.testing.assert_close(get_spec(name).function(m)[0], expected)


def test_gce_with_a_tiny_q_is_cross_entropy():
    m = torch.linspace(-9, 9, 37, dtype=torch.float64)
    for ours, theirs in zip(
        get_spec("gce").function(m, q=1e-9), get_spec("cross_entropy").function(m), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=0)


@pytest.mark.parametrize(("name", "parameter"), [("focal", "gamma"), ("poly1", "epsilon")])
def test_at_0_focal_and_poly1_are_cross_entropy(name, parameter):
    m = torch.tensor([*MARGINS, math.inf, -math.inf], dtype=torch.float64)
    ours = get_spec(name).function(m, **{parameter: 0.0})
    for mine, theirs in zip(ours, get_spec("cross_entropy").function(m), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", [n for n in list_losses() if get_spec(n).is_full])
def test_a_wrong_class_pays_what_a_true_one_of_the_complement_would(name):
    true, wrong = parts(name)
    for m in range(-40, 41, 5):
        assert abs(true(sigmoid(mpf(m))) / wrong(sigmoid(mpf(m))) - 1) < 1e-15


@DTYPES
@pytest.mark.parametrize(("name", "params"), **REGRESSION)
def test_regression_value_and_slope_are_the_formula(name, params, dtype):
    spec = get_spec(name)
    prediction = torch.tensor(ERRORS, dtype=dtype, requires_grad=True)
    target = torch.zeros(len(ERRORS))
    losses = get_loss(name, reduction="none", **params)(prediction, target)
    (slopes,) = torch.autograd.grad(losses.sum(), prediction)
    assert losses.dtype == slopes.dtype == dtype

    def formula(e):
        return evaluate(spec.formula, e=e, **spec.resolve(params))

    for e, value, slope in zip(prediction.tolist(), losses.tolist(), slopes.tolist(), strict=True):
        assert abs(value / formula(mpf(e)) - 1) < TOLERANCE[dtype]
        assert abs(slope / mp.diff(formula, mpf(e)) - 1) < TOLERANCE[dtype]


@pytest.mark.parametrize("name", list_losses(task="regression"))
def test_regression_losses_vanish_at_zero(name):
    spec = get_spec(name)
    value, slope = spec.function(torch.zeros(1), **spec.resolve({}))
    assert value.item() == slope.item() == 0


@pytest.mark.parametrize("name", list_losses(kind="robust"))
def test_robust_losses_pull_less_than_squared_error_on_large_errors(name):
    spec = get_spec(name)
    e = torch.tensor([10.0, 100.0, 1000.0], dtype=torch.float64)
    pull = spec.function(e, **spec.resolve({}))[1] / e
    assert (pull.diff() < 0).all()
