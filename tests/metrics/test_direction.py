"""Which direction of a metric is the better one: for the best model and for early stopping."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from transformers import EarlyStoppingCallback, TrainingArguments

from hf_losses import LossTrainer, LossTrainingArguments, list_losses
from hf_losses.metrics.direction import check_direction_known, lower_is_better

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))

from hf_losses.training.recipe.arguments import RecipeTrainingArguments

EVERY_STEP = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1}
BEST = EVERY_STEP | {"load_best_model_at_end": True}
LESS = [*list_losses(), "loss", "ece", "rmse", "perplexity", "wer", "cer", "nonfinite_grad_steps"]
LESS += ["mean_squared_error", "max_error", "error_rate", "word_error_rate", "nll", "log_loss"]
LESS += ["negative_log_likelihood", "brier_score", "mean_absolute_percentage_error"]
LESS += ["ppl", "bpb", "logloss", "nrmse", "mse_mean", "rmse_test", "wer_clean", "loss_mean"]
LESS += ["perplexity_wikitext", "val/mse", "error-rate", "error_top1", "ece_15"]
LESS += ["rmse_celsius", "wer_en", "mae_days", "perplexity_de", "cer_norm", "fpr95"]
LESS += ["misclassification_rate", "miss_rate", "neg_log_likelihood", "nlpd", "crps", "deviance"]
MORE = ["accuracy", "f1", "f1_macro", "spearmanr", "matthews_correlation", "token_accuracy"]
MORE += [
    "exact_match",
    "bleu",
    "neg_mse",
    "eval_negative_mae",
    "neg_mean_squared_error",
    "recall_at_fpr",
    "mse_gain",
    "error_reduction",
    "focal_accuracy",
    "error_auroc",
    "mse_skill",
    "eval_kl_bleu",
    "brier_skill",
    "power",
    "",
]


@pytest.mark.parametrize("before", ["", "eval_", "validation_matched_", "eval_validation_matched_"])
def test_less_of_every_name_of_this_project_is_better(before):
    for name in LESS:
        assert lower_is_better(before + name), name
        assert lower_is_better(before + name.upper()), name


def test_more_of_anything_else_is_better():
    for name in MORE:
        assert not lower_is_better(name), name


@pytest.mark.parametrize("name", ["error_celsius", "ece_norm", "loss_of_en", "err_10", "fpr_at_95"])
def test_of_some_the_direction_must_be_said(name):
    with pytest.raises(ValueError, match="better, as of"):
        check_direction_known(name)


def test_of_the_others_it_is_known():
    assert lower_is_better("testLoss")
    assert lower_is_better("eval_valMSE")
    for name in (*LESS, *MORE):
        if not any(word in name for word in ("mse_", "kl_", "brier_", "focal_", "error_")):
            check_direction_known(name)


@pytest.mark.parametrize("arguments", [LossTrainingArguments, RecipeTrainingArguments])
def test_arguments_know_the_direction_and_leave_a_users_own(arguments, tmp_path):
    def greater(metric, **settings):
        settings["output_dir"] = str(tmp_path)
        return arguments(metric_for_best_model=metric, **settings).greater_is_better

    for name in LESS:
        assert greater(name) is greater(f"eval_validation_matched_{name}") is False
        assert greater(name, greater_is_better=True) is True
    for name in MORE:
        assert greater(name or "task") is True
        assert greater(name or "task", greater_is_better=False) is False


def overfit(tmp_path, metric, callbacks=(), cls=LossTrainingArguments, **settings):
    """Training that learns its few rows by heart, and is measured on them with other labels."""
    rows = tiny.texts(16)
    wrong = [row | {"labels": (row["labels"] + 1) % tiny.CLASSES} for row in rows]
    settings = {"max_steps": 4, "learning_rate": 3e-3, "loss": "cross_entropy"} | settings
    if cls is TrainingArguments:
        del settings["loss"]

    def compute_metrics(outputs):
        logits = outputs.predictions - outputs.predictions.max(-1, keepdims=True)
        shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        errors = shares - np.eye(tiny.CLASSES)[outputs.label_ids]
        return {"mae": np.abs(errors).mean(), "mse": (errors**2).mean()}

    trainer = LossTrainer(
        model=tiny.bert(),
        args=tiny.arguments(tmp_path, cls, metric_for_best_model=metric, **(BEST | settings)),
        train_dataset=rows,
        eval_dataset={"seen": rows, "wrong": wrong},
        compute_metrics=compute_metrics,
        callbacks=list(callbacks),
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("name", ["cross_entropy", "mse", "mae", "ece", "loss"])
@pytest.mark.parametrize("rows", ["seen", "eval_wrong"])
def test_the_model_with_the_least_error_is_loaded(tmp_path, rows, name):
    trainer = overfit(tmp_path, f"{rows}_{name}")
    key = f"eval_{rows.removeprefix('eval_')}_{name}"
    errors = {log["step"]: log[key] for log in trainer.state.log_history if key in log}
    least = min(errors.values())
    assert max(errors.values()) > least
    assert trainer.state.best_metric == least
    assert errors[trainer.state.best_global_step] == least
    assert trainer.evaluate()[key] == pytest.approx(least, rel=1e-5)


def test_early_stopping_lets_a_training_go_on_that_improves(tmp_path):
    trainer = overfit(tmp_path, "seen_cross_entropy", [EarlyStoppingCallback(1)])
    assert trainer.state.global_step == 4
    key = "eval_seen_cross_entropy"
    errors = [log[key] for log in trainer.state.log_history if key in log]
    assert errors == sorted(errors, reverse=True)


def test_early_stopping_stops_what_gets_worse(tmp_path):
    trainer = overfit(tmp_path, "wrong_cross_entropy", [EarlyStoppingCallback(1)])
    assert trainer.state.global_step < 4


@pytest.mark.parametrize(("metric", "mode"), [("accuracy", "max"), ("mse", "min"), (None, "min")])
def test_a_learning_rate_that_follows_the_metric_knows_its_direction(tmp_path, metric, mode):
    settings = {"output_dir": str(tmp_path), "metric_for_best_model": metric} | EVERY_STEP
    for kind in ("reduce_lr_on_plateau", "greedy"):
        settings["lr_scheduler_type"] = kind
        assert LossTrainingArguments(**settings).lr_scheduler_kwargs == {"mode": mode}
        scheduler_kwargs = {"mode": "max", "factor": 0.5}
        args = LossTrainingArguments(**settings, lr_scheduler_kwargs=scheduler_kwargs)
        assert args.lr_scheduler_kwargs == scheduler_kwargs
    # A rate that does not follow the metric has no direction.
    del settings["lr_scheduler_type"]
    assert not LossTrainingArguments(**settings).lr_scheduler_kwargs


def test_the_rate_is_not_cut_while_a_metric_rises(tmp_path):
    settings = {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 0}}
    trainer = overfit(tmp_path, "wrong_mae", greater_is_better=True, **settings)
    rates = [log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log]
    values = [log["eval_wrong_mae"] for log in trainer.state.log_history if "eval_wrong_mae" in log]
    assert values == sorted(values)
    assert rates == [3e-3] * 4


def test_arguments_that_do_not_know_it_are_refused_or_right(tmp_path):
    for metric in ("seen_cross_entropy", "eval_wrong_mae"):
        with pytest.raises(ValueError, match=rf"'{metric}'.*greater_is_better=False.*LossTraining"):
            overfit(tmp_path, metric, cls=TrainingArguments)
    trainer = overfit(tmp_path, "wrong_mae", cls=TrainingArguments, greater_is_better=False)
    values = [log["eval_wrong_mae"] for log in trainer.state.log_history if "eval_wrong_mae" in log]
    assert trainer.state.best_metric == min(values)
    assert math.isfinite(min(values))
    # transformers itself knows the direction of a loss: more of it can only be what is wanted.
    settings = {"cls": TrainingArguments, "greater_is_better": True, "max_steps": 1}
    assert overfit(tmp_path, "wrong_loss", **settings).args.greater_is_better is True
