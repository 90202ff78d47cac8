"""`loss_stats_steps`: what a loss does to the single examples of a step, in the log."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from test_equivalence import TASKS
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertForTokenClassification, Trainer, TrainerCallback, TrainingArguments

from hf_losses import LossMixin, LossTrainer, LossTrainingArguments, get_loss, list_losses
from hf_losses.training.loss.items import Items
from hf_losses.training.reports import item_stats as room
from hf_losses.training.reports.item_stats import ABSENT, item_stats, summary

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))

LOSSES = list_losses(task="classification")
STRICT = [name for name in LOSSES if get_loss(name).spec.kind == "strict"]
PREFIX = "loss_stats/"
SHARE = f"{PREFIX}at_max_weight"
FIXED = {"learning_rate": 0.0, "train_sampling_strategy": "sequential"}


class Recorder(TrainerCallback):
    """What every `report_to` backend is handed."""

    def __init__(self):
        self.lines = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.lines.append(dict(logs) | {"step": state.global_step})


def train(folder, task="bert", *, model=None, keywords=None, **settings):
    seen = Recorder()
    trainer = LossTrainer(
        model=model or TASKS[task][0](),
        args=tiny.arguments(folder, **settings),
        train_dataset=TASKS[task][1](),
        callbacks=[seen],
        **(keywords or {}),
    )
    trainer.train()
    trainer.seen = seen.lines
    return trainer


def figures(lines):
    """The figures by step."""
    by_step = {}
    for line in lines:
        numbers = {k.removeprefix(PREFIX): v for k, v in line.items() if k.startswith(PREFIX)}
        if numbers:
            assert line["step"] not in by_step
            by_step[line["step"]] = numbers
    return by_step


# ---- An independent computation, slow and in float64 ---------------------------------------------


def quantiles(name, values):
    """By sorting and counting."""
    values, last = sorted(values), len(values) - 1
    return {f"{name}_q{q:02}": values[round(q / 100 * last)] for q in (5, 25, 50, 75, 95)}


def expected(loss, logits, labels, *, several=False, **options):
    """Row by row: the probability from the softmax, the weight from two gradients."""
    problem = {"problem_type": "multi_label_classification"} if several else {}
    criterion = get_loss(loss, reduction="sum", **options, **problem)
    smoothing = {"label_smoothing": options.get("label_smoothing", 0.0)}
    baseline = get_loss("cross_entropy", reduction="sum", **smoothing, **problem)
    p_y, weights = [], []

    def weigh(z, target):
        norms = []
        for of in (criterion, baseline):
            z = z.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(of(z, target), z)
            norms.append(gradient.abs().sum().item())
        weights.append(norms[0] / norms[1])

    for z, label in zip(
        logits.double().reshape(-1, logits.shape[-1]),
        labels.reshape(-1, logits.shape[-1]) if labels.is_floating_point() else labels.reshape(-1),
        strict=True,
    ):
        if several:
            for one, yes in zip(z, label, strict=True):
                p_y.append(1 / (1 + math.exp(-one if yes else one)))
                weigh(one[None, None], yes[None, None])
        elif label.dim() or label != -100:
            shares = np.exp(z.numpy() - z.max().item())
            p_y.append((shares / shares.sum())[label.argmax() if label.dim() else label])
            weigh(z[None], label[None])
    p_y = np.array(p_y)
    return (
        quantiles("p_y", p_y)
        | quantiles("margin", np.log(p_y) - np.log1p(-p_y))
        | quantiles("weight", weights)
    )


@pytest.mark.parametrize(
    ("task", "loss"),
    [
        *(("bert", "cross_entropy"), ("vit", "strict_l"), ("bert-token", "strict_m_full")),
        *(("causal-lm", "liberal_exp"), ("multi-label", "strict_l"), ("mixup", "liberal_circle")),
    ],
)
def test_the_figures_are_those_of_the_models_logits(task, loss, tmp_path):
    trainer = train(
        tmp_path,
        task,
        loss=loss,
        loss_stats_steps=1,
        per_device_train_batch_size=16,
        num_train_epochs=1,
        max_steps=-1,
        **FIXED,
    )
    rows = TASKS[task][1]()
    logged = figures(trainer.seen)
    assert list(logged) == [1, 2, 3]
    for step in logged:
        batch = rows[16 * step - 16 : 16 * step]
        inputs = {
            key: torch.stack([row[key] for row in batch]) for key in batch[0] if key != "labels"
        }
        labels = torch.stack([torch.as_tensor(row["labels"]) for row in batch])
        with torch.no_grad():
            logits = trainer.model.eval()(**inputs).logits
        if task == "causal-lm":
            logits, labels = logits[:, :-1], labels[:, 1:]
        wanted = expected(loss, logits, labels, several=task == "multi-label")
        if loss in STRICT:
            wanted["at_max_weight"] = 0.0
        assert logged[step] == pytest.approx(wanted, rel=1e-4, abs=1e-6)
        assert list(logged[step]) == list(wanted)


@pytest.mark.parametrize(
    ("task", "loss"),
    [
        *(("bert", "strict_l"), ("bert-token", "liberal_exp"), ("causal-lm", "strict_m_full")),
        *(("multi-label", "cross_entropy"), ("mixup", "strict_m")),
    ],
)
def test_all_micro_batches_count(task, loss, tmp_path):
    # 40 examples: the last step has 8 of 16.
    logged = [
        figures(
            train(
                tmp_path,
                task,
                loss=loss,
                loss_stats_steps=1,
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=16 // batch,
                num_train_epochs=1,
                max_steps=-1,
                **FIXED,
            ).seen
        )
        for batch in (16, 4)
    ]
    assert list(logged[0]) == list(logged[1]) == [1, 2, 3]
    for step, numbers in logged[0].items():
        assert logged[1][step] == pytest.approx(numbers, rel=1e-4, abs=1e-6)


# ---- The gradient weight -------------------------------------------------------------------------


def weight_by_autograd(loss, logits, target):
    """In float64; without rounding, as 1 - p is a sum over the other classes."""
    z = logits.double().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(z, target).sum(), z)
    shares = z.detach().softmax(-1)
    others = shares.scatter(-1, target[:, None], 0.0).sum(-1)
    return gradient.norm(1, -1) / (2 * others)


@pytest.mark.parametrize("chunk", [10, 2**22])
@pytest.mark.parametrize("max_weight", [1e4, 5.0, math.inf])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_weight_is_the_gradients_norm_over_cross_entropys(loss, max_weight, chunk, monkeypatch):
    monkeypatch.setattr(room, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.1, 1.0, 5.0, 12.0]).repeat_interleave(10)[:, None]
    logits = torch.randn(40, 5, generator=generator) * scale
    target = torch.randint(0, 5, (40,), generator=generator)
    target[::7] = -100
    kept = target != -100
    for weights in (None, [1.0, 2.0, 0.5, 0.0, 3.0]):
        criterion = get_loss(loss, max_weight=max_weight, weight=weights)
        items = item_stats(criterion, logits, target)
        assert torch.equal(items[:, 2] != ABSENT, kept)
        items = items[kept]
        plain = get_loss(loss, max_weight=max_weight, weight=weights, reduction="none")
        weights = weight_by_autograd(plain, logits[kept], target[kept])
        torch.testing.assert_close(items[:, 1].double(), weights, rtol=1e-4, atol=1e-7)
    assert items.shape == (kept.sum(), 3)
    assert items.dtype == torch.float32


@pytest.mark.parametrize("loss", LOSSES)
def test_the_weight_under_smoothing_and_for_probabilities(loss):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 4, generator=generator) * 2
    target = torch.randint(0, 4, (12,), generator=generator)
    target[3] = -100
    soft = torch.rand(12, 4, generator=generator).softmax(-1)
    for labels, smoothing in ((target, 0.1), (soft, 0.0), (soft, 0.1)):
        criterion = get_loss(loss, label_smoothing=smoothing)
        numbers = summary(criterion, item_stats(criterion, logits, labels))
        numbers = {key.removeprefix(PREFIX): value for key, value in numbers.items()}
        numbers.pop("at_max_weight", None)
        wanted = expected(loss, logits, labels, label_smoothing=smoothing)
        assert numbers == pytest.approx(wanted, rel=1e-4)
    criterion = get_loss("cross_entropy", label_smoothing=0.1)
    assert (item_stats(criterion, logits, target)[target != -100, 1] == 1).all()


@pytest.mark.parametrize("per_token", [False, True])
def test_weights_of_items_multiply_theirs(per_token, tmp_path):
    rows = tiny.texts(40, tiny.class_of_each_token)
    generator = torch.Generator().manual_seed(3)
    for row in rows:
        row["loss_weight"] = 3 * torch.rand(
            (tiny.LENGTH,) if per_token else (), generator=generator
        )
    settings = {"loss": "strict_l", "loss_stats_steps": 1, "max_steps": 1, **FIXED}
    args = tiny.arguments(tmp_path, per_device_train_batch_size=16, **settings)
    seen = Recorder()
    model = tiny.bert(BertForTokenClassification)
    trainer = LossTrainer(model, args, train_dataset=rows, callbacks=[seen])
    trainer.train()
    batch = {key: torch.stack([row[key] for row in rows[:16]]) for key in rows[0]}
    labels, weight = batch.pop("labels"), batch.pop("loss_weight")
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    kept = labels != -100
    each = weight_by_autograd(get_loss("strict_l", reduction="none"), logits[kept], labels[kept])
    weight = weight if per_token else weight.unsqueeze(-1).expand(labels.shape)
    wanted = quantiles("weight", (each * weight[kept]).tolist())
    (found,) = figures(seen.lines).values()
    assert {key: found[key] for key in wanted} == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_ends_of_the_margin(loss):
    # p_y from exactly 0 (a class that cannot occur) to exactly 1.
    low = [-math.inf, -1e4, -200.0, -90.0, -30.0]
    margins = torch.tensor([*low, *(-x for x in reversed(low))])
    logits = torch.stack([margins, torch.zeros(10)], -1)
    logits[-1] = torch.tensor([0.0, -math.inf])
    criterion = get_loss(loss)
    items = item_stats(criterion, logits, torch.zeros(10, dtype=torch.long))
    assert torch.equal(items[:, 0], margins)
    assert items[:, 1].isfinite().all()
    if loss in STRICT and "full" not in loss:
        assert (items[:2, 1:] == torch.tensor([1e4, 1.0])).all()
    for bad in (math.nan, math.inf):
        broken = logits.clone()
        broken[4, 1] = bad
        numbers = summary(criterion, item_stats(criterion, broken, torch.zeros(10).long()))
        assert math.isnan(numbers[f"{PREFIX}margin_q05"])
        assert math.isnan(numbers[f"{PREFIX}weight_q95"])


# ---- The share at max_weight ---------------------------------------------------------------------


@pytest.mark.parametrize("loss", STRICT)
def test_the_share_at_max_weight_is_as_planted(loss):
    p = torch.tensor([1e-6] * 3 + [0.04, 0.06] + [0.5] * 5 + [0.999999])
    logits = torch.stack([torch.logit(p.double()), torch.zeros(11)], -1).float()
    spec = get_loss(loss).spec
    w = {"p": 0.05, "alpha": 0.5, "sqrt": math.sqrt}
    formula = spec.weight_formula or ("1/p" if "_m" in loss else "(1 - p)/(sqrt(p)*(2 - p)**1.5)")
    criterion = get_loss(loss, max_weight=eval(formula, w))  # The formula at p = 0.05.
    target = torch.zeros(11, dtype=torch.long)
    target[1] = -100
    numbers = summary(criterion, item_stats(criterion, logits, target))
    assert numbers[SHARE] == pytest.approx(3 / 10)
    for limit, share in ((math.inf, 0.0), (1e-12, 1.0)):
        criterion = get_loss(loss, max_weight=limit)
        assert summary(criterion, item_stats(criterion, logits[:5], target[:5]))[SHARE] == share


def test_losses_without_max_weight_have_no_such_share(tmp_path):
    for loss in ("cross_entropy", "liberal_exp"):
        (numbers,) = figures(train(tmp_path, loss=loss, loss_stats_steps=3).seen).values()
        assert "at_max_weight" not in numbers


# ---- Regression ----------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", list_losses(task="regression"))
def test_regression_has_the_error_and_the_slope(loss, tmp_path):
    data = tiny.texts(16, tiny.number)
    seen = Recorder()
    args = tiny.arguments(
        tmp_path,
        loss=loss,
        loss_stats_steps=1,
        max_steps=1,
        per_device_train_batch_size=16,
        **FIXED,
    )
    trainer = LossTrainer(tiny.bert(num_labels=1), args, train_dataset=data, callbacks=[seen])
    trainer.train()
    predicted, labels = map(torch.from_numpy, trainer.predict(data)[:2])
    error = (predicted.squeeze(-1) - labels).double().requires_grad_()
    (slope,) = torch.autograd.grad(get_loss(loss)(error, torch.zeros(16)) * 16, error)
    sizes = error.abs().tolist()
    wanted = quantiles("error", sizes) | quantiles("weight", slope.abs().tolist())
    assert figures(seen.lines) == {1: pytest.approx(wanted, rel=1e-5)}


# ---- The training is left alone ------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("bert", {"loss": "strict_l"}),
        ("vit", {"loss": "strict_m_full", "gradient_accumulation_steps": 2}),
        ("causal-lm", {"loss": "liberal_exp", "bf16": True}),
        ("bert", {"loss": "cross_entropy", "label_smoothing_factor": 0.1}),
        ("bert", {"loss": "strict_m", "gradient_checkpointing": True, "loss_warmup_steps": 2}),
        ("multi-label", {"loss": "liberal_circle"}),
    ],
)
def test_the_same_weights_to_the_last_bit(task, settings, tmp_path):
    with_, without = (
        train(
            tmp_path,
            task,
            model=tiny.bert(hidden_dropout_prob=0.1) if task == "bert" else None,
            learning_rate=1e-2,
            max_steps=4,
            loss_stats_steps=steps,
            eval_strategy="steps",
            eval_steps=2,
            keywords={"eval_dataset": TASKS[task][1](8)},
            **settings,
        )
        for steps in (1, 0)
    )
    for a, b in zip(with_.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert list(figures(with_.seen)) == [1, 2, 3, 4]
    assert all(math.isfinite(x) for line in figures(with_.seen).values() for x in line.values())
    assert stripped(with_.seen) == stripped(without.seen)
    assert figures(without.seen) == {}


def stripped(lines):
    """The log without the figures and without what the clock says."""
    prefixes = (PREFIX, "train_runtime", "train_s", "eval_runtime", "eval_s")
    return [{k: v for k, v in line.items() if not k.startswith(prefixes)} for line in lines]


def test_steps_that_log_nothing_do_nothing(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(room, "item_stats", lambda *args: calls.append(1) or item_stats(*args))
    # Every third step has one micro-batch.
    settings = {"loss": "strict_l", "gradient_accumulation_steps": 2, "max_steps": 5}
    trainer = train(tmp_path, loss_stats_steps=2, **settings)
    assert list(figures(trainer.seen)) == [2, 4]
    assert len(calls) == 4
    train(tmp_path, **settings)
    trainer.evaluate(tiny.texts())
    assert len(calls) == 4
    assert LossTrainingArguments("x", use_cpu=True).loss_stats_steps == 0


class Largest(TorchDispatchMode):
    """The largest tensor that is made, in numbers."""

    def __init__(self, given):
        super().__init__()
        self.numbers, self.given = 0, given.untyped_storage().data_ptr()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if torch.is_tensor(tensor) and tensor.untyped_storage().data_ptr() != self.given:
                self.numbers = max(self.numbers, tensor.numel())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_vocabulary_is_not_copied(dtype, monkeypatch):
    monkeypatch.setattr(room, "CHUNK", 4000)
    logits = torch.randn(4, 50, 1000).to(dtype)
    for loss in ("strict_l", "strict_m_full"):
        with Largest(logits) as largest:
            items = item_stats(get_loss(loss), logits, torch.zeros(4, 50, dtype=torch.long))
        assert len(items) == 200
        assert largest.numbers <= 4000


# ---- The log -------------------------------------------------------------------------------------


def test_every_backend_gets_floats_once_a_step(tmp_path):
    settings = {"loss": "strict_l", "max_steps": 6, "logging_steps": 3}
    with_, without = (train(tmp_path, loss_stats_steps=n, **settings) for n in (2, 0))
    assert list(figures(with_.seen)) == [2, 4, 6]
    assert with_.state.log_history == with_.seen
    steps = [(line["step"], "loss" in line) for line in with_.seen]
    # Step 6 has both in one line; the last line is that of the whole training.
    assert steps == [(2, False), (3, True), (4, False), (6, True), (6, False)]
    for line in figures(with_.seen).values():
        assert all(type(value) is float for value in line.values())
        assert len(line) == 16
    assert all(line["epoch"] > 0 for line in with_.seen)
    # All else is as without: loss, gradient norm and learning rate of the other lines.
    others = [line for line in stripped(with_.seen) if len(line) > 2]
    assert others == stripped(without.seen)


def test_what_reads_the_log_is_not_disturbed(tmp_path):
    from hf_losses.training.reports.logged import history

    cards, histories = [], []
    for n in (3, 0):
        folder = tmp_path / "same"
        trainer = train(
            folder,
            loss="liberal_exp",
            loss_stats_steps=n,
            max_steps=4,
            logging_steps=2,
            eval_strategy="steps",
            eval_steps=2,
            keywords={"eval_dataset": tiny.texts(8)},
        )
        trainer.save_model()
        for line in trainer.state.log_history:
            line |= {key: 1.0 for key in line if key.endswith(("_runtime", "_per_second"))}
        trainer.create_model_card()
        cards.append((folder / "README.md").read_text())
        cards.append((folder / "learning_curve.png").read_bytes())
        histories.append(history(trainer.state.log_history, ["validation"]))
    assert cards[:2] == cards[2:]
    assert histories[0] == histories[1]
    assert [line["step"] for line in histories[0]] == [2, 4]


def test_with_a_warm_up_the_weight_is_that_of_the_target_loss(tmp_path):
    settings = {"loss": "liberal_exp", "loss_stats_steps": 1, "max_steps": 3} | FIXED
    with_, without = (
        figures(train(tmp_path, loss_warmup_steps=n, **settings).seen) for n in (2, 0)
    )
    assert with_ == without


def test_a_step_without_items_logs_none(tmp_path):
    model, _ = TASKS["bert-token"]
    args = tiny.arguments(tmp_path, loss="strict_l", loss_stats_steps=1)
    data = tiny.texts(label=lambda g, ids: torch.full_like(ids, -100))
    trainer = LossTrainer(model(), args, train_dataset=data)
    trainer.train()
    assert figures(trainer.state.log_history) == {}


def test_another_training_begins_anew(tmp_path):
    trainer = train(tmp_path, loss="strict_l", loss_stats_steps=1, max_steps=2, **FIXED)
    first = figures(trainer.seen)
    trainer.seen.clear()
    # As after an error in the middle of a step.
    batch = Items(torch.zeros(1, 3), torch.zeros(1, dtype=torch.long), None)
    trainer._stats.add(trainer.criterion, batch)
    trainer.train()
    assert figures(trainer.seen) == first


# ---- Arguments -----------------------------------------------------------------------------------


def test_arguments_of_ones_own(tmp_path):
    @dataclass
    class Own(TrainingArguments):
        loss: str = "strict_l"
        loss_stats_steps: int = 2

    class Mine(LossMixin, Trainer):
        pass

    seen = Recorder()
    args = tiny.arguments(tmp_path, Own)
    Mine(tiny.bert(), args, train_dataset=tiny.texts(), callbacks=[seen]).train()
    assert list(figures(seen.lines)) == [2]


@pytest.mark.parametrize("steps", [-1, 0.5, float("nan")])
def test_bad_steps_are_an_error(steps, tmp_path):
    with pytest.raises(ValueError, match=f"loss_stats_steps must be a whole number.*got {steps}"):
        LossTrainingArguments(str(tmp_path), loss_stats_steps=steps, use_cpu=True)


def test_a_loss_without_a_known_weight_is_an_error(tmp_path):
    def mine(logits, labels):
        return torch.nn.functional.cross_entropy(logits, labels)

    for loss in (mine, torch.nn.MultiMarginLoss()):
        args = tiny.arguments(tmp_path, loss_stats_steps=1)
        with pytest.raises(ValueError, match=r"loss_stats_steps=1 needs a loss of this project"):
            LossTrainer(tiny.bert(), args, train_dataset=tiny.texts(), loss=loss)
        LossTrainer(tiny.bert(), tiny.arguments(tmp_path), train_dataset=tiny.texts(), loss=loss)


def test_a_loss_that_a_user_registers(eleventh_loss):
    criterion = get_loss(eleventh_loss)
    logits = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    items = item_stats(criterion, logits, torch.tensor([0, 0]))
    p = logits.softmax(-1)[:, 0]
    torch.testing.assert_close(items[:, 1], 2 / p**2)
