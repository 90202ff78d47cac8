"""Models that users write themselves: which task they have, and what they are given."""

from __future__ import annotations

from functools import partial, wraps
from types import MethodType, SimpleNamespace

import optuna
import pytest
import tiny
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    ViTConfig,
    ViTPreTrainedModel,
    default_data_collator,
)
from transformers.modeling_outputs import (
    BaseModelOutput,
    SemanticSegmenterOutput,
    SequenceClassifierOutput,
)

from hf_losses import LossTrainer, LossTrainingArguments, get_loss
from hf_losses.models.forwards import is_transformers, with_loss

SEVERAL = "multi_label_classification"


class Own(nn.Module):
    """A layer over the token ids, which transformers does not know."""

    def __init__(self, outputs, squeezed=False):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.squeezed = nn.Linear(tiny.LENGTH, outputs), squeezed

    def forward(self, input_ids, attention_mask=None):
        logits = self.linear(input_ids / tiny.VOCABULARY)
        return {"logits": logits.squeeze(-1) if self.squeezed else logits}


def build(tmp_path, model, data, loss, **settings):
    args = tiny.arguments(tmp_path, max_steps=1, loss=None, **settings)
    return LossTrainer(model=model, args=args, train_dataset=data, eval_dataset=data, loss=loss)


def outputs_of(model, data):
    """Outputs and labels, without dimensions of one."""
    with torch.no_grad():
        logits = model(torch.stack([row["input_ids"] for row in data]))["logits"]
    return logits.squeeze(-1), torch.stack([torch.as_tensor(row["labels"]) for row in data])


@pytest.mark.parametrize("squeezed", [False, True])
@pytest.mark.parametrize("loss", [nn.L1Loss(), get_loss("smae")], ids=["L1Loss", "smae"])
def test_numbers_are_compared_by_their_squared_error(tmp_path, loss, squeezed):
    data, model = tiny.texts(16, tiny.number), Own(1, squeezed)
    logits, labels = outputs_of(model, data)
    metrics = build(tmp_path, model, data, loss).evaluate()
    assert metrics["eval_mse"] == pytest.approx(F.mse_loss(logits, labels).item(), rel=1e-5)
    assert "eval_cross_entropy" not in metrics


@pytest.mark.parametrize(
    "loss",
    [nn.BCEWithLogitsLoss(), get_loss("strict_l", problem_type=SEVERAL)],
    ids=["BCEWithLogitsLoss", "strict_l"],
)
def test_several_yes_or_no_labels_are_compared_by_their_own_cross_entropy(tmp_path, loss):
    data, model = tiny.texts(16, tiny.yes_or_no_per_class), Own(tiny.CLASSES)
    expected = F.binary_cross_entropy_with_logits(*outputs_of(model, data)).item()
    settings = {"loss_warmup_ratio": 0.5, "per_device_train_batch_size": 16}
    trainer = build(tmp_path, model, data, loss, **settings)
    assert trainer.evaluate()["eval_cross_entropy"] == pytest.approx(expected, rel=1e-5)
    trainer.train()  # The step of the warm-up is of the same kind.
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_a_config_may_be_anything(tmp_path):
    model = Own(tiny.CLASSES)
    model.config = SimpleNamespace(block_size=tiny.LENGTH)
    trainer = build(tmp_path, model, tiny.texts(8), "strict_m")
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize("batches", [1, 2])
def test_what_a_compute_loss_adds_is_part_of_the_evaluation(tmp_path, batches):
    class Adds(LossTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            loss, outputs = super().compute_loss(model, inputs, True, **kwargs)
            loss = loss + 2 * inputs["input_ids"].float().mean()
            return (loss, outputs) if return_outputs else loss

    data = tiny.texts(8)
    args = tiny.arguments(tmp_path, loss="strict_m", per_device_eval_batch_size=8 // batches)
    plain, adds = (
        cls(model=tiny.bert(), args=args, eval_dataset=data).evaluate()["eval_loss"]
        for cls in (LossTrainer, Adds)
    )
    mean = torch.stack([row["input_ids"] for row in data]).float().mean().item()
    assert adds == pytest.approx(plain + 2 * mean, rel=1e-6)


def test_a_trainer_may_have_a_criterion_of_its_own(tmp_path):
    class Mine(LossTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.criterion = nn.KLDivLoss()

    data, args = tiny.texts(8), tiny.arguments(tmp_path, loss="strict_m", max_steps=1)
    mine = Mine(model=tiny.bert(), args=args, train_dataset=data)
    mine.train()
    plain = LossTrainer(model=tiny.bert(), args=args, train_dataset=data)
    assert plain.criterion.spec.name == "strict_m"
    plain.train()
    assert mine.state.log_history[0]["loss"] == plain.state.log_history[0]["loss"]


def test_a_loss_is_not_divided_by_the_accumulation_steps_twice(tmp_path):
    class Mine(LossTrainer):
        loss_is_scaled_for_ga = False

    with pytest.raises(
        ValueError, match=r"Mine\.loss_is_scaled_for_ga=False would divide the loss"
    ):
        Mine(model=tiny.bert(), args=tiny.arguments(tmp_path, loss="strict_m"))


def test_what_a_function_means_by_numbers_is_not_guessed(tmp_path):
    data, model = tiny.texts(16, tiny.number), Own(1)
    metrics = build(tmp_path, model, data, lambda z, y: (z.squeeze() - y).abs().mean()).evaluate()
    logits, labels = outputs_of(model, data)
    assert metrics["eval_loss"] == pytest.approx(F.l1_loss(logits, labels).item(), rel=1e-5)
    assert not {"eval_cross_entropy", "eval_mse"} & metrics.keys()


def coral(logits, labels):
    """Ordinal regression (Cao et al. 2020): is the rank above each of the thresholds?"""
    levels = (labels[:, None] > torch.arange(logits.shape[-1])).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, levels, reduction="none").sum(-1)


def test_nor_what_it_means_by_ranks_that_are_no_classes(tmp_path):
    data = tiny.texts(16)  # Of three ranks, between which are two thresholds.
    trainer = build(tmp_path, tiny.bert(num_labels=2), data, coral, per_device_eval_batch_size=3)
    trainer.train()
    metrics = trainer.evaluate()
    logits, labels = outputs_of(trainer.model, data)
    expected = coral(logits, labels).mean().item()
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert not {"eval_cross_entropy", "eval_ece"} & metrics.keys()
    assert not trainer.prediction_counts["eval"]


def test_a_forward_that_requires_its_labels_gets_them_by_their_name(tmp_path):
    class Named(Own):
        def forward(self, input_ids, attention_mask, true_label):
            assert true_label.shape == input_ids.shape[:1]
            return super().forward(input_ids)

    data = [{"true_label" if k == "labels" else k: v for k, v in r.items()} for r in tiny.texts(8)]
    build(tmp_path, Named(tiny.CLASSES), data, "strict_m").train()


class OwnLanguageModel(nn.Module):
    """Transformers does not know whether it shifts labels, as its loss would be its own."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(tiny.VOCABULARY, tiny.VOCABULARY)

    def forward(self, input_ids, attention_mask=None, labels=None):
        return {"logits": self.embedding(input_ids)}


def test_labels_that_are_the_input_are_refused_unless_they_stand_in_place(tmp_path):
    data = tiny.texts(8, tiny.some_next_tokens)
    with pytest.raises(ValueError, match=r"the labels are the input_ids.*OwnLanguageModel.*shift"):
        build(tmp_path, OwnLanguageModel(), data, "strict_m").train()
    in_place = [
        row | {"shift_labels": F.pad(row["labels"], (0, 1), value=-100)[1:]} for row in data
    ]
    trainer = build(
        tmp_path, OwnLanguageModel(), in_place, "cross_entropy", remove_unused_columns=False
    )
    ids, labels = (torch.stack([row[k] for row in in_place]) for k in ("input_ids", "shift_labels"))
    logits = trainer.model.embedding(ids)
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten()).item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    trainer.train()
    # Other labels of tokens are taken as they are.
    tags = tiny.texts(8, tiny.class_of_each_token)
    build(tmp_path, OwnLanguageModel(), tags, "strict_m").train()


def test_several_labels_resume_though_only_the_data_tell_of_them(tmp_path):
    data = tiny.texts(8, tiny.yes_or_no_per_class)

    def trainer(steps):
        args = tiny.arguments(
            tmp_path, loss="strict_l", max_steps=steps, save_strategy="steps", save_steps=1
        )
        return LossTrainer(model=tiny.bert(), args=args, train_dataset=data)

    trainer(1).train()
    resumed = trainer(2)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 2
    assert resumed.loss_config["problem_type"] == SEVERAL


@pytest.mark.parametrize("given", [None, {"label_smoothing": 0.1}])
def test_a_trial_has_no_parameters_of_the_trial_before(tmp_path, given):
    trials = [
        {"loss": "focal", "loss_kwargs": {"gamma": 3.0, "label_smoothing": 0.3}},
        {"loss": "cross_entropy"},
    ]
    seen = []

    def objective(metrics):
        seen.append(trainer.loss_config)
        return metrics["eval_cross_entropy"]

    args = tiny.arguments(
        tmp_path, LossTrainingArguments, loss="cross_entropy", loss_kwargs=given, max_steps=1
    )
    data = tiny.texts(8)
    trainer = LossTrainer(
        model_init=lambda: tiny.bert(), args=args, train_dataset=data, eval_dataset=data
    )
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trainer.hyperparameter_search(
        lambda trial: trials[trial.number],
        n_trials=2,
        backend="optuna",
        compute_objective=objective,
    )
    assert seen == [
        {"name": "focal", "gamma": 3.0, "label_smoothing": 0.3},
        {"name": "cross_entropy"} | (given or {}),
    ]
    assert trainer.loss_config == seen[-1]
    # Without a search a trial changes what it names.
    trainer.args.loss_kwargs = {"label_smoothing": 0.2}
    trainer.train(trial={"learning_rate": 1e-4})
    assert trainer.loss_config == {"name": "cross_entropy", "label_smoothing": 0.2}


@pytest.mark.parametrize("given", [None, {"alpha": 0.5}])
def test_a_search_takes_parameters_as_text_as_a_dict_and_none(tmp_path, given):
    tried = iter(['{"alpha": 0.3}', {"alpha": 0.6}, None, '{"alpha": 0.4}'])
    seen = []

    def model_init(trial):
        return tiny.bert()

    def objective(metrics):
        seen.append(trainer.loss_config["alpha"])
        return metrics["eval_loss"]

    args = tiny.arguments(
        tmp_path, LossTrainingArguments, loss="strict_m_power", loss_kwargs=given, max_steps=1
    )
    data = tiny.texts(8)
    trainer = LossTrainer(model_init=model_init, args=args, train_dataset=data, eval_dataset=data)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    settings = {"n_trials": 4, "backend": "optuna", "compute_objective": objective}
    trainer.hyperparameter_search(lambda trial: {"loss_kwargs": next(tried)}, **settings)
    assert seen == [0.3, 0.6, 0.5, 0.4]  # 0.5 is the default.
    trainer.hyperparameter_search(
        lambda trial: {"learning_rate": 1e-4}, **settings | {"n_trials": 1}
    )
    assert seen[-1] == 0.4  # What a search does not set stays.


# ---- A forward with a loss of its own ---------------------------------------------------------


class WithLoss(nn.Module):
    """Dropout and running statistics, and the loss that `own` computes from logits and labels."""

    def __init__(self, own, counts=True):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.BatchNorm1d(tiny.LENGTH), nn.Dropout(0.3), nn.Linear(tiny.LENGTH, tiny.CLASSES)
        )
        self.own = own

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.body(input_ids / tiny.VOCABULARY)
        return (logits,) if labels is None else (self.own(logits, labels), logits)


def weighted(logits, labels):
    return F.cross_entropy(logits, labels, weight=torch.arange(1.0, tiny.CLASSES + 1))


def penalised(logits, labels):
    return F.cross_entropy(logits, labels) + logits.square().mean()


@pytest.mark.parametrize("own", [F.cross_entropy, weighted, penalised])
@pytest.mark.parametrize("bf16", [False, True])
def test_what_is_lost_of_its_loss_is_told_once_and_nothing_else_changes(
    tmp_path, caplog, own, bf16
):
    data, trained = tiny.texts(16, tiny.one_class), []
    for model in (WithLoss(own), WithoutLabels(own)):
        caplog.clear()
        args = tiny.arguments(tmp_path, max_steps=3, loss="strict_l", bf16=bf16, use_cpu=True)
        LossTrainer(model=model, args=args, train_dataset=data).train()
        told = caplog.text.count("forward computes another loss than cross_entropy")
        assert told == (own is not F.cross_entropy and type(model) is WithLoss)
        trained.append(model.state_dict())
    assert trained[0].keys() == trained[1].keys()
    for name, value in trained[0].items():
        assert torch.equal(value, trained[1][name])


class WithoutLabels(WithLoss):
    def forward(self, input_ids, attention_mask=None):
        return super().forward(input_ids, attention_mask)


class OwnForCausalLM(PreTrainedModel):
    """Transformers takes it for a language model, by its name."""

    config_class = BertConfig

    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.vocab_size)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.words(input_ids)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"logits": logits} | ({} if loss is None else {"loss": loss})


def next_words(moved):
    torch.manual_seed(0)
    words = torch.randint(20, (8, 9))
    return [{"input_ids": row[:-1], "labels": row[1:] if moved else row[:-1]} for row in words]


def test_labels_that_are_the_next_tokens_already_are_not_shifted_once_more(tmp_path, caplog):
    args = tiny.arguments(tmp_path, max_steps=1, loss="strict_l")

    def train(data, **settings):
        model = OwnForCausalLM(BertConfig(vocab_size=20))
        LossTrainer(model=model, args=args, train_dataset=data, **settings).train()

    with pytest.raises(ValueError, match="next tokens already, and would be shifted once more"):
        train(next_words(moved=True))
    train(next_words(moved=False))
    assert "computes another loss than cross_entropy" in caplog.text
    assert "give shift_labels" in caplog.text

    def collate(rows):
        batch = default_data_collator(rows)
        return batch | {"shift_labels": batch["labels"]}

    caplog.clear()
    train(next_words(moved=True), data_collator=collate)
    assert "another loss" not in caplog.text


def test_a_loss_function_that_a_model_was_given_is_refused(tmp_path):
    model = tiny.bert()
    model.loss_function = weighted
    with pytest.raises(ValueError, match="was given a loss_function of its own"):
        build(tmp_path, model, tiny.texts(16, tiny.one_class), None)


@pytest.mark.parametrize(
    ("options", "own"),
    [
        ({"weight": [1.0, 2.0, 3.0]}, weighted),
        ({"label_smoothing": 0.1}, partial(F.cross_entropy, label_smoothing=0.1)),
    ],
)
def test_weights_and_smoothing_that_the_loss_has_as_well_are_not_lost(
    tmp_path, caplog, options, own
):
    loss, data = get_loss("strict_l", **options), tiny.texts(16, tiny.one_class)
    args = tiny.arguments(tmp_path, max_steps=1, loss=None)
    LossTrainer(model=WithLoss(own), args=args, train_dataset=data, loss=loss).train()
    assert "another loss" not in caplog.text


def broken(logits, labels):
    raise ValueError("no loss for these labels")


@pytest.mark.parametrize("own", [broken, lambda logits, labels: None])
def test_a_loss_that_the_model_cannot_compute_is_not_lost(tmp_path, caplog, own):
    args = tiny.arguments(tmp_path, max_steps=3, loss="strict_l")
    model, calls = WithLoss(own), []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append("labels" in kwargs), with_kwargs=True
    )
    LossTrainer(model, args, train_dataset=tiny.texts(16, tiny.one_class)).train()
    assert "another loss" not in caplog.text
    assert ("could not be found out: no loss for these" in caplog.text) == (own is broken)
    assert calls.count(True) == 1


class WithMargin(WithLoss):
    """Its logits with labels are not those without: a margin, as ArcFace has it."""

    def forward(self, input_ids, attention_mask=None, labels=None):
        (logits,) = super().forward(input_ids)
        if labels is None:
            return (logits,)
        logits = logits - F.one_hot(labels, tiny.CLASSES)
        return F.cross_entropy(logits, labels), logits


class Flattening(WithLoss):
    """Leaves logits out where it has labels; and a vector with one loss."""

    def forward(self, input_ids, attention_mask=None, labels=None):
        (logits,) = super().forward(input_ids)
        if labels is None:
            return (logits,)
        return F.cross_entropy(logits, labels).unsqueeze(0), logits[labels > 0]


class Marking(WithLoss):
    """Changes its labels: another rule of what is left out."""

    def forward(self, input_ids, attention_mask=None, labels=None):
        if labels is not None:
            labels[labels == 0] = -100
        return super().forward(input_ids, labels=labels)


class Keywords(WithLoss):
    def forward(self, input_ids, **others):
        return super().forward(input_ids, labels=others.get("labels"))


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (WithMargin(F.cross_entropy), True),
        (Flattening(F.cross_entropy), False),
        (Marking(F.cross_entropy), True),
        (Keywords(penalised), True),
        (WithLoss(lambda logits, labels: get_loss("strict_l")(logits, labels)), False),
        (WithLoss(lambda logits, labels: F.cross_entropy(logits, labels) * torch.nan), False),
    ],
)
def test_what_a_forward_does_with_labels_has_no_part_in_the_training(tmp_path, caplog, model, told):
    args = tiny.arguments(tmp_path, max_steps=1, loss="strict_l", remove_unused_columns=False)
    data = [{k: row[k] for k in ("input_ids", "labels")} for row in tiny.texts(16, tiny.one_class)]
    LossTrainer(model, args, train_dataset=data).train()
    assert ("computes another loss" in caplog.text) == told


def test_weights_that_the_first_logits_do_not_show_are_told_later(tmp_path, caplog):
    model = WithLoss(weighted)
    nn.init.zeros_(model.body[-1].weight), nn.init.zeros_(model.body[-1].bias)
    data = tiny.texts(16, tiny.one_class)
    args = tiny.arguments(tmp_path, max_steps=12, loss="strict_l", learning_rate=0.1)
    LossTrainer(model, args, train_dataset=data).train()
    assert caplog.text.count("computes another loss") == 1


@pytest.mark.parametrize("whole", [True, False])
def test_several_labels_with_weights(tmp_path, caplog, whole):
    def own(logits, labels):
        return F.binary_cross_entropy_with_logits(logits, labels.float())

    data = tiny.texts(16, tiny.yes_or_no_per_class)
    data = [row | {"labels": row["labels"].long() if whole else row["labels"]} for row in data]
    loss = get_loss("strict_l", problem_type=SEVERAL, weight=[1.0, 2.0, 3.0])
    args = tiny.arguments(tmp_path, max_steps=1, loss=None)
    LossTrainer(WithLoss(own), args, train_dataset=data, loss=loss).train()
    assert "could not be found out" not in caplog.text


def ranks(logits, labels):
    return (logits.mean(-1) - labels).square()


def test_a_loss_that_is_a_function_is_not_compared(tmp_path):
    model = WithLoss(lambda *_: pytest.fail("was computed"))
    args = tiny.arguments(tmp_path, max_steps=1, loss=None)
    LossTrainer(model, args, train_dataset=tiny.texts(16, tiny.number), loss=ranks).train()


# ---- A forward that needs its labels -----------------------------------------------------------


class Required(WithLoss):
    def forward(self, input_ids, attention_mask, labels):
        return {
            "loss": (outputs := super().forward(input_ids, None, labels))[0],
            "logits": outputs[1],
        }


class Unconditional(WithLoss):
    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = super().forward(input_ids)[0]
        return self.own(logits, labels), logits


class Taken(WithLoss):
    def forward(self, **batch):
        labels = batch.pop("labels")
        return super().forward(**batch, labels=labels)


class Subclass(BertForSequenceClassification):
    def forward(self, input_ids, attention_mask, labels):
        return super().forward(input_ids, attention_mask, labels=labels)


class InTraining(WithLoss):
    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = super().forward(input_ids)[0]
        return (self.own(logits, labels) if self.training else None), logits


@pytest.mark.parametrize("cls", [Required, Unconditional, Taken, Subclass, InTraining])
def test_it_learns_as_one_that_does_not_need_them(tmp_path, cls, caplog):
    data, trained = tiny.texts(16, tiny.one_class), []
    for kind in (cls, BertForSequenceClassification if cls is Subclass else WithLoss):
        model = tiny.bert(kind) if cls is Subclass else kind(F.cross_entropy)
        args = tiny.arguments(tmp_path, max_steps=3, loss="strict_l", remove_unused_columns=False)
        trainer = LossTrainer(model=model, args=args, train_dataset=data, eval_dataset=data)
        trainer.evaluate()
        trainer.train()
        metrics = trainer.evaluate()
        trained.append((metrics["eval_loss"], metrics["eval_cross_entropy"], model.state_dict()))
    assert trained[0][:2] == trained[1][:2]
    for name, value in trained[0][2].items():
        assert torch.equal(value, trained[1][2][name])
    assert "could not be found out" not in caplog.text


def test_an_error_of_its_own_is_shown(tmp_path):
    class Broken(WithLoss):
        def forward(self, input_ids, attention_mask=None, labels=None):
            raise KeyError("tokens")

    args = tiny.arguments(tmp_path, loss="strict_l")
    trainer = LossTrainer(model=Broken(weighted), args=args, train_dataset=tiny.texts(8))
    with pytest.raises(KeyError, match="tokens"):
        trainer.train()


# ---- What a forward adds while it is trained ---------------------------------------------------


class Noisy(WithLoss):
    """Its dropout never ends, and what it adds to the loss has some more while it is trained."""

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = F.dropout(super().forward(input_ids)[0], 0.2)
        if labels is None:
            return (logits,)
        loss = F.cross_entropy(logits, labels)
        if self.training:
            loss = self.own(loss, logits)
        return loss, logits


@pytest.mark.parametrize("adds", [False, True])
def test_terms_of_the_training_alone_are_told(tmp_path, caplog, adds):
    model = Noisy(lambda loss, logits: loss + logits.square().mean() if adds else loss)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    args = tiny.arguments(tmp_path, max_steps=1, loss="strict_l")
    LossTrainer(model=model, args=args, train_dataset=tiny.texts(16, tiny.one_class)).train()
    assert ("forward computes another loss than cross_entropy" in caplog.text) == adds
    # The running statistics have seen the batch once.
    assert model.body[0].num_batches_tracked == before["body.0.num_batches_tracked"] + 1


# ---- What a trainer of the user's own does with the loss ----------------------------------------


@pytest.mark.parametrize("model", [tiny.bert, partial(Own, tiny.CLASSES), WithLoss])
def test_outputs_have_the_loss_where_a_model_has_it(tmp_path, model):
    seen = []

    class Looking(LossTrainer):
        def compute_loss(self, *args, return_outputs=False, **kwargs):
            loss, outputs = super().compute_loss(*args, return_outputs=True, **kwargs)
            values = outputs if isinstance(outputs, tuple) else tuple(outputs.values())
            named = values[0] if isinstance(outputs, tuple) else outputs["loss"]
            seen.append((loss, values[0], named, values[1].shape))
            return (loss, outputs) if return_outputs else loss

    model = model(F.cross_entropy) if model is WithLoss else model()
    args = tiny.arguments(tmp_path, max_steps=1, loss="strict_l")
    data = tiny.texts(8, tiny.one_class)
    trainer = Looking(model=model, args=args, train_dataset=data, eval_dataset=data)
    trainer.train()
    assert trainer.predict(data).predictions.shape == (8, tiny.CLASSES)
    assert len(seen) == 2
    for loss, first, named, shape in seen:
        assert loss is first is named
        assert shape == (8, tiny.CLASSES)


class Named(dict):
    """As libraries have them, with attributes for its entries."""

    def __getattr__(self, name):
        return self[name]


def test_outputs_stay_what_they_are():
    logits, loss = torch.ones(2, 3), torch.tensor(1.0)
    outputs = SequenceClassifierOutput(logits=logits)
    outputs.pooled = "of the script"
    found = with_loss(outputs, loss)
    assert list(found) == ["loss", "logits"]
    assert (found[0] is loss, found.pooled) == (True, "of the script")
    assert outputs.loss is None
    found = with_loss(Named(logits=logits, loss=None), loss)
    assert (type(found), list(found)) == (Named, ["loss", "logits"])
    assert found.loss is loss
    outputs = BaseModelOutput(last_hidden_state=logits)  # It has no loss.
    assert with_loss(outputs, loss) is outputs


def test_a_router_counts_as_in_the_models_own_loss(tmp_path, caplog):
    class Own(MixtralForCausalLM):
        def forward(self, input_ids, attention_mask=None, labels=None, **kwargs):
            return super().forward(input_ids, attention_mask, labels=labels, **kwargs)

    sizes = {"vocab_size": tiny.VOCABULARY, "hidden_size": 16, "intermediate_size": 16}
    heads = {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_local_experts": 2,
    }
    config = MixtralConfig(output_router_logits=True, **sizes, **heads)
    args = tiny.arguments(
        tmp_path, max_steps=1, loss="strict_l", gradient_accumulation_steps=2, use_cpu=True
    )
    data = tiny.texts(16, tiny.some_next_tokens)
    LossTrainer(model=Own(config), args=args, train_dataset=data).train()
    assert "another loss" not in caplog.text
    assert "could not be found out" not in caplog.text


def test_a_compute_loss_may_call_the_loss_as_trainer_does(tmp_path):
    class Calling(LossTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            loss = self.compute_loss_func(outputs, labels, num_items_in_batch=num_items_in_batch)
            return (loss, outputs) if return_outputs else loss

    for model, labels in ((tiny.bert, None), (tiny.causal_lm, tiny.some_next_tokens)):
        data = tiny.texts(16, labels)
        steps = [
            tiny.gradients(tmp_path, model(), data, trainer=trainer, loss="strict_l")
            for trainer in (Calling, LossTrainer)
        ]
        assert tiny.difference(*steps) < 1e-6


def test_labels_that_become_a_tensor_late_are_learned(tmp_path):
    class Late(LossTrainer):
        def _prepare_inputs(self, inputs):
            return super()._prepare_inputs({**inputs, "labels": torch.tensor(inputs["labels"])})

    def collate(rows):
        batch = default_data_collator(rows)
        return {**batch, "labels": batch["labels"].tolist()}

    data = tiny.texts(16)
    keywords = {"data_collator": collate}
    late = tiny.gradients(
        tmp_path, tiny.bert(), data, trainer=Late, keywords=keywords, loss="focal"
    )
    assert tiny.difference(late, tiny.gradients(tmp_path, tiny.bert(), data, loss="focal")) < 1e-6


def test_labels_that_are_no_tensor_are_refused(tmp_path):
    def collate(rows):
        batch = default_data_collator(rows)
        return {**batch, "labels": {"first": batch["labels"], "second": batch["labels"]}}

    args = tiny.arguments(tmp_path, loss="strict_l")
    settings = {"train_dataset": tiny.texts(8), "data_collator": collate}
    with pytest.raises(ValueError, match="labels of a batch are a dict, not one tensor"):
        LossTrainer(model=tiny.bert(), args=args, **settings).train()


def test_averaged_weights_are_evaluated_by_the_loss_of_their_model(tmp_path):
    data = tiny.texts(16, tiny.yes_or_no_per_class)
    model = tiny.bert(problem_type=SEVERAL)
    trainer = build(tmp_path, model, data, "strict_l")
    expected = trainer.evaluate()
    trainer.model = AveragedModel(model)
    found = trainer.evaluate()
    for name in ("eval_loss", "eval_cross_entropy"):
        assert found[name] == pytest.approx(expected[name], rel=1e-6)


# ---- Yes/no labels ------------------------------------------------------------------------------


class Binary(nn.Module):
    """The loss of its own casts whole numbers."""

    def __init__(self, outputs, squeezed):
        super().__init__()
        self.own = Own(outputs, squeezed)

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.own(input_ids)["logits"]
        if labels is None:
            return {"logits": logits}
        labels = labels.float().reshape(logits.shape)
        return {"loss": F.binary_cross_entropy_with_logits(logits, labels), "logits": logits}


@pytest.mark.parametrize(("outputs", "squeezed"), [(1, False), (1, True), (3, False)])
@pytest.mark.parametrize("whole", [False, True])
def test_yes_no_labels_of_a_model_of_ones_own(tmp_path, caplog, outputs, squeezed, whole):
    data = tiny.texts(16, tiny.yes_or_no_per_class)
    for row in data:
        row["labels"] = row["labels"] if outputs > 1 else row["labels"][0]
        row["labels"] = row["labels"].long() if whole else row["labels"]
    args = tiny.arguments(
        tmp_path, max_steps=1, loss="strict_m", loss_kwargs={"problem_type": SEVERAL}
    )
    model = Binary(outputs, squeezed)
    trainer = LossTrainer(model=model, args=args, train_dataset=data, eval_dataset=data)
    logits, labels = outputs_of(model.own, data)
    metrics = trainer.evaluate()
    expected = F.binary_cross_entropy_with_logits(logits, labels.float())
    assert metrics["eval_cross_entropy"] == pytest.approx(expected.item(), rel=1e-5)
    margin = torch.where(labels > 0, logits, -logits)
    assert metrics["eval_loss"] == pytest.approx(torch.exp(-margin).mean().item(), rel=1e-5)
    trainer.train()
    assert "forward" not in caplog.text


def test_whole_yes_no_labels_of_a_bert(tmp_path):
    class Casting(BertForSequenceClassification):
        def forward(self, input_ids, attention_mask=None, labels=None):
            outputs = super().forward(input_ids, attention_mask)
            if labels is not None:
                binary = F.binary_cross_entropy_with_logits
                outputs["loss"] = binary(outputs.logits, labels.float())
            return outputs

    data = tiny.texts(16, tiny.yes_or_no_per_class)
    wanted = tiny.gradients(tmp_path, tiny.bert(), data, loss="strict_l")
    whole = [{**row, "labels": row["labels"].long()} for row in data]
    found = tiny.gradients(tmp_path, tiny.bert(Casting), whole, loss="strict_l")
    assert tiny.difference(wanted, found) < 1e-6
    settings = {"loss": "strict_l", "loss_kwargs": {"problem_type": SEVERAL}}
    found = tiny.gradients(tmp_path, tiny.bert(), whole, **settings)
    assert tiny.difference(wanted, found) < 1e-6
    with pytest.raises(ValueError, match="several yes/no labels set problem_type"):
        tiny.gradients(tmp_path, tiny.bert(), whole, loss="strict_l")


# ---- Whose forward it is ------------------------------------------------------------------------


def test_what_libraries_put_around_a_forward_is_not_the_users():
    model = tiny.bert()
    assert is_transformers(model)
    add_hook_to_module(model, ModelHook())  # As for a model on several devices.
    assert is_transformers(model)
    model._original_forward = model.forward  # As Accelerate for mixed precision.
    model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    assert is_transformers(model)
    del model._original_forward
    assert not is_transformers(Own(2))

    def forward(self, *args, **kwargs):
        return type(self).forward(self, *args, **kwargs)

    for patched in (MethodType(forward, model), MethodType(wraps(model.forward)(forward), model)):
        model.forward = patched
        assert not is_transformers(model)


# ---- Pixels, soft labels, other names -----------------------------------------------------------


class Pixels(nn.Module):
    """Classes of pixels as PyTorch's own losses take them, `[B, C, H, W]`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(1, 3, 1)

    def forward(self, pixel_values, labels=None):
        logits = self.layer(pixel_values)
        loss = None if labels is None else F.cross_entropy(logits, labels, ignore_index=-100)
        return {"loss": loss, "logits": logits}


class OfPatchesForSemanticSegmentation(ViTPreTrainedModel):
    """As people write them for backbones whose configs have no value for ignored pixels."""

    def __init__(self, config):
        super().__init__(config)
        self.layer = nn.Conv2d(1, 3, 1)
        self.post_init()

    def forward(self, pixel_values, labels=None):
        logits = self.layer(pixel_values)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SemanticSegmenterOutput(loss=loss, logits=logits)


@pytest.mark.parametrize(
    "build", [Pixels, lambda: OfPatchesForSemanticSegmentation(ViTConfig(num_labels=3))]
)
def test_pixels_of_a_model_of_ones_own(tmp_path, caplog, build):
    torch.manual_seed(1)
    rows = [(torch.randn(1, 4, 5), torch.randint(3, (4, 5))) for _ in range(8)]
    data = [{"pixel_values": pixels, "labels": labels} for pixels, labels in rows]
    data[0]["labels"][0, 0] = -100
    model = build()
    args = tiny.arguments(tmp_path, max_steps=1, loss="strict_l")
    trainer = LossTrainer(model=model, args=args, train_dataset=data, eval_dataset=data)
    found = trainer.evaluate()
    batch = default_data_collator(data)
    with torch.no_grad():
        logits = model(batch["pixel_values"])["logits"].movedim(1, -1)
    expected = get_loss("strict_l")(logits, batch["labels"])
    assert found["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
    trainer.train()
    assert "forward" not in caplog.text


def test_labels_that_a_forward_takes_for_probabilities_are_told(tmp_path, caplog):
    class Mixed(BertForSequenceClassification):
        def forward(self, input_ids, attention_mask=None, labels=None):
            outputs = super().forward(input_ids, attention_mask)
            if labels is not None:
                outputs.loss = F.cross_entropy(outputs.logits, labels)
            return outputs

    data = tiny.texts(8, tiny.mixture_of_two_classes)
    args = tiny.arguments(tmp_path, max_steps=1, loss="strict_l")
    LossTrainer(model=tiny.bert(Mixed), args=args, train_dataset=data).train()
    assert "set config.problem_type='single_label_classification'" in caplog.text
    caplog.clear()
    model = tiny.bert(Mixed, problem_type="single_label_classification")
    LossTrainer(model=model, args=args, train_dataset=data).train()
    assert "another loss" not in caplog.text


def test_one_yes_no_label_needs_its_problem_type(tmp_path):
    model = tiny.bert(num_labels=1)
    args = tiny.arguments(tmp_path, loss="strict_l", loss_kwargs={"problem_type": SEVERAL})
    with pytest.raises(ValueError, match=f"one yes/no label set config.problem_type='{SEVERAL}'"):
        LossTrainer(model=model, args=args, train_dataset=tiny.texts(8))
    model.config.problem_type = SEVERAL
    data = tiny.texts(8, lambda generator, ids: float(ids[0] % 2))
    LossTrainer(model=model, args=args, train_dataset=data).train()


def test_positions_before_the_tokens_are_told(tmp_path):
    class Seeing(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = tiny.causal_lm()

        def forward(self, input_ids, attention_mask=None, labels=None):
            words = self.words.get_input_embeddings()(input_ids)
            return self.words(inputs_embeds=torch.cat([words[:, :1], words], 1))

    data = tiny.texts(8, tiny.some_next_tokens)
    args = tiny.arguments(tmp_path, loss="strict_l")
    message = r"puts 1 positions before the tokens: let its forward return logits\[:, 0:-1\]"
    with pytest.raises(ValueError, match=message):
        LossTrainer(model=Seeing(), args=args, train_dataset=data).train()


def test_classes_that_a_config_counts_by_another_name_are_weighed(tmp_path):
    class OwnConfig(PreTrainedConfig):
        model_type = "own"

    class OwnForImageClassification(PreTrainedModel):
        config_class = OwnConfig

        def __init__(self, config):
            super().__init__(config)
            self.layer = nn.Linear(tiny.LENGTH, config.num_classes)
            self.post_init()

        def forward(self, input_ids, attention_mask=None, labels=None):
            logits = self.layer(input_ids / tiny.VOCABULARY)
            return {"logits": logits}

    config = OwnConfig()
    config.num_classes = tiny.CLASSES
    weight = [1.0, 2.0, 3.0]
    args = tiny.arguments(tmp_path, max_steps=1, loss="strict_l", loss_kwargs={"weight": weight})
    model = OwnForImageClassification(config)
    LossTrainer(model=model, args=args, train_dataset=tiny.texts(8, tiny.one_class)).train()
    args.loss_kwargs = {"weight": [1.0, 2.0]}
    with pytest.raises(ValueError, match=r"weight has 2 entries, .* has 3 classes"):
        LossTrainer(model=model, args=args, train_dataset=tiny.texts(8, tiny.one_class))


@pytest.mark.parametrize("added", [False, True])
def test_what_a_users_own_calls_aux_loss_is_compared(tmp_path, caplog, added):
    class Logging(Own):
        def forward(self, input_ids, attention_mask=None, labels=None):
            logits = super().forward(input_ids)["logits"]
            outputs = {"logits": logits, "aux_loss": logits.square().mean()}
            if labels is not None:
                outputs["loss"] = F.cross_entropy(logits, labels) + added * outputs["aux_loss"]
            return outputs

    args = tiny.arguments(tmp_path, max_steps=1, loss="strict_l")
    data = tiny.texts(8, tiny.one_class)
    LossTrainer(model=Logging(tiny.CLASSES), args=args, train_dataset=data).train()
    assert ("another loss than cross_entropy" in caplog.text) == added
