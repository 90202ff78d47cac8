"""The column `loss_weight`: one number per example or per label, on every head and every way."""

import copy
from types import SimpleNamespace

import datasets
import pytest
import tiny
import torch
from accelerate.state import AcceleratorState
from products import product
from torch.nn import functional as F
from transformers import (
    BertForQuestionAnswering,
    BertForTokenClassification,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    Trainer,
)

from hf_losses import LossMixin, LossTrainer, get_loss
from hf_losses.models.small_lm import small_tokenizer
from hf_losses.training.loss.item_weights import WeightCollator


def with_weights(rows, per_label):
    """Weights from 0 to 3; every fifth example or label weighs 0."""
    generator = torch.Generator().manual_seed(5)
    for number, row in enumerate(rows):
        shape = row["labels"].shape if per_label else ()
        weight = 3 * torch.rand(shape, generator=generator)
        if per_label:
            weight[torch.arange(len(weight)) % 5 == 4] = 0
        row["loss_weight"] = weight if per_label else weight.item() * (number % 5 < 4)
    return rows


def answers(generator, ids):
    return torch.randint(0, tiny.LENGTH, (), generator=generator).item()


def questions(size=40):
    rows = tiny.texts(size, answers)
    for row in rows:
        row["start_positions"] = row.pop("labels")
        row["end_positions"] = min(row["start_positions"] + 1, tiny.LENGTH - 1)
    return rows


# Model, data, whether the weights are those of labels, the loss of one item, its options.
HEADS = {
    "rows": (tiny.bert, tiny.texts, False),
    "tokens": (
        lambda: tiny.bert(BertForTokenClassification),
        lambda: tiny.texts(40, tiny.class_of_each_token),
        True,
    ),
    "tokens by row": (
        lambda: tiny.bert(BertForTokenClassification),
        lambda: tiny.texts(40, tiny.class_of_each_token),
        False,
    ),
    "next tokens": (tiny.causal_lm, lambda: tiny.texts(40, tiny.some_next_tokens), True),
    "next tokens by row": (tiny.causal_lm, lambda: tiny.texts(40, tiny.some_next_tokens), False),
    "several labels": (
        lambda: tiny.bert(problem_type="multi_label_classification"),
        lambda: tiny.texts(40, tiny.yes_or_no_per_class),
        True,
    ),
    "mixup": (
        lambda: tiny.bert(problem_type="single_label_classification"),
        lambda: tiny.texts(40, tiny.mixture_of_two_classes),
        False,
    ),
    "numbers": (lambda: tiny.bert(num_labels=1), lambda: tiny.texts(40, tiny.number), False),
    "answers": (lambda: tiny.bert(BertForQuestionAnswering, num_labels=2), questions, False),
}
LOSSES = {"numbers": ("huber", "mse")}


def by_hand(model, rows, loss, options):
    """Gradient of Σ w·ℓ over the number of items, by a loop over rows that knows no trainer."""
    each = get_loss(loss, reduction="none", **options)
    total, items = 0.0, 0
    for row in rows:
        inputs = {k: v.unsqueeze(0) for k, v in row.items() if k in ("input_ids", "attention_mask")}
        outputs = model(**inputs)
        weight = torch.as_tensor(row["loss_weight"])
        if "start_positions" in row:
            for key in ("start", "end"):
                label = torch.tensor([row[f"{key}_positions"]])
                total = total + weight * each(outputs[f"{key}_logits"], label).sum() / 2
            items += 1
            continue
        logits, labels = outputs.logits, torch.as_tensor(row["labels"]).unsqueeze(0)
        if type(model).__name__ == "LlamaForCausalLM":
            logits, labels = logits[:, :-1], labels[:, 1:]
            weight = weight[1:] if weight.dim() else weight
        losses = each(logits, labels)
        total = total + (weight * losses).sum()
        items += (labels != -100).sum() if losses.numel() > 1 else 1
    return torch.cat([g.flatten() for g in torch.autograd.grad(total / items, model.parameters())])


@pytest.mark.parametrize(
    ("head", "which"),
    product(HEADS, [0, 1], keep=lambda _, pair: pair[1] == 0 or pair[0].endswith("rows")),
)
def test_a_step_is_the_weighted_sum_over_the_number_of_items(head, which, tmp_path):
    model, data, per_label = HEADS[head]
    rows = with_weights(data(), per_label)[:16]
    loss = LOSSES.get(head, ("poly1", "cross_entropy"))[which]
    options = {"problem_type": "multi_label_classification"} if head == "several labels" else {}
    expected = by_hand(model(), rows, loss, options)
    for batch in (16, 8, 4):
        (gradient,) = tiny.gradients(
            tmp_path,
            model(),
            copy.deepcopy(rows),
            loss=loss,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=16 // batch,
        )
        assert tiny.difference([expected], [gradient]) < 1e-6


def test_weights_of_1_change_nothing(tmp_path):
    rows = tiny.texts(40, tiny.some_next_tokens)
    plain = tiny.gradients(tmp_path, tiny.causal_lm(), rows, loss="focal")
    ones = [row | {"loss_weight": torch.ones(tiny.LENGTH)} for row in rows]
    assert (
        tiny.difference(plain, tiny.gradients(tmp_path, tiny.causal_lm(), ones, loss="focal")) == 0
    )


@pytest.mark.parametrize("loss", ["dft", "liberal_exp", "cross_entropy"])
def test_the_fused_last_layer_weighs_as_the_logits_do(loss, tmp_path):
    rows = with_weights(tiny.texts(40, tiny.some_next_tokens), True)
    plain = tiny.gradients(tmp_path, tiny.causal_lm(), rows, loss=loss)
    for batch in (8, 4):
        fused = tiny.gradients(
            tmp_path,
            tiny.causal_lm(),
            rows,
            loss=loss,
            fused_linear=True,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=8 // batch,
        )
        assert tiny.difference(plain, fused) < 1e-5


def test_a_warm_up_weighs_both_losses(tmp_path):
    rows = with_weights(tiny.texts(), False)
    settings = {"loss": "liberal_circle", "loss_warmup_steps": 4}
    weighted = tiny.gradients(tmp_path, tiny.bert(), rows, **settings)
    doubled = [row | {"loss_weight": 2 * row["loss_weight"]} for row in rows]
    twice = tiny.gradients(tmp_path, tiny.bert(), doubled, **settings)
    assert tiny.difference([2 * step for step in weighted], twice) < 1e-6


def mean_of_squares(logits, labels):
    return F.one_hot(labels, 3).sub(logits.softmax(-1)).square().mean()


def squares(logits, labels):
    return F.one_hot(labels, 3).sub(logits.softmax(-1)).square().sum(-1)


@pytest.mark.parametrize("loss", [squares, torch.nn.CrossEntropyLoss(), torch.nn.MultiMarginLoss()])
def test_losses_of_ones_own_are_weighed_where_they_have_a_value_per_item(loss, tmp_path):
    rows = with_weights(tiny.texts(16), False)
    each = copy.copy(loss)
    if isinstance(loss, torch.nn.Module):
        each.reduction = "none"
    model = tiny.bert()
    batch = {k: torch.stack([r[k] for r in rows]) for k in ("input_ids", "attention_mask")}
    losses = each(model(**batch).logits, torch.tensor([row["labels"] for row in rows]))
    total = (torch.tensor([row["loss_weight"] for row in rows]) * losses).sum() / 16
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total, model.parameters())])
    (gradient,) = tiny.gradients(
        tmp_path,
        tiny.bert(),
        rows,
        keywords={"loss": loss},
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
    )
    assert tiny.difference([expected], [gradient]) < 1e-6


def test_weights_stand_where_the_labels_do_though_shifted_labels_are_given(tmp_path):
    rows = with_weights(tiny.texts(16, tiny.some_next_tokens), True)
    shifted = [row | {"shift_labels": F.pad(row["labels"], (0, 1), value=-100)[1:]} for row in rows]
    settings = {"loss": "gce", "remove_unused_columns": False}
    expected, found = (
        tiny.gradients(tmp_path, tiny.causal_lm(), data, **settings) for data in (rows, shifted)
    )
    assert tiny.difference(expected, found) < 1e-6


class Copies(torch.nn.Module):
    """Its labels are its input, at the same positions, which transformers cannot know."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(tiny.VOCABULARY, tiny.VOCABULARY)

    def forward(self, input_ids, attention_mask=None, labels=None):
        return {"logits": self.embedding(input_ids)}


def test_weights_are_not_shifted_where_the_labels_are_not(tmp_path):
    rows = tiny.texts(8)
    generator = torch.Generator().manual_seed(5)
    for row in rows:
        row["labels"] = row["shift_labels"] = row["input_ids"]
        row["loss_weight"] = torch.rand(tiny.LENGTH, generator=generator)
    (found,) = tiny.gradients(
        tmp_path, Copies(), rows, loss="cross_entropy", remove_unused_columns=False
    )
    model = Copies()
    ids, weight = (torch.stack([row[key] for row in rows]) for key in ("input_ids", "loss_weight"))
    losses = F.cross_entropy(model.embedding(ids).flatten(0, 1), ids.flatten(), reduction="none")
    total = (losses * weight.flatten()).mean()
    (expected,) = torch.autograd.grad(total, [model.embedding.weight])
    assert tiny.difference([expected.flatten()], [found]) < 1e-6


def test_weights_are_not_rounded_where_deepspeed_casts_a_batch(tmp_path, monkeypatch):
    rows = [row | {"loss_weight": 1.001} for row in tiny.texts(8, tiny.mixture_of_two_classes)]
    model = tiny.bert(problem_type="single_label_classification")
    trainer = LossTrainer(model=model, args=tiny.arguments(tmp_path), train_dataset=rows)
    given = next(iter(trainer.get_train_dataloader()))
    trainer.is_deepspeed_enabled = True
    # What transformers asks DeepSpeed for, which is not installed.
    plugin = SimpleNamespace(hf_ds_config=SimpleNamespace(dtype=lambda: torch.bfloat16))
    monkeypatch.setattr(AcceleratorState, "deepspeed_plugin", plugin)
    assert Trainer._prepare_inputs(trainer, dict(given))["loss_weight"].dtype == torch.bfloat16
    batch = trainer._prepare_inputs(dict(given))
    for name in ("labels", "loss_weight"):
        assert torch.equal(batch[name], given[name])


@pytest.mark.parametrize("deepspeed", [False, True])
def test_labels_that_a_base_class_puts_into_a_batch_stay(deepspeed, tmp_path):
    class Smoothed(Trainer):
        def _prepare_inputs(self, inputs):
            inputs = super()._prepare_inputs(inputs)
            return inputs | {"labels": F.one_hot(inputs["labels"], 3).float() * 0.7 + 0.1}

    class Ours(LossMixin, Smoothed):
        pass

    trainer = Ours(tiny.bert(), tiny.arguments(tmp_path), train_dataset=tiny.texts(8))
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.is_deepspeed_enabled = deepspeed
    assert trainer._prepare_inputs(batch)["labels"].shape == (8, 3)


# ---- Evaluation --------------------------------------------------------------------------------


def test_evaluation_weighs_the_loss_and_not_the_baseline(tmp_path):
    rows = with_weights(tiny.texts(21, tiny.class_of_each_token), True)
    model = tiny.bert(BertForTokenClassification)
    args = tiny.arguments(tmp_path, loss="gce", per_device_eval_batch_size=4)
    metrics = LossTrainer(model=model, args=args, eval_dataset=rows).evaluate()
    columns = {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}
    with torch.no_grad():
        logits = model(columns["input_ids"], columns["attention_mask"]).logits
    items = (columns["labels"] != -100).sum()
    each = get_loss("gce", reduction="none")(logits, columns["labels"])
    assert metrics["eval_loss"] == pytest.approx((each * columns["loss_weight"]).sum() / items)
    plain = get_loss("cross_entropy")(logits, columns["labels"])
    assert metrics["eval_cross_entropy"] == pytest.approx(plain.item())


def test_prediction_without_labels_hides_the_weights_from_the_model(tmp_path):
    rows = with_weights(tiny.texts(8), False)
    for row in rows:
        del row["labels"]
    trainer = LossTrainer(model=tiny.bert(), args=tiny.arguments(tmp_path), loss="gce")
    assert "loss_weight" in next(iter(trainer.get_test_dataloader(rows)))
    seen = []
    trainer.model.register_forward_pre_hook(
        lambda model, args, inputs: seen.append(inputs.keys()), with_kwargs=True
    )
    assert trainer.predict(rows).predictions.shape == (8, 3)
    assert seen == [{"input_ids", "attention_mask"}]


def test_weights_of_an_evaluation_that_failed_are_forgotten(tmp_path):
    rows = with_weights(tiny.texts(8), False)
    plain = [{key: row[key] for key in row if key != "loss_weight"} for row in rows]
    args = tiny.arguments(tmp_path)
    trainer = LossTrainer(tiny.bert(), args, train_dataset=plain, eval_dataset=rows)
    hook = trainer.model.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.evaluate()
    hook.remove()
    seen = first_gradient(trainer)
    fresh = LossTrainer(tiny.bert(), args, train_dataset=plain)
    assert torch.equal(first_gradient(fresh), seen)


def first_gradient(trainer):
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model.train(), batch).backward()
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters()])


# ---- Data --------------------------------------------------------------------------------------


class OwnLoader(LossTrainer):
    """As scripts that draw their rows in another way have it."""

    def get_train_dataloader(self):
        return torch.utils.data.DataLoader(
            self.train_dataset.remove_columns("loss_weight"), 4, collate_fn=self.data_collator
        )


def test_weights_that_a_loader_of_ones_own_loses_are_told(tmp_path):
    rows = datasets.Dataset.from_list(with_weights(tiny.texts(8), False))
    trainer = OwnLoader(tiny.bert(), tiny.arguments(tmp_path), train_dataset=rows)
    with pytest.raises(ValueError, match="has the column 'loss_weight', and a batch has none"):
        trainer.train()


def test_lists_of_weights_for_labels_that_the_collator_makes_are_told(tmp_path):
    rows = [{"text": "a", "tags": [1, 2], "loss_weight": [1.0, 2.0]}] * 8

    def collate(rows):
        ids = torch.full((len(rows), 2), 5)
        return {"input_ids": ids, "labels": torch.tensor([row["tags"] for row in rows])}

    trainer = LossTrainer(
        tiny.bert(BertForTokenClassification),
        tiny.arguments(tmp_path, remove_unused_columns=False),
        train_dataset=rows,
        data_collator=collate,
    )
    # A StopIteration would end the epoch, and the training.
    with pytest.raises(ValueError, match="labels that the data collator makes from text, tags"):
        trainer.train()


def rows_of_lengths(*lengths):
    return [{"input_ids": [5] * n, "attention_mask": [1] * n, "labels": [1] * n} for n in lengths]


def test_one_weight_per_row_goes_with_padded_inputs():
    rows = rows_of_lengths(2, 4)
    for row in rows:
        row |= {"labels": 1, "loss_weight": 2.0}
    batch = WeightCollator(DataCollatorWithPadding(small_tokenizer()))(rows)
    assert batch["input_ids"].shape == (2, 4)
    assert batch["loss_weight"].tolist() == [2, 2]


def test_weights_go_with_labels_that_the_collator_makes():
    rows = [row | {"loss_weight": [2.0] * len(row["input_ids"])} for row in rows_of_lengths(2, 4)]
    for row in rows:
        del row["labels"]
    collator = DataCollatorForLanguageModeling(small_tokenizer(), mlm=False)
    batch = WeightCollator(collator)(rows)
    assert torch.equal(batch["loss_weight"] != 0, batch["labels"] != -100)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", [DataCollatorForTokenClassification, DataCollatorForSeq2Seq])
def test_weights_are_padded_on_the_side_of_the_labels(kind, side):
    tokenizer = small_tokenizer()
    tokenizer.padding_side = side
    rows = rows_of_lengths(2, 4)
    for row in rows:
        row["loss_weight"] = [2.0] * len(row["labels"])
    batch = WeightCollator(kind(tokenizer))(rows)
    assert torch.equal(batch["loss_weight"] != 0, batch["labels"] != -100)
    assert batch["loss_weight"].max() == 2


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_a_collator_without_a_tokenizer_shows_where_it_pads(left, masked):
    def collate(rows):
        def padded(name, value):
            texts = [torch.tensor(row[name]) for row in rows]
            sides = {"padding_side": "left" if left else "right"}
            return torch.nn.utils.rnn.pad_sequence(
                texts, batch_first=True, padding_value=value, **sides
            )

        batch = {"input_ids": padded("input_ids", 0), "labels": padded("labels", -100)}
        if masked:  # Nothing of the rows is left but their lengths.
            batch["attention_mask"] = padded("attention_mask", 0)
            batch["input_ids"] = torch.full_like(batch["input_ids"], 7)
            batch["labels"] = torch.where(batch["labels"] == -100, -100, 7)
        return batch

    rows = rows_of_lengths(2, 4)
    for row in rows:
        row["loss_weight"] = [2.0] * len(row["labels"])
    batch = WeightCollator(collate)(rows)
    assert torch.equal(batch["loss_weight"] != 0, batch["labels"] != -100)


def test_labels_padded_on_another_side_than_the_tokens_show_their_own():
    def collate(rows):
        return {
            "input_ids": torch.tensor([[0, 0, 5], [6, 7, 8]]),
            "attention_mask": torch.tensor([[0, 0, 1], [1, 1, 1]]),
            "labels": torch.tensor([[1, -100], [1, 2]]),
        }

    rows = [{"input_ids": [5], "labels": [1]}, {"input_ids": [6, 7, 8], "labels": [1, 2]}]
    for row, weights in zip(rows, ([3.0], [1.0, 2.0]), strict=True):
        row["loss_weight"] = weights
    assert WeightCollator(collate)(rows)["loss_weight"].tolist() == [[3, 0], [1, 2]]


def test_rows_in_one_line_have_their_weights_in_one_line():
    rows = rows_of_lengths(2, 4)
    for number, row in enumerate(rows):
        row["loss_weight"] = [float(number + 1)] * len(row["labels"])
        del row["attention_mask"]
    batch = WeightCollator(DataCollatorWithFlattening())(rows)
    assert batch["labels"].shape == (1, 6)
    assert batch["loss_weight"].tolist() == [[1, 1, 2, 2, 2, 2]]


def test_a_dataset_keeps_the_column_and_a_run_that_is_resumed_the_weights(tmp_path):
    rows = with_weights(tiny.texts(40), False)
    data = datasets.Dataset.from_list(
        [row | {"input_ids": row["input_ids"].tolist(), "unused": "text"} for row in rows]
    )
    states = []
    for resumed in (False, True):
        args = tiny.arguments(
            tmp_path / "run", loss="poly1", max_steps=5, save_strategy="steps", save_steps=2
        )
        trainer = LossTrainer(model=tiny.bert(), args=args, train_dataset=data)
        assert "loss_weight" in next(iter(trainer.get_train_dataloader()))
        trainer.train(str(tmp_path / "run" / "checkpoint-2") if resumed else None)
        states.append(trainer.model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    unweighted = LossTrainer(
        model=tiny.bert(),
        args=tiny.arguments(tmp_path / "other", loss="poly1", max_steps=5),
        train_dataset=data.remove_columns("loss_weight"),
    )
    unweighted.train()
    assert not all(
        torch.equal(states[0][name], value) for name, value in unweighted.model.state_dict().items()
    )


def test_the_collator_of_the_trainer_stays_the_users(tmp_path):
    def collate(rows):
        assert "loss_weight" not in rows[0]
        return torch.utils.data.default_collate(rows)

    trainer = LossTrainer(
        model=tiny.bert(),
        args=tiny.arguments(tmp_path, loss="gce"),
        train_dataset=with_weights(tiny.texts(), False),
        data_collator=collate,
    )
    trainer.train()
    assert trainer.data_collator is collate


REFUSED = {
    "negative": ([1.0, -2.0], "finite and not negative, got -2"),
    "nan": ([1.0, float("nan")], "finite and not negative, got nan"),
    "text": (["heavy", "light"], "the weight of an item must be a number, got 'heavy'"),
    "dicts": ([{"a": 1}, {"a": 2}], "the weight of an item must be a number, got {'a': 1}"),
    "missing": ([1.0, None], "a row has no 'loss_weight': give each row one"),
    "lists for rows": ([[1.0], [1.0]], "holds a list per row, but a row has one label"),
    "shapes": ([1.0, [1.0]], "of different shapes"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("loss", ["gce", "cross_entropy"])
def test_weights_that_make_no_sense_stop_the_first_step(case, loss, tmp_path):
    weights, message = REFUSED[case]
    rows = [row | {"loss_weight": w} for row, w in zip(tiny.texts(2), weights, strict=True)]
    model = tiny.bert()
    before = copy.deepcopy(model.state_dict())
    trainer = LossTrainer(model=model, args=tiny.arguments(tmp_path, loss=loss), train_dataset=rows)
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_number_too_few_is_told(tmp_path):
    rows = [row | {"loss_weight": [1.0] * 7} for row in tiny.texts(4, tiny.class_of_each_token)]
    model = tiny.bert(BertForTokenClassification)
    trainer = LossTrainer(
        model=model, args=tiny.arguments(tmp_path, loss="gce"), train_dataset=rows
    )
    with pytest.raises(ValueError, match="a row has 7 numbers as 'loss_weight' for 8 labels"):
        trainer.train()


def test_a_mean_of_ones_own_cannot_be_weighed(tmp_path):
    trainer = LossTrainer(
        model=tiny.bert(),
        args=tiny.arguments(tmp_path),
        train_dataset=with_weights(tiny.texts(), False),
        loss=mean_of_squares,
    )
    with pytest.raises(ValueError, match=r"1 values for 8 items.*one per item, not a mean"):
        trainer.train()


def test_a_collator_may_read_the_weights_itself():
    rows = [{"labels": n, "loss_weight": weight} for n, weight in enumerate((2, 3))]

    def reads(rows):
        seen.append([row.pop("loss_weight") for row in rows])
        return torch.utils.data.default_collate(rows)

    def halves(rows):
        return torch.utils.data.default_collate(
            [row | {"loss_weight": row["loss_weight"] / 2} for row in rows]
        )

    def other(rows):
        seen.append([sorted(row) for row in rows])
        return torch.utils.data.default_collate(rows)

    seen = []
    collator = WeightCollator(reads)
    for _ in range(2):
        assert collator(rows)["loss_weight"].tolist() == [2, 3]
    assert WeightCollator(halves)(rows)["loss_weight"].tolist() == [1, 1.5]
    assert WeightCollator(other)(rows)["loss_weight"].tolist() == [2, 3]
    assert seen == [[2, 3], [2, 3], [["labels"], ["labels"]]]
    assert rows[0] == {"labels": 0, "loss_weight": 2}


def test_a_column_without_any_weight_is_none():
    rows = [{"labels": n, "loss_weight": None} for n in range(2)]
    batch = WeightCollator(torch.utils.data.default_collate)(rows)
    assert list(batch) == ["labels"]
