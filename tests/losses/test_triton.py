"""The kernels for a GPU, by Triton's interpreter: against the plain path and the oracle.

The slow tests of `test_fused.py` and `test_linear.py` run through them as well.
"""

import math
import subprocess
import sys

import numpy
import pytest
import torch
from losses.test_fused import CLASSES, assert_near, both, example

from hf_losses import get_loss, linear_loss, list_losses, register_loss
from hf_losses.losses import registry
from hf_losses.losses.fused import triton_launch, triton_source

pytest.importorskip("triton")  # It exists for Linux alone.
# The interpreter of Triton 3.2, which torch 2.6 brings, relies on what NumPy will drop.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

LOSSES = list_losses(task="classification")
EVERY = pytest.mark.parametrize("name", LOSSES)


@pytest.fixture
def launched(monkeypatch):
    """Switches the kernels on, and counts the launches."""
    launches = []
    losses = triton_launch.losses

    def counting(*arguments):
        launches.append(arguments)
        return losses(*arguments)

    monkeypatch.setattr(triton_launch, "choice", lambda: True)
    monkeypatch.setattr(triton_launch, "losses", counting)
    with numpy.errstate(all="ignore"):
        yield launches


@pytest.fixture
def liberal_erf(monkeypatch):
    """The name of a loss that calls what has no counterpart in Triton."""
    monkeypatch.setattr(registry, "_SPECS", dict(registry._SPECS))

    @register_loss("liberal_erf", kind="liberal", formula="1 - erf(p)")
    def loss(m):
        p, q = torch.sigmoid(m), torch.sigmoid(-m)
        return 1 - torch.erf(p), -2 / math.sqrt(math.pi) * torch.exp(-p * p) * p * q

    return "liberal_erf"


@EVERY
def test_every_row_is_the_plain_paths(name, launched):
    z, target = example()
    value, gradient, exact, exact_gradient = both(name, z, target, reduction="none")
    assert len(launched) == 1
    assert_near(value, exact, z)
    assert_near(gradient, exact_gradient, z)


@pytest.mark.parametrize("name", ["liberal_exp", "strict_m_full"])
def test_items_have_weights(name, launched):
    z, target = example()
    weights, loss, found = torch.linspace(0, 2, len(z)), get_loss(name), []
    for logits in (z.clone().requires_grad_(), z.double().requires_grad_()):
        value = loss(logits, target, item_weight=weights)
        value.backward()
        found.append((value.detach(), logits.grad))
    (value, gradient), (exact, exact_gradient) = found
    assert len(launched) == 1
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=0)
    assert_near(gradient, exact_gradient, z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [0, 1, 5000, 3 * 2**12])
def test_the_upstream_gradient_multiplies_every_number_once(count, dtype, launched, monkeypatch):
    monkeypatch.setattr(triton_launch, "PROGRAMS", 2)
    numbers = torch.randn(count, generator=torch.Generator().manual_seed(0)).to(dtype)
    for factor in (1.0, 1 / 3, 0.0, -(2.0**9)):
        found = numbers.clone()
        assert triton_launch.multiply(found, torch.tensor(factor))
        # The interpreter cuts digits off instead of rounding to bfloat16.
        rtol = 2**-7 if dtype == torch.bfloat16 else 0
        torch.testing.assert_close(found, (numbers.float() * factor).to(dtype), rtol=rtol, atol=0)
    scattered = torch.ones(4, 3).T
    assert not triton_launch.multiply(scattered, torch.tensor(2.0))
    assert scattered.sum() == 12


# Wrong signs and a wrong limit, each in one place of the kernels.
SLIPS = {
    "z_true - highest - tl.log(total)": "z_true - highest + tl.log(total)",
    "per_share = -slope / total": "per_share = slope / total",
    "rest = highest - shared + tl.log(total)": "rest = highest - shared - tl.log(total)",
    "summed -= tl.sum": "summed += tl.sum",
    "of_true -= summed": "of_true += summed",
    "of_top = -top_slope -": "of_top = top_slope -",
    "per_share += summed * tl.exp(rest - every)": "per_share -= summed * tl.exp(rest - every)",
    "of_class = -slope_of_wrong": "of_class = slope_of_wrong",
    "x > -0.4": "x > 0.4",
    "tl.where(x < 0, x, 0.0) - log": "tl.where(x < 0, x, 0.0) + log",
}


@pytest.mark.slow
@pytest.mark.parametrize("right", SLIPS)
def test_a_slip_in_a_kernel_would_be_noticed(right, launched, monkeypatch, tmp_path):
    text = triton_launch.KERNELS.read_text(encoding="utf-8")
    assert text.count(right) >= 1
    slip = tmp_path / "kernels.py"
    slip.write_text(text.replace(right, SLIPS[right]), encoding="utf-8")
    monkeypatch.setattr(triton_launch, "KERNELS", slip)
    monkeypatch.setattr(triton_launch, "_MODULES", {})
    triton_launch._kernels.cache_clear()

    def compare():
        for name in ("liberal_exp", "strict_m", "strict_l_full"):
            z, target = example()
            value, gradient, exact, exact_gradient = both(name, z, target, reduction="none")
            assert_near(value, exact, z)
            assert_near(gradient, exact_gradient, z)

    try:
        with pytest.raises(AssertionError):
            compare()
    finally:
        triton_launch._kernels.cache_clear()


@pytest.mark.parametrize("classes", [2, 3, 17, 64, 65])
@pytest.mark.parametrize("name", ["strict_l", "strict_m_full", "focal"])
def test_class_counts_beside_the_blocks(name, classes, launched, monkeypatch):
    monkeypatch.setattr(triton_launch, "BLOCKS", {2: 16, 4: 16})
    monkeypatch.setattr(triton_launch, "BLOCK_OF_FULL", 16)
    z = 3 * torch.randn(5, classes, generator=torch.Generator().manual_seed(classes))
    target = torch.arange(5) % classes
    z[0, target[0]], z[1, target[1]], z[2, (target[2] + 1) % classes] = 60.0, -60.0, 60.0
    z[3, (target[3] + 1) % classes] = -torch.inf
    value, gradient, exact, exact_gradient = both(name, z, target, reduction="none", max_weight=9)
    assert launched
    assert_near(value, exact, z)
    assert_near(gradient, exact_gradient, z)


@pytest.mark.parametrize("name", ["liberal_exp", "strict_l_full"])
def test_a_large_vocabulary_in_blocks(name, launched):
    z = 2 * torch.randn(2, 128256, generator=torch.Generator().manual_seed(1))
    z[0, 100000] = 25.0
    options = {"reduction": "none", "max_weight": math.inf}
    value, gradient, exact, exact_gradient = both(name, z, torch.tensor([100000, 5]), **options)
    assert launched
    torch.testing.assert_close(value.double(), exact, rtol=3e-5, atol=0)
    assert_near(gradient, exact_gradient, 10 * z)


def test_rows_and_classes_with_strides(launched):
    z, target = example()
    whole = torch.randn(len(z), 2 * CLASSES)
    for strided in (whole[:, :CLASSES], whole[:, ::2], whole.T[:CLASSES].T, z.T.contiguous().T):
        strided.copy_(z)
        leaf, contiguous = strided.detach().requires_grad_(), z.clone().requires_grad_()
        for logits in (leaf, contiguous):
            get_loss("strict_l")(logits, target).backward()
        assert torch.equal(leaf.grad, contiguous.grad)
    assert len(launched) == 8


def test_what_is_not_overwritten_stays_usable(launched):
    leaf = torch.randn(3, 5, requires_grad=True)
    logits = leaf * 1
    version = logits._version
    with torch.no_grad():
        get_loss("liberal_exp", overwrite_logits=True)(logits, torch.tensor([0, 1, 2]))
    get_loss("liberal_exp")(logits, torch.tensor([0, 1, 2])).backward()
    assert logits._version == version
    assert len(launched) == 2


def test_rows_that_share_memory_are_not_overwritten(launched):
    found = []
    for repeat, shape in ((torch.Tensor.expand, (3, 4)), (torch.Tensor.repeat, (3, 1))):
        leaf = torch.arange(4.0).requires_grad_()
        loss = get_loss("strict_l", overwrite_logits=True)
        value = loss(repeat(leaf * 1, *shape), torch.tensor([0, 1, 2]))
        value.backward()
        found.append((value.detach(), leaf.grad))
    torch.testing.assert_close(*found)


def test_offsets_beyond_32_bits_are_left_to_pytorch(launched):
    kernel = get_loss("liberal_exp").kernel
    assert triton_launch.serves(kernel, torch.empty(1, 2**17))
    for step, serves in ((2**13, True), (2**14, False)):  # Never written, so it takes no memory.
        rows = torch.empty_strided((1, 2**17), (1, step), dtype=torch.bfloat16)
        assert triton_launch.serves(kernel, rows) == serves


def test_everything_ignored_and_nothing_at_all(launched):
    for rows in (3, 0):
        logits = torch.randn(rows, 5, requires_grad=True)
        value = get_loss("strict_m_full")(logits, torch.full((rows,), -100))
        value.backward()
        assert value == 0
        assert (logits.grad == 0).all()
    assert len(launched) == 2


@pytest.mark.parametrize("name", ["liberal_exp", "strict_m_full"])
def test_what_is_no_number_is_seen(name, launched):
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    logits[0] = -torch.inf
    for row, place in ((1, 0), (3, 1)):
        logits[row, place], logits[row + 1, place] = torch.nan, torch.inf
    logits.requires_grad_()
    losses = get_loss(name, reduction="none")(logits, torch.zeros(6, dtype=torch.long))
    losses.sum().backward()
    assert launched
    assert losses.isnan().tolist() == [True] * 5 + [False]
    assert logits.grad.isnan().any(-1).tolist() == [True] * 5 + [False]


def test_a_class_that_does_not_exist_is_seen(launched):
    logits = torch.randn(3, 5, requires_grad=True)
    losses = get_loss("liberal_exp", reduction="none")(logits, torch.tensor([0, 5, 1]))
    losses.sum().backward()
    assert losses.isnan().tolist() == [False, True, False]
    assert logits.grad.isnan().any(-1).tolist() == [False, True, False]


def test_the_last_layer_is_tried_with_its_logits(launched, monkeypatch):
    tried = []
    monkeypatch.setattr(triton_launch, "_try", lambda module, full, rows: tried.append(rows.shape))
    hidden, weight = torch.randn(3, 600), torch.randn(5, 600)
    linear_loss(hidden, weight, torch.tensor([0, 1, 4]), loss=get_loss("liberal_exp"))
    assert launched
    assert tried == [(1, 5)]


@EVERY
def test_the_last_layer(name, launched):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 5, 8, generator=generator)
    weight = torch.randn(12, 8, generator=generator)
    target = torch.randint(0, 12, (2, 5), generator=generator)
    target[0, :2] = -100
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    item_weight = torch.rand(2, 5, generator=generator)
    value = linear_loss(*leaves, target, loss=name, item_weight=item_weight)
    expected = get_loss(name)(exact[0] @ exact[1].T, target, item_weight=item_weight)
    assert launched
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)
    for one, other in zip(
        torch.autograd.grad(value, leaves), torch.autograd.grad(expected, exact), strict=True
    ):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-6)


def test_logits_and_targets_on_two_devices_are_refused(launched):
    z, target = example()
    kernel = get_loss("liberal_exp").kernel
    with pytest.raises(ValueError, match="the logits are on cpu and the targets on meta"):
        triton_launch.losses(kernel, z, target.to("meta"), torch.ones(()), None)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB."),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later."),
    ],
    ids=["PyTorch", "Triton", "driver"],
)
def test_a_failed_allocation_says_nothing_about_the_kernels(error, launched, monkeypatch):
    z, target = example()

    def full(*_):
        raise error

    loss = get_loss("liberal_exp")
    with monkeypatch.context() as patch:
        patch.setattr(triton_launch, "choice", lambda: None)
        patch.setattr(triton_launch, "_works_on", lambda device: True)
        patch.setattr(triton_launch, "_runs_on", lambda rows: True)
        patch.setattr(triton_launch, "_try", full)
        with pytest.raises(type(error), match="out of memory"):
            loss(z, target)
    assert not launched
    loss(z, target)
    assert launched


def test_a_loss_of_ones_own(launched, eleventh_loss):
    z, target = example()
    value, _, exact, _ = both(eleventh_loss, z, target, reduction="none")
    assert launched
    assert_near(value, exact, z)


@pytest.mark.parametrize(
    ("asked", "counterpart", "message"),
    [
        (True, {}, "since it has no translation to Triton: erf"),
        # As with a version of Triton that lacks a function.
        (
            None,
            {"erf": "tl.no_such({0})"},
            "no translation to Triton that works here: ",
        ),
    ],
    ids=["not translated", "not compiled"],
)
def test_what_has_no_kernel_takes_the_other_way(
    asked, counterpart, message, launched, liberal_erf, monkeypatch, caplog
):
    monkeypatch.setattr(triton_source, "OPERATIONS", triton_source.OPERATIONS | counterpart)
    monkeypatch.setattr(triton_launch, "choice", lambda: asked)
    monkeypatch.setattr(triton_launch, "_runs_on", lambda rows: True)  # As on a GPU.
    z, target = example()
    value, _, exact, _ = both(liberal_erf, z[15:], target[15:], reduction="none")
    assert not launched
    assert "liberal_erf takes PyTorch's operations" in caplog.text
    assert message in caplog.text
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-6)


def test_what_does_not_compile_is_an_error_where_kernels_are_asked_for(
    launched, liberal_erf, monkeypatch
):
    counterpart = {"erf": "tl.no_such({0})"}
    monkeypatch.setattr(triton_source, "OPERATIONS", triton_source.OPERATIONS | counterpart)
    with pytest.raises(Exception, match="no_such"):
        get_loss(liberal_erf)(torch.randn(3, 5), torch.tensor([0, 1, 2]))


def translate(function):
    return triton_source.triton_source(function)


def in_place(m):
    p = torch.sigmoid(m)
    value = p.mul_(2).add_(1)
    return value + p, p


def test_what_works_in_place_changes_what_it_works_on_by_any_name():
    *_, total, last = translate(in_place).splitlines()
    value, derivative = last.removeprefix("    return ").split(", ")
    assert total == f"    {value} = {derivative} + {derivative}"


def under_another_name(m):
    p = torch.sigmoid(m)
    other = p
    other += 1
    return p, m


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda m: (m if m > 0 else -m, m), "control flow"),
        (lambda m: (torch.erf(m), m), "erf"),
        (lambda m: (torch.add(m, m, alpha=2), m), "add"),
        (lambda m: (m**m, m), "pow"),
        (lambda m: (m * torch.tensor(2.0), m), r"tensor\(2"),
        (lambda m: m, "no pair"),
        (lambda m: (float(m), m), "float"),
        (lambda m: (m.pow(exponent=2), m), "pow"),
        (lambda m: (m**0, m), "pow"),
        (lambda m: (torch.clamp(input=m, min=0), m), "clamp"),
        (under_another_name, "under another name"),
    ],
)
def test_what_cannot_be_translated(function, reason):
    with pytest.raises(triton_source.NotTranslatable, match=reason):
        translate(function)


@pytest.mark.parametrize(
    "function",
    [
        lambda m: (m**3, m**-2),
        in_place,
        lambda m: (m.abs() ** 0.5, m.square().rsqrt()),
        lambda m: (m.clamp(-1, 2), m.clamp(max=0.5)),
        lambda m: (torch.where(m < 0, m, 2.0).masked_fill(m > 1, math.inf), 1 - m),
        lambda m: (m.exp().log1p(), torch.expm1(-m.abs()).reciprocal().cos()),
        lambda m: (torch.zeros_like(m), torch.ones_like(m).sub(m)),
    ],
)
def test_every_operation_computes_what_pytorch_does(function, launched, monkeypatch):
    monkeypatch.setattr(registry, "_SPECS", dict(registry._SPECS))
    register_loss("any", kind="liberal", formula="p")(function)
    generator = torch.Generator().manual_seed(0)
    z, target = torch.randn(30, 7, generator=generator), torch.arange(30) % 7
    found = []
    for enabled in (True, False):
        monkeypatch.setattr(triton_launch, "choice", lambda enabled=enabled: enabled)
        logits = z.clone().requires_grad_()
        value = get_loss("any", reduction="none")(logits, target)
        value.sum().backward()
        found.append((value.detach(), logits.grad))
    assert len(launched) == 1
    torch.testing.assert_close(*found, rtol=2e-5, atol=1e-6)


def test_tensors_of_another_class_take_pytorchs_operations(launched):
    class Own(torch.Tensor):
        pass

    z, target = torch.randn(4, 5).as_subclass(Own), torch.arange(4)
    get_loss("strict_l")(z.requires_grad_(), target).backward()
    assert not launched
    get_loss("strict_l")(z.detach().as_subclass(torch.Tensor).requires_grad_(), target).backward()
    assert len(launched) == 1


def test_unasked_the_kernels_run_where_triton_works(launched, monkeypatch, caplog):
    here = torch.device("cpu")
    triton_launch._works_on.cache_clear()
    assert triton_launch._works_on(here)
    for target, value in (
        ("torch.version.hip", "6.4"),
        ("importlib.util.find_spec", lambda name: None),
    ):
        triton_launch._works_on.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(target, value)
            assert not triton_launch._works_on(here)
    assert not caplog.records

    def no_compiler(*_):
        raise RuntimeError("Failed to find C compiler")

    triton_launch._works_on.cache_clear()
    monkeypatch.setattr(triton_launch, "_launch_multiply", no_compiler)
    try:
        assert not triton_launch._works_on(here)
        assert "slower, since Triton does not work here" in caplog.text
        assert caplog.text.count("Failed to find C compiler") == 1
    finally:
        triton_launch._works_on.cache_clear()


@pytest.mark.parametrize(
    ("value", "message"),
    [("yes", "HF_LOSSES_TRITON must be 0 or 1, got 'yes'"), ("1", "needs Triton: pip install")],
)
def test_a_wrong_environment_is_said(value, message, monkeypatch):
    monkeypatch.setenv("HF_LOSSES_TRITON", value)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    triton_launch.choice.cache_clear()
    try:
        with pytest.raises(ValueError, match=message):
            get_loss("liberal_exp")(torch.zeros(2, 3), torch.tensor([0, 1]))
    finally:
        monkeypatch.undo()
        triton_launch.choice.cache_clear()


def test_on_a_cpu_triton_is_not_imported():
    code = (
        "import sys, torch, hf_losses;"
        "hf_losses.get_loss('focal')(torch.zeros(1, 2), torch.tensor([0]));"
        "assert 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
