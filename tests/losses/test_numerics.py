"""Far from the middle: huge margins, half precision, masked and broken logits, bounded weights."""

import functools
import math

import pytest
import torch
from formulas import bounded, digits, parts, reference, sigmoid, variants, weight
from mpmath import mp

from hf_losses import get_loss, get_spec, list_losses

INF, NAN = math.inf, math.nan
TINY = torch.finfo(torch.float32).tiny
MULTI_LABEL = "multi_label_classification"
LOSSES = list_losses(task="classification")
EVERY = pytest.mark.parametrize("name", LOSSES)
STRICT = pytest.mark.parametrize("name", list_losses(kind="strict", task="classification"))
CLASSIFICATION = pytest.mark.parametrize(("name", "params"), **variants("classification"))
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:]
)

# Exact in bfloat16 too, so that one reference serves all dtypes.
NEAR = [s * m for m in (0.5, 1, 3, 8, 10, 17, 20, 32, 48, 64, 80, 90, 104, 160) for s in (1, -1)]
FAR = [s * m for m in (256, 1000, 9984) for s in (1, -1)]

# The target: class 0 alone, most of class 0, or the labels of class 0 and no other.
MODES = ("index", "one-hot", "soft", "multi-label")


def batch(mode, classes, dtype):
    """One item per margin: class 0 leads the others, which are equal, or trails them."""
    z = torch.zeros(len(NEAR + FAR), classes, dtype=dtype)
    z[:, 0] = torch.tensor(NEAR + FAR)
    if mode == "index":
        return z, torch.zeros(len(z), dtype=torch.long)
    return z, torch.tensor([share(mode, classes)] * len(z), dtype=dtype)


def share(mode, classes):
    return [0.75, 0.25, *[0.0] * (classes - 2)] if mode == "soft" else [1.0, *[0.0] * (classes - 1)]


@functools.cache
def exact(name, classes, mode):
    """Values and gradients of the margins in NEAR."""
    if mode == "multi-label":
        with digits(max(NEAR)):
            loss = parts(name)[0]
            cap = 1e4 if get_spec(name).kind == "strict" else INF
            at_zero, slope_at_zero = bounded(loss, 0, cap)
            rest = classes - 1
            rows = [bounded(loss, m, cap) for m in NEAR]
            return [(v + rest * at_zero, [s] + [-slope_at_zero] * rest) for v, s in rows]
    return [reference(name, [m] + [0] * (classes - 1), share(mode, classes), 1e4) for m in NEAR]


@DTYPES
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("classes", [2, 10])
@EVERY
def test_any_margin_in_any_precision(name, classes, mode, dtype):
    logits, target = batch(mode, classes, dtype)
    logits.requires_grad_()
    options = {"problem_type": MULTI_LABEL} if mode == "multi-label" else {}
    losses = get_loss(name, reduction="none", **options)(logits, target)
    (gradients,) = torch.autograd.grad(losses.sum(), logits)
    if mode == "multi-label":
        losses = losses.sum(-1)
    assert losses.dtype == torch.float32
    assert gradients.dtype == dtype
    assert losses.isfinite().all()
    assert gradients.isfinite().all()

    # What float32 arithmetic and then the dtype of the logits can represent at all.
    least = max(TINY, torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps)
    rounding = 0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
    for m, loss, gradient, (value, slopes) in zip(
        NEAR, losses.tolist(), gradients.tolist(), exact(name, classes, mode), strict=False
    ):
        computing = torch.finfo(torch.float32).eps * (8 + abs(m))  # a margin of that size rounds
        assert abs(loss - value) <= computing * value + TINY, m
        assert gradient[0] != 0 or abs(slopes[0]) < least, m
        allowed = (computing + rounding) * max(map(abs, slopes)) + least
        assert all(abs(a - b) <= allowed for a, b in zip(gradient, slopes, strict=True)), m


@pytest.mark.parametrize("classes", [2, 10])
@EVERY
def test_margins_up_to_ten_thousand(name, classes):
    """Wrong, they cost what the bounded formula says; right, nothing that float32 can hold."""
    margins = torch.tensor([*FAR, 1e4, -1e4])
    z = torch.zeros(len(margins), classes)
    z[:, 0] = margins
    z.requires_grad_()
    losses = get_loss(name, reduction="none")(z, torch.zeros(len(z), dtype=torch.long))
    (gradients,) = torch.autograd.grad(losses.sum(), z)
    for m, loss, gradient in zip(margins.tolist(), losses, gradients, strict=True):
        if m > 0:
            assert 0 <= loss < TINY
            assert (gradient.abs() < TINY).all()
            continue
        if get_spec(name).is_full and classes > 2 and m < -1000:
            assert loss.isfinite()
            assert gradient.isfinite().all()  # Ten thousand digits take seconds.
            continue
        logits, largest = [m, *[0] * (classes - 1)], None if get_spec(name).is_full else 0
        value, slopes = reference(name, logits, share("index", classes), 1e4, largest)
        allowed = torch.finfo(torch.float32).eps * (8 + abs(m))
        assert loss.item() == pytest.approx(float(value), rel=allowed)
        assert gradient.tolist() == pytest.approx(
            [float(slope) for slope in slopes], rel=allowed, abs=TINY
        )


# Value and derivative by the margin, by hand from each loss's own paper: p of the true class,
# q = 1 - p and log p.
BY_HAND = {
    "focal": lambda p, q, log_p: (-(q**2) * log_p, 2 * p * q**2 * log_p - q**3),
    "gce": lambda p, q, log_p: (-mp.expm1(0.7 * log_p) / 0.7, -mp.exp(0.7 * log_p) * q),
    "dft": lambda p, q, log_p: (q, -p * q),
    "poly1": lambda p, q, log_p: (-log_p + q, -q - p * q),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_the_losses_beside_the_papers_are_those_of_their_papers_at_any_margin(name):
    margins = [0.0, *(sign * m for m in (0.1, 1.0, 5.0, 30.0, 100.0, 1e3, 1e4) for sign in (1, -1))]
    z = torch.tensor([[m, 0.0] for m in margins], dtype=torch.float64, requires_grad=True)
    losses = get_loss(name, reduction="none")(z, torch.zeros(len(z), dtype=torch.long))
    (gradients,) = torch.autograd.grad(losses.sum(), z)
    with mp.workdps(50):
        for m, loss, gradient in zip(margins, losses, gradients[:, 0], strict=True):
            p, q, log_p = 1 / (1 + mp.exp(-m)), 1 / (1 + mp.exp(m)), -mp.log1p(mp.exp(-m))
            value, slope = (float(x) for x in BY_HAND[name](p, q, log_p))
            assert loss.item() == pytest.approx(value, rel=1e-13, abs=1e-300)
            assert gradient.item() == pytest.approx(slope, rel=1e-13, abs=1e-300)


@EVERY
def test_a_masked_wrong_class_is_no_class(name):
    for mode in ("index", "soft"):
        z = torch.tensor([[1.5, -0.5, 3.0], [0.0, 20.0, -2.0]], requires_grad=True)
        masked = torch.cat([z[:, :2], torch.full((2, 2), -INF), z[:, 2:]], -1)
        if mode == "index":
            target, less = torch.tensor([0, 4]), torch.tensor([0, 2])
        else:
            less = torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]])
            target = torch.cat([less[:, :2], torch.zeros(2, 2), less[:, 2:]], -1)
        loss = get_loss(name, reduction="none")
        losses, expected = loss(masked, target), loss(z, less)
        assert torch.allclose(losses, expected, rtol=1e-6, atol=0)
        (found,) = torch.autograd.grad(losses.sum(), z)
        (right,) = torch.autograd.grad(expected.sum(), z)
        assert torch.allclose(found, right, rtol=1e-6, atol=1e-6 * right.abs().max().item())


@EVERY
def test_the_only_class_left_costs_nothing(name):
    z = torch.tensor([[2.0, -INF, -INF]], requires_grad=True)
    loss = get_loss(name)(z, torch.tensor([0]))
    loss.backward()
    assert loss == 0
    assert z.grad.tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("broken", [NAN, INF])
@pytest.mark.parametrize("where", [0, 1])
@EVERY
def test_a_broken_logit_shows_in_its_item_and_no_other(name, where, broken):
    good = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0], [2.0, 2.0, -1.0]])
    index = torch.tensor([0, 0, 2])
    one_hot = torch.eye(3)[index]
    for target, options in (
        (index, {}),
        (index, {"label_smoothing": 0.1}),
        (one_hot, {}),
        (one_hot * 0.8 + 0.1, {}),
    ):
        loss = get_loss(name, reduction="none", **options)
        z = good.clone()
        z[1, where] = broken
        z.requires_grad_()
        losses = loss(z, target)
        assert losses.isnan().tolist() == [False, True, False]
        assert torch.equal(losses[[0, 2]], loss(good, target)[[0, 2]])
        losses.sum().backward()
        assert z.grad[[0, 2]].isfinite().all()
        assert get_loss(name, **options)(z, target).isnan()


@pytest.mark.parametrize("broken", [NAN, INF])
@EVERY
def test_a_broken_logit_shows_in_its_label_and_no_other(name, broken):
    z = torch.tensor([[1.0, broken, 0.5]])
    for target in (torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([[0.0, 1.0, 0.0]])):
        losses = get_loss(name, reduction="none", problem_type=MULTI_LABEL)(z, target)
        assert losses.isnan().tolist() == [[False, True, False]]


@EVERY
def test_a_masked_label_is_certainly_no(name):
    z = torch.tensor([[-INF, 0.0]], requires_grad=True)
    loss = get_loss(name, reduction="none", problem_type=MULTI_LABEL)(z, torch.zeros(1, 2))
    loss.sum().backward()
    assert loss[0, 0] == 0
    assert z.grad[0, 0] == 0
    assert loss[0, 1] > 0


@EVERY
def test_every_class_masked_is_no_distribution(name):
    z = torch.full((1, 3), -INF)
    assert get_loss(name)(z, torch.tensor([0])).isnan()
    assert get_loss(name)(z, torch.eye(3)[:1]).isnan()


# The bounded gradient weight.

BOUNDS = [0.01, 0.4, 2.0, 100.0, 1e4, 1e12, INF]


@pytest.mark.parametrize("bound", BOUNDS)
@CLASSIFICATION
def test_bounded_value_and_slope_are_the_formula_and_then_the_line(name, params, bound):
    loss = get_loss(name, max_weight=bound, reduction="none", **params)
    z = torch.zeros(41, 3, dtype=torch.float64)
    z[:, 0] = torch.arange(-20, 21) * 1.5
    z[:, 1] = -1.0
    z.requires_grad_()
    losses = loss(z, torch.zeros(41, dtype=torch.long))
    (gradients,) = torch.autograd.grad(losses.sum(), z)
    for row, value, gradient in zip(
        z.tolist(), losses.tolist(), gradients[:, 0].tolist(), strict=True
    ):
        exact, slopes = reference(name, row, [1, 0, 0], bound, **params)
        assert abs(value / exact - 1) < 4e-15 * (1 + abs(row[0]))
        assert abs(gradient / slopes[0] - 1) < 4e-15 * (1 + abs(row[0]))


@pytest.mark.parametrize("start", [-1.0, -4.0, -9.0])
@STRICT
def test_bounded_loss_is_continuous_and_once_differentiable(name, start):
    # In the scalar function, from which the full forms take one for every class.
    bound = float(weight(parts(name)[0], sigmoid(start)))
    function = get_loss(name, max_weight=bound)._function
    h = 1e-7
    m = torch.tensor([start - h, start + h], dtype=torch.float64)
    (below, above), (slope_below, slope_above) = function(m)
    q = torch.sigmoid(-m)
    assert slope_below == -bound * q[0]
    assert abs(slope_above / slope_below - 1) < 100 * h  # for |dw/dm| up to 50w
    assert below - above == pytest.approx(-2 * h * slope_below.item(), rel=1e-6)


@STRICT
def test_below_the_bound_nothing_changes(name):
    z = torch.linspace(-4, 30, 50).unsqueeze(-1) * torch.tensor([1.0, 0.0])
    target = torch.zeros(50, dtype=torch.long)
    default, unbounded = (
        get_loss(name, reduction="none", **options) for options in ({}, {"max_weight": INF})
    )
    assert torch.equal(default(z, target), unbounded(z, target))


@pytest.mark.parametrize("name", list_losses(kind="liberal") + list_losses("cross_entropy"))
def test_only_strict_losses_are_bounded(name):
    z, target = torch.tensor([[-30.0, 0.0], [30.0, 0.0]]), torch.tensor([0, 0])
    assert get_loss(name, max_weight=1e-3)(z, target) == get_loss(name)(z, target)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 1.0, 3.0, 30.0])
def test_any_power_of_1_over_p_is_bounded(alpha):
    z = torch.tensor([[-9984.0, 0.0]], requires_grad=True)
    loss = get_loss("strict_m_power", alpha=alpha)(z, torch.tensor([0]))
    loss.backward()
    assert loss.isfinite()
    assert z.grad.tolist() == [[-1e4, 1e4]]


@pytest.mark.parametrize("name", [n for n in LOSSES if get_spec(n).is_full])
def test_each_class_of_a_full_form_is_bounded_by_itself(name):
    # Class 1 is sure and wrong: the true class pays for its small p, class 1 for its large one.
    z = torch.tensor([[0.0, 40.0, 0.0, 0.0]], requires_grad=True)
    get_loss(name, max_weight=50.0)(z, torch.tensor([0])).backward()
    assert z.grad[0].tolist() == pytest.approx([-50 - 50 / 3, 100.0, -50 / 3, -50 / 3])


@DTYPES
@pytest.mark.parametrize("name", list_losses(task="regression"))
def test_any_error_in_any_precision(name, dtype):
    x = torch.tensor([9984.0, -9984.0, 0.0, 1e-4], dtype=dtype, requires_grad=True)
    losses = get_loss(name, reduction="none")(x, torch.zeros(4))
    losses.sum().backward()
    assert losses.dtype == torch.float32
    assert x.grad.dtype == dtype
    assert losses.isfinite().all()
    assert x.grad.isfinite().all()
    assert x.grad.sign().tolist() == [1, -1, 0, 1]
