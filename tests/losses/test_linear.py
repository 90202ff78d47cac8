"""The last layer fused with the loss: the same numbers, and no logits of all rows."""

import functools

import peft
import pytest
import tiny
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from products import diagonals, product
from torch.nn import functional as F
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    set_seed,
)

from hf_losses import LossTrainer, get_loss, linear_loss, list_losses
from hf_losses.losses import linear
from hf_losses.losses.margin import class_margin

LOSSES = list_losses(task="classification")
EVERY = pytest.mark.parametrize("name", LOSSES)
CLASSES, HIDDEN = 60, 16
ROUNDING = 1e-6
# What its interpreter takes long for, or has no part in.
NOT_BY_TRITON = pytest.mark.parametrize(
    "engine", ["cpu", pytest.param("accelerator", marks=pytest.mark.slow)], indirect=True
)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch, engine):
    for name in ("ROWS", "ROWS_ON_GPU"):
        monkeypatch.setattr(linear, name, (7, 7))


def example(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 11, HIDDEN, generator=generator)
    weight = torch.randn(CLASSES, HIDDEN, generator=generator)
    bias = torch.randn(CLASSES, generator=generator)
    target = torch.randint(0, CLASSES, (3, 11), generator=generator)
    target[0, :5] = -100
    tensors = (x.to(dtype).requires_grad_() for x in (hidden, weight, bias))
    return *tensors, target


def far(found, exact):
    return ((found.double() - exact.double()).norm() / exact.double().norm()).item()


def test_a_loss_by_name_is_made_once(monkeypatch):
    made = []
    monkeypatch.setattr(
        linear,
        "get_loss",
        lambda *names, **params: made.append(params) or get_loss(*names, **params),
    )
    linear._made.cache_clear()
    hidden, weight, _, target = example()
    for alpha in (0.3, 0.4, 0.3, 0.4):
        linear_loss(hidden, weight, target, loss="strict_m_power", alpha=alpha)
    assert made == [{"alpha": 0.3}, {"alpha": 0.4}]


@pytest.mark.parametrize("options", [{}, {"reduction": "sum"}, {"weight": [0.0, 1.0, 2.0] * 20}])
@pytest.mark.parametrize("with_bias", [True, False])
@EVERY
def test_the_numbers_are_those_of_projection_and_loss(name, with_bias, options):
    hidden, weight, bias, target = example()
    bias = bias if with_bias else None
    leaves = [x for x in (hidden, weight, bias) if x is not None]
    exact = [x.detach().double().requires_grad_() for x in leaves]  # Which nothing fuses.
    apart = get_loss(name, **options)(F.linear(*exact), target)
    fused = linear_loss(hidden, weight, target, loss=get_loss(name, **options), bias=bias)
    assert far(fused.detach(), apart.detach()) < ROUNDING
    expected = torch.autograd.grad(3 * apart, exact)
    for found, exact in zip(torch.autograd.grad(3 * fused, leaves), expected, strict=True):
        assert far(found, exact) < 2 * ROUNDING


@EVERY
def test_rows_beyond_the_range_of_probabilities(name):
    hidden, weight, bias, target = example()
    with torch.no_grad():
        hidden[1, 2:5] *= 20
        hidden[1, 3] = 30 * weight[target[1, 3]]
    leaves = (hidden, weight, bias)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    logits = F.linear(*exact)
    margin = class_margin(logits.detach()[1], target[1])
    assert margin.min() < -75
    assert margin.max() > 75
    apart = get_loss(name)(logits, target)
    fused = linear_loss(hidden, weight, target, loss=name, bias=bias)
    rounding = ROUNDING * logits.abs().max().item()
    assert far(fused.detach(), apart.detach()) < rounding
    expected = torch.autograd.grad(apart, exact)
    for found, of_exact in zip(torch.autograd.grad(fused, leaves), expected, strict=True):
        assert far(found, of_exact) < rounding


@EVERY
def test_half_precision_adds_up_in_float32(name):
    hidden, weight, _, target = example(torch.bfloat16)
    exact = [x.detach().float().requires_grad_() for x in (hidden, weight)]
    fused = linear_loss(hidden, weight, target, loss=name)
    apart = linear_loss(*exact, target, loss=name)
    assert fused.dtype == torch.float32
    fused.backward()
    apart.backward()
    for found, of_float in zip((hidden, weight), exact, strict=True):
        assert found.grad.dtype == torch.bfloat16
        assert far(found.grad, of_float.grad) < 0.05


@NOT_BY_TRITON
def test_many_products_in_bfloat16_add_up_in_float32(monkeypatch):
    for name in ("ROWS", "ROWS_ON_GPU"):
        monkeypatch.setattr(linear, name, (1, 1))
    # A sum in bfloat16 stands still after some 256 equal terms.
    hidden = torch.ones(1000, HIDDEN, dtype=torch.bfloat16)
    weight = torch.zeros(CLASSES, HIDDEN, dtype=torch.bfloat16, requires_grad=True)
    linear_loss(hidden, weight, torch.full((1000,), 5), reduction="sum").backward()
    expected = -1000 * (1 - 1 / CLASSES)
    assert (weight.grad[5].float() / expected - 1).abs().max() < 0.01


def test_what_needs_no_gradient_gets_none():
    hidden, weight, bias, target = example()
    for needed in range(3):
        given = [x.detach() for x in (hidden, weight, bias)]
        given[needed].requires_grad_()
        linear_loss(*given[:2], target, bias=given[2]).backward()
        assert [x.grad is not None for x in given] == [i == needed for i in range(3)]
    with torch.no_grad():
        value = linear_loss(hidden, weight, target, bias=bias)
    assert not value.requires_grad
    assert far(value, linear_loss(hidden, weight, target, bias=bias).detach()) < ROUNDING


def test_ignored_rows_are_not_touched():
    hidden, weight, _, target = example()
    with torch.no_grad():
        hidden[0, :5] = torch.nan
    linear_loss(hidden, weight, target).backward()
    assert hidden.grad.isfinite().all()
    assert hidden.grad[0, :5].count_nonzero() == 0
    assert weight.grad.isfinite().all()
    nothing = linear_loss(hidden, weight, torch.full_like(target, -100))
    assert nothing == 0
    nothing.backward()


@pytest.mark.parametrize("which", ["class of weight 0", "item of weight 0"])
def test_rows_that_do_not_count_may_hold_nan(which):
    hidden, weight, _, target = example()
    left_out = target == target[2, 0]
    with torch.no_grad():
        hidden[left_out] = torch.nan
    given = {}
    if which == "class of weight 0":
        of_class = torch.ones(CLASSES)
        of_class[target[2, 0]] = 0
        given["loss"] = get_loss("strict_l", weight=of_class)
    if which == "item of weight 0":
        given["item_weight"] = (~left_out).float()
    value = linear_loss(hidden, weight, target, **given)
    value.backward()
    assert value.isfinite()
    assert hidden.grad[left_out].count_nonzero() == 0
    assert hidden.grad[~left_out & (target != -100)].any(-1).all()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "liberal_ex"}, "Did you mean 'liberal_exp'"),
        ({"loss": "mse"}, "takes a classification loss"),
        ({"label_smoothing": 0.1}, "without label smoothing"),
        ({"reduction": "none"}, "with reduction 'mean' or 'sum'"),
        ({"loss": "strict_m_full", "max_weight": 1.5}, "max_weight above 2"),
        ({"loss": get_loss("strict_l"), "alpha": 1.0}, "need a loss given by name"),
        (
            {"loss": "strict_l", "max_weight": torch.inf}
            | dict(zip(("hidden", "weight"), example(torch.float16)[:2], strict=True)),
            "float16 cannot hold the gradients of a loss whose weights go up to inf",
        ),
        ({"weight": torch.zeros(CLASSES, HIDDEN, dtype=torch.float64)}, "both must be the same"),
        ({"weight": torch.zeros(CLASSES, HIDDEN + 1)}, "does not fit weight of shape"),
        ({"target": torch.zeros(3, 10, dtype=torch.long)}, r"give class indices, \(3, 11\)"),
        ({"bias": torch.zeros(3)}, "does not fit 60 classes"),
        ({"bias": torch.zeros(CLASSES, dtype=torch.float64)}, "give both one dtype"),
        ({"target": torch.full((3, 11), CLASSES)}, r"labels must lie in \[0, 60\)"),
    ],
)
def test_what_does_not_fit(change, message, engine):
    if engine == "triton" and "labels" in message:
        pytest.skip("a kernel makes NaN of classes that do not exist; see test_triton.py")
    hidden, weight, _, target = example()
    given = {"hidden": hidden, "weight": weight, "target": target} | change
    with pytest.raises(ValueError, match=message):
        linear_loss(given.pop("hidden"), given.pop("weight"), given.pop("target"), **given)


def test_a_second_backward_is_an_error():
    hidden, weight, _, target = example()
    value = linear_loss(hidden, weight, target)
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used up: compute the loss again"):
        value.backward()


def test_a_loss_scaler_comes_before_the_rounding_of_float16():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(256, HIDDEN, generator=generator).half().requires_grad_()
    weight = (0.3 * torch.randn(CLASSES, HIDDEN, generator=generator)).half().requires_grad_()
    target = torch.randint(0, CLASSES, (256,), generator=generator)
    hidden_exact, weight_exact = (x.detach().float().requires_grad_() for x in (hidden, weight))
    (1e6 * linear_loss(hidden, weight, target, count=1e6)).backward()
    (1e6 * linear_loss(hidden_exact, weight_exact, target, count=1e6)).backward()
    assert far(hidden.grad, hidden_exact.grad) < 2e-3
    assert far(weight.grad, weight_exact.grad) < 2e-3


@NOT_BY_TRITON
def test_float16_adds_up_in_float32():
    # A frequent word, far from right: the product over the rows leaves the range of float16.
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(512, 64, generator=generator).half()
    weight = (0.02 * torch.randn(32000, 64, generator=generator)).half().requires_grad_()
    target = torch.randint(0, 32000, (512,), generator=generator)
    target[:100] = 5
    (2**-10 * linear_loss(hidden, weight, target, loss="strict_m")).backward()
    assert weight.grad.isfinite().all()


def test_classes_that_do_not_exist_are_named_beside_class_weights():
    loss = get_loss("strict_l", weight=[1.0] * 5)
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 5\)"):
        linear_loss(torch.randn(4, 3), torch.randn(5, 3), torch.tensor([0, 1, 5, 2]), loss=loss)


# ---- In the trainer ----------------------------------------------------------------------------


def gpt2():
    """Its head is tied to the embedding of the words."""
    set_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=tiny.VOCABULARY,
            n_embd=32,
            n_layer=2,
            n_head=2,
            n_positions=16,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            resid_pdrop=0.0,
        )
    )


def adapted():
    """LoRA on the body alone."""
    model = tiny.causal_lm()
    set_seed(0)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], init_lora_weights=False
    )
    return peft.get_peft_model(model, config)


MODELS = {"llama": tiny.causal_lm, "tied": gpt2, "lora": adapted}
SETTINGS = {
    "plain": {},
    "accumulated": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    "warm-up": {"loss_warmup_steps": 3},
}


def difference_to_the_unfused_head(path, model, loss, settings):
    data = tiny.texts(20, tiny.some_next_tokens)
    apart, fused = (
        tiny.gradients(
            path,
            MODELS[model](),
            data,
            loss=loss,
            fused_linear=fuses,
            **({"per_device_train_batch_size": 8} | SETTINGS[settings]),
        )
        for fuses in (False, True)
    )
    return tiny.difference(apart, fused)


@NOT_BY_TRITON
@pytest.mark.parametrize(
    ("model", "loss", "settings"),
    product(MODELS, ["cross_entropy", "strict_l_full", "liberal_exp"], SETTINGS, keep=diagonals(3)),
)
def test_training_has_the_gradients_of_the_unfused_head(model, loss, settings, tmp_path):
    assert difference_to_the_unfused_head(tmp_path, model, loss, settings) < 2 * ROUNDING


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["triton"], indirect=True)
@pytest.mark.parametrize(
    "training",
    [
        ("llama", "cross_entropy", "accumulated"),
        ("tied", "strict_l_full", "plain"),
        ("lora", "liberal_exp", "warm-up"),
    ],
    ids=lambda training: training[0],
)
def test_so_has_training_by_the_kernels_which_know_no_model(training, tmp_path):
    assert difference_to_the_unfused_head(tmp_path, *training) < 2 * ROUNDING


def mixture():
    """Its auxiliary loss comes beside the logits."""
    set_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=tiny.VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=64,
            num_local_experts=4,
            output_router_logits=True,
            router_aux_loss_coef=0.5,
        )
    )


def prompted():
    """Virtual tokens that have no labels."""
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    set_seed(0)
    return peft.get_peft_model(tiny.causal_lm(), config)


@pytest.mark.parametrize("model", [mixture, prompted])
def test_what_else_a_model_does_stays(model, tmp_path):
    data = tiny.texts(20, tiny.some_next_tokens)
    apart, fused = (
        tiny.gradients(tmp_path, model(), data, loss="liberal_exp", fused_linear=fuses)
        for fuses in (False, True)
    )
    assert tiny.difference(apart, fused) < 2 * ROUNDING


def test_the_logits_are_never_made_in_training_and_evaluation_has_them(tmp_path, monkeypatch):
    seen = []
    trainer = LossTrainer(
        model=tiny.causal_lm(),
        args=tiny.arguments(tmp_path, loss="liberal_exp", fused_linear=True),
        train_dataset=tiny.texts(20, tiny.some_next_tokens),
        eval_dataset=tiny.texts(20, tiny.some_next_tokens),
    )
    forward = type(trainer.model).forward

    @functools.wraps(forward)  # Trainer asks for the names of its arguments.
    def watched(self, *args, **kwargs):
        outputs = forward(self, *args, **kwargs)
        seen.append(outputs.logits.shape[-1:])
        return outputs

    monkeypatch.setattr(type(trainer.model), "forward", watched)
    trainer.train()
    assert set(seen) == {()}  # The loss in the place of the logits.
    seen.clear()
    metrics = trainer.evaluate()
    assert set(seen) == {(tiny.VOCABULARY,)}
    plain = LossTrainer(
        model=trainer.model,
        args=tiny.arguments(tmp_path, loss="liberal_exp"),
        eval_dataset=tiny.texts(20, tiny.some_next_tokens),
    )
    assert metrics["eval_loss"] == plain.evaluate()["eval_loss"]


def test_the_head_is_left_as_it_was():
    head = torch.nn.Linear(2, 3)
    head.forward = own = lambda hidden: 2 * hidden
    with linear.HeadOutput(head, lambda hidden: hidden):
        assert head(1) == 1
    assert head.forward is own


def test_autocast_projects_in_its_own_dtype(tmp_path, monkeypatch):
    dtypes, project = set(), linear._project

    def watched(rows, weight, *more, **named):
        dtypes.update((rows.dtype, weight.dtype))
        return project(rows, weight, *more, **named)

    monkeypatch.setattr(linear, "_project", watched)
    data = tiny.texts(20, tiny.some_next_tokens)
    apart, fused = (
        tiny.gradients(
            tmp_path, tiny.causal_lm(), data, loss="liberal_exp", fused_linear=fuses, bf16=True
        )
        for fuses in (False, True)
    )
    assert dtypes == {torch.bfloat16}
    assert tiny.difference(apart, fused) < 0.02


def test_a_model_that_was_trained_in_half_precision_before(tmp_path):
    data, model = tiny.texts(20, tiny.some_next_tokens), tiny.causal_lm()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    apart, fused = [], []
    for steps, fuses in ((apart, False), (fused, True)):
        model.load_state_dict(weights)
        steps += tiny.gradients(
            tmp_path, model, data, loss="liberal_exp", fused_linear=fuses, bf16=True
        )
    assert tiny.difference(apart, fused) < 0.02


def capped():
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=tiny.VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=16,
            intermediate_size=64,
        )
    )


def scaled_in_place():
    class ScaledForCausalLM(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            outputs = super().forward(*args, **kwargs)
            outputs.logits.mul_(3.0)
            return outputs

    return ScaledForCausalLM(tiny.causal_lm().config)


def hooked():
    model = tiny.causal_lm()
    add_hook_to_module(model.lm_head, AlignDevicesHook(execution_device="cpu"))
    return model


def adapted_head():
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "lm_head"])
    return peft.get_peft_model(tiny.causal_lm(), config)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (capped, {}, "it changes what its head puts out"),
        (scaled_in_place, {}, "it changes what its head puts out"),
        (hooked, {}, "a head that a hook of Accelerate moves"),
        (adapted_head, {}, "adapt the body alone"),
        (tiny.bert, {}, "is for causal language models, not BertForSequenceClassification"),
        (tiny.causal_lm, {"loss_stats_steps": 1}, "loss_stats_steps, which needs the logits"),
        (tiny.causal_lm, {"torch_compile": True}, "does not work with torch_compile"),
        (tiny.causal_lm, {"label_smoothing_factor": 0.1}, "without label smoothing"),
    ],
)
def test_what_cannot_be_fused_is_said_before_training(model, settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        LossTrainer(
            model=model(),
            args=tiny.arguments(tmp_path, loss="liberal_exp", fused_linear=True, **settings),
        )


def test_logits_for_two_losses_are_not_overwritten(tmp_path):
    settings = {"loss_kwargs": {"overwrite_logits": True}, "loss_warmup_steps": 2}
    with pytest.raises(ValueError, match="leaves nothing for the other loss of a warm-up"):
        LossTrainer(
            model=tiny.bert(), args=tiny.arguments(tmp_path, loss="liberal_exp", **settings)
        )
    data = tiny.texts(20)
    apart, over = (
        tiny.gradients(tmp_path, tiny.bert(), data, loss="liberal_exp", loss_kwargs=kwargs)
        for kwargs in (None, {"overwrite_logits": True})
    )
    assert tiny.difference(apart, over) == 0
