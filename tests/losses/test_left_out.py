"""Items that are left out, and gradients at the edges of dtypes: none of it reaches the rest."""

import math

import pytest
import torch
from transformers import BertConfig, PreTrainedModel

from hf_losses import get_loss

PLAIN = {
    "smoothing": ({"label_smoothing": 0.1}, torch.tensor([-100, 1, 2]), torch.float32),
    "probabilities": (
        {},
        torch.tensor([[-100.0, 0, 0], [0.2, 0.8, 0], [0, 0, 1]]),
        torch.float32,
    ),
    "float64": ({}, torch.tensor([-100, 1, 2]), torch.float64),
    "fused": ({}, torch.tensor([-100, 1, 2]), torch.float32),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("way", "value", "compiled"),
    [
        *((way, value, False) for way in PLAIN for value in (math.nan, math.inf, -math.inf)),
        *((way, math.nan, True) for way in ("smoothing", "float64", "fused")),
    ],
)
@pytest.mark.parametrize("name", ["cross_entropy", "strict_m", "strict_m_full"])
def test_an_item_that_is_left_out_sends_no_nan_back(name, way, value, compiled):
    options, target, dtype = PLAIN[way]
    loss = get_loss(name, **options)
    torch._dynamo.reset()
    loss = torch.compile(loss, backend="aot_eager") if compiled else loss
    logits = torch.randn(3, 3, dtype=dtype)
    logits[0] = value
    logits.requires_grad_()
    loss(logits, target).backward()
    assert not logits.grad[0].any()
    rest = logits.detach()[1:].requires_grad_()
    get_loss(name, **options)(rest, target[1:]).backward()
    torch.testing.assert_close(logits.grad[1:], rest.grad)


@pytest.mark.parametrize("way", ["smoothing", "probabilities", "several"])
def test_an_item_of_weight_0_sends_no_nan_back(way):
    options, target, _ = PLAIN.get(way, ({}, None, None))
    if way == "several":
        options, target = {"problem_type": "multi_label_classification"}, torch.eye(3)
    if way == "probabilities":
        target = target.clamp(min=0)
    logits = torch.randn(3, 3)
    logits[1] = math.nan
    logits.requires_grad_()
    loss = get_loss("strict_m", **options)(logits, target, item_weight=torch.tensor([1.0, 0, 2]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert not logits.grad[1].any()


@pytest.mark.parametrize("name", ["strict_m", "strict_m_full"])
@pytest.mark.parametrize("most", [1e4, 1e6, 1e9, 1e14, 1e38, math.inf])
def test_float16_has_the_gradients_of_any_max_weight(name, most):
    logits = torch.tensor([[1.0, 0.5, -1.0], [0.0, 2.0, 0.3]])
    target = torch.tensor([2, 0])
    found = {}
    for dtype in (torch.float16, torch.float64):
        z = logits.to(dtype).requires_grad_()
        get_loss(name, max_weight=most)(z, target).backward()
        found[dtype] = z.grad.double()
    torch.testing.assert_close(found[torch.float16], found[torch.float64], rtol=4e-3, atol=1e-4)


@pytest.mark.parametrize("problem", [{}, {"label_smoothing": 0.1}])
def test_a_max_weight_above_float32_is_none(problem):
    logits = torch.tensor([[0.0, 80.0, 3.0], [1.0, 2.0, 3.0]])
    for name in ("strict_m", "strict_m_full"):
        loss, without = (get_loss(name, max_weight=m, **problem) for m in (1e39, math.inf))
        assert loss.max_weight == math.inf
        assert torch.equal(
            loss(logits, torch.tensor([0, 1])), without(logits, torch.tensor([0, 1]))
        )


class WithLoss(PreTrainedModel):
    """A model that makes a loss with class weights, as `from_pretrained` makes models: on meta."""

    config_class = BertConfig

    def __init__(self, config):
        super().__init__(config)
        self.head = torch.nn.Linear(4, 2)
        self.loss = get_loss("strict_m_power", alpha=0.3, weight=[1.0, 2.5])
        self.kind = self.loss.kind
        self.post_init()


def test_a_model_that_holds_a_loss_is_loaded(tmp_path):
    WithLoss(BertConfig()).save_pretrained(tmp_path)
    model = WithLoss.from_pretrained(tmp_path)
    logits, labels = torch.randn(5, 2), torch.tensor([0, 1, 1, 0, 1])
    expected = get_loss("strict_m_power", alpha=0.3, weight=[1.0, 2.5])
    assert torch.equal(model.loss(logits, labels), expected(logits, labels))
    assert model.loss.config == expected.config
