"""Every form of target, ignored items, class weights and reductions."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hf_losses import get_loss, get_spec, list_losses

LOSSES = list_losses(task="classification")
EVERY = pytest.mark.parametrize("name", LOSSES)
REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
MULTI_LABEL = "multi_label_classification"
CLASSES = 5
WEIGHT = [0.5, 2.0, 1.0, 0.0, 3.0]

generator = torch.Generator().manual_seed(7)
LOGITS = 3 * torch.randn(2, 3, CLASSES, generator=generator, dtype=torch.float64)
INDEX = torch.tensor([[0, 1, 2], [3, 4, 0]])
SHARES = torch.softmax(torch.randn(2, 3, CLASSES, generator=generator, dtype=torch.float64), -1)
LABELS = (torch.rand(2, 3, CLASSES, generator=generator) > 0.5).double()
SOME = torch.tensor([[0, -100, 2], [-100, 4, 0]])


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)


def flat(logits):
    return logits.reshape(-1, CLASSES)


@REDUCTIONS
@EVERY
def test_any_leading_shape(name, reduction):
    loss = get_loss(name, reduction=reduction)
    multi = get_loss(name, reduction=reduction, problem_type=MULTI_LABEL)
    for function, target, width in (
        (loss, INDEX, ()),
        (loss, SHARES, (CLASSES,)),
        (multi, LABELS, (CLASSES,)),
    ):
        rows = function(flat(LOGITS), target.reshape(6, *width))
        shaped = function(LOGITS, target)
        assert shaped.shape == (target.shape[: 3 if function is multi else 2] if rows.dim() else ())
        assert_same(shaped.reshape(rows.shape), rows)
    one = get_loss(name, reduction="none")(LOGITS[0, 1], INDEX[0, 1])
    assert_same(one, get_loss(name, reduction="none")(LOGITS, INDEX)[0, 1])


@pytest.mark.parametrize("integer", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_any_integer_type(integer):
    loss = get_loss("cross_entropy")
    assert_same(loss(LOGITS, INDEX.to(integer)), loss(LOGITS, INDEX))


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float32])
def test_any_type_of_multi_label_target(kind):
    loss = get_loss("liberal_exp", problem_type=MULTI_LABEL)
    assert_same(loss(LOGITS, LABELS.to(kind)), loss(LOGITS, LABELS))


@EVERY
def test_soft_targets_mix_the_losses_of_the_classes(name):
    loss = get_loss(name, reduction="none")
    of_class = [loss(LOGITS, torch.full_like(INDEX, k)) for k in range(CLASSES)]
    assert_same(loss(LOGITS, SHARES), (torch.stack(of_class, -1) * SHARES).sum(-1))


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize("reduction", ["sum", "none"])
@EVERY
def test_one_hot_targets_are_indices(name, reduction, weight):
    loss = get_loss(name, reduction=reduction, weight=weight)
    one_hot = F.one_hot(INDEX, CLASSES).double()
    assert_same(loss(LOGITS, one_hot), loss(LOGITS, INDEX))


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize("smoothing", [0.1, 1.0])
@EVERY
def test_label_smoothing_is_the_smoothed_soft_target(name, smoothing, weight):
    options = {"reduction": "none", "weight": weight}
    plain, smooth = get_loss(name, **options), get_loss(name, label_smoothing=smoothing, **options)
    for target, shares in ((INDEX, F.one_hot(INDEX, CLASSES).double()), (SHARES, SHARES)):
        smoothed = (1 - smoothing) * shares + smoothing / CLASSES
        assert_same(smooth(LOGITS, target), plain(LOGITS, smoothed))


@EVERY
def test_label_smoothing_of_labels_moves_them_towards_a_half(name):
    smooth = get_loss(name, label_smoothing=0.2, problem_type=MULTI_LABEL)
    plain = get_loss(name, problem_type=MULTI_LABEL)
    assert_same(smooth(LOGITS, LABELS), plain(LOGITS, 0.8 * LABELS + 0.1))


@EVERY
def test_a_label_is_a_choice_between_two_classes(name):
    two = torch.stack([LOGITS, torch.zeros_like(LOGITS)], -1)
    multi = get_loss(name, reduction="none", problem_type=MULTI_LABEL)
    # The full forms count a choice once: yes and no share the margin.
    sparse = get_loss(name.removesuffix("_full"), reduction="none")
    assert_same(multi(LOGITS, LABELS), sparse(two, 1 - LABELS.long()))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@REDUCTIONS
def test_cross_entropy_is_pytorchs(reduction, weight, smoothing):
    loss = get_loss("cross_entropy", reduction=reduction, weight=weight, label_smoothing=smoothing)
    for target in (INDEX, SOME, SHARES):
        leaf, theirs = (LOGITS.clone().requires_grad_() for _ in range(2))
        found = loss(leaf, target)
        expected = F.cross_entropy(
            flat(theirs),
            target.flatten(0, 1),
            weight=None if weight is None else torch.tensor(weight, dtype=torch.float64),
            label_smoothing=smoothing,
            reduction=reduction,
        )
        # Theirs rounds at the size of the logits and ours does not.
        close = {"rtol": 1e-13, "atol": 1e-14}
        torch.testing.assert_close(found.reshape(expected.shape), expected, **close)
        found.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(leaf.grad, theirs.grad, **close)


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@REDUCTIONS
def test_multi_label_cross_entropy_is_pytorchs(reduction, weight):
    loss = get_loss("cross_entropy", reduction=reduction, weight=weight, problem_type=MULTI_LABEL)
    expected = F.binary_cross_entropy_with_logits(
        LOGITS,
        LABELS,
        weight=None if weight is None else torch.tensor(weight, dtype=torch.float64),
        reduction=reduction,
    )
    torch.testing.assert_close(loss(LOGITS, LABELS), expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@EVERY
def test_class_weights_divide_the_mean_over_indices_only(name, smoothing):
    options = {"weight": WEIGHT, "label_smoothing": smoothing}
    losses = get_loss(name, reduction="none", **options)(LOGITS, INDEX)
    mean = get_loss(name, **options)
    assert_same(mean(LOGITS, INDEX), losses.sum() / torch.tensor(WEIGHT)[INDEX].sum())
    soft = get_loss(name, reduction="none", **options)(LOGITS, SHARES)
    assert_same(mean(LOGITS, SHARES), soft.mean())


@EVERY
def test_class_weights_scale_each_class(name):
    weighted = get_loss(name, reduction="none", weight=WEIGHT)
    plain = get_loss(name, reduction="none")
    weight = torch.tensor(WEIGHT, dtype=torch.float64)
    assert_same(weighted(LOGITS, INDEX), weight[INDEX] * plain(LOGITS, INDEX))
    multi = get_loss(name, reduction="none", weight=WEIGHT, problem_type=MULTI_LABEL)
    plain = get_loss(name, reduction="none", problem_type=MULTI_LABEL)
    assert_same(multi(LOGITS, LABELS), weight * plain(LOGITS, LABELS))


TENTHS = [0.1, 0.7, 1 / 3, 0.0, 3.0]


@pytest.mark.parametrize(
    "given",
    [
        TENTHS,
        tuple(TENTHS),
        np.array(TENTHS),
        np.array(TENTHS[::-1])[::-1],
        np.array(TENTHS, dtype=object),
        torch.tensor(TENTHS, dtype=torch.float64, requires_grad=True),
        [np.float64(w) for w in TENTHS],
    ],
    ids=lambda given: type(given).__name__,
)
def test_class_weights_keep_the_precision_they_were_given_in(given):
    loss = get_loss("cross_entropy", reduction="none", weight=given)
    assert loss.config["weight"] == TENTHS
    log_p = LOGITS - LOGITS.exp().sum(-1, keepdim=True).log()
    right = -torch.tensor(TENTHS, dtype=torch.float64)[INDEX]
    right = right * log_p.gather(-1, INDEX.unsqueeze(-1)).squeeze(-1)
    # Theirs rounds at the size of the logits and ours does not; float32 would be off by 1e-8.
    torch.testing.assert_close(loss(LOGITS, INDEX), right, rtol=1e-13, atol=1e-14)
    one_hot = F.one_hot(INDEX, CLASSES).double()
    torch.testing.assert_close(loss(LOGITS, one_hot), right, rtol=1e-13, atol=1e-14)
    several = get_loss("cross_entropy", reduction="none", weight=given, problem_type=MULTI_LABEL)
    right = F.binary_cross_entropy_with_logits(LOGITS, LABELS, reduction="none")
    assert_same(several(LOGITS, LABELS), right * torch.tensor(TENTHS, dtype=torch.float64))
    assert loss(LOGITS.float(), INDEX).dtype == torch.float32


def test_a_module_that_is_cast_does_not_round_the_class_weights_within():
    loss = get_loss("strict_l", weight=TENTHS)
    right = loss(LOGITS.float(), INDEX), loss(LOGITS, INDEX), loss(LOGITS.bfloat16(), INDEX)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        cast = torch.nn.Sequential(copy.deepcopy(loss)).to(dtype)[0]
        found = cast(LOGITS.float(), INDEX), cast(LOGITS, INDEX), cast(LOGITS.bfloat16(), INDEX)
        assert torch.equal(torch.stack(found), torch.stack(right))
        assert cast.config == loss.config


def test_class_weights_of_another_time_count():
    """As for weights that begin in the middle of a training, or come with a state dict."""
    later = get_loss("strict_l", weight=[1.0, 1.0, 1.0, 1.0, 9.0])
    new = torch.tensor([1.0, 1.0, 2.5, 1.0, 9.0])
    later.weight.copy_(new)
    loaded = get_loss("strict_l", weight=TENTHS)
    loaded.load_state_dict({"weight": new})
    other = get_loss("strict_l", weight=[1.0])
    other.weight = new
    for loss in (later, loaded, other):
        assert loss.config["weight"] == new.tolist()
        for logits in (LOGITS, LOGITS.float()):
            assert torch.equal(loss(logits, INDEX), get_loss(**loss.config)(logits, INDEX))


def test_class_weights_are_a_buffer_of_the_module():
    weight = torch.tensor(WEIGHT)
    loss = get_loss("liberal_exp", weight=weight)
    weight.zero_()
    assert loss.state_dict()["weight"].tolist() == WEIGHT
    assert loss.weight.requires_grad is False


IGNORING = {
    "index": ({}, SOME, SOME == -100),
    "other index": ({"ignore_index": 1}, INDEX, INDEX == 1),
    "smoothing": ({"label_smoothing": 0.1}, SOME, SOME == -100),
    "weight": ({"weight": WEIGHT}, SOME, SOME == -100),
    "soft": ({}, SHARES.where((SOME != -100).unsqueeze(-1), -100), SOME == -100),
    "soft smoothing": (
        {"label_smoothing": 0.1},
        SHARES.where((SOME != -100).unsqueeze(-1), -100),
        SOME == -100,
    ),
    "multi-label": (
        {"problem_type": MULTI_LABEL, "label_smoothing": 0.1},
        LABELS.where((SOME != -100).unsqueeze(-1), -100),
        (SOME == -100).unsqueeze(-1).expand_as(LABELS),
    ),
    "one label": (
        {"problem_type": MULTI_LABEL},
        LABELS.where(LOGITS > 0, -100),
        LOGITS <= 0,
    ),
}


@pytest.mark.parametrize("mode", IGNORING)
@EVERY
def test_ignored_items_are_as_if_they_were_not_there(name, mode):
    options, target, ignored = IGNORING[mode]
    logits = LOGITS.clone().requires_grad_()
    losses = get_loss(name, reduction="none", **options)(logits, target)
    assert (losses[ignored] == 0).all()
    assert (losses[~ignored] != 0).sum() == ((~ignored).sum() if "weight" not in options else 4)
    (gradient,) = torch.autograd.grad(losses.sum(), logits, retain_graph=True)
    assert (gradient[ignored] == 0).all()
    mean = get_loss(name, **options)(logits, target)
    if options.get("problem_type") == MULTI_LABEL:
        assert_same(mean, losses.sum() / (~ignored).sum())
    else:
        assert_same(mean, get_loss(name, **options)(logits[~ignored], target[~ignored]))


@pytest.mark.parametrize("mode", IGNORING)
@EVERY
def test_what_an_ignored_item_holds_does_not_matter(name, mode):
    # exp(1e4) is inf, and 0 · inf would be NaN.
    options, target, ignored = IGNORING[mode]
    loss = get_loss(name, max_weight=math.inf, **options)
    gradients = []
    for extreme in (1.0, -1e4, 1e4):
        logits = LOGITS.clone()
        if ignored.dim() == 2:
            logits[..., 0] = logits[..., 0].where(~ignored, extreme)
        else:
            logits = logits.where(~ignored, extreme)
        logits.requires_grad_()
        gradients.append(torch.autograd.grad(loss(logits, target), logits)[0])
    assert gradients[0].isfinite().all()
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


@REDUCTIONS
@pytest.mark.parametrize("mode", ["index", "smoothing", "weight", "soft", "multi-label"])
@EVERY
def test_nothing_but_ignored_items_is_0_with_zero_gradients(name, mode, reduction):
    options, target, _ = IGNORING[mode]
    logits = LOGITS.clone().requires_grad_()
    loss = get_loss(name, reduction=reduction, **options)(logits, torch.full_like(target, -100))
    loss.sum().backward()
    assert (loss == 0).all()
    assert (logits.grad == 0).all()


@EVERY
def test_an_empty_batch_is_0(name):
    z = torch.zeros(0, CLASSES, requires_grad=True)
    for target, options in (
        (torch.zeros(0, dtype=torch.long), {}),
        (torch.zeros(0, dtype=torch.long), {"weight": WEIGHT, "label_smoothing": 0.1}),
        (torch.zeros(0, CLASSES), {}),
        (torch.zeros(0, CLASSES), {"problem_type": MULTI_LABEL}),
    ):
        for reduction in ("mean", "sum"):
            loss = get_loss(name, reduction=reduction, **options)(z, target)
            loss.backward()
            assert loss == 0
        assert get_loss(name, reduction="none", **options)(z, target).shape[0] == 0


def test_weights_that_are_all_zero_give_0():
    loss = get_loss("liberal_exp", weight=[0.0] * CLASSES)
    assert loss(LOGITS, INDEX) == 0


def test_one_label_alone_needs_no_second_class():
    loss = get_loss("liberal_exp", problem_type=MULTI_LABEL)
    assert loss(torch.zeros(3, 1), torch.ones(3, 1)).item() == pytest.approx(math.exp(0.5) - 1)


@pytest.mark.parametrize("name", list_losses(task="regression"))
def test_regression_targets_and_reductions(name):
    x, y = LOGITS[0, :, :1], LOGITS[1, :, 0]
    losses = get_loss(name, reduction="none")(x, y)
    spec = get_spec(name)
    assert losses.shape == y.shape
    assert_same(losses, spec.function(x.squeeze(-1) - y, **spec.resolve({}))[0])
    assert_same(get_loss(name)(x, y), losses.mean())
    assert_same(get_loss(name, reduction="sum")(x, y), losses.sum())
    assert_same(get_loss(name)(x.squeeze(-1), y), losses.mean())
    assert_same(get_loss(name)(x, y.unsqueeze(-1)), losses.mean())
    whole = torch.tensor([1, 0, 2])
    assert_same(get_loss(name)(x, whole), get_loss(name)(x, whole.double()))
    assert get_loss(name)(torch.zeros(0), torch.zeros(0)) == 0


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("mse", F.mse_loss), ("mae", F.l1_loss), ("huber", F.huber_loss)],
)
def test_regression_losses_are_pytorchs(name, theirs):
    x, y = LOGITS[0], LOGITS[1]
    assert_same(get_loss(name)(x, y), theirs(x, y))
    if name == "huber":
        assert_same(get_loss(name, delta=0.3)(x, y), theirs(x, y, delta=0.3))


@pytest.mark.parametrize("ignored", [0, 1])
@EVERY
def test_no_probability_is_taken_for_the_sign_of_an_ignored_item(name, ignored):
    one_hot = F.one_hot(INDEX, CLASSES).double()
    with pytest.raises(RuntimeError, match="ignore_index"):
        F.cross_entropy(flat(LOGITS), flat(one_hot), ignore_index=ignored)
    with pytest.raises(ValueError, match=f"ignore_index={ignored} would leave out targets in"):
        get_loss(name, ignore_index=ignored)(LOGITS, one_hot)
    # A number that no probability is, and class indices, are as before.
    whole = get_loss(name, reduction="none", ignore_index=255)
    losses = whole(LOGITS, one_hot.index_fill(0, torch.tensor(1), 255))
    assert (losses[1] == 0).all()
    assert_same(losses[0], whole(LOGITS, INDEX)[0])


def test_an_index_that_a_narrow_dtype_holds_is_named():
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 5\).*got \[156\]"):
        get_loss("strict_l")(torch.randn(2, 5), torch.tensor([156, 0], dtype=torch.uint8))


# ---- Several labels, as other libraries have them ----------------------------------------------


def yes_or_no():
    generator = torch.Generator().manual_seed(3)
    logits = 4 * torch.randn(7, 5, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(0, 2, (7, 5), generator=generator).double()


@pytest.mark.parametrize("alpha", [-1, 0.25])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_of_several_labels_is_torchvisions_sigmoid_focal_loss(gamma, alpha):
    """Its formula by hand, from torchvision.ops; its alpha is a weight per item here.

    timm's PolyBinaryCrossEntropy (loss/poly_loss.py) has the same with its epsilon at 0.
    """
    logits, target = yes_or_no()
    p = torch.sigmoid(logits)
    p_t = p * target + (1 - p) * (1 - target)
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    each = each * (1 - p_t) ** gamma
    weight = alpha * target + (1 - alpha) * (1 - target) if alpha >= 0 else None
    expected = each.mean() if weight is None else (weight * each).mean()
    loss = get_loss("focal", gamma=gamma, problem_type="multi_label_classification")
    value = loss(logits, target, item_weight=weight)
    torch.testing.assert_close(value, expected)
    ours, theirs = (torch.autograd.grad(v, logits, retain_graph=True) for v in (value, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("epsilon", [-0.5, 1.0, 2.0])
def test_poly1_of_several_labels_is_binary_cross_entropy_and_a_term(epsilon):
    """BCE + epsilon·(1 - p_t): the paper's form with a sigmoid, as in timm's loss/poly_loss.py."""
    logits, target = yes_or_no()
    p = torch.sigmoid(logits)
    p_t = p * target + (1 - p) * (1 - target)
    expected = F.binary_cross_entropy_with_logits(logits, target) + epsilon * (1 - p_t).mean()
    loss = get_loss("poly1", epsilon=epsilon, problem_type="multi_label_classification")
    value = loss(logits, target)
    torch.testing.assert_close(value, expected)
    ours, theirs = (torch.autograd.grad(v, logits, retain_graph=True) for v in (value, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", LOSSES)
def test_items_of_classes_that_weigh_nothing_give_0_smoothed_too(name):
    loss = get_loss(name, weight=[0, 1, 1], label_smoothing=0.1)
    logits = torch.randn(4, 3, requires_grad=True)
    value = loss(logits, torch.zeros(4, dtype=torch.long))
    value.backward()
    assert value == 0
    assert torch.equal(logits.grad, torch.zeros(4, 3))
