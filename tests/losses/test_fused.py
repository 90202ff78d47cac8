"""Losses straight from the logits are those of the plain path, and hold nothing of their size."""

import contextlib
import dataclasses
import functools
import math

import pytest
import torch
from reference import oracle_beside as oracle
from torch.utils._python_dispatch import TorchDispatchMode

from hf_losses import get_loss, list_losses
from hf_losses.losses import modules as criterion
from hf_losses.losses import registry
from hf_losses.losses.fused import chunk

LOSSES = list_losses(task="classification")
EVERY = pytest.mark.parametrize("name", LOSSES)
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
DTYPES = pytest.mark.parametrize("dtype", ROUNDING, ids=lambda dtype: str(dtype)[6:])
CLASSES = 40
# What takes its interpreter long; `test_triton.py` has the same with fewer rows.
NOT_BY_TRITON = pytest.mark.parametrize(
    "engine", ["cpu", pytest.param("accelerator", marks=pytest.mark.slow)], indirect=True
)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch, engine):
    """Several chunks, the last one incomplete."""
    monkeypatch.setattr(chunk, "CHUNK", 3 * CLASSES)


def example(dtype=torch.float32, spread=3.0):
    """Ordinary rows, confident ones, right and wrong, masked classes, and an ignored row."""
    generator = torch.Generator().manual_seed(3)
    z = spread * torch.randn(25, CLASSES, generator=generator)
    target = torch.randint(0, CLASSES, (25,), generator=generator)
    rows = torch.arange(25)
    z[rows[:6], target[:6]] += torch.tensor([5.0, 20.0, 60.0, 95.0, 150.0, 1e4])
    z[rows[6:12], (target[6:12] + 1) % CLASSES] += torch.tensor([2.0, 9.0, 40.0, 90.0, 200.0, 1e4])
    z[12, (target[12] + 1) % CLASSES] = -torch.inf
    z[13, torch.arange(CLASSES) != target[13]] = -torch.inf
    target[14] = -100
    return z.to(dtype), target


def both(name, z, target, **options):
    """Values and gradients of the fused path, and of the plain one in float64."""
    found = []
    for logits in (z.clone(), z.double()):
        logits.requires_grad_()
        value = get_loss(name, **options)(logits, target)
        # Half precision rounds the gradient once; another factor would do it again.
        factors = torch.arange(2, 2 + value.numel()) if z.dtype == torch.float32 else 1
        (value * torch.as_tensor(factors).expand(value.numel()).view(value.shape)).sum().backward()
        found += [value.detach(), logits.grad]
    return found


def assert_near(found, exact, z, dtype=torch.float32):
    """Row by row, within the rounding of the logits themselves."""
    size = 1 + z.double().nan_to_num(0, 0, 0).abs().amax(-1)
    error = (found.double() - exact).abs()
    if exact.dim() == z.dim():
        error, exact = error.amax(-1), exact.abs().amax(-1)
    tiny = torch.finfo(dtype).tiny * 10
    allowed = 4 * ROUNDING[torch.float32] * size + (ROUNDING[dtype] if found.dtype == dtype else 0)
    assert (error <= allowed * exact.abs() + tiny).all(), (error / exact.abs() / allowed).max()


@DTYPES
@EVERY
def test_every_row_is_the_plain_paths(name, dtype, engine, monkeypatch):
    if engine == "triton":  # Whose interpreter cuts digits off rather than rounding.
        monkeypatch.setitem(ROUNDING, torch.bfloat16, 2**-7)
    z, target = example(dtype)
    value, gradient, exact, exact_gradient = both(name, z, target, reduction="none")
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    assert_near(value, exact, z)
    if dtype == torch.float16:  # Its largest number is the bound's.
        exact_gradient = exact_gradient.clamp(-65504, 65504)
        gradient = gradient.clamp(-65504, 65504)
    assert_near(gradient, exact_gradient, z, dtype)
    assert gradient[14].count_nonzero() == 0


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@EVERY
def test_reductions_and_class_weights(name, reduction, weighted):
    z, target = example()
    z, target = z[12:].view(13, 1, CLASSES), target[12:].view(13, 1)
    weight = torch.linspace(0, 2, CLASSES).tolist() if weighted else None
    value, gradient, exact, exact_gradient = both(
        name, z, target, reduction=reduction, weight=weight
    )
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=0)
    assert_near(gradient, exact_gradient, z)


@EVERY
def test_a_low_bound_is_kept_by_every_class(name):
    z, target = example()
    value, gradient, exact, exact_gradient = both(name, z, target, reduction="none", max_weight=1.5)
    assert_near(value, exact, z)
    assert_near(gradient, exact_gradient, z)


@EVERY
def test_a_function_of_the_margin_is_enough(name, monkeypatch):
    spec = dataclasses.replace(registry.get_spec(name), probability_function=None)
    monkeypatch.setitem(registry._SPECS, name, spec)
    z, target = example()
    value, gradient, exact, exact_gradient = both(name, z, target, reduction="none")
    assert_near(value, exact, z)
    assert_near(gradient, exact_gradient, z)


@pytest.mark.parametrize("ignored", [0, 3])
@pytest.mark.parametrize("count", [7, 7.5, torch.tensor(7), torch.tensor([7.5])])
def test_a_count_is_what_a_mean_divides_by(count, ignored):
    z, target = example()
    z, target = z[15:], target[15:]
    target[:ignored] = -100
    found = []
    for divisor in (count, None):
        logits = z.clone().requires_grad_()
        value = get_loss("strict_l")(logits, target, divisor)
        value.backward()
        times = len(z) - ignored if divisor is None else float(divisor)
        found.append((value.detach().squeeze() * times, logits.grad * times))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-9)


@functools.cache
def probabilities(logits, softmax=oracle.oracle.softmax):
    """The oracle's, which take nearly all of its time, once for all losses."""
    return softmax(logits)


@NOT_BY_TRITON
@EVERY
def test_thousands_of_classes_against_the_oracle(name, monkeypatch):
    monkeypatch.setattr(chunk, "CHUNK", 2**18)
    monkeypatch.setattr(oracle.oracle, "softmax", lambda z: probabilities(tuple(z)))
    generator = torch.Generator().manual_seed(1)
    z = 2 * torch.randn(64, 8000, generator=generator)
    target = torch.randint(0, 8000, (64,), generator=generator)
    z[5, target[5]] = 25.0
    logits = z.clone().requires_grad_()
    losses = get_loss(name, reduction="none", max_weight=math.inf)(logits, target)
    losses.sum().backward()
    for row in (5, 63):
        value, of_logits = oracle.loss_and_gradient(name, z[row].tolist(), target[row].item())
        exact_gradient = torch.tensor([float(g) for g in of_logits], dtype=torch.float64)
        assert abs(losses[row].item() / float(value) - 1) < 3e-5
        error = (logits.grad[row].double() - exact_gradient).abs().max()
        assert error < 3e-5 * exact_gradient.abs().max()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@EVERY
def test_what_is_no_number_is_seen(name, bad):
    z, target = example()
    for place in (target[20].item(), (target[20].item() + 1) % CLASSES):
        logits = z.clone()
        logits[20, place] = bad
        logits.requires_grad_()
        losses = get_loss(name, reduction="none")(logits, target)
        losses.sum().backward()
        assert losses[20].isnan()
        assert logits.grad[20].isnan().any()
        assert losses[[19, 21]].isfinite().all()


class Largest(TorchDispatchMode):
    """How many new tensors of at least so many numbers come to be."""

    def __init__(self, numbers):
        super().__init__()
        self.numbers, self.storages = numbers, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.numel() >= self.numbers:
                self.storages.add(tensor.untyped_storage().data_ptr())
        return out


@NOT_BY_TRITON
@DTYPES
@EVERY
def test_nothing_but_the_gradient_has_the_size_of_the_logits(name, dtype):
    z, target = example(dtype)
    cases = {
        "training": (True, False, 1),
        "overwriting": (True, True, 0),
        "evaluation": (False, False, 0),
    }
    for case, (trains, overwrites, expected) in cases.items():
        logits = z.clone().requires_grad_(trains)
        loss = get_loss(name, overwrite_logits=overwrites)
        with Largest(z.numel() // 2) as seen:
            value = loss(logits, target)
            if trains:
                value.backward()
        assert len(seen.storages - {logits.untyped_storage().data_ptr()}) == expected, case


@DTYPES
@EVERY
def test_overwriting_gives_the_same_numbers(name, dtype):
    z, target = example(dtype)
    found = []
    for overwrites in (False, True):
        leaf = z.clone().requires_grad_()
        logits = leaf * 1
        loss = get_loss(name, overwrite_logits=overwrites)
        assert loss.config == get_loss(name).config
        value = loss(logits, target)
        value.backward()
        assert torch.equal(logits.detach().nan_to_num(), z.nan_to_num()) == (not overwrites)
        found.append((value.detach(), leaf.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_overwriting_what_backward_needs_is_an_error():
    x = torch.zeros(3, CLASSES, requires_grad=True)
    loss = get_loss("liberal_exp", overwrite_logits=True)(x.exp(), torch.tensor([0, 1, 2]))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_evaluation_leaves_logits_alone_even_if_they_may_be_overwritten():
    z, target = example()
    before = z.clone()
    get_loss("strict_l", overwrite_logits=True)(z, target)
    with torch.no_grad():
        get_loss("strict_l", overwrite_logits=True)(z.requires_grad_(), target)
    assert torch.equal(before, z.detach())


@pytest.mark.parametrize("reduction", ["mean", "none"])
@EVERY
def test_second_derivatives_go_the_plain_way(name, reduction):
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(4, 5, generator=generator)
    target = torch.tensor([0, 1, 2, -100])
    found = []
    for dtype in (torch.float32, torch.float64):
        leaf = z.to(dtype).requires_grad_()
        value = get_loss(name, reduction=reduction)(leaf, target).sum()
        (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
        (second,) = torch.autograd.grad((gradient**2).sum(), leaf)
        found.append(second.double())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_backward_again_needs_the_logits():
    z, target = example()
    leaf = z[15:].clone().requires_grad_()
    logits = leaf * 1
    value = get_loss("liberal_exp")(logits, target[15:])
    first, second = (torch.autograd.grad(value, leaf, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-8)
    del logits
    with pytest.raises(RuntimeError, match="used up: for a second derivative, or a second"):
        torch.autograd.grad(value, leaf, retain_graph=True)


@EVERY
def test_autocast_changes_nothing(name):
    z, target = example(torch.bfloat16)
    found = []
    for enabled in (False, True):
        leaf = z.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            value = get_loss(name)(leaf, target)
        value.backward()
        found.append((value.detach(), leaf.grad))
    assert found[0][0].dtype == found[1][0].dtype == torch.float32
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_torch_func_goes_the_plain_way():
    z, target = example()
    z, target = z[15:], target[15:]
    loss = get_loss("strict_l")
    leaf = z.clone().requires_grad_()
    loss(leaf, target).backward()
    found = torch.func.grad(lambda z: loss(z, target))(z)
    torch.testing.assert_close(found, leaf.grad, rtol=1e-5, atol=1e-8)
    one_by_one = torch.func.vmap(torch.func.grad(loss))(z, target)
    torch.testing.assert_close(one_by_one / len(z), leaf.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_vmap_takes_one_upstream_gradient_after_another(reduction):
    z, target = example()
    leaf = z.requires_grad_()
    losses = get_loss("liberal_exp", reduction=reduction)(leaf, target)
    each = torch.eye(losses.numel()).view(-1, *losses.shape)
    expected = torch.stack(
        [torch.autograd.grad(losses, leaf, e, retain_graph=True)[0] for e in each]
    )
    losses = get_loss("liberal_exp", reduction=reduction)(leaf, target)
    found = torch.vmap(lambda e: torch.autograd.grad(losses, leaf, e, retain_graph=True)[0])(each)
    torch.testing.assert_close(found, expected)
    losses.sum().backward()
    torch.testing.assert_close(leaf.grad, expected.sum(0))


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, "meta"])
@pytest.mark.parametrize("name", ["strict_l", "strict_m_full"])
def test_the_default_dtype_and_device_change_nothing(name, default):
    z, target = example()
    z, target = z[:12], target[:12]  # All count, and some take the exact method.
    found = []
    for changed in (False, True):
        leaf = z.clone().requires_grad_()
        with contextlib.ExitStack() as stack:
            if changed and default == "meta":
                stack.enter_context(torch.device("meta"))
            elif changed:
                stack.callback(torch.set_default_dtype, torch.get_default_dtype())
                torch.set_default_dtype(default)
            value = get_loss(name)(leaf, target)
            value.backward()
        found.append((value.detach(), leaf.grad))
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({}, torch.float64),
        ({"label_smoothing": 0.1}, torch.float32),
        ({"problem_type": "multi_label_classification"}, torch.float32),
    ],
)
def test_the_rest_goes_the_plain_way(options, dtype, monkeypatch):
    monkeypatch.setattr(criterion, "Fused", None)
    z = torch.zeros(2, 3, dtype=dtype, requires_grad=True)
    several = "problem_type" in options
    target = torch.ones(2, 3) if several else torch.tensor([0, 1])
    get_loss("liberal_exp", **options)(z, target).backward()
    with pytest.raises(AttributeError):
        get_loss("liberal_exp")(torch.zeros(2, 3), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("name", "options"), [("cross_entropy", {}), ("strict_m_power", {"max_weight": math.inf})]
)
def test_a_loss_scaler_comes_before_the_rounding_of_float16(name, options, monkeypatch):
    # Of a sum divided by 4,096 nearly every wrong class's gradient is below the least float16.
    monkeypatch.setattr(chunk, "CHUNK", 2**16)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(256, 1000, generator=generator).half().requires_grad_()
    exact = z.detach().double().requires_grad_()
    target = torch.randint(0, 1000, (256,), generator=generator)
    for logits in (z, exact):
        (2.0**12 * get_loss(name, **options)(logits, target, 4096)).backward()
    error = (z.grad.double() - exact.grad).abs() / exact.grad.abs().clamp(min=2.0**-14)
    assert error.max() < 2.1 * ROUNDING[torch.float16]


@pytest.mark.parametrize("classes", [3, CLASSES])
@EVERY
def test_a_row_that_does_not_count_may_hold_anything(name, classes):
    strict = {"max_weight": math.inf} if "strict" in name else {}
    loss = get_loss(name, reduction="sum", **strict)
    z = torch.randn(8, classes, generator=torch.Generator().manual_seed(0))
    z[0, 0], z[1, 1], z[2, 0], z[3, 0] = -torch.inf, torch.inf, -200.0, 200.0
    z[4], z[5] = torch.nan, -torch.inf
    target = torch.tensor([-100] * 6 + [0, 2])
    z.requires_grad_()
    value = loss(z, target)
    value.backward()
    assert (z.grad[:6] == 0).all()
    alone = z.detach()[6:].requires_grad_()
    expected = loss(alone, target[6:])
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(z.grad[6:], alone.grad, rtol=1e-5, atol=1e-7)


@EVERY
def test_one_item_alone(name):
    z = torch.tensor([0.5, -torch.inf, 2.0], requires_grad=True)
    loss = get_loss(name, max_weight=math.inf)
    loss(z, torch.tensor(0)).backward()
    rows = z.detach()[None].requires_grad_()
    loss(rows, torch.tensor([0])).backward()
    assert torch.equal(z.grad, rows.grad[0])
    z.grad = None
    value = loss(z, torch.tensor(-100))
    value.backward()
    assert value == 0
    assert (z.grad == 0).all()


@pytest.mark.parametrize("classes", [5, CLASSES])
@EVERY
def test_what_all_logits_share_changes_nothing(name, classes):
    generator = torch.Generator().manual_seed(0)
    z = (torch.randn(8, classes, generator=generator) * 16).round() / 16
    target = torch.randint(0, classes, (8,), generator=generator)
    found = []
    for logits in (z, z + 2.0**16):  # Which float32 holds to the last digit.
        logits = logits.requires_grad_()
        loss = get_loss(name)(logits, target)
        loss.backward()
        found.append((loss.detach(), logits.grad))
    (value, gradient), (shifted, of_shifted) = found
    torch.testing.assert_close(shifted, value, rtol=1e-5, atol=0)
    torch.testing.assert_close(of_shifted, gradient, rtol=1e-4, atol=1e-7)


def test_logits_that_were_changed_have_no_second_derivative():
    leaf = torch.randn(2, 3, requires_grad=True)
    logits = leaf * 1
    value = get_loss("liberal_exp")(logits, torch.tensor([0, 1]))
    logits.mul_(10)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(value, leaf, create_graph=True)


# Both parts of a full form pay for the wrong class.
@pytest.mark.parametrize(("name", "parts"), [("strict_m", 1), ("strict_m_full", 2)])
@pytest.mark.parametrize("bound", [1e6, 2.0**20])
def test_float16_holds_the_gradients_of_a_large_bound(bound, name, parts):
    z = torch.zeros(64, 2).half()
    z[0, 0] = -14.5
    z.requires_grad_()
    loss = get_loss(name, max_weight=bound)
    loss(z, torch.zeros(64, dtype=torch.long)).backward()
    assert z.grad[0, 1].item() == pytest.approx(parts * bound / 64, rel=1e-3)
    assert z.grad.isfinite().all()
