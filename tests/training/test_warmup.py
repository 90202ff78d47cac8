"""Loss warm-up: from one loss to another, exactly."""

import pytest
import tiny
import torch
from transformers import TrainerCallback, ViTConfig, ViTForImageClassification, set_seed

from hf_losses import LossTrainer, LossTrainingArguments, get_loss
from hf_losses.training.loss.warmup import warmup_share

FIXED = {"learning_rate": 0.0, "max_grad_norm": 0.0, "train_sampling_strategy": "sequential"}


def at_fixed_weights(folder, rows, **settings):
    """Gradients of some steps over the same rows."""
    return tiny.gradients(folder, tiny.bert(), tiny.texts(rows), **(FIXED | settings))


@pytest.mark.parametrize("first", [None, "strict_m"])
@pytest.mark.parametrize(("batch", "accumulation"), [(16, 1), (4, 4)])
def test_each_step_blends_the_two_gradients(tmp_path, first, batch, accumulation):
    settings = {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": 5,
    }
    kwargs = {"loss_kwargs": {"label_smoothing": 0.1}}
    blended = at_fixed_weights(
        tmp_path,
        16,
        loss="liberal_exp",
        loss_warmup_steps=4,
        loss_warmup_from=first,
        **kwargs,
        **settings,
    )
    ends = [
        at_fixed_weights(tmp_path, 16, loss=loss, **kwargs, **settings)[0]
        for loss in (first or "cross_entropy", "liberal_exp")
    ]
    expected = [torch.lerp(*ends, share) for share in (0, 0.25, 0.5, 0.75, 1)]
    assert tiny.difference(blended, expected) < 2e-6
    assert tiny.difference(blended[:1], blended[4:]) > 0.1


def test_the_ratio_is_of_all_steps():
    args = LossTrainingArguments("x", loss="strict_l", loss_warmup_ratio=0.25, use_cpu=True)
    assert [warmup_share(args, step, 10) for step in (0, 1, 2, 3, 9)] == [0, 1 / 3, 2 / 3, 1, 1]
    assert warmup_share(LossTrainingArguments("x", use_cpu=True), 0, 10) is None
    assert warmup_share(tiny.arguments("x"), 0, 10) is None


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 3


def trained(folder, callbacks=(), resume=None):
    args = tiny.arguments(
        folder,
        max_steps=6,
        loss="liberal_parabolic",
        loss_warmup_ratio=0.75,
        save_strategy="steps",
        save_steps=1,
        learning_rate=1e-2,
    )
    trainer = LossTrainer(tiny.bert(), args, train_dataset=tiny.texts(), callbacks=[*callbacks])
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_a_resumed_training_goes_on_where_it_was(tmp_path):
    whole = trained(tmp_path / "whole")
    trained(tmp_path / "parts", [Stop()])
    resumed = trained(tmp_path / "parts", resume=str(tmp_path / "parts" / "checkpoint-3"))
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    shares = [line["loss_warmup"] for line in whole.state.log_history if "loss" in line]
    assert shares == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert [x["loss"] for x in whole.state.log_history if "loss" in x] == [
        x["loss"] for x in resumed.state.log_history if "loss" in x
    ]


def test_evaluation_is_on_the_target(tmp_path):
    data, model = tiny.texts(8), tiny.bert()
    settings = {"loss_warmup_ratio": 1.0, "max_steps": 4, "learning_rate": 0.0}
    args = tiny.arguments(
        tmp_path, loss="liberal_parabolic", eval_strategy="steps", eval_steps=2, **settings
    )
    trainer = LossTrainer(model, args, train_dataset=data, eval_dataset=data)
    trainer.train()
    logits, labels = map(torch.from_numpy, trainer.predict(data)[:2])
    expected = get_loss("liberal_parabolic")(logits, labels).item()
    evaluations = [line for line in trainer.state.log_history if "eval_loss" in line]
    assert [line["eval_loss"] for line in evaluations] == pytest.approx(
        [expected, expected], abs=1e-6
    )
    assert not any("loss_warmup" in line for line in evaluations)
    assert trainer.loss_config == {"name": "liberal_parabolic"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_warmup_ratio": 1.5}, "must be from 0 to 1, got 1.5"),
        ({"loss_warmup_ratio": float("nan")}, "must be from 0 to 1, got nan"),
        ({"loss_warmup_steps": -1}, "0 or more, got -1"),
        ({"loss_warmup_steps": 3, "loss_warmup_ratio": 0.1}, "keep one"),
        ({"loss_warmup_from": "cross_entropi", "loss_warmup_ratio": 0.1}, "'cross_entropy'?"),
        ({"loss_warmup_from": "mse", "loss_warmup_ratio": 0.1}, "is for regression, but loss"),
        ({"loss_warmup_from": "strict_m"}, "add loss_warmup_ratio or loss_warmup_steps"),
    ],
)
def test_bad_input_is_an_error(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        LossTrainingArguments(str(tmp_path), loss="strict_l", **settings)


def test_a_training_that_would_end_in_its_warmup_is_refused(tmp_path):
    """Else it would end on a mixture with cross-entropy, under the name of the loss."""
    for steps, fits in ((4, True), (5, False)):
        args = tiny.arguments(
            tmp_path, loss="liberal_parabolic", loss_warmup_steps=steps, max_steps=4
        )
        trainer = LossTrainer(tiny.bert(), args, train_dataset=tiny.texts())
        if fits:
            trainer.train()
        else:
            with pytest.raises(ValueError, match="loss_warmup_steps=5 is more than the 4 steps"):
                trainer.train()
            assert trainer.state.global_step == 0


def test_a_trial_that_ends_in_its_warmup_does_not_end_the_search(tmp_path, caplog):
    pytest.importorskip("optuna")
    args = tiny.arguments(tmp_path, loss="liberal_parabolic", loss_warmup_steps=2)
    data = tiny.texts()
    trainer = LossTrainer(
        model_init=lambda: tiny.bert(), args=args, train_dataset=data, eval_dataset=data
    )
    best = trainer.hyperparameter_search(
        lambda trial: {"max_steps": trial.number + 1},
        n_trials=2,
        backend="optuna",
        compute_objective=lambda metrics: metrics["eval_cross_entropy"],
    )
    assert best.objective > 0
    assert "loss_warmup_steps=2 is more than the 1 steps" in caplog.text


def test_a_first_loss_that_does_not_fit_the_head_is_an_error(tmp_path):
    args = tiny.arguments(tmp_path, loss_warmup_from="mse", loss_warmup_steps=2)
    with pytest.raises(ValueError, match="mse"):
        LossTrainer(tiny.bert(), args)


def accuracy(folder, warmup):
    """Of a model on a hundred separable classes, after training from a cold start."""
    set_seed(0)
    config = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    size = {"intermediate_size": 64, "image_size": 8, "patch_size": 4, "num_labels": 100}
    centres = torch.randn(100, 3, 8, 8)
    data = [
        {"pixel_values": centres[i % 100] + 0.3 * torch.randn(3, 8, 8), "labels": i % 100}
        for i in range(800)
    ]
    args = tiny.arguments(
        folder,
        max_steps=300,
        loss="liberal_parabolic",
        loss_warmup_ratio=warmup,
        optim="sgd",
        learning_rate=0.1,
        per_device_train_batch_size=64,
        logging_steps=100,
    )
    model = ViTForImageClassification(ViTConfig(**(config | size)))
    trainer = LossTrainer(model, args, train_dataset=data)
    trainer.train()
    output = trainer.predict(data)
    return (output.predictions.argmax(-1) == output.label_ids).mean()


def test_a_bounded_loss_learns_a_hundred_classes_with_it_and_not_without(tmp_path):
    assert accuracy(tmp_path / "cold", 0.0) <= 0.02
    assert accuracy(tmp_path / "warm", 0.5) > 0.5
