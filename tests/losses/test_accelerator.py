"""On an accelerator no loss asks the device for a number, and the numbers are those of the CPU.

Tensors on the device `meta` have no numbers: whatever asks for one raises. They take the way that
tensors on a GPU take.
"""

import functools

import pytest
import torch
from losses.test_fused import assert_near, both, example

from hf_losses import get_loss, linear_loss, list_losses
from hf_losses.losses.fused import chunk, function

LOSSES = list_losses(task="classification")
EVERY = pytest.mark.parametrize("name", LOSSES)
HALF = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
SHAPE = (6, 40)

meta = functools.partial(torch.empty, device="meta")


def labels():
    return meta(SHAPE[:-1], dtype=torch.long)


@HALF
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": "none"},
        {"reduction": "sum"},
        {"overwrite_logits": True},
        {"label_smoothing": 0.1},
        {"weight": [1.0, 2.0] * 20},
        {"max_weight": 2.5},
    ],
    ids=str,
)
@EVERY
def test_class_indices(name, options, dtype):
    leaf = meta(SHAPE, dtype=dtype, requires_grad=True)
    loss = get_loss(name, **options).to("meta")
    loss(leaf * 1, labels(), item_weight=meta(SHAPE[:-1])).sum().backward()
    assert leaf.grad.shape == SHAPE
    with torch.no_grad():
        loss(leaf, labels(), meta(()))


@EVERY
def test_other_targets_and_second_derivatives(name):
    loss = get_loss(name, label_smoothing=0.1, weight=[1.0, 2.0] * 20).to("meta")
    several = get_loss(name, problem_type="multi_label_classification").to("meta")
    for logits in (meta(SHAPE, requires_grad=True), meta(SHAPE, requires_grad=True).double()):
        loss(logits, meta(SHAPE), item_weight=meta(SHAPE[:-1])).backward()
        several(logits, meta(SHAPE), item_weight=meta(SHAPE)).backward()
        value = get_loss(name)(logits, labels())
        (gradient,) = torch.autograd.grad(value, logits, create_graph=True)
        gradient.sum().backward()


def test_class_weights_of_a_loss_that_was_cast():
    loss = get_loss("focal", weight=[1.0, 2.0] * 20)
    loss(torch.zeros(SHAPE), torch.zeros(SHAPE[:-1], dtype=torch.long))
    for dtype in (torch.bfloat16, torch.float64):
        loss.to("meta", dtype)(meta(SHAPE, dtype=dtype), labels())


@pytest.mark.parametrize("name", list_losses(task="regression"))
def test_regression(name):
    prediction = meta(5, 1, requires_grad=True)
    get_loss(name)(prediction, meta(5), item_weight=meta(5)).backward()


@HALF
@EVERY
def test_linear_loss(name, dtype):
    hidden, weight = meta(3, 7, 16, dtype=dtype), meta(40, 16, dtype=dtype)
    bias, target = meta(40, dtype=dtype), meta(3, 7, dtype=torch.long)
    for tensor in (hidden, weight, bias):
        tensor.requires_grad_()
    items = meta(3, 7)
    linear_loss(hidden, weight, target, loss=name, bias=bias, item_weight=items).backward()
    assert weight.grad.shape == weight.shape
    weighted = get_loss(name, weight=[1.0, 2.0] * 20).to("meta")
    linear_loss(hidden, weight, target, loss=weighted, count=meta(())).backward()


@pytest.mark.parametrize("may_wait", [True, False])
@EVERY
def test_the_numbers_of_the_cpu(name, may_wait, monkeypatch):
    asked = []
    monkeypatch.setattr(chunk, "CHUNK", 3 * 40)
    monkeypatch.setattr(function, "may_wait", lambda tensor: asked.append(tensor) or may_wait)
    z, target = example()
    value, gradient, exact, exact_gradient = both(name, z, target, reduction="none")
    assert asked
    assert_near(value, exact, z)
    assert_near(gradient, exact_gradient, z)
