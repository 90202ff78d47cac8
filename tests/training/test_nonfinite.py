"""Steps whose gradient is not finite are counted and told, whatever became of the training."""

from __future__ import annotations

import json
import logging
import math

import pytest
import tiny
import torch
from accelerate.state import AcceleratorState
from transformers import TrainerCallback, TrainingArguments

from hf_losses import LossTrainer
from hf_losses.training.reports.nonfinite import NonfiniteSteps

METRIC = "train_nonfinite_grad_steps"


class LeaveOut(TrainerCallback):
    """Keeps the weights: the optimizer sees no gradient at all."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        model.zero_grad()


@pytest.fixture
def build(tmp_path):
    """A trainer whose gradient is multiplied by `by` in some of the steps, counted from 0."""

    def build(bad=(), by=math.nan, lasting=False, args_class=None, **settings):
        settings = {"max_steps": 5} | settings
        trainer = LossTrainer(
            model=tiny.bert(),
            args=tiny.arguments(
                tmp_path, *([] if args_class is None else [args_class]), **settings
            ),
            train_dataset=tiny.texts(),
            callbacks=[] if lasting else [LeaveOut()],
        )
        trainer.model.classifier.bias.register_hook(
            lambda gradient: gradient * (by if trainer.state.global_step in bad else 1)
        )
        return trainer

    return build


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
@pytest.mark.parametrize("by", [math.nan, math.inf, -math.inf])
def test_every_such_step_is_counted(build, by, max_grad_norm, caplog):
    trainer = build({1, 3}, by, max_grad_norm=max_grad_norm)
    metrics = trainer.train().metrics
    assert metrics[METRIC] == 2
    assert trainer.state.log_history[-1][METRIC] == 2
    assert type(metrics[METRIC]) is int
    (record,) = [r for r in caplog.records if r.name.startswith("hf_losses")]
    assert record.levelno == logging.WARNING
    assert "not finite in 2 of 5 optimizer steps, but training went on" in record.message
    for advice in ("learning_rate", "max_grad_norm", "bf16 rather than fp16", "max_weight"):
        assert advice in record.message


def test_all_is_well(build, caplog):
    trainer = build(args_class=TrainingArguments, gradient_accumulation_steps=2)
    assert trainer.train().metrics[METRIC] == 0
    assert trainer.state.log_history[-1][METRIC] == 0
    assert not any(METRIC in logged for logged in trainer.state.log_history[:-1])
    assert "not finite" not in caplog.text


@pytest.mark.parametrize("by", [math.nan, math.inf])
def test_lasting_damage_is_called_so(build, by, caplog):
    trainer = build({2}, by, lasting=True)
    assert trainer.train().metrics[METRIC] == 3
    assert "not finite in 3 of 5 optimizer steps, the last one too" in caplog.text
    assert "weights are probably NaN" in caplog.text
    assert trainer.model.classifier.bias.isnan().any()


def test_a_step_has_one_gradient_however_many_batches(build):
    # Both micro-batches of step 1 are hit.
    assert build({1}, gradient_accumulation_steps=2).train().metrics[METRIC] == 1


def test_every_training_starts_from_0(build):
    trainer = build({0, 1})
    assert trainer.train().metrics[METRIC] == 2
    assert trainer.train().metrics[METRIC] == 2


def test_counting_does_not_wait_for_the_device():
    steps = NonfiniteSteps()
    nowhere = torch.tensor(0.0, device="meta")
    steps.add(nowhere)
    steps.add(nowhere)
    with pytest.raises(RuntimeError, match="meta"):
        _ = steps.count  # Asking for the number is what waits.


# ---- Resuming ----------------------------------------------------------------------------------

SAVING = {"save_strategy": "steps", "save_steps": 2}


def test_steps_before_and_after_a_checkpoint_add_up(build, tmp_path, caplog):
    build({0, 3}, **SAVING, max_steps=4).train()
    for checkpoint, counted in (("checkpoint-2", 1), ("checkpoint-4", 2)):
        state = json.loads((tmp_path / checkpoint / "trainer_state.json").read_text())
        record = state["stateful_callbacks"]["hf_losses"]
        assert record == {
            "args": {"name": "cross_entropy"},
            "attributes": {"nonfinite_grad_steps": counted},
        }
    caplog.clear()
    trainer = build({0, 3, 4}, **SAVING, max_steps=6)
    metrics = trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2")).metrics
    assert metrics[METRIC] == 3
    assert "in 3 of 6 optimizer steps" in caplog.text
    # Another training of the same trainer is no resumption.
    assert trainer.train().metrics[METRIC] == 3


@pytest.mark.parametrize("written_by", ["the stock Trainer", "an older version"])
def test_a_checkpoint_without_a_count_is_resumed(build, tmp_path, written_by):
    build(**SAVING, max_steps=2).train()
    path = tmp_path / "checkpoint-2" / "trainer_state.json"
    state = json.loads(path.read_text())
    if written_by == "an older version":
        state["stateful_callbacks"]["hf_losses"]["attributes"] = {}
    else:
        del state["stateful_callbacks"]["hf_losses"]
    path.write_text(json.dumps(state))
    trainer = build({3}, **SAVING, max_steps=4)
    assert trainer.train(resume_from_checkpoint=True).metrics[METRIC] == 1


# ---- Loss scaling ------------------------------------------------------------------------------


@pytest.fixture
def fp16(monkeypatch):
    """Trains in fp16 with loss scaling, which accelerate itself starts on GPUs only."""

    def fp16(trainer, scale):
        accelerator = trainer.accelerator
        monkeypatch.setitem(AcceleratorState._shared_state, "_mixed_precision", "fp16")
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return trainer

    return fp16


def test_steps_that_fp16_leaves_out_are_counted_as_harmless(build, fp16, caplog):
    trainer = fp16(build(lasting=True, max_steps=12), scale=2.0**26)
    metrics = trainer.train().metrics
    halvings = 26 - math.log2(trainer.accelerator.scaler.get_scale())
    assert 0 < metrics[METRIC] == halvings < 12
    assert f"in {metrics[METRIC]} of 12 optimizer steps, but training went on" in caplog.text
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_a_last_step_that_fp16_leaves_out_does_no_damage(build, fp16, optim, caplog):
    trainer = fp16(build(lasting=True, max_steps=2, optim=optim), scale=2.0**40)
    assert trainer.train().metrics[METRIC] == 2
    assert "in 2 of 2 optimizer steps, but training went on" in caplog.text
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


@pytest.mark.parametrize(
    ("norm", "skipped", "expected"),
    [(1.5, False, 0), (0.0, False, 0), (None, False, 0), (None, True, 1), (1.5, True, 1)]
    + [(norm, False, 1) for norm in (-1.0, math.nan, math.inf)],
)
def test_deepspeed_tells_it_by_minus_1_or_by_skipping(norm, skipped, expected):
    steps = NonfiniteSteps(4)
    steps.add(norm, skipped)
    assert steps.count == 4 + expected
