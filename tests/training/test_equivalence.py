"""Training configurations that should be equal are equal, to the bit or to rounding."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from products import product
from transformers import (
    BertForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from hf_losses import LossTrainer, compute_loss_func, list_losses
from hf_losses.models.small_lm import small_tokenizer

LOSSES = list_losses(task="classification")
TASKS = {
    "bert": (tiny.bert, tiny.texts),
    "vit": (tiny.vit, tiny.images),
    "bert-token": (
        lambda: tiny.bert(BertForTokenClassification),
        lambda size=40: tiny.texts(size, tiny.class_of_each_token),
    ),
    "causal-lm": (tiny.causal_lm, lambda size=40: tiny.texts(size, tiny.some_next_tokens)),
    "multi-label": (
        lambda: tiny.vit(problem_type="multi_label_classification"),
        lambda size=40: tiny.images(size, tiny.yes_or_no_per_class),
    ),
    "mixup": (
        lambda: tiny.vit(problem_type="single_label_classification"),
        lambda size=40: tiny.images(size, tiny.mixture_of_two_classes),
    ),
}
ONE_OF_A_KIND = ("cross_entropy", "strict_l_full", "focal")
ROUNDING = 1e-6


@pytest.mark.parametrize("task", ["bert", "vit", "bert-token", "causal-lm"])
def test_cross_entropy_is_the_stock_trainers_to_the_last_bit(task, tmp_path):
    model, data = TASKS[task]
    states, metrics = [], []
    # In one batch, the stock Trainer's evaluation is the mean over the items too.
    for cls, loss, size in ((Trainer, {}, 44), (LossTrainer, {"loss": "cross_entropy"}, 8)):
        settings = {"max_steps": 5, "per_device_eval_batch_size": size}
        args = tiny.arguments(tmp_path, TrainingArguments, **settings)
        trainer = cls(model=model(), args=args, train_dataset=data(), eval_dataset=data(44), **loss)
        trainer.train()
        states.append(trainer.model.state_dict())
        metrics.append(trainer.evaluate())
    untrained = model().state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in untrained)
    assert not all(torch.equal(states[0][name], untrained[name]) for name in untrained)
    stock = pytest.approx(metrics[0]["eval_loss"], rel=1e-6)
    assert metrics[1]["eval_loss"] == metrics[1]["eval_cross_entropy"] == stock


@pytest.mark.parametrize(
    ("task", "loss"),
    product(TASKS, LOSSES, keep=lambda _, pair: pair[0] == "causal-lm" or pair[1] in ONE_OF_A_KIND),
)
def test_accumulation_does_not_change_the_gradients(task, loss, tmp_path):
    model, data = TASKS[task]
    # 40 examples: the last step has 8 of 16, which ends an accumulation of 2 or 4 early.
    steps = {
        batch: tiny.gradients(
            tmp_path,
            model(),
            data(40),
            loss=loss,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=16 // batch,
        )
        for batch in (16, 8, 4)
    }
    assert len(steps[16]) == 3
    assert tiny.difference(steps[16], steps[8]) < ROUNDING
    assert tiny.difference(steps[16], steps[4]) < ROUNDING


@pytest.mark.parametrize("task", ["bert", "bert-token"])
def test_accumulation_does_not_change_the_gradients_with_class_weights(task, tmp_path):
    model, data = TASKS[task]
    steps = [
        tiny.gradients(
            tmp_path,
            model(),
            data(40),
            loss="strict_l",
            loss_kwargs={"weight": [1, 5, 0.5]},
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=16 // batch,
        )
        for batch in (16, 8, 4)
    ]
    assert tiny.difference(steps[0], steps[1]) < ROUNDING
    assert tiny.difference(steps[0], steps[2]) < ROUNDING


@pytest.mark.parametrize("loss", ["cross_entropy", "strict_l_full", "liberal_exp"])
@pytest.mark.parametrize("task", ["bert", "causal-lm"])
def test_stock_trainer_with_compute_loss_func_has_the_same_gradients(task, loss, tmp_path):
    model, data = TASKS[task]
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    gradients = tiny.gradients(tmp_path, model(), data(), loss=loss, **settings)
    stock = tiny.gradients(
        tmp_path,
        model(),
        data(),
        trainer=Trainer,
        keywords={"compute_loss_func": compute_loss_func(loss)},
        **settings,
    )
    assert tiny.difference(gradients, stock) < ROUNDING


def test_soft_labels_are_counted_in_rows(tmp_path):
    def hard(generator, ids):
        return tiny.one_class(generator, ids)

    def soft(generator, ids):
        return torch.eye(tiny.CLASSES)[tiny.one_class(generator, ids)]

    model = {"problem_type": "single_label_classification"}
    settings = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    for loss in ("cross_entropy", "strict_m", "liberal_exp"):
        by_index, by_row = (
            tiny.gradients(
                tmp_path, tiny.bert(**model), tiny.texts(label=label), loss=loss, **settings
            )
            for label in (hard, soft)
        )
        assert tiny.difference(by_index, by_row) < ROUNDING


# ---- Two processes -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What two processes find by the functions below."""
    file = tmp_path_factory.mktemp("two") / "found.pt"
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d"]
    subprocess.run(
        [sys.executable, *launch, "--rdzv-endpoint=localhost:0", __file__, str(file)],
        check=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(tiny.__file__).parent)},
        stdout=subprocess.DEVNULL,
    )
    return torch.load(file)


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(two_processes, tmp_path):
    # 4 x 2 processes x 2 accumulated: the last step has one micro-batch of 2.
    one = all_gradients(tmp_path, 8)
    for key, steps in one.items():
        assert tiny.difference(steps, two_processes["gradients"][key]) < ROUNDING, key


def all_gradients(folder, batch):
    # One loss of each kind; on next tokens, whose count differs from row to row, some more.
    some = ("cross_entropy", "strict_l_full", "liberal_exp")
    more = (*some, "focal", "strict_m_power")
    others = {
        "warm-up": {"loss": "liberal_circle", "loss_warmup_steps": 3},
        "fused": {"loss": "liberal_exp", "fused_linear": True},
        "weights": {"loss": "dft"},
        "weights, fused": {"loss": "strict_l", "fused_linear": True},
        "weights of rows": {"loss": "gce"},
        "class weights": {
            "loss": "strict_l",
            "loss_kwargs": {"weight": [1 + n % 3 for n in range(tiny.VOCABULARY)]},
        },
    }
    data = dict.fromkeys(others, TASKS["causal-lm"][1]())
    generator = torch.Generator().manual_seed(7)
    for name, shape in (
        ("weights", (tiny.LENGTH,)),
        ("weights, fused", (tiny.LENGTH,)),
        ("weights of rows", ()),
    ):
        data[name] = [
            row | {"loss_weight": torch.rand(shape, generator=generator)} for row in data[name]
        ]
    return {
        name: tiny.gradients(
            folder,
            TASKS["causal-lm"][0](),
            data[name],
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=2,
            **settings,
        )
        for name, settings in others.items()
    } | {
        (task, loss): tiny.gradients(
            folder,
            TASKS[task][0](),
            TASKS[task][1](),
            loss=loss,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=2,
        )
        for task, losses in (("bert", some), ("vit", some), ("causal-lm", more))
        for loss in losses
    }


@pytest.mark.slow
def test_two_processes_train_on_an_incomplete_batch_as_the_stock_trainer(two_processes):
    assert tiny.difference(*two_processes["incomplete"]) < ROUNDING


def gradients_of_stock_and_ours(folder):
    # ViT is one of the models that the stock Trainer divides right.
    return [
        tiny.gradients(
            folder,
            tiny.vit(),
            tiny.images(37),
            trainer=trainer,
            per_device_train_batch_size=4,
        )
        for trainer in (Trainer, LossTrainer)
    ]


@pytest.mark.slow
def test_two_processes_evaluate_as_one(two_processes, tmp_path):
    one = all_evaluations(tmp_path, 8)
    for key, numbers in one.items():
        assert two_processes["evaluations"][key] == pytest.approx(numbers, rel=ROUNDING), key


def all_evaluations(folder, batch):
    """The last batch has 8 rows, 5, 2 (none for the second process), or there are 3 in all."""
    tasks = {
        task: (*TASKS[task], "strict_l", torch.nn.functional.cross_entropy)
        for task in ("bert", "vit", "bert-token", "multi-label")
    }
    tasks["regression"] = (
        lambda: tiny.bert(num_labels=1),
        lambda size: tiny.texts(size, tiny.number),
        "smae",
        torch.nn.functional.l1_loss,
    )
    evaluations = {}
    for per_token in (True, False):
        args = tiny.arguments(folder, per_device_eval_batch_size=batch, loss="gce")
        trainer = LossTrainer(TASKS["bert-token"][0](), args)
        generator = torch.Generator().manual_seed(7)
        for size in (37, 34, 3):
            shape = (tiny.LENGTH,) if per_token else ()
            rows = [
                row | {"loss_weight": torch.rand(shape, generator=generator)}
                for row in TASKS["bert-token"][1](size)
            ]
            metrics = trainer.evaluate(rows)
            key = "weights", per_token, size
            evaluations[key] = metrics["eval_loss"], metrics["eval_cross_entropy"]
            assert abs(evaluations[key][0] - evaluations[key][1]) > 0.1
    for task, (model, data, *losses) in tasks.items():
        # Without averaging, Trainer takes the mean of two means, which are equal only by row.
        for average in (True, False) if task == "bert" else (True,):
            for loss in losses:
                arguments = tiny.arguments(
                    folder,
                    per_device_eval_batch_size=batch,
                    average_tokens_across_devices=average,
                )
                trainer = LossTrainer(model=model(), args=arguments, loss=loss)
                for size in (40, 37, 34, 3):
                    metrics = trainer.evaluate(data(size))
                    key = task, average, loss if isinstance(loss, str) else loss.__name__, size
                    baseline = "eval_mse" if task == "regression" else "eval_cross_entropy"
                    calibration = metrics.get("eval_ece", 0.0)
                    evaluations[key] = metrics["eval_loss"], metrics[baseline], calibration
    return evaluations


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
def test_two_processes_resume_within_their_second_epoch(two_processes, strategy):
    whole, resumed = two_processes["resumed"][strategy]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def weights_of_whole_and_resumed(folder, strategy):
    weights = []
    for checkpoint in (None, str(folder / strategy / "checkpoint-7")):
        args = tiny.arguments(
            folder / strategy,
            loss="strict_l",
            max_steps=10,
            per_device_train_batch_size=4,
            save_strategy="steps",
            save_steps=7,
            train_sampling_strategy=strategy,
        )
        # With dropout the processes, whose rows differ in length, draw unequally many numbers.
        rows = [
            row | {"input_ids": row["input_ids"][:length], "attention_mask": torch.ones(length)}
            for row, length in zip(tiny.texts(), [4, 8] * 20, strict=True)
        ]
        trainer = LossTrainer(
            model=tiny.bert(hidden_dropout_prob=0.1),
            args=args,
            train_dataset=rows,
            data_collator=DataCollatorWithPadding(small_tokenizer()),
        )
        trainer.train(checkpoint)
        weights.append(trainer.model.state_dict())
    return weights


@pytest.mark.slow
def test_a_gradient_that_one_of_two_processes_breaks_is_one_step(two_processes):
    assert two_processes["nonfinite"] == 2


def nonfinite_steps(folder):
    trainer = LossTrainer(
        model=tiny.bert(), args=tiny.arguments(folder), train_dataset=tiny.texts()
    )
    broken = os.environ["RANK"] == "1"
    trainer.model.classifier.bias.register_hook(
        lambda grad: grad * math.nan if broken and trainer.state.global_step else grad
    )
    return trainer.train().metrics["train_nonfinite_grad_steps"]


@pytest.mark.slow
def test_two_processes_log_the_figures_of_one(two_processes, tmp_path):
    # Tokens without labels: the processes do not have equally many items.
    one = all_figures(tmp_path, 8)
    assert one.keys() == two_processes["figures"].keys()
    for key, lines in one.items():
        assert len(lines) == 3, key
        for expected, numbers in zip(lines, two_processes["figures"][key], strict=True):
            assert numbers == pytest.approx(expected, rel=1e-4, abs=1e-6), key


def all_figures(folder, batch):
    figures = {}
    for task, loss in (("bert", "strict_l"), ("bert-token", "liberal_exp"), ("mixup", "strict_m")):
        trainer = LossTrainer(
            model=TASKS[task][0](),
            args=tiny.arguments(
                folder,
                loss=loss,
                loss_stats_steps=1,
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=2,
                num_train_epochs=1,
                max_steps=-1,
                learning_rate=0.0,
                train_sampling_strategy="sequential",
            ),
            train_dataset=TASKS[task][1](),
        )
        trainer.train()
        lines = [
            {key: value for key, value in line.items() if key.startswith("loss_stats/")}
            for line in trainer.state.log_history
        ]
        figures[task, loss] = [line for line in lines if line]
    return figures


if __name__ == "__main__":
    folder = Path(sys.argv[1]).parent
    found = {
        "gradients": all_gradients(folder, 4),
        "incomplete": gradients_of_stock_and_ours(folder),
        "evaluations": all_evaluations(folder, 4),
        "nonfinite": nonfinite_steps(folder),
        "resumed": {
            strategy: weights_of_whole_and_resumed(folder, strategy)
            for strategy in ("group_by_length", "random")
        },
        "figures": all_figures(folder, 4),
    }
    if os.environ["RANK"] == "0":
        torch.save(found, sys.argv[1])
    torch.distributed.barrier()
    sys.stderr.flush()
    # What was found is on disk. Torn down regularly, torch 2.13 has once ended a process by SIGABRT
    # ("terminate called without an active exception", among Gloo's threads).
    os._exit(0)
