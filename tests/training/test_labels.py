"""What labels may be, and what counts as one item: the right number from formulas by hand."""

from __future__ import annotations

import logging
from contextlib import nullcontext

import pytest
import tiny
import torch
from accelerate import ParallelismConfig
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import BertForTokenClassification, TrainingArguments

from hf_losses import LossTrainer, compute_loss_func, get_loss
from hf_losses.training.checks import check_trainer
from hf_losses.training.loss.items import divisors, sum_over_items

SINGLE, SEVERAL = "single_label_classification", "multi_label_classification"


@pytest.fixture
def build(tmp_path):
    def build(model, data, loss=None, args_class=TrainingArguments, **settings):
        args = tiny.arguments(tmp_path, args_class, **settings)
        return LossTrainer(model=model, args=args, train_dataset=data, eval_dataset=data, loss=loss)

    return build


def batch(rows):
    return {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}


def outputs(model, rows):
    """Logits in float64, and the labels."""
    inputs = batch(rows)
    labels = inputs.pop("labels")
    with torch.no_grad():
        return model.eval()(**inputs).logits.double(), labels


def first_loss(trainer):
    """The loss of the first step, which is that of the untouched model."""
    trainer.train()
    return trainer.state.log_history[0]["loss"]


# ---- Losses of the user's own --------------------------------------------------------------------


def stars(generator, ids):
    return torch.randint(0, 6, (), generator=generator).item()


def column(label):
    return lambda generator, ids: torch.tensor([label(generator, ids)])


NUMBERS = {
    "MSELoss": (nn.MSELoss(), lambda e: e**2),
    "L1Loss": (nn.L1Loss(), lambda e: e.abs()),
    "HuberLoss": (nn.HuberLoss(), lambda e: torch.where(e.abs() < 1, e**2 / 2, e.abs() - 0.5)),
    "a function": (lambda logits, labels: ((logits.squeeze() - labels) ** 2).mean(), torch.square),
    "one value each": (lambda logits, labels: (logits - labels).abs(), torch.abs),
}


@pytest.mark.parametrize("label", [stars, column(stars)], ids=["B", "Bx1"])
@pytest.mark.parametrize("loss", NUMBERS)
def test_one_output_meets_whole_numbers_one_by_one(loss, label, build):
    loss, formula = NUMBERS[loss]
    data = tiny.texts(16, label)
    trainer = build(
        tiny.bert(num_labels=1), data, loss, per_device_train_batch_size=16, max_steps=1
    )
    logits, labels = outputs(trainer.model, data)
    expected = formula(logits.flatten() - labels.flatten()).mean().item()
    assert first_loss(trainer) == pytest.approx(expected, rel=1e-4)


def test_a_module_of_ones_own_with_one_output_meets_numbers_one_by_one(build):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(tiny.LENGTH, 1)

        def forward(self, input_ids, attention_mask):
            return {"logits": self.linear(input_ids.float())}

    data, model = tiny.texts(16, stars), Own()
    trainer = build(model, data, nn.MSELoss(), per_device_train_batch_size=16, max_steps=1)
    inputs = batch(data)
    with torch.no_grad():
        errors = model.linear(inputs["input_ids"].float()).flatten() - inputs["labels"]
    assert first_loss(trainer) == pytest.approx((errors**2).mean().item(), rel=1e-4)


@pytest.mark.parametrize("outputs_", [1, 3])
def test_yes_or_no_labels_may_be_integers(outputs_, build):
    def label(generator, ids):
        return torch.randint(0, 2, (outputs_,), generator=generator).squeeze()

    data = tiny.texts(8, label)
    model = tiny.bert(num_labels=outputs_, problem_type=SEVERAL)
    trainer = build(model, data, nn.BCEWithLogitsLoss(), max_steps=1)
    logits, labels = outputs(model, data)
    p = torch.where(labels.view_as(logits) == 1, logits.sigmoid(), (-logits).sigmoid())
    assert first_loss(trainer) == pytest.approx(-p.log().mean().item(), rel=1e-4)


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        nn.functional.cross_entropy,
        lambda logits, labels: nn.functional.cross_entropy(logits, labels, reduction="none"),
        nn.KLDivLoss(reduction="batchmean"),
    ],
    ids=["module", "function", "one value each", "batchmean"],
)
@pytest.mark.parametrize("declared", [True, False])
def test_a_row_of_probabilities_is_one_item_for_any_loss(declared, loss, build):
    model = tiny.vit(problem_type=SINGLE if declared else None)
    data = tiny.images(16, tiny.mixture_of_two_classes)
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    trainer = build(model, data, loss, max_steps=1, **settings)
    logits, shares = outputs(model, data)
    if isinstance(loss, nn.KLDivLoss):
        rows = (torch.special.xlogy(shares, shares) - shares * logits).sum(-1)
    else:
        rows = -(shares * logits.log_softmax(-1)).sum(-1)
    expected = rows.mean().item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert first_loss(trainer) == pytest.approx(expected, rel=1e-4)


def test_labels_in_a_column_are_classes(build):
    data = tiny.texts(8, column(tiny.one_class))
    for loss in ("cross_entropy", "strict_m", nn.CrossEntropyLoss()):
        trainer = build(tiny.bert(), data, loss)
        logits, labels = outputs(trainer.model, data)
        p = logits.softmax(-1).gather(-1, labels)
        expected = (1 / p - 1) if loss == "strict_m" else -p.log()
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.mean().item(), rel=1e-5)


@pytest.mark.parametrize("loss", ["cross_entropy", "liberal_exp", nn.CrossEntropyLoss()])
def test_logits_longer_than_their_labels_are_told_in_one_line(loss, build):
    def short(generator, ids):
        return tiny.class_of_each_token(generator, ids)[:-2]

    trainer = build(tiny.bert(BertForTokenClassification), tiny.texts(8, short), loss)
    message = r"labels of shape \(8, 6\) do not fit the model's output of shape \(8, 8, 3\)"
    with pytest.raises(ValueError, match=message):
        trainer.train()


def test_classes_as_floats_are_told_to_be_whole_numbers(build):
    trainer = build(tiny.bert(), tiny.texts(8, lambda generator, ids: 1.0), "liberal_exp")
    with pytest.raises(ValueError, match=r"labels of shape \(8,\).*classes are whole numbers"):
        trainer.train()


# ---- What counts ---------------------------------------------------------------------------------


def test_minus_one_hundred_is_a_number_like_any_other(build):
    def label(generator, ids):
        return [-100.0, 2.5, 0.0][tiny.one_class(generator, ids)]

    data = tiny.texts(16, label)
    for loss in ("mae", nn.L1Loss()):
        settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
        trainer = build(tiny.bert(num_labels=1), data, loss, max_steps=1, **settings)
        logits, labels = outputs(trainer.model, data)
        expected = (logits.flatten() - labels).abs().mean().item()
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
        assert first_loss(trainer) == pytest.approx(expected, rel=1e-4)
    stock = compute_loss_func("mae")
    value = stock({"logits": logits.float()}, labels, (labels != -100).sum())
    assert value.item() == pytest.approx(expected, rel=1e-5)


def some_rows_without_labels(generator, ids):
    labels = tiny.class_of_each_token(generator, ids)
    return labels if torch.rand((), generator=generator) < 0.4 else torch.full_like(labels, -100)


@pytest.mark.parametrize("loss", ["strict_l", nn.CrossEntropyLoss()], ids=["ours", "module"])
def test_evaluation_is_the_mean_over_tokens_whatever_the_batch(loss, build):
    data = tiny.texts(12, some_rows_without_labels)
    model = tiny.bert(BertForTokenClassification, initializer_range=1.0)
    logits, labels = outputs(model, data)
    p = logits.softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0][labels != -100]
    cross_entropy = -p.log().mean().item()
    expected = ((1 / p).log() + 1 / p - 1).mean().item() if loss == "strict_l" else cross_entropy
    if loss == "strict_l":
        expected = get_loss("strict_l")(logits, labels).item()
    for size in (1, 5, 12):
        metrics = build(model, data, loss, per_device_eval_batch_size=size).evaluate()
        assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)
        assert metrics["eval_cross_entropy"] == pytest.approx(cross_entropy, rel=1e-5)


def test_training_without_any_label_is_told_once(build, caplog):
    def nothing(generator, ids):
        return torch.full_like(ids, -100)

    trainer = build(tiny.causal_lm(), tiny.texts(label=nothing), "liberal_exp", log_level="warning")
    logging.getLogger("hf_losses").propagate = True
    trainer.train()
    (warning,) = [r.getMessage() for r in caplog.records if r.name.startswith("hf_losses")]
    assert "no item had a label in 1 of the last optimizer steps" in warning
    assert trainer.state.log_history[0]["loss"] == 0
    caplog.clear()
    build(tiny.causal_lm(), tiny.texts(label=tiny.some_next_tokens), "liberal_exp").train()
    assert not [r for r in caplog.records if r.name.startswith("hf_losses")]


def test_a_mean_over_no_item_is_zero(build):
    def label(generator, ids):
        labels = tiny.class_of_each_token(generator, ids)
        return (
            labels if torch.rand((), generator=generator) < 0.5 else torch.full_like(labels, -100)
        )

    data = tiny.texts(8, label)
    model = tiny.bert(BertForTokenClassification)
    settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "max_steps": 1}
    trainer = build(model, data, nn.functional.cross_entropy, **settings)
    logits, labels = outputs(model, data)
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).item()
    assert first_loss(trainer) == pytest.approx(expected, rel=1e-4)
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


@pytest.mark.parametrize("averages", [True, False])
def test_counts_of_data_parallel_come_once_per_gpu(build, averages):
    trainer = build(tiny.bert(), tiny.texts(8), "strict_m", average_tokens_across_devices=averages)
    trainer.model.train()
    trainer.args._n_gpu = 2  # What torch.nn.DataParallel on two GPUs sets.
    for labels, items in ([0, 1, 2, 0], 4), ([0, 1, 2], 3), ([-100, -100], 0):
        labels = torch.tensor(labels)
        counts = trainer._get_num_items_in_batch([{"labels": labels}], "cpu")
        assert counts.tolist() == [[items], [items]]
        assert divisors(trainer, [labels], counts, SINGLE) == [max(items, 1)]
    assert int(trainer._empty_steps.count) == 1
    assert trainer.args.average_tokens_across_devices is averages


def test_the_first_step_and_one_after_an_evaluation_may_be_empty(build, caplog):
    data = tiny.texts(16, lambda generator, ids: torch.full_like(ids, -100))
    settings = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "logging_steps": 2}
    trainer = build(tiny.bert(BertForTokenClassification), data, "strict_m", **settings)
    trainer.train()
    assert "no item had a label in 2 of the last optimizer steps" in caplog.text


def test_class_weights_follow_the_logits():
    # As on a GPU, where compute_loss_func of the stock Trainer leaves the loss on the CPU.
    loss, logits, labels = get_loss("cross_entropy", weight=[1, 5]), torch.randn(4, 2), [0, 1, 1, 0]
    expected = nn.functional.cross_entropy(logits, torch.tensor(labels), loss.weight).item()
    summed = sum_over_items(loss.to(torch.bfloat16), SINGLE)
    value = summed(logits, torch.tensor(labels), 12.0, None)
    assert value.item() == pytest.approx(expected, rel=1e-6)


# ---- Labels that a loss is not defined for -------------------------------------------------------


def always(value):
    return lambda generator, ids: torch.as_tensor(value)


@pytest.mark.parametrize(
    ("problem", "label", "message"),
    [
        (SEVERAL, [-1.0, 1.0, 1.0], r"labels from -1 to 1 are no yes/no labels.*\[0, 1\].*mse"),
        (SEVERAL, [0, 5, 1], "labels from 0 to 5 are no yes/no labels"),
        (SEVERAL, [0.0, float("nan"), 1.0], "are no yes/no labels"),
        (SINGLE, [-0.5, 0.5, 1.0], "labels from -0.5 to 1 are no probabilities"),
        (SINGLE, [1.0, 1.0, 0.0], f'a row of labels sums to 2.*"problem_type": "{SEVERAL}"'),
    ],
)
@pytest.mark.parametrize("loss", [None, "liberal_exp"])
def test_targets_beyond_probabilities_are_refused(loss, problem, label, message, build):
    model = tiny.vit(problem_type=problem)
    for start in (LossTrainer.train, LossTrainer.evaluate):
        trainer = build(model, tiny.images(8, always(label)), loss)
        with pytest.raises(ValueError, match=message):
            start(trainer)


def test_the_stock_trainers_loss_refuses_them_too():
    stock = compute_loss_func("liberal_exp", problem_type=SEVERAL)
    logits = torch.zeros(2, 3)
    stock({"logits": logits}, torch.tensor([[0.0, 1.0, -100.0], [0.5, 1.0, 0.0]]))
    stock = compute_loss_func("liberal_exp", problem_type=SEVERAL)
    with pytest.raises(ValueError, match="labels from 0 to 5 are no yes/no labels"):
        stock({"logits": logits}, torch.tensor([[0.0, 5.0, 1.0], [0.0, 1.0, 1.0]]))


@pytest.mark.parametrize(
    ("problem", "label"),
    [(SEVERAL, [-100.0, 0.3, 1.0]), (SEVERAL, [0, -100, 1]), (SINGLE, [0.2, 0.3, 0.5])],
)
def test_targets_that_may_be_left_out_or_lie_between_are_taken(problem, label, build):
    build(tiny.vit(problem_type=problem), tiny.images(8, always(label)), "strict_l").train()


class Line(nn.Module):
    """A model that transformers does not know; as many outputs as asked for, or one dimension."""

    def __init__(self, outputs):
        super().__init__()
        self.linear = nn.Linear(tiny.LENGTH, outputs or 1)
        self.flat = not outputs

    def forward(self, input_ids, attention_mask):
        logits = self.linear(input_ids.float() / tiny.VOCABULARY)
        return (logits[:, 0] if self.flat else logits,)


@pytest.mark.parametrize("loss", [None, "cross_entropy", "liberal_exp"])
@pytest.mark.parametrize(
    ("outputs_", "label", "message"),
    [
        (0, tiny.number, r"\(8,\) has no dimension of classes.*loss='mse'"),
        (0, tiny.one_class, r"\(8,\) has no dimension of classes.*loss='mse'"),
        (1, tiny.number, r"\(8, 1\) has no dimension of classes.*loss='mse'"),
        (3, lambda g, ids: torch.randn(3, generator=g), r"are no probabilities.*loss='mse'"),
    ],
)
def test_numbers_are_never_silently_classes(outputs_, label, message, loss, build):
    trainer = build(Line(outputs_), tiny.texts(8, label), loss)
    with pytest.raises(ValueError, match=message):
        trainer.train()


def test_an_unknown_model_learns_what_its_loss_says(build):
    data = tiny.texts(16, lambda g, ids: ids.float().sum().item() / tiny.VOCABULARY)
    trainer = build(Line(0), data, "mse", max_steps=300, learning_rate=0.1, logging_steps=300)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 1e-2
    shares = tiny.texts(16, tiny.mixture_of_two_classes)
    trainer = build(Line(3), shares, max_steps=1, per_device_train_batch_size=16)
    inputs = batch(shares)
    with torch.no_grad():
        (logits,) = trainer.model(inputs["input_ids"], None)
        expected = -(inputs["labels"] * logits.double().log_softmax(-1)).sum(-1).mean().item()
    assert first_loss(trainer) == pytest.approx(expected, rel=1e-4)


# ---- Models of the user's own --------------------------------------------------------------------


class NoneFirst(Line):
    def forward(self, input_ids, attention_mask, labels=None):
        return None, super().forward(input_ids, attention_mask)[0]


class OtherName(Line):
    def forward(self, input_ids, attention_mask, labels=None):
        return {"scores": super().forward(input_ids, attention_mask)[0]}


class NeedsLabels(Line):
    def forward(self, input_ids, attention_mask, labels):
        (scores,) = super().forward(input_ids, attention_mask)
        return nn.functional.cross_entropy(scores, labels) * 99, scores


class NeedsLabelsDict(Line):
    def forward(self, input_ids, attention_mask, labels):
        (scores,) = super().forward(input_ids, attention_mask)
        return {"loss": nn.functional.cross_entropy(scores, labels) * 99, "scores": scores}


@pytest.mark.parametrize("model", [NoneFirst, OtherName, NeedsLabels, NeedsLabelsDict])
@pytest.mark.parametrize("gather", [False, True])
def test_a_model_may_return_its_logits_in_many_ways(model, gather, build):
    data, model = tiny.texts(8), model(3)
    trainer = build(model, data, "strict_m", eval_use_gather_object=gather, max_steps=1)
    inputs = batch(data)
    with torch.no_grad():
        scores = model.linear(inputs["input_ids"].float() / tiny.VOCABULARY)
        expected = get_loss("strict_m")(scores.double(), inputs["labels"]).item()
    output = trainer.predict(data)
    assert output.metrics["test_loss"] == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(torch.as_tensor(output.predictions), scores)
    assert first_loss(trainer) == pytest.approx(expected, rel=1e-4)


def test_labels_of_an_unknown_model_may_have_any_name(build):
    class Named(Line):
        def forward(self, input_ids, attention_mask, true_label=None):
            return super().forward(input_ids, attention_mask)

    data, model = tiny.texts(8), Named(3)
    plain = Line(3)
    plain.load_state_dict(model.state_dict())
    expected = build(plain, data, "strict_m").evaluate()
    renamed = [{"true_label" if key == "labels" else key: row[key] for key in row} for row in data]
    trainer = build(model, renamed, "strict_m", max_steps=1)
    assert trainer.evaluate()["eval_loss"] == expected["eval_loss"]
    assert first_loss(trainer) == pytest.approx(expected["eval_loss"], rel=1e-4)


def test_a_loss_or_a_model_that_returns_nothing_is_told_in_one_line(build):
    class Nothing(Line):
        def forward(self, input_ids, attention_mask):
            return None

    with pytest.raises(ValueError, match="the model returned no logits, but None: without labels"):
        build(Nothing(3), tiny.texts(8), "strict_m").train()
    with pytest.raises(ValueError, match="the loss returned None, not a tensor: the mean over"):
        build(tiny.bert(), tiny.texts(8), lambda logits, labels: None).train()


def test_a_model_without_logits_is_told_what_to_return(build):
    class Nothing(Line):
        def forward(self, input_ids, attention_mask, labels=None):
            return {"loss": None, "hint": "x"}

    message = r"no logits, but \['loss', 'hint'\]: without labels, forward must return a tensor"
    with pytest.raises(ValueError, match=message):
        build(Nothing(3), tiny.texts(8), "strict_m").train()


# ---- Virtual tokens ------------------------------------------------------------------------------

PROMPTS = {
    "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "p-tuning": PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=8
    ),
    "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("fused", [False, True], ids=["", "fused"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_first_token_is_predicted_from_the_last_virtual_one(prompt, fused, masked, build):
    from hf_losses import LossTrainingArguments

    rows = tiny.texts(6, tiny.some_next_tokens if masked else lambda generator, ids: ids)
    model = get_peft_model(tiny.causal_lm(initializer_range=0.3), PROMPTS[prompt])
    arguments = {"args_class": LossTrainingArguments, "fused_linear": fused}
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "max_steps": 1}
    trainer = build(model, rows, "cross_entropy", **settings, **arguments)
    with torch.no_grad():
        expected = model.eval()(**batch(rows)).loss.item()  # Over all tokens of the step.
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert first_loss(trainer) == pytest.approx(expected, rel=1e-4)


def test_float64_stays(build):
    model, data = tiny.bert().double(), tiny.texts(8)
    trainer = build(model, data, "cross_entropy")
    inputs = batch(data)
    with torch.no_grad():
        builtin = model.eval()(**inputs).loss
        loss = trainer.compute_loss(model, inputs)
    assert builtin.dtype == loss.dtype == torch.float64
    torch.testing.assert_close(loss, builtin, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("model", "sizes", "message"),
    [
        (tiny.causal_lm, {"cp_size": 2}, None),
        (tiny.bert, {"cp_size": 2}, "context parallelism takes labels for those of the next tok"),
        (tiny.causal_lm, {"sp_size": 2}, "sequence parallelism computes the model's built-in loss"),
    ],
)
def test_parallelism_that_would_change_the_labels_is_refused(model, sizes, message, build):
    trainer = build(model(), tiny.texts(4))
    trainer.compute_loss_func = None  # As before it was built.
    # Accelerator would ask for two processes.
    trainer.accelerator.state.parallelism_config = ParallelismConfig(**sizes)
    try:
        with pytest.raises(ValueError, match=message) if message else nullcontext():
            check_trainer(trainer)
    finally:
        trainer.accelerator.state.parallelism_config = None
