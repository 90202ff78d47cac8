"""Item weights: w·ℓ for every item, whatever the path, and a mean that does not divide by them."""

import math

import pytest
import torch
from torch.nn import functional as F

from hf_losses import get_loss, linear_loss, list_losses

LOSSES = list_losses(task="classification")
EVERY = pytest.mark.parametrize("name", LOSSES)
WEIGHT = torch.tensor([1.0, 2.5, 0.0, 0.5, 3.0, 1.0])
LABELS = torch.tensor([0, 1, 2, -100, 4, 2])
CLASS_WEIGHT = [0.5, 1.0, 2.0, 1.0, 3.0]
MULTI_LABEL = {"problem_type": "multi_label_classification"}


def logits(dtype=torch.float64, rows=6):
    generator = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    return z.to(dtype).requires_grad_()


def mixture():
    share = torch.rand(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return share / share.sum(-1, keepdim=True)


def yes_no():
    target = (mixture() > 0.2).double()
    target[0, 0] = -100
    return target


# Options, target, the items' weights and what a mean divides by.
KINDS = {
    "classes": ({}, LABELS, WEIGHT, 5),
    "class weights": ({"weight": CLASS_WEIGHT}, LABELS, WEIGHT, 0.5 + 1 + 2 + 3 + 2),
    "smoothing": ({"label_smoothing": 0.1}, LABELS, WEIGHT, 5),
    "probabilities": ({"weight": CLASS_WEIGHT}, mixture(), WEIGHT, 6),
    "yes or no": (MULTI_LABEL, yes_no(), WEIGHT.unsqueeze(-1).expand(6, 5), 29),
    "yes or no by row": (MULTI_LABEL, yes_no(), WEIGHT, 29),
    "yes or no one by one": (MULTI_LABEL, yes_no(), torch.arange(30.0).view(6, 5), 29),
}


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fused", "plain"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_loss_is_multiplied_and_the_mean_counts_items(kind, dtype, name):
    options, target, weight, count = KINDS[kind]
    each = get_loss(name, reduction="none", **options)(logits(), target)
    of_each = weight if weight.shape == each.shape else weight.unsqueeze(-1)
    for reduction, divisor in (("mean", count), ("sum", 1)):
        z = logits(dtype)
        loss = get_loss(name, reduction=reduction, **options)
        value = loss(z, target, item_weight=weight)
        exact = logits()
        losses = get_loss(name, reduction="none", **options)(exact, target)
        expected = (losses * of_each).sum() / divisor
        torch.testing.assert_close(value, expected.to(dtype))
        (gradient,) = torch.autograd.grad(value, z)
        (right,) = torch.autograd.grad(expected, exact)
        torch.testing.assert_close(gradient, right.to(dtype), rtol=1e-5, atol=1e-6)
    shown = get_loss(name, reduction="none", **options)(logits(dtype), target, item_weight=weight)
    torch.testing.assert_close(shown, (each * of_each).to(dtype))


@pytest.mark.parametrize("name", list_losses(task="regression"))
@pytest.mark.parametrize("missing", [math.nan, math.inf])
def test_a_number_of_weight_0_may_be_missing(name, missing):
    x = logits()[:, 0].detach().requires_grad_()
    target = torch.tensor([1.0, -2.0, missing, 0.5, 3.0, 1.0])
    value = get_loss(name)(x, target, item_weight=WEIGHT)
    expected = get_loss(name)(x, target.nan_to_num(0, 0), item_weight=WEIGHT)
    torch.testing.assert_close(value, expected)
    (gradient,) = torch.autograd.grad(value, x)
    assert gradient.isfinite().all()
    assert gradient[2] == 0


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_item_of_weight_0_is_not_looked_at(name, dtype):
    z = logits(dtype).detach()
    z[2] = torch.tensor([0.0, 0.0, -math.inf, 0.0, 0.0])  # Its loss is infinite, or its gradient.
    z.requires_grad_()
    value = get_loss(name, max_weight=math.inf)(z, LABELS, item_weight=WEIGHT)
    (gradient,) = torch.autograd.grad(value, z)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert (gradient[2] == 0).all()


@pytest.mark.parametrize("missing", [torch.nan, torch.inf])
def test_hidden_states_of_weight_0_may_be_missing(missing):
    hidden, head = torch.randn(6, 8), torch.randn(5, 8, requires_grad=True)
    hidden[(LABELS == -100) | (WEIGHT == 0)] = missing
    assert hidden.isfinite().any()
    assert not hidden[LABELS != -100].isfinite().all()
    hidden.requires_grad_()
    value = linear_loss(hidden, head, LABELS, item_weight=WEIGHT)
    value.backward()
    assert value.isfinite()
    assert head.grad.isfinite().all()
    assert hidden.grad.isfinite().all()


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_linear_loss_weighs_as_the_loss_of_logits(name, dtype):
    generator = torch.Generator().manual_seed(2)
    hidden, head = (torch.randn(n, 8, generator=generator).to(dtype) for n in (6, 5))
    found = []
    for fused in (True, False):
        h, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        if fused:
            value = linear_loss(h, w, LABELS, loss=name, item_weight=WEIGHT)
        else:
            value = get_loss(name)(h @ w.T, LABELS, item_weight=WEIGHT)
        found.append((value, *torch.autograd.grad(value, (h, w))))
    tolerance = (
        {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.1}
    )
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


def test_cross_entropy_with_weights_is_pytorchs():
    z = logits()
    each = F.cross_entropy(z, LABELS, reduction="none")
    value = get_loss("cross_entropy")(z, LABELS, item_weight=WEIGHT)
    torch.testing.assert_close(value, (WEIGHT * each).sum() / 5)


def test_weights_may_have_any_leading_shape_or_one_number_per_row():
    z, labels = logits().view(2, 3, 5), LABELS.view(2, 3)
    loss = get_loss("focal")
    torch.testing.assert_close(
        loss(z, labels, item_weight=WEIGHT.view(2, 3)),
        loss(logits(), LABELS, item_weight=WEIGHT),
    )
    by_row = loss(z, labels, item_weight=torch.tensor([2.0, 0.5]))
    each = torch.tensor([2.0] * 3 + [0.5] * 3)
    torch.testing.assert_close(by_row, loss(logits(), LABELS, item_weight=each))


@pytest.mark.parametrize("name", list_losses(task="regression"))
def test_regression(name):
    prediction, target = logits()[:, 0], torch.zeros(6)
    each = get_loss(name, reduction="none")(prediction, target)
    value = get_loss(name)(prediction, target, item_weight=WEIGHT)
    torch.testing.assert_close(value, (each * WEIGHT).sum() / 6)


@EVERY
def test_transforms_of_torch_take_weights_too(name):
    z = logits()
    loss = get_loss(name)

    def value(x):
        return loss(x, LABELS, item_weight=WEIGHT)

    (expected,) = torch.autograd.grad(value(z), z)
    torch.testing.assert_close(torch.func.grad(value)(z.detach()), expected)
    assert torch.autograd.gradcheck(value, logits())


def test_no_gradient_flows_into_weights():
    weight = WEIGHT.clone().requires_grad_()
    get_loss("dft")(logits(), LABELS, item_weight=weight).backward()
    assert weight.grad is None


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (WEIGHT[:5], r"item_weight of shape \(5,\) does not fit items of shape \(6,\)"),
        ("heavy", "the weight of an item must be a number, got 'heavy'"),
        (-WEIGHT, "finite and not negative, got -1"),
        (WEIGHT * math.nan, "finite and not negative, got nan"),
        (torch.where(WEIGHT == 2.5, math.inf, WEIGHT), "finite and not negative, got inf"),
    ],
)
@pytest.mark.parametrize(
    "loss",
    [
        lambda w: get_loss("gce")(logits(), LABELS, item_weight=w),
        lambda w: linear_loss(logits(torch.float32), torch.ones(7, 5), LABELS, item_weight=w),
        lambda w: get_loss("huber")(logits()[:, 0], torch.zeros(6), item_weight=w),
    ],
    ids=["logits", "hidden states", "numbers"],
)
def test_weights_that_make_no_sense_are_refused(loss, weight, message):
    with pytest.raises(ValueError, match=message):
        loss(weight)
