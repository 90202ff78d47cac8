"""On a GPU every loss has the numbers of the plain path in float64, and never waits for them."""

from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F

from hf_losses import get_loss, linear_loss, list_losses
from hf_losses.losses import linear
from hf_losses.losses.fused import triton_launch

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

LOSSES = list_losses(task="classification")
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
EVERY = pytest.mark.parametrize("name", LOSSES)
DTYPES = pytest.mark.parametrize("dtype", ROUNDING, ids=lambda dtype: str(dtype)[6:])
WIDTHS = (3, 1000, 128256)


def example(dtype=torch.float32, classes=1000):
    """Ordinary rows, confident ones, right and wrong, a masked class, and an ignored row."""
    generator = torch.Generator().manual_seed(3)
    z = 3 * torch.randn(16, classes, generator=generator)
    target = torch.randint(0, classes, (16,), generator=generator)
    rows = torch.arange(16)
    z[rows[:5], target[:5]] += torch.tensor([5.0, 20.0, 60.0, 150.0, 1e4])
    z[rows[5:10], (target[5:10] + 1) % classes] += torch.tensor([2.0, 9.0, 40.0, 200.0, 1e4])
    z[10, (target[10] + 1) % classes] = -torch.inf
    target[11] = -100
    return z.to(dtype), target


def evaluated(criterion, leaves, target, without_waiting=nullcontext, **weights):
    """The loss and its gradients, from a second run: kernels are compiled in the first."""
    for context in (nullcontext, without_waiting):
        copies = [x.detach().clone().requires_grad_() for x in leaves]
        with context():
            loss = criterion(*copies, target, **weights)
            loss.sum().backward()
    return loss.detach(), [x.grad for x in copies]


def both(name, z, target, device, without_waiting, **options):
    """Loss and gradient on the device, and on the CPU in float64, which nothing fuses."""
    item_weight = options.pop("item_weight", None)
    weights = {} if item_weight is None else {"item_weight": item_weight}
    plain = get_loss(name, **options)
    exact, (exact_gradient,) = evaluated(plain, [z.double()], target, **weights)
    criterion = get_loss(name, **options).to(device)
    weights = {key: weight.to(device) for key, weight in weights.items()}
    found, (gradient,) = evaluated(
        criterion, [z.to(device)], target.to(device), without_waiting, **weights
    )
    assert gradient.dtype == z.dtype
    return found.cpu().double(), gradient.cpu(), exact, exact_gradient


def assert_near(found, exact, z, dtype=torch.float32):
    """Row by row, within the rounding of the logits themselves."""
    size = 1 + z.double().nan_to_num(0, 0, 0).abs().amax(-1)
    error = (found.double() - exact).abs()
    if exact.dim() == z.dim():
        error, exact = error.amax(-1), exact.abs().amax(-1)
    allowed = 8e-6 * size + (0 if dtype == torch.float32 else ROUNDING[dtype])
    tiny = 10 * torch.finfo(dtype).tiny
    assert (error <= allowed * exact.abs() + tiny).all(), (error / exact.abs() / allowed).max()


@pytest.mark.parametrize("classes", WIDTHS)
@DTYPES
@EVERY
def test_every_row_is_that_of_the_cpu_in_float64(name, dtype, classes, device, without_waiting):
    z, target = example(dtype, classes)
    value, gradient, exact, exact_gradient = both(
        name, z, target, device, without_waiting, reduction="none"
    )
    assert_near(value, exact, z)
    if dtype == torch.float16:  # Its largest number is the bound's.
        gradient, exact_gradient = (x.clamp(-65504, 65504) for x in (gradient, exact_gradient))
    assert_near(gradient, exact_gradient, z, dtype)
    assert gradient[11].count_nonzero() == 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight": [0.0, 1.0, 2.0, 0.5] * 250},
        {"item_weight": torch.linspace(0, 2, 16)},
        {"reduction": "sum", "overwrite_logits": True},
        {"label_smoothing": 0.1},
        {"max_weight": 1.5},
        {"max_weight": 2.0**17},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=lambda dtype: str(dtype)[6:])
@EVERY
def test_options(name, options, dtype, device, without_waiting):
    z, target = example(dtype)
    value, gradient, exact, exact_gradient = both(
        name, z, target, device, without_waiting, **options
    )
    torch.testing.assert_close(value, exact, rtol=1e-5, atol=0)
    if dtype == torch.float16:  # Its largest number is the bound's.
        exact_gradient = exact_gradient.clamp(-65504, 65504)
    assert_near(gradient, exact_gradient, z, dtype)


@pytest.mark.parametrize("problem_type", ["single_label", "multi_label"])
@EVERY
def test_probabilities_and_several_labels(name, problem_type, device, without_waiting):
    z, _ = example(classes=50)
    z = z.clamp(-30, 30)
    target = torch.rand(16, 50, generator=torch.Generator().manual_seed(0))
    target = target.round() if problem_type == "multi_label" else target.softmax(-1)
    value, gradient, exact, exact_gradient = both(
        name, z, target, device, without_waiting, problem_type=f"{problem_type}_classification"
    )
    torch.testing.assert_close(value, exact, rtol=1e-5, atol=0)
    assert_near(gradient, exact_gradient, z)


@pytest.mark.parametrize("name", list_losses(task="regression"))
def test_regression(name, device, without_waiting):
    prediction = torch.linspace(-3, 3, 50)
    target = prediction.flip(0) + 0.1
    value, gradient, exact, exact_gradient = both(
        name, prediction, target, device, without_waiting, item_weight=torch.linspace(0, 2, 50)
    )
    torch.testing.assert_close(value, exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("rows", [None, 7], ids=["at once", "in parts"])
@DTYPES
@EVERY
def test_the_last_layer_fused_with_the_loss(
    name, dtype, rows, device, without_waiting, monkeypatch
):
    if rows:
        monkeypatch.setattr(linear, "ROWS_ON_GPU", (rows, rows))
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(1000, 64, generator=generator) / 8, torch.zeros(1000)
    target = torch.randint(0, 1000, (40,), generator=generator)
    hidden = torch.randn(40, 64, generator=generator) + 6 * weight[target]
    target[:5] = -100
    leaves = [x.to(dtype) for x in (hidden, weight, bias)]
    criterion, item_weight = get_loss(name), torch.linspace(0, 2, 40)
    weights = item_weight.to(device)  # Copying would wait.

    def plain(hidden, weight, bias, target):
        return criterion(F.linear(hidden, weight, bias), target, item_weight=item_weight)

    def fused(hidden, weight, bias, target):
        return linear_loss(hidden, weight, target, loss=criterion, bias=bias, item_weight=weights)

    exact = evaluated(plain, [x.double() for x in leaves], target)
    leaves[0][:5] = torch.nan  # The rows that do not count.
    found = evaluated(fused, [x.to(device) for x in leaves], target.to(device), without_waiting)
    # The logits are rounded, and so are the gradients of the logits.
    allowed = 1e-5 if dtype == torch.float32 else 20 * ROUNDING[dtype]
    for ours, theirs in zip((found[0], *found[1]), (exact[0], *exact[1]), strict=True):
        assert (ours.cpu().double() - theirs).norm() <= allowed * theirs.norm()


@EVERY
def test_rows_and_classes_with_strides(name, device):
    z, target = example()
    z, target = z.to(device), target.to(device)
    expected = evaluated(get_loss(name), [z], target)
    wide, tall = torch.zeros(40, 2000, device=device), torch.zeros(2000, 40, device=device)
    for strided in (wide[:16, :1000], wide[:16, ::2], tall.T[:16, :1000]):
        strided.copy_(z)
        leaf = strided.detach().requires_grad_()
        value = get_loss(name)(leaf, target)
        value.backward()
        torch.testing.assert_close(value.detach(), expected[0], rtol=1e-5, atol=0)
        assert_near(leaf.grad.cpu(), expected[1][0].cpu().double(), z.cpu())  # In another order.


@EVERY
def test_what_is_no_number_is_seen(name, device, without_waiting):
    z, target = example()
    z[0, 3], z[1, target[1]], z[2, 3], z[3] = torch.nan, torch.nan, torch.inf, -torch.inf
    value, (gradient,) = evaluated(
        get_loss(name, reduction="none").to(device),
        [z.to(device)],
        target.to(device),
        without_waiting,
    )
    assert value.isnan().tolist() == [True] * 4 + [False] * 12
    assert gradient.isnan().any(-1).tolist() == [True] * 4 + [False] * 12


def test_a_class_that_does_not_exist_is_seen(device):
    if device.type == "cpu" or triton_launch.choice() is False:
        pytest.skip("PyTorch's operations stop the process with an assertion")
    z, target = example()
    target[5] = 1000
    value, (gradient,) = evaluated(
        get_loss("strict_l", reduction="none"), [z.to(device)], target.to(device)
    )
    for found in (value, gradient.sum(-1)):
        assert found.isnan().nonzero().flatten().tolist() == [5]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=lambda dtype: str(dtype)[6:])
def test_the_last_layer_needs_the_memory_of_its_gradients(dtype, device):
    if device.type == "cpu" or triton_launch.choice() is False:
        pytest.skip("needs a GPU and the kernels")
    rows, classes, width = 4096, 32000, 768
    hidden = torch.randn(rows, width, device=device, dtype=dtype, requires_grad=True)
    weight = torch.randn(classes, width, device=device, dtype=dtype, requires_grad=True)
    target = torch.randint(0, classes, (rows,), device=device)
    for _ in range(2):  # In the first it compiles.
        hidden.grad = weight.grad = None
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        linear_loss(hidden, weight, target, loss="strict_l").backward()
        peak = torch.cuda.max_memory_allocated() - before
    # The sum in float32, and its copy or, before, the logits in the dtype of the weight.
    bytes_of = hidden.element_size()
    assert peak < 1.02 * (weight.numel() * (4 + bytes_of) + hidden.numel() * bytes_of)


def test_unasked_the_kernels_run(device, monkeypatch):
    if device.type == "cpu":
        pytest.skip("needs a GPU")
    calls, losses = [], triton_launch.losses
    monkeypatch.setattr(triton_launch, "losses", lambda *given: calls.append(1) or losses(*given))
    z, target = (x.to(device) for x in example())
    for choice, count in ((None, 1), (False, 0), (True, 1)):
        calls.clear()
        monkeypatch.setattr(triton_launch, "choice", lambda choice=choice: choice)
        get_loss("strict_l")(z, target)
        assert len(calls) == count
