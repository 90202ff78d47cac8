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

GOLDEN = json.loads((Path(__file__).parents[1] / "reference" / "losses.json").read_text())
CASES = GOLDEN["cases"]
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
    of_gradient = (gradient.double() - exact_gradient).abs().max() / exact_gradient.abs().max()
    return abs(loss.item() / exact - 1) / allowed, of_gradient.item() / allowed


def heaviest(name, case):
    """The largest gradient weight among the classes that pay, of a loss whose weight falls in p."""
    e = [mp.exp(z) for z in case["logits"]]
    total = mp.fsum(e)
    p = [x / total for x in e]
    true, *wrong = parts(name)
    pays = [p.pop(case["label"])] + [1 - q for q in p if wrong]
    return weight(true, min(pays))


def test_golden_file_holds_only_losses_that_exist():
    names = set(CASES[0]) - {"logits", "label"}
    assert len(CASES) == 32
    assert len(names) == 10
    assert names <= set(list_losses(task="classification"))
    assert get_loss("strict_m_power").params["alpha"] == GOLDEN["strict_m_power.alpha"]


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
        "strict": lambda a, b: a > b,
        "liberal": lambda a, b: a < b,
        "neutral": lambda a, b: abs(a / b - 1) < 1e-30,
    }
    assert {kind for kind in holds if all(holds[kind](*pair) for pair in pairs)} == {
        get_spec(name).kind
    }


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
