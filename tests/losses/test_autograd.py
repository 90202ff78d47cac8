"""Declared derivatives, through every way PyTorch has of asking for them."""

import math

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from hf_losses import get_loss, list_losses

CLASSES = 4
MODES = {
    "index": {},
    "soft": {},
    "smoothing": {"label_smoothing": 0.2},
    "weight": {"weight": [0.5, 2.0, 0.0, 1.0]},
    "multi-label": {"problem_type": "multi_label_classification"},
    "bounded": {"max_weight": 1.5},  # some items on either side, and on both of strict_l_full's
}
CLASSIFICATION = pytest.mark.parametrize("name", list_losses(task="classification"))
MODE = pytest.mark.parametrize("mode", MODES)
# Forward mode imports parts of torch that still call torch.jit.script.
FORWARD = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


def example(mode):
    generator = torch.Generator().manual_seed(5)
    z = 2 * torch.randn(5, CLASSES, generator=generator, dtype=torch.float64)
    if mode == "soft":
        return z, torch.softmax(z.flip(0), -1)
    if mode == "multi-label":
        return z, (z.flip(0) > 0).double()
    return z, torch.tensor([0, 1, 2, 3, 0])


@MODE
@CLASSIFICATION
def test_first_and_second_derivatives(name, mode):
    z, target = example(mode)
    loss = get_loss(name, **MODES[mode])
    z.requires_grad_()
    assert gradcheck(lambda z: loss(z, target), z)
    assert gradgradcheck(lambda z: loss(z, target), z)


@pytest.mark.parametrize("name", list_losses(task="regression"))
def test_first_and_second_derivatives_of_regression_losses(name):
    x = torch.tensor([0.3, -0.3, 4.0, -4.0, 0.01], dtype=torch.float64, requires_grad=True)
    loss = get_loss(name)
    assert gradcheck(lambda x: loss(x, torch.zeros(5)), x)
    assert gradgradcheck(lambda x: loss(x, torch.zeros(5)), x)


@FORWARD
@MODE
@CLASSIFICATION
def test_torch_func_agrees_with_autograd(name, mode):
    z, target = example(mode)
    loss = get_loss(name, reduction="sum", **MODES[mode])

    def of(z):
        return loss(z, target)

    leaf = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(of(leaf), leaf)
    hessian = torch.autograd.functional.hessian(of, z)
    direction = z.cos()
    expected = {
        "grad": (torch.func.grad(of)(z), gradient),
        "vmap": (torch.func.vmap(torch.func.grad(loss))(z, target), gradient),
        "jvp": (torch.func.jvp(of, (z,), (direction,))[1], (gradient * direction).sum()),
        "hessian": (torch.func.hessian(of)(z), hessian),
    }
    for how, (found, right) in expected.items():
        assert torch.allclose(found, right, rtol=1e-12, atol=1e-14), how


def upstream_of_each(loss, z, target):
    """Gradients of every item's loss, one after the other, in float64."""
    z = z.double().requires_grad_()
    losses = loss(z, target).flatten()
    return torch.stack(
        [torch.autograd.grad(one, z, retain_graph=True)[0] for one in losses]
    )  # As gradcheck has shown them right.


@FORWARD
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@MODE
@CLASSIFICATION
def test_forward_mode_and_batched_backward_of_any_dtype(name, mode, dtype):
    z, target = example(mode)
    z = z.to(dtype)
    loss = get_loss(name, reduction="none", **MODES[mode])
    right = upstream_of_each(loss, z, target)
    direction = z.cos()
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    for item in (loss, get_loss(name, reduction="sum", **MODES[mode])):
        with forward_ad.dual_level():
            out = item(forward_ad.make_dual(z, direction), target)
            tangent = forward_ad.unpack_dual(out).tangent
        expected = (right * direction.double()).flatten(1).sum(1)
        expected = expected if item is loss else expected.sum()
        torch.testing.assert_close(tangent.double().flatten(), expected.flatten(), **close)
    leaf = z.clone().requires_grad_()
    losses = loss(leaf, target)
    each = torch.eye(losses.numel()).view(-1, *losses.shape)
    (found,) = torch.autograd.grad(losses, leaf, each, is_grads_batched=True)
    torch.testing.assert_close(found.double(), right, **close)


@FORWARD
@pytest.mark.parametrize("name", list_losses(task="regression"))
def test_forward_mode_of_regression_losses(name):
    x = torch.tensor([0.3, -0.3, 4.0, -4.0, 0.01])
    loss = get_loss(name, reduction="none")
    with forward_ad.dual_level():
        out = loss(forward_ad.make_dual(x, torch.ones(5)), torch.zeros(5))
        tangent = forward_ad.unpack_dual(out).tangent
    exact = x.double().requires_grad_()
    (right,) = torch.autograd.grad(loss(exact, torch.zeros(5)).sum(), exact)
    torch.testing.assert_close(tangent.double(), right, rtol=1e-5, atol=1e-6)


# Dynamo asks for warnings of its own while it traces.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_loss_is_compiled_without_a_graph_break():
    torch._dynamo.reset()
    z, target = example("index")
    losses = [get_loss(name) for name in list_losses(task="classification")]

    def all_of_them(z):
        return torch.stack([loss(z, target) for loss in losses])

    compiled = torch.compile(all_of_them, backend="aot_eager", fullgraph=True)
    found = []
    for function in (all_of_them, compiled):
        leaf = z.float().requires_grad_()
        values = function(leaf)
        # Each loss has a factor of its own: what one lacks, another cannot make up for.
        (values * torch.arange(1, len(losses) + 1)).sum().backward()
        found.append((values.detach(), leaf.grad))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "mode"), [("liberal_exp", "index"), ("strict_m_full", "bounded")])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
# Dynamo asks for warnings of its own while it traces.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_without_a_graph_break(name, mode, backend):
    torch._dynamo.reset()
    z, target = (x.float() if x.is_floating_point() else x for x in example(mode))
    loss = get_loss(name, weight=[1.0, 2.0, 3.0, 4.0], **MODES[mode])
    found = []
    for function in (loss, torch.compile(loss, backend=backend, fullgraph=True)):
        leaf = z.clone().requires_grad_()
        value = function(leaf, target)
        value.backward()
        found.append((value.detach(), leaf.grad))
    (value, gradient), (compiled_value, compiled_gradient) = found
    assert math.isclose(value, compiled_value, rel_tol=1e-6)
    assert torch.allclose(gradient, compiled_gradient, rtol=1e-6, atol=1e-7)
