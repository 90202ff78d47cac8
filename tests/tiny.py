"""Tiny random models and data for tests of training: no dropout, so that equal means equal."""

from __future__ import annotations

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    TrainerCallback,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

from hf_losses import LossTrainer, LossTrainingArguments

CLASSES = 3
VOCABULARY = 50
LENGTH = 8


def bert(head=BertForSequenceClassification, **config):
    set_seed(0)
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "num_labels": CLASSES,
    }
    return head(BertConfig(**(settings | config)))


def vit(**config):
    set_seed(0)
    settings = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 8,
        "patch_size": 4,
        "num_labels": CLASSES,
    }
    return ViTForImageClassification(ViTConfig(**(settings | config)))


def causal_lm(**config):
    set_seed(0)
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
    }
    return LlamaForCausalLM(LlamaConfig(**(settings | config)))


def texts(size=40, label=None):
    """Random token ids; `label(generator, ids)` makes the labels, by default one of the classes."""
    generator = torch.Generator().manual_seed(1)
    label = label or one_class
    rows = []
    for _ in range(size):
        ids = torch.randint(0, VOCABULARY, (LENGTH,), generator=generator)
        row = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        rows.append(row | {"labels": label(generator, ids)})
    return rows


def images(size=40, label=None):
    generator = torch.Generator().manual_seed(1)
    label = label or one_class
    return [
        {
            "pixel_values": torch.randn(3, 8, 8, generator=generator),
            "labels": label(generator, None),
        }
        for _ in range(size)
    ]


def one_class(generator, ids):
    return torch.randint(0, CLASSES, (), generator=generator).item()


def class_of_each_token(generator, ids):
    """About a third of the tokens have no label, and not equally many in each row."""
    labels = torch.randint(0, CLASSES, ids.shape, generator=generator)
    return labels.masked_fill(torch.rand(ids.shape, generator=generator) < 0.35, -100)


def some_next_tokens(generator, ids):
    """A prompt of random length without labels, as in completion-only fine-tuning."""
    prompt = torch.randint(0, LENGTH - 2, (), generator=generator)
    return ids.masked_fill(torch.arange(len(ids)) < prompt, -100)


def yes_or_no_per_class(generator, ids):
    return torch.randint(0, 2, (CLASSES,), generator=generator).float()


def mixture_of_two_classes(generator, ids):
    """Two examples laid over each other, as by mixup: a row of probabilities."""
    shares = torch.zeros(CLASSES)
    share = torch.rand((), generator=generator)
    shares[one_class(generator, ids)] += share
    shares[one_class(generator, ids)] += 1 - share
    return shares


def number(generator, ids):
    return torch.randn((), generator=generator).item()


class Gradients(TrainerCallback):
    """Keeps the flat gradient of every optimizer step, as it is before clipping."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        self.steps.append(torch.cat(grads).clone())


def arguments(output_dir, cls=LossTrainingArguments, **settings):
    defaults = {
        "per_device_train_batch_size": 8,
        "max_steps": 3,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 1,
        "log_level": "error",
        "seed": 3,
    }
    return cls(output_dir=str(output_dir), **(defaults | settings))


def gradients(output_dir, model, data, *, trainer=LossTrainer, keywords=None, **settings):
    """Gradients of one epoch at fixed weights: one flat vector per optimizer step."""
    settings = {
        "max_steps": -1,
        "num_train_epochs": 1,
        "learning_rate": 0.0,
        "max_grad_norm": 0.0,
    } | settings
    seen = Gradients()
    trainer(
        model=model,
        args=arguments(output_dir, **settings),
        train_dataset=data,
        callbacks=[seen],
        **(keywords or {}),
    ).train()
    return seen.steps


def difference(steps, others):
    """Largest relative difference of two lists of gradients."""
    assert len(steps) == len(others)
    return max(((a - b).norm() / a.norm()).item() for a, b in zip(steps, others, strict=True))
