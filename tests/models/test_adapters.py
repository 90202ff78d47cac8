"""What PEFT adds to a loss is added to any other too: PEFT's own forward, given labels, says what.

It is right for a whole batch and cross-entropy; what accumulated batches give follows from it.
"""

import peft
import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch.nn import functional as F
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from hf_losses import LossTrainer, get_spec
from hf_losses.models.adapters import check_adapter
from hf_losses.models.lora import LoraArguments, add_adapter
from hf_losses.models.pretrained import order_head

CONFIGS = {kind.value: config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
TOKENS = {"num_virtual_tokens": 3}
PROJECTIONS = {"target_modules": ["q_proj", "v_proj"]}
ADALORA = {"init_r": 4, "target_r": 2, "total_step": 10, "orth_reg_weight": 0.7}
SETTINGS = {
    "ADALORA": ADALORA | PROJECTIONS,
    "ADAPTION_PROMPT": {"adapter_len": 2, "adapter_layers": 2},
    "C3A": {"block_size": 8} | PROJECTIONS,
    "CARTRIDGE": TOKENS,
    "CPT": {"cpt_token_ids": [1, 2], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [3, 4]},
    "FOURIERFT": {"n_frequency": 10} | PROJECTIONS,
    "IA3": {"target_modules": ["q_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "MISS": {"r": 4} | PROJECTIONS,
    "MULTITASK_PROMPT_TUNING": {"num_tasks": 2} | TOKENS,
    "PREFIX_TUNING": TOKENS,
    "PROMPT_TUNING": TOKENS,
    "P_TUNING": {"encoder_hidden_size": 8} | TOKENS,
    "RANDLORA": {"r": 4} | PROJECTIONS,
    "ROAD": {"group_size": 8} | PROJECTIONS,
    "SHADOW": {"auxiliary_loss_weight": 0.3, "shadow_dropout": 0.0},
    "SHIRA": {"r": 4} | PROJECTIONS,
    "TRAINABLE_TOKENS": {"token_indices": [1, 2, 3]},
    "VBLORA": {"vector_length": 8, "num_vectors": 8, "topk": 2} | PROJECTIONS,
    "WAVEFT": {"n_frequency": 10} | PROJECTIONS,
}


def adapted(kind, model=None, task="CAUSAL_LM", **settings):
    model = model or tiny.causal_lm()
    set_seed(0)
    settings = SETTINGS.get(kind, PROJECTIONS) | settings
    return get_peft_model(model, CONFIGS[kind](task_type=task, **settings))


def rows(size=8, label=tiny.some_next_tokens):
    return tiny.texts(size, label)


def batch_of(data):
    return {key: torch.stack([torch.as_tensor(row[key]) for row in data]) for key in data[0]}


def build(model, data, tmp_path, **settings):
    args = tiny.arguments(tmp_path, loss=settings.pop("loss", "cross_entropy"), **settings)
    return LossTrainer(model=model, args=args, train_dataset=data, eval_dataset=data)


def gradients_of(model, loss):
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    return {name: g for (name, _), g in zip(named, gradients, strict=True) if g is not None}


def check_as_peft(model, batch, trainer):
    """Loss and gradients, in training and in evaluation."""
    for train in (True, False):
        model.train(train)
        set_seed(1)  # Some have dropout, or draw their weights.
        expected = model(**batch).loss
        wanted = gradients_of(model, expected)
        set_seed(1)
        loss = trainer.compute_loss(model, batch)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradients_of(model, loss), wanted)


# What adapters that are built here say of their layers, compiler or sparse matrices.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", sorted({*CONFIGS} - {"CPT", "XLORA"}))
def test_cross_entropy_is_what_peft_returns(kind, tmp_path):
    model, data = adapted(kind), rows()
    batch = batch_of(data)
    if kind in ("MULTITASK_PROMPT_TUNING", "POLY"):
        batch["task_ids"] = torch.zeros(len(data), dtype=torch.long)
    check_as_peft(model, batch, build(model, data, tmp_path))


def test_cross_entropy_is_what_peft_returns_for_a_mixture_of_adapters(tmp_path):
    for name in "01":
        adapted("LORA").save_pretrained(tmp_path / name)
    base, data = tiny.causal_lm(use_cache=False), rows()
    config = peft.XLoraConfig(
        task_type="CAUSAL_LM",
        hidden_size=base.config.hidden_size,
        xlora_depth=1,
        adapters={name: str(tmp_path / name) for name in "01"},
    )
    model = get_peft_model(base, config)
    check_as_peft(model, batch_of(data), build(model, data, tmp_path))


def llama(**config):
    set_seed(0)
    config = {"num_labels": tiny.CLASSES, "pad_token_id": 0} | config
    settings = tiny.causal_lm().config.to_dict() | config
    return LlamaForSequenceClassification(LlamaConfig(**settings))


@pytest.mark.parametrize("kind", ["ADALORA", "SHADOW"])
@pytest.mark.parametrize(
    ("config", "label"),
    [
        ({}, tiny.one_class),
        ({"num_labels": 1}, tiny.number),
        ({"problem_type": "multi_label_classification"}, tiny.yes_or_no_per_class),
    ],
    ids=["classes", "number", "several_labels"],
)
def test_classifiers_are_trained_on_what_peft_adds(kind, config, label, tmp_path):
    model, data = adapted(kind, llama(**config), "SEQ_CLS"), rows(label=label)
    loss = "mse" if label is tiny.number else "cross_entropy"
    check_as_peft(model, batch_of(data), build(model, data, tmp_path, loss=loss))


def shadow_term(model, batch):
    """By hand: the frozen head on what the small network puts out."""
    tuner = model.base_model
    hidden = tuner.shadow_projection["default"](
        tuner.shadow_backbone["default"](
            inputs_embeds=model.get_input_embeddings()(batch["input_ids"]),
            attention_mask=batch["attention_mask"],
        ).last_hidden_state
    )
    logits = model.get_output_embeddings()(hidden)[:, :-1].flatten(0, 1)
    return 0.3 * F.cross_entropy(logits, batch["labels"][:, 1:].flatten())


def orthogonality(model, batch):
    """By hand, in float64."""
    distances = []
    for name, factor in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            factor = factor.double() if "lora_A" in name else factor.double().T
            distances.append(((factor @ factor.T - torch.eye(len(factor))) ** 2).sum().sqrt())
    return 0.7 * sum(distances) / len(distances)


@pytest.mark.parametrize(("kind", "term"), [("ADALORA", orthogonality), ("SHADOW", shadow_term)])
@pytest.mark.parametrize("fused", [False, True], ids=["", "fused_linear"])
def test_a_step_has_the_term_once_however_many_micro_batches(kind, term, fused, tmp_path):
    model, data = adapted(kind), rows(12)
    # The second step has one batch of four rows instead of two.
    gradients = tiny.gradients(
        tmp_path,
        model,
        data,
        loss="strict_l",
        fused_linear=fused,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        train_sampling_strategy="sequential",
    )
    assert len(gradients) == 2
    for gradient, step in zip(gradients, (data[:8], data[8:]), strict=True):
        batch = batch_of(step)
        labels = batch["labels"][:, 1:]
        p = model(input_ids=batch["input_ids"]).logits[:, :-1].softmax(-1)
        p = p.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)[labels != -100]
        loss = strict_l(p).mean()
        parts = [batch_of(step[at : at + 4]) for at in range(0, len(step), 4)]
        loss = loss + sum(term(model, part) for part in parts) / len(parts)
        wanted = torch.cat([g.flatten() for g in gradients_of(model, loss).values()])
        assert (gradient - wanted).norm() < 1e-5 * wanted.norm()


def strict_l(p):
    return eval(get_spec("strict_l").formula, vars(torch) | {"p": p})


def test_adalora_is_saved_resumed_and_loaded(tmp_path):
    data = rows(16)
    settings = {
        "loss": "strict_l",
        "max_steps": 4,
        "learning_rate": 0.01,
        "save_strategy": "steps",
        "save_steps": 2,
        "per_device_eval_batch_size": 16,
    }
    whole = build(adapted("ADALORA"), data, tmp_path, **settings)
    before = orthogonality(whole.model, None)
    whole.train()
    assert orthogonality(whole.model, None) < before - 0.01

    again = build(adapted("ADALORA"), data, tmp_path, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for resumed, uninterrupted in zip(
        again.model.parameters(), whole.model.parameters(), strict=True
    ):
        torch.testing.assert_close(resumed, uninterrupted, rtol=0, atol=0)

    loaded = PeftModel.from_pretrained(tiny.causal_lm(), tmp_path / "checkpoint-4")
    batch = batch_of(data)
    with torch.no_grad():
        logits = [m.eval()(input_ids=batch["input_ids"]).logits for m in (loaded, whole.model)]
    torch.testing.assert_close(*logits)

    metrics = whole.evaluate()
    labels = batch["labels"][:, 1:]
    p = logits[1][:, :-1].softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    kept = p[labels != -100]
    expected = strict_l(kept).mean() + orthogonality(whole.model, None)
    assert metrics["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert metrics["eval_cross_entropy"] == pytest.approx(-kept.log().mean().item(), rel=1e-5)


def t5():
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(
        T5Config(vocab_size=tiny.VOCABULARY, decoder_start_token_id=0, **sizes)
    )


def test_adapters_with_a_loss_that_cannot_be_replaced_are_refused(tmp_path):
    several = CONFIGS["MULTITASK_PROMPT_TUNING"](task_type="SEQ_2_SEQ_LM", num_tasks=2, **TOKENS)
    for model, message in (
        (adapted("CPT"), "peft_type='CPT' on a loss of its own"),
        (get_peft_model(t5(), several), "makes the decoder's input from labels"),
    ):
        with pytest.raises(ValueError, match=message):
            build(model, rows(), tmp_path)
    with pytest.raises(ValueError, match="start one process per GPU"):
        check_adapter(adapted("SHADOW"), data_parallel=True)
    with pytest.raises(ValueError, match="2 processes cannot do that"):
        check_adapter(adapted("SHADOW", llama(), "SEQ_CLS"), processes=2)
    check_adapter(adapted("SHADOW"), processes=2)


def frozen_adapter(folder):
    """A saved adapter with a head, as transformers loads it: without PEFT's model around it."""
    tiny.bert().save_pretrained(folder / "base")
    base = BertForSequenceClassification.from_pretrained(folder / "base")
    config = LoraConfig(
        task_type="SEQ_CLS", r=2, target_modules=["query"], modules_to_save=["classifier"]
    )
    model = get_peft_model(base, config)
    torch.nn.init.normal_(model.base_model.model.classifier.modules_to_save["default"].weight)
    model.save_pretrained(folder / "adapter")
    return folder / "adapter"


def test_a_training_that_would_leave_an_adapter_as_it_is_is_refused(tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(frozen_adapter(tmp_path))
    data = tiny.texts(8)
    with pytest.raises(ValueError, match="has an adapter, which is frozen"):
        build(model, data, tmp_path, do_train=True)
    build(model, data, tmp_path, do_train=False).evaluate(data)


@pytest.mark.parametrize("known", [True, False])
def test_the_head_of_an_adapter_is_put_into_the_order_of_the_data(tmp_path, known, caplog):
    folder = frozen_adapter(tmp_path)
    if known:
        (folder / "result.json").write_text('{"classes": ["a", "b", "c"]}')
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    inputs = {"input_ids": tiny.texts(1)[0]["input_ids"][None]}
    before = model(**inputs).logits
    order_head(model, str(folder), ["c", "a", "b"])
    after = model(**inputs).logits
    # Rows that have moved may be summed by another kernel.
    torch.testing.assert_close(after, before[:, [2, 0, 1]] if known else before)
    assert ("does not say which classes its head has" in caplog.text) is not known


def test_an_adapter_leaves_the_statistics_of_the_base_model(tmp_path):
    set_seed(0)
    sizes = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
    model = ResNetForImageClassification(ResNetConfig(**sizes, num_labels=3))
    options = LoraArguments(lora=True, lora_r=2, lora_target_modules=["convolution"])
    loading = {"missing_keys": ["classifier.1.weight"], "mismatched_keys": []}
    adapted = add_adapter(model, options, loading, None)
    before = {name: value.clone() for name, value in adapted.named_buffers()}
    adapted.train()
    adapted(pixel_values=torch.rand(4, 3, 16, 16) + 5)
    assert any("running_mean" in name for name in before)
    for name, value in adapted.named_buffers():
        assert torch.equal(value, before[name]), name
    assert any(module.training for module in adapted.modules())


def test_cross_entropy_is_what_peft_returns_for_adapters_of_several_kinds(tmp_path):
    set_seed(0)
    lora = LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q"], init_lora_weights=False)
    model, data = get_peft_model(t5(), lora, mixed=True), rows()
    check_as_peft(model, batch_of(data), build(model, data, tmp_path))
