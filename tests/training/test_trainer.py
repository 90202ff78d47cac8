"""`LossTrainer` where Hugging Face's `Trainer` sets traps, and where users make mistakes."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import pathlib

import optuna
import pytest
import tiny
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertForPreTraining,
    BertForTokenClassification,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    XLNetConfig,
    XLNetForQuestionAnswering,
    set_seed,
)

from hf_losses import (
    LossMixin,
    LossTrainer,
    LossTrainingArguments,
    compute_loss_func,
    get_loss,
)
from hf_losses.training import end_run
from hf_losses.training.loss.items import item_count


def batch(rows):
    return {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}


@pytest.fixture
def build(tmp_path):
    """Builds a trainer on a tiny model; keywords of the arguments go in `args`."""

    def build(model=None, data=None, cls=LossTrainer, args=None, args_class=None, **keywords):
        args_class = args_class or LossTrainingArguments
        data = tiny.texts() if data is None else data
        return cls(
            model=tiny.bert() if model is None else model,
            args=tiny.arguments(tmp_path, args_class, **(args or {})),
            train_dataset=data,
            eval_dataset=data,
            **keywords,
        )

    return build


# ---- Where the loss comes from ---------------------------------------------------------------


def test_the_loss_may_be_named_in_arguments_or_given(build):
    power = {"loss": "strict_m_power", "loss_kwargs": {"alpha": 0.3}}
    trainers = [
        build(args=power),
        build(args=power | {"loss_kwargs": '{"alpha": 0.3}'}),
        build(args=power, loss="strict_m_power"),
        build(loss=get_loss("strict_m_power", alpha=0.3)),
        build(loss=get_loss("strict_m_power", alpha=0.3), args_class=TrainingArguments),
    ]
    for trainer in trainers:
        assert trainer.loss_config == {"name": "strict_m_power", "alpha": 0.3}
    assert build(loss="liberal_exp", args_class=TrainingArguments).loss_config == {
        "name": "liberal_exp"
    }


def test_without_a_loss_it_is_the_baseline_of_the_head(build):
    assert build().loss_config == {"name": "cross_entropy"}
    assert build(tiny.bert(num_labels=1)).loss_config == {"name": "mse"}


def test_a_search_may_set_the_loss_after_the_trainer_was_built(build):
    trainer = build(args={"loss": "liberal_exp"})
    trainer.args.loss = "strict_m_power"
    trainer.args.loss_kwargs = {"alpha": 0.25}
    assert trainer.loss_config == {"name": "strict_m_power", "alpha": 0.25}
    inputs = batch(tiny.texts(4))
    with torch.no_grad():
        expected = get_loss("strict_m_power", alpha=0.25)(
            trainer.model(input_ids=inputs["input_ids"]).logits, inputs["labels"]
        )
        torch.testing.assert_close(trainer.compute_loss(trainer.model.eval(), inputs), expected)


@pytest.mark.slow
def test_optuna_searches_over_losses(tmp_path):
    def space(trial):
        return {"loss": trial.suggest_categorical("loss", ["strict_m", "liberal_exp"])}

    class Trained(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(trainer.loss_config["name"])

    seen = []
    trainer = LossTrainer(
        model_init=lambda: tiny.bert(),
        args=tiny.arguments(tmp_path, max_steps=1, eval_strategy="steps", eval_steps=1),
        train_dataset=tiny.texts(),
        eval_dataset=tiny.texts(),
        callbacks=[Trained()],
    )
    trainer.hyperparameter_search(
        space,
        n_trials=4,
        compute_objective=lambda metrics: metrics["eval_cross_entropy"],
        sampler=optuna.samplers.GridSampler({"loss": ["strict_m", "liberal_exp"]}),
    )
    assert sorted(seen) == ["liberal_exp", "strict_m"]


@pytest.mark.parametrize("sets", [("",), ("a_", "b_")], ids=["one set", "two sets"])
@pytest.mark.parametrize("own", [{}, {"accuracy": 0.5, "ece": 0.25}], ids=["no metrics", "metrics"])
def test_a_search_without_an_objective_is_for_the_users_metrics(own, sets, tmp_path):
    data = tiny.texts()
    trainer = LossTrainer(
        model_init=lambda: tiny.bert(),
        args=tiny.arguments(tmp_path, max_steps=1, eval_strategy="steps", eval_steps=1),
        train_dataset=data,
        eval_dataset=data if len(sets) == 1 else {"a": data, "b": tiny.texts(6)},
        compute_metrics=(lambda evaluation: dict(own)) if own else None,
    )
    trainer.evaluate()  # From now on Trainer reports the time that this took it.
    best = trainer.hyperparameter_search(lambda trial: {"loss": "strict_m"}, n_trials=1)
    logged = {}
    for line in trainer.state.log_history:
        logged |= line
    baselines = [logged[f"eval_{name}cross_entropy"] for name in sets]
    assert sum(logged[f"eval_{name}loss"] for name in sets) != pytest.approx(sum(baselines))
    assert best.objective == pytest.approx(len(sets) * sum(own.values()) or sum(baselines))


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(reduction="none"),
        nn.functional.cross_entropy,
        lambda logits, labels: nn.functional.cross_entropy(logits, labels, reduction="none"),
    ],
    ids=["module", "unreduced-module", "function", "unreduced-function"],
)
def test_any_module_or_callable_is_normalised_like_our_own(loss, tmp_path):
    data = tiny.texts(label=tiny.class_of_each_token)
    accumulated = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    gradients = tiny.gradients(
        tmp_path,
        tiny.bert(BertForTokenClassification),
        data,
        loss="cross_entropy",
        per_device_train_batch_size=16,
    )
    expected = tiny.gradients(
        tmp_path,
        tiny.bert(BertForTokenClassification),
        data,
        keywords={"loss": loss},
        **accumulated,
    )
    assert tiny.difference(gradients, expected) < 1e-6


# ---- Mistakes, told when the trainer is built ------------------------------------------------

MULTI = {"problem_type": "multi_label_classification"}
MISTAKES = {
    "two losses": (
        {"args": {"loss": "strict_m"}, "loss": "liberal_exp"},
        "two losses: loss='liberal_exp'.*'strict_m'",
    ),
    "module and name": (
        {"args": {"loss": "strict_m"}, "loss": get_loss("strict_m")},
        "two losses.*keep one",
    ),
    "unknown": (
        {"loss": "liberal_ex", "args_class": TrainingArguments},
        "unknown loss 'liberal_ex'. Did you mean 'liberal_exp'",
    ),
    "compute_loss_func": (
        {"compute_loss_func": compute_loss_func("strict_m")},
        "compute_loss_func would compete.*loss=",
    ),
    "classification loss on regression": (
        {"model": lambda: tiny.bert(num_labels=1), "loss": "liberal_exp"},
        "'liberal_exp' is for classification.*num_labels=1.*choose one of: mse",
    ),
    "regression loss on classes": (
        {"loss": "smae"},
        "'smae' is for regression.*problem_type='regression', or choose one of: cross_entropy",
    ),
    "regression loss on several labels": (
        {"model": lambda: tiny.bert(**MULTI), "loss": "mse"},
        "'mse' is for regression.*multi_label",
    ),
    "regression loss on tokens": (
        {"model": lambda: tiny.bert(BertForTokenClassification), "loss": "mse"},
        "'mse' is for regression",
    ),
    "single-label module on several labels": (
        {"model": lambda: tiny.bert(**MULTI), "loss": get_loss("strict_m")},
        "built for single_label_classification.*multi_label_classification",
    ),
    "smoothing and a module": (
        {"args": {"label_smoothing_factor": 0.1}, "loss": get_loss("strict_m")},
        "label_smoothing_factor=0.1 would be ignored",
    ),
    "two smoothings": (
        {
            "args": {
                "label_smoothing_factor": 0.1,
                "loss": "strict_m",
                "loss_kwargs": {"label_smoothing": 0.2},
            }
        },
        "label_smoothing_factor=0.1 and loss_kwargs",
    ),
    "smoothing on regression": (
        {"model": lambda: tiny.bert(num_labels=1), "args": {"label_smoothing_factor": 0.1}},
        "label_smoothing_factor=0.1 does not apply to regression",
    ),
    "sum": ({"loss": get_loss("strict_m", reduction="sum")}, "reduction='mean'"),
    "torch sum": ({"loss": nn.CrossEntropyLoss(reduction="sum")}, "reduction='mean'"),
    "ignore_index": ({"loss": get_loss("strict_m", ignore_index=0)}, "ignore_index is 0.*-100"),
    "parameters": (
        {"loss": nn.AdaptiveLogSoftmaxWithLoss(8, 8, [4])},
        "AdaptiveLogSoftmaxWithLoss has parameters",
    ),
    "Liger": ({"args": {"use_liger_kernel": True}}, "use_liger_kernel.*fused_linear_cross_entropy"),
    "two label tensors": (
        {"model": lambda: tiny.bert(BertForPreTraining)},
        "BertForPreTraining.*next_sentence_label",
    ),
    "a beam over answers": (
        {
            "model": lambda: XLNetForQuestionAnswering(
                XLNetConfig(vocab_size=9, d_model=4, n_head=1)
            )
        },
        "XLNetForQuestionAnswering.*ForSequenceClassification",
    ),
    "a class": ({"loss": nn.CrossEntropyLoss}, r"CrossEntropyLoss is a class.*CrossEntropyLoss\("),
    "a number": ({"loss": 0.5}, "loss=0.5 is neither a name nor a callable"),
}


@pytest.mark.filterwarnings("ignore:Label smoothing is not compatible:UserWarning")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_when_the_trainer_is_built(mistake, build):
    keywords, message = MISTAKES[mistake]
    keywords = dict(keywords)
    if "model" in keywords:
        keywords["model"] = keywords["model"]()
    with pytest.raises(ValueError, match=f"(?s){message}"):
        build(**keywords)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "strict"}, "unknown loss 'strict'"),
        ({"loss": "strict_m", "loss_kwargs": {"alpha": 1}}, "has no parameter 'alpha'"),
        ({"loss": "strict_m_power", "loss_kwargs": '{"alpha": 0}'}, "alpha must be"),
        ({"loss": "strict_m_power", "loss_kwargs": "alpha=1"}, "JSON object.*got 'alpha=1'"),
        ({"loss": "strict_m_power", "loss_kwargs": "[1]"}, "JSON object"),
        ({"loss_kwargs": {"alpha": 1}}, "need a loss"),
    ],
)
def test_arguments_check_the_loss_at_once(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        LossTrainingArguments(output_dir=str(tmp_path), **settings)


def test_labels_outside_the_classes_are_named(build):
    for loss in ("cross_entropy", "strict_m", "strict_m_full"):
        trainer = build(data=tiny.texts(label=lambda g, ids: 7), loss=loss)
        with pytest.raises(ValueError, match=r"labels must lie in \[0, 3\).*got \[7\]"):
            trainer.train()


def test_a_batch_without_labels_is_an_error(build):
    rows = [{k: v for k, v in row.items() if k != "labels"} for row in tiny.texts()]
    with pytest.raises(ValueError, match="no 'labels'"):
        build(data=rows).train()


# ---- Traps -------------------------------------------------------------------------------------


def test_the_model_never_sees_the_labels_and_the_batch_keeps_them(build):
    trainer = build(loss="strict_m")
    seen = []
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(set(kwargs)), with_kwargs=True
    )
    inputs = batch(tiny.texts(4))
    trainer.compute_loss(trainer.model, inputs)
    assert seen == [{"input_ids", "attention_mask"}]
    assert "labels" in inputs


@pytest.mark.parametrize(
    ("model", "label", "problem"),
    [
        ({}, tiny.one_class, "single_label_classification"),
        ({}, tiny.yes_or_no_per_class, "multi_label_classification"),
        ({"num_labels": 1}, tiny.number, "regression"),
    ],
)
def test_problem_type_is_settled_as_the_model_would(model, label, problem, build):
    trainer = build(tiny.bert(**model), tiny.texts(label=label))
    trainer.train()
    assert trainer.model.config.problem_type == problem


@pytest.mark.parametrize("label", [tiny.one_class, tiny.yes_or_no_per_class])
def test_multi_label_and_classes_match_the_builtin_loss(label, build):
    trainer = build(data=tiny.texts(label=label))
    inputs = batch(tiny.texts(6, label))
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model.eval(), inputs)
        torch.testing.assert_close(loss, trainer.model(**inputs).loss)


def test_regression_matches_the_builtin_loss_and_reports_squared_error(build):
    trainer = build(tiny.bert(num_labels=1), tiny.texts(label=tiny.number), loss="smae")
    inputs = batch(tiny.texts(40, tiny.number))
    metrics = trainer.evaluate()
    with torch.no_grad():
        expected = trainer.model.eval()(
            **{k: v.float() if k == "labels" else v for k, v in inputs.items()}
        ).loss
    assert metrics["eval_mse"] == pytest.approx(expected.item(), rel=1e-6)
    assert metrics["eval_loss"] != metrics["eval_mse"]


def test_tuple_outputs_train_and_evaluate(build):
    model = tiny.bert()
    model.config.return_dict = False
    by_tuple = build(model, loss="liberal_exp", compute_metrics=lambda e: {"n": len(e.predictions)})
    by_dict = build(loss="liberal_exp", compute_metrics=lambda e: {"n": len(e.predictions)})
    a, b = by_tuple.evaluate(), by_dict.evaluate()
    assert a["eval_n"] == b["eval_n"] == 40
    assert a["eval_loss"] == b["eval_loss"]
    by_tuple.train()


def test_a_module_that_returns_its_logits_trains_and_evaluates(build):
    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = tiny.bert()

        def forward(self, input_ids, attention_mask=None, labels=None):
            return self.bert(input_ids, attention_mask).logits

    bare, whole = build(Classifier(), loss="liberal_exp"), build(loss="liberal_exp")
    assert bare.evaluate()["eval_loss"] == whole.evaluate()["eval_loss"]
    bare.train()
    whole.train()
    for a, b in zip(bare.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_label_smoothing_factor_is_in_the_loss(build):
    trainer = build(args={"loss": "strict_l", "label_smoothing_factor": 0.1})
    assert trainer.loss_config == {"name": "strict_l", "label_smoothing": 0.1}
    inputs = batch(tiny.texts(6))
    with torch.no_grad():
        logits = trainer.model.eval()(input_ids=inputs["input_ids"]).logits
        expected = get_loss("strict_l", label_smoothing=0.1)(logits, inputs["labels"])
        torch.testing.assert_close(trainer.compute_loss(trainer.model, inputs), expected)


def test_class_weights_are_summed_over_the_items_of_the_step(build):
    weight = [1.0, 2.0, 5.0]
    trainer = build(args={"loss": "strict_m", "loss_kwargs": {"weight": weight}})
    inputs = batch(tiny.texts(6))
    with torch.no_grad():
        logits = trainer.model.eval()(input_ids=inputs["input_ids"]).logits
        each = get_loss("strict_m", weight=weight, reduction="none")(logits, inputs["labels"])
        torch.testing.assert_close(
            trainer.compute_loss(trainer.model, inputs, num_items_in_batch=torch.tensor(24)),
            each.sum() / 24,
        )


def test_nothing_to_learn_from_is_zero_not_nan(build):
    data = tiny.texts(label=lambda g, ids: torch.full_like(ids, -100))
    for loss in ("cross_entropy", "liberal_exp"):
        trainer = build(tiny.bert(BertForTokenClassification), data, loss=loss)
        trainer.train()
        history = trainer.state.log_history[0]
        assert history["loss"] == history["grad_norm"] == 0.0


def test_a_loss_that_is_not_finite_is_seen_in_the_log(build):
    model = tiny.bert()
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    trainer = build(model, args={"loss": "liberal_exp", "max_steps": 1})
    trainer.train()
    assert trainer.state.log_history[0]["loss"] != trainer.state.log_history[0]["loss"]


def test_half_precision_logits_are_computed_in_float32(build):
    trainer = build(tiny.bert().to(torch.bfloat16), loss="strict_m")
    inputs = batch(tiny.texts(6))
    with torch.no_grad():
        logits = trainer.model.eval()(input_ids=inputs["input_ids"]).logits
        loss = trainer.compute_loss(trainer.model, inputs)
    assert logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, get_loss("strict_m")(logits.float(), inputs["labels"]))


def test_gradient_norm_is_logged(build):
    trainer = build(loss="liberal_exp")
    trainer.train()
    assert trainer.state.log_history[0]["grad_norm"] > 0


def test_data_parallel_counts_are_not_multiplied_twice(build):
    # DataParallel hands the count over once per GPU; the loss is computed on all outputs at once.
    per_gpu = torch.tensor([[8], [8]])
    trainer, inputs = build(loss="strict_m"), batch(tiny.texts(8))
    with torch.no_grad():
        outputs = trainer.model.eval()(input_ids=inputs["input_ids"])
        mean = get_loss("strict_m")(outputs.logits, inputs["labels"])
        loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=per_gpu)
        # The stock Trainer multiplies by the number of GPUs afterwards.
        stock = compute_loss_func("strict_m")(outputs, inputs["labels"], per_gpu) * 2
    torch.testing.assert_close(loss, mean)
    torch.testing.assert_close(stock, mean)


def test_a_step_whose_items_were_not_counted_is_divided_by_the_accumulation(build):
    trainer, inputs = build(loss="strict_m"), batch(tiny.texts(8))
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 4
    counted = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=torch.tensor(32))
    torch.testing.assert_close(trainer.compute_loss(trainer.model, inputs), counted)


def test_soft_labels_of_a_step_are_rows():
    labels = torch.full((4, 3), 1 / 3)
    assert item_count(labels, None, "single_label_classification") == 4
    assert item_count(labels, None, "multi_label_classification") == 12


def test_missing_logits_are_an_error_not_cross_entropy(build):
    trainer = build(loss="strict_m")
    trainer.model.register_forward_hook(
        lambda module, args, output: {"loss": torch.tensor(0.0), "hidden": output.logits}
    )
    with pytest.raises(ValueError, match=r"no logits.*Liger"):
        trainer.train()


def test_a_mixture_of_experts_keeps_its_auxiliary_loss(build):
    set_seed(0)
    config = MixtralConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        output_router_logits=True,
        router_aux_loss_coef=0.5,
    )
    model = MixtralForCausalLM(config)
    trainer = build(model, tiny.texts(label=tiny.some_next_tokens), loss="cross_entropy")
    inputs = batch(tiny.texts(4, tiny.some_next_tokens))
    with torch.no_grad():
        builtin = model.eval()(**inputs)
        loss = trainer.compute_loss(model, inputs)
    assert builtin.aux_loss > 0
    torch.testing.assert_close(loss, builtin.loss)
    model.train()
    trainer.current_gradient_accumulation_steps = 2
    items = (inputs["labels"][:, 1:] != -100).sum() * 2
    torch.testing.assert_close(trainer.compute_loss(model, inputs, False, items) * 2, loss)
    forward = model.forward

    @functools.wraps(forward)
    def of_each_gpu(**given):  # As DataParallel gathers scalars.
        outputs = forward(**given)
        outputs["aux_loss"] = outputs.aux_loss + torch.tensor([-0.25, 0.25])
        return outputs

    model.forward = of_each_gpu
    assert trainer.evaluate(tiny.texts(4, tiny.some_next_tokens))["eval_loss"] == pytest.approx(
        builtin.loss.item(), rel=1e-5
    )
    del model.forward
    model.config.return_dict = False
    with pytest.raises(ValueError, match="return_dict=False the model's outputs do not tell"):
        build(model, tiny.texts(label=tiny.some_next_tokens), loss="cross_entropy")


def test_the_experts_of_a_model_that_sees_have_their_weight_in_its_text_config(build):
    text = tiny.causal_lm().config.to_dict() | {"num_experts": 4, "moe_intermediate_size": 32}
    text |= {"router_aux_loss_coef": 0.5, "rope_parameters": {"mrope_section": [2, 3, 3]}}
    sizes = {"hidden_size": 32, "intermediate_size": 32, "out_hidden_size": 32, "num_heads": 2}
    vision = sizes | {"depth": 1, "deepstack_visual_indexes": [0]}
    set_seed(0)
    model = Qwen3VLMoeForConditionalGeneration(
        Qwen3VLMoeConfig(text_config=text, vision_config=vision, image_token_id=tiny.VOCABULARY)
    ).eval()
    data = tiny.texts(label=tiny.some_next_tokens)
    trainer = build(model, data, loss="cross_entropy")
    inputs = batch(data[:4]) | {"output_router_logits": True}
    with torch.no_grad():
        builtin = model(**inputs)
        assert builtin.aux_loss > 0
        torch.testing.assert_close(trainer.compute_loss(model, inputs), builtin.loss)


def t5():
    set_seed(0)
    config = T5Config(
        vocab_size=tiny.VOCABULARY,
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config)


def test_sequence_to_sequence_models_get_their_decoder_inputs(build):
    data = tiny.texts(label=tiny.some_next_tokens)
    trainer = build(t5(), data, loss="cross_entropy")
    inputs = batch(data[:4])
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model.eval(), inputs)
        torch.testing.assert_close(loss, trainer.model(**inputs).loss)


def test_generating_evaluation_reports_this_loss(build):
    class Generating(LossMixin, Seq2SeqTrainer):
        pass

    # Of which what generates must not see the weights.
    data = [row | {"loss_weight": 2.0} for row in tiny.texts(label=tiny.some_next_tokens)]
    trainer = build(
        t5(),
        data,
        cls=Generating,
        args_class=Seq2SeqTrainingArguments,
        args={"predict_with_generate": True, "generation_max_length": 4},
        compute_metrics=lambda e: {},
        loss="strict_l",
    )
    plain = build(t5(), data, loss="strict_l")
    metrics, expected = trainer.evaluate(), plain.evaluate()
    assert metrics["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-6)
    assert metrics["eval_cross_entropy"] == pytest.approx(expected["eval_cross_entropy"], rel=1e-6)


def test_prompt_tuning_lengthens_the_logits_but_not_the_labels(build):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = get_peft_model(tiny.causal_lm(), config)
    trainer = build(model, tiny.texts(label=tiny.some_next_tokens), loss="cross_entropy")
    inputs = batch(tiny.texts(4, tiny.some_next_tokens))
    with torch.no_grad():
        loss = trainer.compute_loss(model.eval(), inputs)
        torch.testing.assert_close(loss, model(**inputs).loss)


def test_a_model_without_a_label_argument_is_trained_and_evaluated(build):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(tiny.LENGTH, tiny.CLASSES)

        def forward(self, input_ids, attention_mask):
            return (self.linear(input_ids.float() / tiny.VOCABULARY),)

    trainer = build(Plain(), loss="liberal_cosine")
    trainer.train()
    assert {"eval_loss", "eval_cross_entropy"} <= trainer.evaluate().keys()


# ---- Evaluation ------------------------------------------------------------------------------


def test_evaluation_reports_cross_entropy_beside_the_loss(build):
    # 41 examples: the last batch has one.
    trainer = build(data=tiny.texts(41), loss="strict_l")
    metrics = trainer.evaluate()
    inputs = batch(tiny.texts(41))
    with torch.no_grad():
        logits = trainer.model.eval()(input_ids=inputs["input_ids"]).logits
    for key, name in (("eval_loss", "strict_l"), ("eval_cross_entropy", "cross_entropy")):
        assert metrics[key] == pytest.approx(
            get_loss(name)(logits, inputs["labels"]).item(), rel=1e-6
        )
    assert trainer.predict(tiny.texts(8)).metrics.keys() >= {"test_loss", "test_cross_entropy"}
    several = trainer.evaluate({"a": tiny.texts(8), "b": tiny.texts(9)})
    assert {"eval_a_cross_entropy", "eval_b_cross_entropy"} <= several.keys()


def test_smoothing_and_weights_do_not_enter_the_reported_cross_entropy(build):
    plain = build(loss="cross_entropy").evaluate()["eval_cross_entropy"]
    smooth = build(args={"loss": "cross_entropy", "label_smoothing_factor": 0.3}).evaluate()
    weight = {"weight": [1.0, 2.0, 5.0]}
    weighted = build(args={"loss": "cross_entropy", "loss_kwargs": weight}).evaluate()
    for metrics in (smooth, weighted):
        assert metrics["eval_cross_entropy"] == pytest.approx(plain, rel=1e-6)
        assert metrics["eval_loss"] != pytest.approx(plain, rel=1e-6)


# ---- Saving and resuming -----------------------------------------------------------------------

SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}


@pytest.fixture
def saved(build, tmp_path):
    power = {"loss": "strict_m_power", "loss_kwargs": {"alpha": 0.3}}
    build(args=power | SAVING).train()
    return tmp_path / "checkpoint-2"


def test_a_checkpoint_knows_its_loss(saved):
    config = {"name": "strict_m_power", "alpha": 0.3}
    assert json.loads((saved / "config.json").read_text())["hf_losses"] == config
    assert json.loads((saved / "hf_losses.json").read_text()) == config
    state = json.loads((saved / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["hf_losses"]["args"] == config
    model = AutoModelForSequenceClassification.from_pretrained(saved)
    assert model.config.hf_losses == config


class Tracker(TrainerCallback):
    def on_train_begin(self, args, state, control, model, **kwargs):
        self.loss = model.config.to_dict().get("hf_losses")


@pytest.mark.parametrize("made", ["model", "model_init"])
def test_a_tracker_learns_the_loss_when_the_training_begins(tmp_path, made):
    tracker = Tracker()
    model = {"model": tiny.bert()} if made == "model" else {"model_init": lambda: tiny.bert()}
    args = tiny.arguments(tmp_path)
    trainer = LossTrainer(
        **model, args=args, train_dataset=tiny.texts(), loss="strict_l", callbacks=[tracker]
    )
    trainer.train()
    assert tracker.loss == {"name": "strict_l"}


def test_a_checkpoint_that_a_signal_cut_short_is_skipped(saved, build):
    (saved / "checkpoint-is-incomplete.txt").write_text("in progress")
    trainer = build(args={"loss": "strict_m_power", "loss_kwargs": {"alpha": 0.3}} | SAVING)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 2


def test_the_loss_in_the_state_is_no_callback_that_is_missing(saved, build, caplog):
    power = {"loss": "strict_m_power", "loss_kwargs": {"alpha": 0.3}}
    more = SAVING | {"max_steps": 3, "restore_callback_states_from_checkpoint": True}
    trainer = build(args=power | more | {"log_level": "warning"})
    trainer.train(resume_from_checkpoint=str(saved))
    assert "hf_losses" in trainer.state.stateful_callbacks
    assert "not included in current configuration" not in caplog.text


def test_resuming_with_another_loss_is_an_error_unless_wanted(saved, build):
    more = SAVING | {"max_steps": 4}
    with pytest.raises(ValueError, match=r"alpha.*strict_m_power.*--allow_loss_change"):
        build(args=more | {"loss": "liberal_exp"}).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match=r"'alpha': 0.3.*'alpha': 0.4"):
        build(args=more | {"loss": "strict_m_power", "loss_kwargs": {"alpha": 0.4}}).train(
            resume_from_checkpoint=str(saved)
        )
    trainer = build(args=more | {"loss": "liberal_exp", "allow_loss_change": True})
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4
    state = json.loads((saved.parent / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["hf_losses"]["args"] == {"name": "liberal_exp"}


def test_a_checkpoint_of_the_stock_trainer_was_trained_with_the_builtin_loss(build):
    build(cls=Trainer, args=SAVING, args_class=TrainingArguments).train()
    more = SAVING | {"max_steps": 3}
    with pytest.raises(ValueError, match="cross_entropy"):
        build(args=more | {"loss": "strict_m"}).train(resume_from_checkpoint=True)
    trainer = build(args=more | {"loss": "cross_entropy"})
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3


def test_resuming_passes_over_a_checkpoint_cut_short(saved, build, caplog):
    (saved / "trainer_state.json").write_text('{"global_step": 2, "log_')
    power = {"loss": "strict_m_power", "loss_kwargs": {"alpha": 0.3}}
    trainer = build(args=power | SAVING | {"max_steps": 3})
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=True)
    assert "Can't find a valid checkpoint at" in caplog.text
    assert "checkpoint-2: its trainer_state.json cannot be read" in caplog.text
    assert trainer.state.global_step == 3


def test_weights_that_are_saved_under_other_names_are_loaded_again(build, tmp_path):
    steps = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    best = {"metric_for_best_model": "loss", "greater_is_better": True}
    # The largest loss is best: that of the first step.
    args = steps | best | {"load_best_model_at_end": True, "learning_rate": 1e-2}
    trainer = build(tiny.vit(), tiny.images(), args=args)
    trainer.train()
    first = tmp_path / "checkpoint-1"
    assert trainer.state.best_model_checkpoint == str(first)
    saved = type(trainer.model).from_pretrained(first).state_dict()
    names = set(load_file(first / "model.safetensors"))
    assert not names <= set(saved)  # Else this test has nothing to show.
    for name, weight in trainer.model.state_dict().items():
        torch.testing.assert_close(weight, saved[name], rtol=0, atol=0)
    whole = build(tiny.vit(), tiny.images(), args={"learning_rate": 1e-2})
    whole.train()
    resumed = build(tiny.vit(), tiny.images(), args=steps | {"learning_rate": 1e-2})
    resumed.train(resume_from_checkpoint=str(first))
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], weight, rtol=0, atol=0)
    weights = load_file(first / "model.safetensors")
    del weights["classifier.bias"]
    save_file(weights, first / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks weights: classifier\.bias"):
        resumed.train(resume_from_checkpoint=str(first))


def with_own_head():
    model = tiny.vit()
    width = model.classifier.in_features
    model.classifier = nn.Sequential(nn.Linear(width, 4), nn.ReLU(), nn.Linear(4, tiny.CLASSES))
    return model


def with_half_a_body():
    model = tiny.vit().to(torch.bfloat16)
    model.classifier.float()
    model.classifier.register_forward_pre_hook(lambda _, given: (given[0].float(),))
    return model


@pytest.mark.parametrize("make", [with_own_head, with_half_a_body])
def test_so_are_those_of_a_model_that_was_changed(build, make):
    steps = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    best = {"metric_for_best_model": "first", "greater_is_better": True}
    args = steps | best | {"load_best_model_at_end": True, "learning_rate": 1e-2, "max_steps": 2}

    class Keep(TrainerCallback):
        def on_save(self, args, state, control, model, **_):
            seen[state.global_step] = {k: v.clone() for k, v in model.state_dict().items()}

    def train(checkpoint=None, **more):
        set_seed(0)
        values = iter([1.0, 0.0, 0.0])
        trainer = build(
            make(),
            tiny.images(),
            args=args | more,
            callbacks=[Keep()],
            compute_metrics=lambda _: {"first": next(values)},
        )
        trainer.train(checkpoint)
        return trainer

    seen = {}
    trainer = train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    uninterrupted = seen[2]
    torch.testing.assert_close(trainer.model.state_dict(), seen[1], rtol=0, atol=0)
    resumed = train(trainer.state.best_model_checkpoint, load_best_model_at_end=False)
    torch.testing.assert_close(resumed.model.state_dict(), uninterrupted, rtol=0, atol=0)


def test_nothing_to_resume_from(build):
    # In the words of the stock Trainer, which programs look for.
    trainer = build(args=SAVING)
    with pytest.raises(ValueError, match="No valid checkpoint found in output directory"):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match=r"Can't find a valid checkpoint at .*checkpoint-7"):
        trainer.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-7")


def test_an_adapter_is_saved_with_its_loss(build, tmp_path):
    model = get_peft_model(tiny.bert(), LoraConfig(task_type="SEQ_CLS", r=2))
    trainer = build(model, loss="strict_l")
    trainer.train()
    trainer.save_model()
    assert json.loads((tmp_path / "hf_losses.json").read_text()) == {"name": "strict_l"}


def test_the_model_card_names_the_loss(build, tmp_path):
    trainer = build(args={"loss": "strict_m_power", "loss_kwargs": {"alpha": 0.3}})
    trainer.train()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert '| loss | `{"name": "strict_m_power", "alpha": 0.3}` |' in card
    assert "- hf_losses\n" in card
    assert "- loss:strict_m_power\n" in card


@dataclasses.dataclass
class ArgumentsWithAPath(LossTrainingArguments):
    where: object = dataclasses.field(default_factory=lambda: {"folder": pathlib.Path("a/b")})


def test_arguments_of_any_type_do_not_stop_a_checkpoint(build, tmp_path):
    trainer = build(args_class=ArgumentsWithAPath, args={"save_strategy": "steps", "save_steps": 3})
    trainer.train()
    checkpoint = tmp_path / "checkpoint-3"
    assert (checkpoint / "model.safetensors").exists()
    assert json.loads((checkpoint / "training_args.json").read_text())["where"]["folder"]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_the_end_of_a_script_ends_the_processes_that_load_its_data(build):
    settings = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "max_steps": 2}
    trainer = build(args=settings)
    trainer.train()
    trainer.evaluate()
    loaders = [loader.base_dataloader for loader in trainer.accelerator._dataloaders]
    (learner,), (tester,) = [loader._iterator._workers for loader in loaders]
    assert learner.is_alive()
    assert tester.is_alive()
    end_run(trainer)
    assert (learner.exitcode, tester.exitcode) == (0, 0)  # PyTorch waits 5 s, then terminates.


# ---- The stock Trainer -------------------------------------------------------------------------


def test_compute_loss_func_tells_what_it_cannot_do():
    compute = compute_loss_func("strict_m")
    logits = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="needs the batch to have 'labels'"):
        compute({"logits": logits}, None)
    with pytest.raises(ValueError, match="tuples"):
        compute((logits,), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="problem_type"):
        compute({"logits": logits}, torch.full((2, 3), 1 / 3))
    with pytest.raises(ValueError, match="unknown loss"):
        compute_loss_func("strict")


class Another:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


class ByCriterion(LossTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        loss = self.criterion(model(**inputs).logits, labels)
        return (loss, None) if return_outputs else loss


class Nested(LossTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        parent = super()
        parts = [parent.compute_loss(model, x, False, num_items_in_batch) for x in [inputs]]
        return (sum(parts), None) if return_outputs else sum(parts)


class WithHelper(LossTrainer):
    def helped(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs)


class ByHelper(WithHelper):
    def compute_loss(self, *args, **kwargs):
        return self.helped(*args, **kwargs)


class OwnInFront(Another, LossMixin, Trainer):
    pass


def test_a_compute_loss_in_front_that_does_not_take_the_loss_is_refused(build):
    with pytest.raises(ValueError, match=r"Another\.compute_loss has a loss of its own, so LossM"):
        build(cls=OwnInFront, loss="strict_l")
    for cls in (ByCriterion, Nested, ByHelper):
        build(cls=cls, loss="strict_l").train()


def test_the_mixin_behind_trainer_is_refused_where_the_class_is_made():
    message = (
        r"in Wrong, LossMixin comes behind Trainer.*: class Wrong\(LossMixin, Seq2SeqTrainer\)"
    )
    with pytest.raises(ValueError, match=message):

        class Wrong(Seq2SeqTrainer, LossMixin):
            pass
