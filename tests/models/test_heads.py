"""The trainer's step and its evaluation on heads with other labels than one class per example.

What the gradient at the logits must be follows from the high-precision oracle, which knows one item
with one class and nothing of this package.
"""

from __future__ import annotations

import pytest
import tiny
import torch
from products import product
from reference.oracle_beside import loss_and_gradient
from transformers import BertForTokenClassification, GPT2Config, GPT2LMHeadModel

from hf_losses import LossTrainer, list_losses
from hf_losses.models.forwards import logits_of, without_loss

ROWS, BATCH, ACCUMULATED = 12, 4, 2


def of_class(name, logits, label):
    """Loss, gradient and number of items: one class, or none."""
    if label == -100:
        return 0, [0] * len(logits), 0
    return *loss_and_gradient(name, logits, label), 1


def of_each_label(name, logits, labels):
    """Every label is a choice of its own between yes and no, which share one margin."""
    sparse = name.removesuffix("_full")
    choices = [
        loss_and_gradient(sparse, [z, 0], 0 if label else 1)
        for z, label in zip(logits, labels, strict=True)
    ]
    return sum(loss for loss, _ in choices), [slope[0] for _, slope in choices], len(labels)


def of_mixture(name, logits, shares):
    """The classes' own losses and gradients, mixed as the label is."""
    each = [loss_and_gradient(name, logits, k) for k in range(len(shares))]
    loss = sum(share * loss for share, (loss, _) in zip(shares, each, strict=True))
    gradients = zip(*(gradient for _, gradient in each), strict=True)
    return loss, [sum(s * g for s, g in zip(shares, of_k, strict=True)) for of_k in gradients], 1


SPREAD = {"initializer_range": 0.3}  # Probabilities from 3 % to 94 %.
HEADS = {
    "vit-multi-label": (
        lambda: tiny.vit(problem_type="multi_label_classification", **SPREAD),
        lambda: tiny.images(ROWS, tiny.yes_or_no_per_class),
        of_each_label,
    ),
    "bert-token": (
        lambda: tiny.bert(BertForTokenClassification, **SPREAD),
        lambda: tiny.texts(ROWS, tiny.class_of_each_token),
        of_class,
    ),
    "vit-mixup": (
        lambda: tiny.vit(problem_type="single_label_classification", **SPREAD),
        lambda: tiny.images(ROWS, tiny.mixture_of_two_classes),
        of_mixture,
    ),
}


class Watched(LossTrainer):
    """Keeps the logits, which keep their gradients, and the labels of every batch."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.batches = []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if outputs.logits.requires_grad:
            outputs.logits.retain_grad()
        self.batches.append((outputs.logits, inputs["labels"]))
        return (loss, outputs) if return_outputs else loss


@pytest.fixture(params=HEADS)
def head(request, tmp_path):
    """Builds a watched trainer of one of the heads; and what the oracle says of its items."""
    make, data, item = HEADS[request.param]

    def build(loss):
        return Watched(
            model=make(),
            args=tiny.arguments(
                tmp_path,
                per_device_train_batch_size=BATCH,
                gradient_accumulation_steps=ACCUMULATED,
                per_device_eval_batch_size=5,
                max_steps=2,
                learning_rate=0.0,
                max_grad_norm=0.0,
            ),
            train_dataset=data(),
            eval_dataset=data(),
            loss=loss,
        )

    def exact(name, logits, labels):
        """Sum of losses, gradient of that sum, number of items."""
        items = labels.flatten().tolist() if item is of_class else labels.tolist()
        rows = logits.flatten(0, -2).double().tolist()
        results = [item(name, z, label) for z, label in zip(rows, items, strict=True)]
        losses, gradients, counts = zip(*results, strict=True)
        gradient = torch.tensor([[float(g) for g in row] for row in gradients])
        return float(sum(losses)), gradient.view(logits.shape), sum(counts)

    return build, exact


# Beside those of a kind, which differ in their way through a head, the others are slow.
LOSSES = product(
    list_losses(task="classification"),
    keep=lambda _, one: one[0] in ("cross_entropy", "strict_l_full", "liberal_exp", "focal"),
)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_has_the_gradient_that_the_oracle_says(loss, head):
    build, exact = head
    trainer = build(loss)
    trainer.train()
    # The second step has one batch only.
    for step in (trainer.batches[:ACCUMULATED], trainer.batches[ACCUMULATED:]):
        _, gradients, items = zip(*(exact(loss, *batch) for batch in step), strict=True)
        expected = torch.cat(gradients) / sum(items)
        gradient = torch.cat([logits.grad for logits, _ in step])
        assert (gradient - expected).abs().max() < 1e-5 * expected.abs().max()
    assert len(trainer.batches) == 3


@pytest.mark.parametrize("loss", LOSSES)
def test_evaluation_reports_what_the_oracle_says(loss, head):
    build, exact = head
    trainer = build(loss)
    metrics = trainer.evaluate()
    assert [len(labels) for _, labels in trainer.batches] == [5, 5, 2]
    for key, name in (("eval_loss", loss), ("eval_cross_entropy", "cross_entropy")):
        sums, _, items = zip(*(exact(name, *batch) for batch in trainer.batches), strict=True)
        assert metrics[key] == pytest.approx(sum(sums) / sum(items), rel=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_gpt2_learns_the_next_token_though_its_name_does_not_say_so(masked, tmp_path):
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=tiny.VOCABULARY,
            n_embd=16,
            n_layer=1,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
            initializer_range=0.3,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            resid_pdrop=0.0,
        )
    )
    rows = tiny.texts(8, tiny.some_next_tokens if masked else lambda generator, ids: ids)
    args = tiny.arguments(tmp_path, loss="cross_entropy", per_device_eval_batch_size=8)
    trainer = LossTrainer(model=model, args=args, train_dataset=rows, eval_dataset=rows)
    batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    with torch.no_grad():
        built_in = model.eval()(**batch).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(built_in, rel=1e-6)
    args = tiny.arguments(tmp_path, loss="cross_entropy", max_steps=1)
    trainer = LossTrainer(model=model, args=args, train_dataset=rows)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(built_in, abs=1e-4)


LOGITS, LOSSES, PAIR = torch.randn(6, 3), torch.tensor([0.5, 0.7]), torch.randn(2)


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ((LOSSES, LOGITS), LOGITS),
        ((LOGITS, LOSSES), LOGITS),
        ({"loss": LOSSES, "scores": LOGITS}, LOGITS),
        ({"scores": PAIR, "loss": LOSSES}, PAIR),
        ((LOSSES, PAIR), PAIR),
        (LOGITS, LOGITS),
    ],
)
def test_losses_that_data_parallel_gathers_are_no_logits(outputs, expected):
    assert logits_of(without_loss(outputs, copies=2), known=False) is expected
