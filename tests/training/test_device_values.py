"""A trainer asks an accelerator for no value within a step: shown on meta tensors, which have none.

They raise where code asks for a value (`.item()`, `bool()`, `nonzero()`, a boolean index), and
must be treated as those of a GPU are: whatever is cheap on a CPU alone looks for `is_cpu`.
"""

from __future__ import annotations

import pytest
import tiny
import torch
from products import diagonals, product
from test_item_weights import HEADS, with_weights
from transformers import TrainingArguments

from hf_losses import LossTrainer
from hf_losses.training.reports.evaluation import EvaluationLosses

META = torch.device("meta")
# What a step may do beside computing the loss.
FEATURES = {
    "plain": {},
    "loss_weight": {},
    "class weights": {"weight": [1.0, 2.0, 0.5]},
    "statistics": {"loss_stats_steps": 1},
    "warm-up": {"loss_warmup_steps": 4},
    "accumulation": {"gradient_accumulation_steps": 2},
}
WITHOUT_CLASSES = [("numbers", "class weights"), ("answers", "class weights")]


def on_meta(trainer, monkeypatch):
    """Moves a trainer to the device without values; returns a batch there."""
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.to(META)
    trainer.criterion.to(META)
    monkeypatch.setattr(TrainingArguments, "device", property(lambda _: META))
    # The models themselves ask whether the attention mask is all ones, but Llama not in this case.
    trainer.model.set_attn_implementation("eager")
    if type(trainer.model).__name__.startswith("Bert"):
        del batch["attention_mask"]
    return {name: tensor.to(META) for name, tensor in batch.items()}


def steps(trainer, batch):
    """Two optimizer steps and a batch of an evaluation, but for what is the stock Trainer's."""
    model, accumulated = trainer.model.train(), trainer.args.gradient_accumulation_steps
    trainer.state.max_steps = 4
    trainer._first_targets.read = lambda: None  # Asks for values, once per training.
    for step in range(2):
        trainer.state.global_step = step
        count = trainer._get_num_items_in_batch([batch] * accumulated, META)
        for _ in range(accumulated):
            loss = trainer.training_step(model, dict(batch), count)
            assert loss.device == META
            assert not loss.shape
        trainer._get_grad_norm(model)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    trainer._evaluation = EvaluationLosses()
    for only_loss in (True, False):
        loss, *_ = trainer.prediction_step(model.eval(), dict(batch), only_loss)
        assert loss.device == META


def build(model, rows, folder, **settings):
    return LossTrainer(model=model, args=tiny.arguments(folder, **settings), train_dataset=rows)


@pytest.mark.parametrize(
    ("head", "feature"),
    [
        case
        for case in product(HEADS, FEATURES, keep=diagonals(3))
        if "by row" not in case.values[0] and case.values not in WITHOUT_CLASSES
    ],
)
def test_no_value_is_asked_for(head, feature, tmp_path, monkeypatch):
    make, data, per_label = HEADS[head]
    model, rows = make(), data()[:8]
    if feature == "loss_weight":
        rows = with_weights(rows, per_label)
    settings = dict(FEATURES[feature])
    kwargs = {}
    if weight := settings.pop("weight", None):
        classes = tiny.VOCABULARY if head == "next tokens" else tiny.CLASSES
        kwargs["weight"] = (weight * classes)[:classes]
    loss = "huber" if head == "numbers" else "strict_m"
    trainer = build(model, rows, tmp_path, loss=loss, loss_kwargs=kwargs, **settings)
    steps(trainer, on_meta(trainer, monkeypatch))


@pytest.mark.parametrize("head", ["rows", "tokens", "next tokens"])
def test_pytorchs_own_cross_entropy_is_asked_for_no_value(head, tmp_path, monkeypatch):
    make, data, _ = HEADS[head]
    trainer = build(make(), data()[:8], tmp_path, loss="cross_entropy")
    steps(trainer, on_meta(trainer, monkeypatch))


@pytest.mark.parametrize("head", ["mixup", "several labels"])
def test_the_first_labels_are_asked_for_once_and_before_the_first_step(head, tmp_path, monkeypatch):
    make, data, _ = HEADS[head]
    trainer = build(make(), data()[:8], tmp_path, loss="strict_m")
    batch = on_meta(trainer, monkeypatch)
    trainer.training_step(trainer.model.train(), dict(batch), None)
    with pytest.raises((RuntimeError, NotImplementedError), match=r"(?i)meta"):
        trainer._get_grad_norm(trainer.model)
    trainer.training_step(trainer.model, dict(batch), None)
    trainer._get_grad_norm(trainer.model)


@pytest.mark.parametrize("settings", [{}, {"loss_stats_steps": 1}, {"fused_linear": True}], ids=str)
@pytest.mark.parametrize("loss", ["liberal_exp", "strict_l_full"])
def test_fused_losses_ask_for_no_value(loss, settings, tmp_path, monkeypatch):
    make, data, _ = HEADS["next tokens"]
    trainer = build(make(), data()[:8], tmp_path, loss=loss, **settings)
    steps(trainer, on_meta(trainer, monkeypatch))
