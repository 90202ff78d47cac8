"""Answers in a text, classes of pixels, classes of sounds: as the models' own losses, with any."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from peft import PromptTuningConfig, get_peft_model
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    AutoModelForQuestionAnswering,
    BeitConfig,
    BeitForSemanticSegmentation,
    BertForQuestionAnswering,
    BertForTokenClassification,
    ConvNextConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    T5Config,
    T5ForConditionalGeneration,
    T5ForQuestionAnswering,
    TrainingArguments,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    WhisperConfig,
    WhisperForAudioClassification,
    XLNetConfig,
    set_seed,
)

from hf_losses import LossTrainer

# 0.02 would leave all probabilities nearly equal.
SPREAD = {"initializer_range": 0.2}


def batch(rows):
    return {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}


# ---- The models ----------------------------------------------------------------------------------


def bert_answers():
    return tiny.bert(BertForQuestionAnswering, num_labels=2, **SPREAD)


def t5(head):
    set_seed(0)
    small = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    special = {"decoder_start_token_id": 0, "pad_token_id": 0, "dropout_rate": 0.0}
    return head(T5Config(vocab_size=tiny.VOCABULARY, **small, **special))


def xlnet_answers():
    """What AutoModelForQuestionAnswering makes; its config knows of a beam search all the same."""
    set_seed(0)
    small = {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16, "dropout": 0.0}
    config = XLNetConfig(vocab_size=tiny.VOCABULARY, **small, **SPREAD)
    return AutoModelForQuestionAnswering.from_config(config)


def segformer():
    set_seed(0)
    return SegformerForSemanticSegmentation(
        SegformerConfig(
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[1, 1],
            hidden_sizes=[8, 16],
            patch_sizes=[3, 3],
            strides=[2, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=8,
            num_labels=tiny.CLASSES,
            drop_path_rate=0.0,
            classifier_dropout_prob=0.0,
            hidden_dropout_prob=0.0,
            **SPREAD,
        )
    )


def beit(**config):
    set_seed(0)
    return BeitForSemanticSegmentation(
        BeitConfig(
            image_size=16,
            patch_size=4,
            hidden_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=16,
            out_indices=[1, 2, 3, 4],
            num_labels=tiny.CLASSES,
            drop_path_rate=0.0,
            initializer_range=0.05,
            **({"use_auxiliary_head": False} | config),
        )
    )


def upernet():
    set_seed(0)
    backbone = ConvNextConfig(
        hidden_sizes=[8, 8, 8, 8],
        depths=[1, 1, 1, 1],
        patch_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return UperNetForSemanticSegmentation(
        UperNetConfig(
            backbone_config=backbone,
            hidden_size=8,
            pool_scales=[1, 2],
            use_auxiliary_head=False,
            num_labels=tiny.CLASSES,
        )
    )


def ast():
    set_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    small |= {"intermediate_size": 16, "max_length": 16, "num_mel_bins": 16}
    return ASTForAudioClassification(ASTConfig(**small, num_labels=tiny.CLASSES, **SPREAD))


def whisper():
    set_seed(0)
    small = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "num_mel_bins": 16}
    small |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16}
    small |= {"decoder_ffn_dim": 16, "max_source_positions": 8, "init_std": 0.1}
    special = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    return WhisperForAudioClassification(
        WhisperConfig(vocab_size=9, num_labels=tiny.CLASSES, **small, **special)
    )


# ---- The data ------------------------------------------------------------------------------------


def answers(size=16):
    """Some answers lie beyond the window, and not as many ends in it as starts."""
    generator = torch.Generator().manual_seed(2)
    rows = tiny.texts(size)
    for row in rows:
        del row["labels"]
        start = torch.randint(0, tiny.LENGTH + 2, (), generator=generator).item()
        length = torch.randint(0, 4, (), generator=generator).item()
        row |= {"start_positions": start, "end_positions": start + length}
    return rows


def pictures(size=16):
    """A part of the pixels, not equally many in each picture, has the label 255: none."""
    generator = torch.Generator().manual_seed(2)
    rows = []
    for number in range(size):
        labels = torch.randint(0, tiny.CLASSES, (16, 16), generator=generator)
        labels[torch.rand(16, 16, generator=generator) < number / size] = 255
        pixels = torch.randn(3, 16, 16, generator=generator)
        rows.append({"pixel_values": pixels, "labels": labels})
    return rows


def sounds(name, shape):
    def make(size=16):
        generator = torch.Generator().manual_seed(2)
        return [
            {
                name: torch.randn(shape, generator=generator),
                "labels": tiny.one_class(generator, None),
            }
            for _ in range(size)
        ]

    return make


TASKS = {
    "answers-bert": (bert_answers, answers),
    "answers-t5": (lambda: t5(T5ForQuestionAnswering), answers),
    "answers-xlnet": (xlnet_answers, answers),
    "pixels-segformer": (segformer, pictures),
    "pixels-beit": (beit, pictures),
    "pixels-upernet": (upernet, pictures),
    "sounds-ast": (ast, sounds("input_values", (16, 16))),
    "sounds-whisper": (whisper, sounds("input_features", (16, 16))),
}


def items(outputs, rows):
    """By hand: of each classification the logits [N, C] of its items in float64, and labels [N]."""
    if "start_positions" in rows:
        kept = [rows[name] < tiny.LENGTH for name in ("start_positions", "end_positions")]
        return [
            (outputs.start_logits.double()[kept[0]], rows["start_positions"][kept[0]]),
            (outputs.end_logits.double()[kept[1]], rows["end_positions"][kept[1]]),
        ]
    logits, labels = outputs.logits.double(), rows["labels"]
    if labels.dim() == 3:
        logits = torch.nn.functional.interpolate(logits, labels.shape[1:], mode="bilinear")
        kept = labels != 255
        return [(logits.permute(0, 2, 3, 1)[kept], labels[kept])]
    return [(logits, labels)]


def by_hand(parts, formula):
    """The mean over the classifications of the means over their items."""
    means = []
    for logits, labels in parts:
        p = logits.softmax(-1).gather(-1, labels[:, None])
        means.append(formula(p).mean().item())
    return sum(means) / len(means)


# ---- The tests -----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_the_losses_are_those_of_the_model_and_of_the_formula(task, tmp_path):
    model, data = TASKS[task]
    model, rows = model().eval(), data()
    inputs = batch(rows)
    with torch.no_grad():
        outputs = model(**inputs)
    parts = items(outputs, inputs)
    builtin = by_hand(parts, lambda p: -p.log())
    assert outputs.loss.item() == pytest.approx(builtin, rel=1e-5)
    losses = {"cross_entropy": lambda p: -p.log(), "strict_m": lambda p: 1 / p - 1}
    for loss, formula in losses.items():
        for size in (3, 16):
            args = tiny.arguments(tmp_path, TrainingArguments, per_device_eval_batch_size=size)
            metrics = LossTrainer(model, args, eval_dataset=rows, loss=loss).evaluate()
            assert metrics["eval_loss"] == pytest.approx(by_hand(parts, formula), rel=1e-4)
            assert metrics["eval_cross_entropy"] == pytest.approx(builtin, rel=1e-4)


@pytest.mark.parametrize("loss", ["cross_entropy", "strict_l_full", "liberal_exp"])
@pytest.mark.parametrize("task", ["answers-bert", "pixels-segformer"])
def test_accumulation_does_not_change_the_gradients(task, loss, tmp_path):
    model, data = TASKS[task]
    steps = [
        tiny.gradients(
            tmp_path,
            model(),
            data(24),
            loss=loss,
            trainer=Frozen,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=16 // size,
        )
        for size in (16, 8, 4)
    ]
    assert len(steps[0]) == 2
    assert tiny.difference(steps[0], steps[1]) < 1e-5
    assert tiny.difference(steps[0], steps[2]) < 1e-5


class Frozen(LossTrainer):
    """Leaves batch normalisation as in evaluation: it would see other batches."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        return super().compute_loss(model, inputs, *args, **kwargs)


@pytest.mark.parametrize("task", TASKS)
def test_a_checkpoint_is_resumed_and_loaded(task, tmp_path):
    model, data = TASKS[task]
    rows = data()
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    args = tiny.arguments(tmp_path, loss="liberal_exp", **settings)
    whole = LossTrainer(model(), args, train_dataset=rows, eval_dataset=rows)
    whole.train()
    again = LossTrainer(model(), args, train_dataset=rows, eval_dataset=rows)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    expected = whole.evaluate()
    assert again.evaluate()["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-6)
    loaded = type(model()).from_pretrained(tmp_path / "checkpoint-2")
    metrics = LossTrainer(loaded, args, eval_dataset=rows).evaluate()
    assert metrics["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-5)
    config = json.loads((tmp_path / "checkpoint-2" / "config.json").read_text())
    assert config["hf_losses"] == {"name": "liberal_exp"}


def test_heads_whose_loss_is_more_than_that_are_refused(tmp_path):
    args = tiny.arguments(tmp_path)
    with pytest.raises(ValueError, match=r"auxiliary head.*use_auxiliary_head=False"):
        LossTrainer(beit(use_auxiliary_head=True), args, loss="liberal_exp")
    model = segformer()
    model.config.num_labels = 1
    with pytest.raises(ValueError, match="num_labels=1 is trained on yes/no pixels"):
        LossTrainer(model, args, loss="liberal_exp")


def test_virtual_tokens_of_an_encoder_change_no_label(tmp_path):
    config = PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4)
    model = get_peft_model(t5(T5ForConditionalGeneration), config).eval()
    rows = tiny.texts(8, tiny.some_next_tokens)
    with torch.no_grad():
        builtin = model(**batch(rows)).loss.item()
    trainer = LossTrainer(model, tiny.arguments(tmp_path), eval_dataset=rows, loss="cross_entropy")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(builtin, rel=1e-5)


def test_virtual_tokens_have_no_class(tmp_path):
    config = PromptTuningConfig(task_type="TOKEN_CLS", num_virtual_tokens=4)
    model = get_peft_model(tiny.bert(BertForTokenClassification, **SPREAD), config).eval()
    rows = tiny.texts(8, tiny.class_of_each_token)
    inputs = batch(rows)
    labels = inputs.pop("labels")
    with torch.no_grad():
        logits = model(**inputs).logits[:, 4:]
    expected = by_hand([(logits[labels >= 0].double(), labels[labels >= 0])], lambda p: -p.log())
    trainer = LossTrainer(model, tiny.arguments(tmp_path), eval_dataset=rows, loss="cross_entropy")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
