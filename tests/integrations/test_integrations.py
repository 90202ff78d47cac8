"""docs/swap.md, executed against the real packages: whose loss is in force before and after.

What trains here is saved, goes on from a checkpoint to the same weights, and is loaded again to the
same predictions, by its own package.
"""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, PromptTuningConfig
from peft.helpers import MontecloraTrainerMixin
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader, TensorDataset
from transformers import (
    BertForSequenceClassification,
    BertModel,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_losses import LossMixin, LossTrainingArguments, get_loss, get_spec
from hf_losses.hub.saved_run import loss_of_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = {
    part.partition("\n")[0]: re.findall(r"```(diff|python)\n(.*?)```", part, re.DOTALL)
    for part in (ROOT / "docs" / "swap.md").read_text(encoding="utf-8").split("\n## ")
}

pytestmark = [
    # TRL makes a card with every checkpoint, and drawing takes most of the time of a tiny run.
    pytest.mark.usefixtures("no_pictures"),
    # trl 1.16 still asks transformers by the old name.
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
    # setfit 1.2 still asks sentence-transformers by the old name, and pins memory without a GPU.
    pytest.mark.filterwarnings("ignore:The `get_sentence_embedding_dimension`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning"),
]


def need(package):
    reason = f"{package} is not installed: pip install 'hf-losses[integrations]'"
    return pytest.importorskip(package, reason=reason)


# ---- Running what the page says, and looking at the gradients ------------------------------------


def sides(section, index=0):
    """What stands before and after a diff, as code."""
    _, diff = SECTIONS[section][index]
    lines = diff.splitlines()
    return ["\n".join(line[1:] for line in lines if line[:1] != other) for other in "+-"]


def run(code, **names):
    exec(code, names)
    return names


class Step(dict):
    """The gradients of an optimizer step, by parameter."""

    def __init__(self, parameters):
        super().__init__((p, p.grad.clone()) for p in parameters if p.grad is not None)
        self.before = [(p, p.detach().clone()) for p in parameters]

    def back(self):
        """Makes the parameters what they were before it."""
        for parameter, value in self.before:
            parameter.data.copy_(value)


@pytest.fixture
def steps():
    """Every optimizer step, whoever makes it."""
    seen = []

    def look(optimizer, args, kwargs):
        seen.append(Step([p for group in optimizer.param_groups for p in group["params"]]))

    handle = register_optimizer_step_pre_hook(look)
    yield seen
    handle.remove()


def of_formula(name, p, **params):
    """The loss as the registry states it in words, differentiated by autograd."""
    spec = get_spec(name)
    return eval(spec.formula, vars(torch) | spec.resolve(params) | {"p": p})


def by_hand(name, logits, labels, **params):
    """The mean over all items of a step, from probabilities."""
    if logits.shape == labels.shape:
        p = torch.where(labels == 1, logits.sigmoid(), (-logits).sigmoid())
    else:
        kept = labels != -100
        p = logits[kept].softmax(-1).gather(-1, labels[kept].unsqueeze(-1))
    return of_formula(name, p, **params).mean()


def difference(step, loss):
    """Relative, between the gradients of a step and those of a loss by hand."""
    gradients = torch.autograd.grad(loss, list(step), retain_graph=True)
    ours, theirs = (torch.cat([g.flatten() for g in of]) for of in (step.values(), gradients))
    return ((ours - theirs).norm() / theirs.norm()).item()


def check(step, logits, labels, changed, name, **params):
    """Cross-entropy's gradient before the change, the named loss's and not that one after it."""
    before = difference(step, by_hand("cross_entropy", logits, labels))
    after = difference(step, by_hand(name, logits, labels, **params))
    assert (after if changed else before) < 1e-5
    assert (before if changed else after) > 0.05


def resumed(code, checkpoint):
    """The same code, which goes on from a checkpoint."""
    assert code.count("trainer.train()") == 1
    return code.replace("trainer.train()", f"trainer.train(resume_from_checkpoint={checkpoint!r})")


def check_saved(folder, changed, loss):
    """Whether a checkpoint knows the loss that it was trained with."""
    record = loss_of_checkpoint(str(folder))
    assert record == ({"name": loss} if changed else None)


def same(model, other):
    assert len(list(model.parameters())) > 0
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


both = pytest.mark.parametrize("changed", [False, True], ids=["before", "after"])
TWO_STEPS = {"learning_rate": 0.01, "max_grad_norm": 0.0, "max_steps": 2}
SAVED = {"save_strategy": "steps", "save_steps": 1}
QUIET = {"use_cpu": True, "report_to": [], "disable_tqdm": True}
USUAL = TWO_STEPS | SAVED | QUIET


def tokenizer():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(4, tiny.VOCABULARY))]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="$A",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        eos_token="[SEP]",
        model_max_length=32,
    )


def words(*numbers):
    return " ".join(f"w{number}" for number in numbers)


def test_every_example_of_the_page_is_run_here():
    assert {section: len(blocks) for section, blocks in SECTIONS.items() if blocks} == {
        "Trainer": 1,
        "The stock Trainer": 1,
        "TRL": 2,
        "CrossEncoder": 2,
        "SetFit": 1,
        "PyTorch": 1,
        "Accelerate": 2,
    }


# ---- transformers --------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("section", "loss"), [("Trainer", "liberal_exp"), ("The stock Trainer", "strict_l")]
)
def test_trainer(section, loss, changed, steps, tmp_path):
    data, code = tiny.texts(8), sides(section)[changed]
    args = TrainingArguments(tmp_path, **USUAL)
    model, again = tiny.bert(), tiny.bert()
    ids = torch.stack([row["input_ids"] for row in data])
    run(code, model=model, args=args, data=data)
    check_saved(tmp_path / "checkpoint-2", changed and section == "Trainer", loss)
    loaded = BertForSequenceClassification.from_pretrained(tmp_path / "checkpoint-2")
    torch.testing.assert_close(loaded(ids).logits, model.eval()(ids).logits)
    run(resumed(code, str(tmp_path / "checkpoint-1")), model=again, args=args, data=data)
    same(again, model)
    steps[0].back()
    check(steps[0], model(ids).logits, torch.tensor([r["labels"] for r in data]), changed, loss)


# ---- TRL -----------------------------------------------------------------------------------------

PROMPTS = [(5, 6, 7), (13,), (5, 13), (5, 6, 17, 11), (9, 30), (31, 32, 33, 34), (8,), (40, 41)]
ANSWERS = [(8, 9), (8, 9, 12, 11, 24), (9,), (8, 9, 34), (41,), (20, 21, 22), (23,), (24, 25)]
ROWS = [
    {"prompt": words(*prompt), "completion": " " + words(*answer)}
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)
]


@both
@pytest.mark.parametrize(
    ("settings", "peft_config"),
    [
        ({}, None),
        ({"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3}, None),
        ({"padding_free": True, "max_length": None}, None),
        (
            {
                "packing": True,
                "max_length": 12,
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 4,
            },
            None,
        ),
        ({"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}, LoraConfig()),
    ],
    ids=["padded", "accumulated", "padding_free", "packed", "lora"],
)
def test_sft(settings, peft_config, changed, steps, tmp_path):
    trl, loss = need("trl"), "strict_l"
    code = sides("TRL")[changed]

    def train(code):
        return run(
            code,
            model=tiny.causal_lm(),
            args=trl.SFTConfig(str(tmp_path), bf16=False, **(USUAL | settings)),
            data=Dataset.from_list(ROWS),
            tokenizer=tokenizer(),
            peft_config=peft_config,
        )["trainer"]

    def predictions(model):
        """Each row for itself, unpadded and unpacked: what is learnt is the answer and its end."""
        model.eval()
        logits, labels = [], []
        for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
            ids = torch.tensor([*prompt, *answer, 3])
            logits.append(model(ids[None]).logits[0, len(prompt) - 1 : -1])
            labels.append(ids[len(prompt) :])
        return torch.cat(logits), torch.cat(labels)

    model = train(code).model
    assert len(steps) == 2
    check_saved(tmp_path / "checkpoint-2", changed, loss)
    tags = ModelCard.load(tmp_path / "README.md").data.tags
    assert {"trl", "sft"} <= {*tags}
    assert (f"loss:{loss}" in tags) == changed
    if peft_config:
        assert any("lora" in name for name, _ in model.named_parameters())
        loaded = PeftModel.from_pretrained(tiny.causal_lm(), tmp_path / "checkpoint-2")
    else:
        loaded = LlamaForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    torch.testing.assert_close(predictions(loaded)[0], predictions(model)[0])
    same(train(resumed(code, str(tmp_path / "checkpoint-1"))).model, model)
    steps[0].back()
    check(steps[0], *predictions(model), changed, loss)


def mixture_of_experts():
    sizes = tiny.causal_lm().config.to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4}
    set_seed(0)
    return MixtralForCausalLM(MixtralConfig(**{n: sizes[n] for n in names}, **heads))


PROMPT = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)


@pytest.mark.parametrize(
    ("settings", "make", "peft_config"),
    [
        ({"packing": True, "max_length": 12}, tiny.causal_lm, None),
        ({"padding_free": True, "max_length": None}, tiny.causal_lm, LoraConfig()),
        ({"completion_only_loss": False}, tiny.causal_lm, PROMPT),
        (
            {"router_aux_loss_coef": 0.7, "gradient_accumulation_steps": 2},
            mixture_of_experts,
            None,
        ),
        ({"fused_linear": True}, mixture_of_experts, None),
    ],
    ids=["packed", "lora", "prompt_tuning", "experts", "fused_linear"],
)
def test_sft_logs_what_it_logs_without_the_mixin(
    settings, make, peft_config, tmp_path, monkeypatch
):
    trl = need("trl")
    figures = ("entropy", "mean_token_accuracy")
    if make is mixture_of_experts:
        figures += ("aux_loss",)

    class Ours(LossMixin, trl.SFTTrainer):
        pass

    # A checkpoint pickles it.
    Config = dataclass(
        type("Config", (trl.SFTConfig, LossTrainingArguments), {"__module__": __name__})
    )
    monkeypatch.setattr(sys.modules[__name__], "Config", Config, raising=False)

    def build(cls, loss):
        still = USUAL | {"learning_rate": 0.0, "max_steps": 4, "save_steps": 2, "logging_steps": 2}
        rows = Dataset.from_list(ROWS)
        return cls(
            make(),
            Config(
                str(tmp_path),
                loss=loss,
                bf16=False,
                per_device_train_batch_size=3,
                **(still | settings),
            ),
            train_dataset=rows,
            eval_dataset=rows,
            processing_class=tokenizer(),
            peft_config=peft_config,
        )

    def train(trainer, checkpoint=None):
        trainer.train(checkpoint)
        evaluation = trainer.evaluate()
        lines = [line for line in trainer.state.log_history if "loss" in line]
        assert len(lines) == 2
        return trainer.model, lines, evaluation

    def check(metrics, expected, names, prefix=""):
        for name in names:
            assert metrics[prefix + name] == pytest.approx(expected[prefix + name], rel=2e-5)

    _, stock_lines, stock_evaluation = train(build(trl.SFTTrainer, None))
    model, lines, evaluation = train(build(Ours, "cross_entropy"))
    # TRL sums over the token after a prompt that is tuned, but does not count it.
    losses = () if peft_config is PROMPT else ("loss", "grad_norm")
    for line, stock in zip(lines, stock_lines, strict=True):
        check(line, stock, (*losses, "num_tokens", *figures))
    check(evaluation, stock_evaluation, ("loss", "num_tokens", *figures), "eval_")

    # As without the mixin, the tokens of a training that goes on are counted anew.
    again, lines, evaluation = train(build(Ours, "cross_entropy"), str(tmp_path / "checkpoint-2"))
    same(again, model)
    check(lines[1], stock_lines[1], (*losses, *figures))
    check(evaluation, stock_evaluation, ("loss", *figures), "eval_")
    if peft_config:
        loaded = PeftModel.from_pretrained(make(), tmp_path / "checkpoint-4")
    else:
        loaded = type(model).from_pretrained(tmp_path / "checkpoint-4")
    same(loaded, model)

    # Another loss is logged with the same figures of the same model, but for its own.
    evaluation = build(Ours, "strict_l").evaluate()
    assert evaluation["eval_loss"] != pytest.approx(stock_evaluation["eval_loss"], rel=0.01)
    check(evaluation, stock_evaluation, figures, "eval_")


# The client's own, of the HTTP library below it.
@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
def test_sft_keeps_the_best_model_by_its_own_figure_and_publishes_it(tmp_path, hub):
    trl = need("trl")
    rows = Dataset.from_list(ROWS)

    class Ours(LossMixin, trl.SFTTrainer):
        pass

    def train(resume=None):
        args = trl.SFTConfig(
            str(tmp_path),
            bf16=False,
            eval_strategy="steps",
            eval_steps=1,
            metric_for_best_model="eval_mean_token_accuracy",
            load_best_model_at_end=True,
            push_to_hub=True,
            hub_strategy="end",
            hub_model_id="me/model",
            **(USUAL | {"max_steps": 4, "learning_rate": 0.05}),
        )
        trainer = Ours(
            tiny.causal_lm(),
            args,
            train_dataset=rows,
            eval_dataset=rows,
            processing_class=tokenizer(),
            loss="liberal_exp",
        )
        trainer.train(resume)
        return trainer

    trainer = train()
    accuracies = [
        x["eval_mean_token_accuracy"] for x in trainer.state.log_history if "eval_loss" in x
    ]
    assert len(set(accuracies)) > 1
    assert trainer.state.best_metric == max(accuracies)
    assert trainer.evaluate()["eval_mean_token_accuracy"] == max(accuracies)
    best = accuracies.index(max(accuracies)) + 1
    same(LlamaForCausalLM.from_pretrained(tmp_path / f"checkpoint-{best}"), trainer.model)
    again = train(str(tmp_path / "checkpoint-1"))
    same(again.model, trainer.model)

    trainer.push_to_hub()
    published = hub.files["me/model"]
    card = ModelCard(published["README.md"].decode())
    assert {"trl", "sft", "loss:liberal_exp"} <= {*card.data.tags}
    assert "liberal_exp" in card.content
    assert "model.safetensors" in published


@pytest.mark.filterwarnings("ignore::trl.import_utils.TRLExperimentalWarning")
def test_trainers_whose_loss_is_not_ours_to_replace_are_refused():
    trl = need("trl")
    package, setfit = need("sentence_transformers"), need("setfit")
    from sentence_transformers.cross_encoder import CrossEncoderTrainer
    from trl.experimental.gkd import GKDTrainer

    class Doubled(Trainer):
        def compute_loss(self, *args, **kwargs):
            return 2 * super().compute_loss(*args, **kwargs)

    class Stepping(Trainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            return model(**inputs).loss.backward()

    for below, message in (
        (trl.RewardTrainer, r"RewardTrainer.compute_loss has a loss of its own.*with SFTTrainer"),
        (trl.DPOTrainer, r"DPOTrainer.compute_loss .*with SFTTrainer"),
        (GKDTrainer, r"GKDTrainer.compute_loss .*with SFTTrainer"),
        (package.SentenceTransformerTrainer, r"compute_loss .*CrossEncoderLoss\(model"),
        (CrossEncoderTrainer, r"compute_loss .*CrossEncoderLoss\(model"),
        (setfit.Trainer, r"setfit.*is none: set model.model_head.get_loss_fn"),
        (Doubled, r"Doubled.compute_loss .* class Mine\(Doubled, LossMixin, Trainer\)"),
        (MontecloraTrainerMixin, r"class Mine\(MontecloraTrainerMixin, LossMixin, Trainer\)"),
        (Stepping, r"Stepping.training_step does without compute_loss"),
    ):
        bases = (LossMixin, below) if hasattr(below, "train") else (LossMixin, below, Trainer)
        with pytest.raises(ValueError, match=message) as raised:
            type("Mine", bases, {})(model=tiny.bert())
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("fused", [False, True], ids=["logits", "fused"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}],
    ids=["one batch", "accumulated"],
)
def test_dft_has_the_gradients_of_trls_own(settings, fused, tmp_path):
    trl = need("trl")

    class LossSFTTrainer(LossMixin, trl.SFTTrainer):
        pass

    Config = dataclass(type("Config", (trl.SFTConfig, LossTrainingArguments), {}))
    still = USUAL | {"learning_rate": 0.0, "max_grad_norm": 0.0, "save_strategy": "no"} | settings

    def gradients(cls, **loss):
        seen = tiny.Gradients()
        args = Config(str(tmp_path), bf16=False, **(still | loss))
        data = Dataset.from_list(ROWS)
        trainer = cls(
            tiny.causal_lm(),
            args,
            train_dataset=data,
            processing_class=tokenizer(),
            callbacks=[seen],
        )
        trainer.train()
        return seen.steps

    stock = gradients(trl.SFTTrainer, loss_type="dft")
    assert tiny.difference(stock, gradients(LossSFTTrainer, loss="dft", fused_linear=fused)) < 1e-6
    plain = gradients(trl.SFTTrainer, loss_type="nll")
    assert tiny.difference(stock, plain) > 0.1


def test_sft_figures_are_asked_for_only_when_they_are_logged(tmp_path):
    trl = need("trl")

    class LossSFTTrainer(LossMixin, trl.SFTTrainer):
        pass

    model = tiny.causal_lm()
    model.set_attn_implementation("eager")  # Else the model asks whether the mask is all ones.
    trainer = LossSFTTrainer(
        model,
        trl.SFTConfig(str(tmp_path), bf16=False, **USUAL),
        loss="cross_entropy",
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer(),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    model.to("meta")  # Whose tensors have no values.
    batch = {name: tensor.to("meta") for name, tensor in batch.items()}
    for training in (True, False):
        trainer.compute_loss(model.train(training), dict(batch)).backward()
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        trainer.log({"loss": 1.0})


def test_sft_with_another_loss_of_its_own_is_an_error(tmp_path):
    trl = need("trl")
    with pytest.raises(ValueError, match=r"loss_type='dft' asks .*SFTTrainer for another loss"):
        run(
            sides("TRL")[1],
            model=tiny.causal_lm(),
            args=trl.SFTConfig(str(tmp_path), bf16=False, loss_type="dft", **USUAL),
            data=Dataset.from_list([{"text": words(*PROMPTS[0])}]),
            tokenizer=tokenizer(),
            peft_config=None,
        )


def test_the_loss_is_chosen_on_trls_command_line(monkeypatch, tmp_path):
    need("trl")
    command = "sft.py --loss strict_m_power --use_cpu --bf16 false --packing --output_dir".split()
    command += [str(tmp_path), "--loss_kwargs", '{"alpha": 0.3}']
    monkeypatch.setattr(sys, "argv", command)
    _, code = SECTIONS["TRL"][1]
    # A dataclass asks for the module it is in.
    args = run(code, __name__=__name__)["args"]
    assert (args.loss, args.loss_kwargs, args.packing) == ("strict_m_power", {"alpha": 0.3}, True)


# ---- sentence-transformers -----------------------------------------------------------------------


@pytest.fixture
def cross_encoder(tmp_path):
    """Makes a `CrossEncoder` of so many outputs."""
    package = need("sentence_transformers.cross_encoder")

    def make(num_labels):
        tiny.bert(num_labels=num_labels).save_pretrained(tmp_path / "model")
        tokenizer().save_pretrained(tmp_path / "model")
        return package.CrossEncoder(str(tmp_path / "model"), device="cpu")

    return make


def pairs(labels):
    return Dataset.from_list(
        [
            {"one": words(5 + i, 9), "other": words(*range(12, 13 + i)), "label": label}
            for i, label in enumerate(labels)
        ]
    )


def pair_logits(model, data):
    batch = model.tokenizer(list(data["one"]), list(data["other"]), padding=True)
    return model[0].auto_model(**batch.convert_to_tensors("pt")).logits


def train(code, model, data, tmp_path, **settings):
    from sentence_transformers.cross_encoder import CrossEncoderTrainingArguments

    args = CrossEncoderTrainingArguments(str(tmp_path / "out"), **(USUAL | settings))
    return run(code, model=model, reranker=model, args=args, data=data, pairs=data)


def check_saved_and_resumed(code, model, make, data, tmp_path, **settings):
    """Of a training that is over: its checkpoints give the same predictions and weights."""
    from sentence_transformers.cross_encoder import CrossEncoder

    loaded = CrossEncoder(str(tmp_path / "out" / "checkpoint-2"), device="cpu")
    texts = list(zip(data["one"], data["other"], strict=True))
    torch.testing.assert_close(
        loaded.predict(texts, convert_to_tensor=True), model.predict(texts, convert_to_tensor=True)
    )
    again = make(model.num_labels)
    train(resumed(code, str(tmp_path / "out" / "checkpoint-1")), again, data, tmp_path, **settings)
    same(again, model)


@both
@pytest.mark.parametrize("accumulated", [1, 2])
def test_cross_encoder_of_classes(accumulated, changed, steps, tmp_path, cross_encoder):
    model, data = cross_encoder(3), pairs([0, 2, 1, 1, 0, 2, 2, 1])
    settings = {
        "per_device_train_batch_size": 8 // accumulated,
        "gradient_accumulation_steps": accumulated,
    }
    code = sides("CrossEncoder")[changed]
    train(code, model, data, tmp_path, **settings)
    assert len(steps) == 2
    check_saved_and_resumed(code, model, cross_encoder, data, tmp_path, **settings)
    steps[0].back()
    logits, labels = pair_logits(model, data), torch.tensor(data["label"])
    check(steps[0], logits, labels, changed, "strict_m_power", alpha=0.3)


@both
def test_reranker(changed, steps, tmp_path, cross_encoder):
    model, data = cross_encoder(1), pairs([0, 1, 1, 1, 0, 1, 0, 1])
    code = sides("CrossEncoder", 1)[changed]
    train(code, model, data, tmp_path)
    check_saved_and_resumed(code, model, cross_encoder, data, tmp_path)
    steps[0].back()
    logits, labels = pair_logits(model, data).squeeze(-1), torch.tensor(data["label"])
    check(steps[0], logits, labels, changed, "liberal_exp")


def test_cross_encoders_own_model_card_says_what_it_was_trained_with(tmp_path, cross_encoder):
    model = cross_encoder(3)
    train(sides("CrossEncoder")[1], model, pairs([0, 2, 1]), tmp_path, max_steps=1)
    model.save_pretrained(str(tmp_path / "saved"))
    card = ModelCard.load(tmp_path / "saved" / "README.md")
    name = "hf_losses.integrations.cross_encoder.CrossEncoderLoss"
    loss = f"Loss: <code>{name}</code> with these parameters:"
    config = re.search(re.escape(loss) + r"\s+```json(.*?)```", card.text, re.DOTALL)[1]
    assert get_loss(**json.loads(config)).config == {"name": "strict_m_power", "alpha": 0.3}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (paper,) = re.findall(r"```bibtex\n(.*?)\n```", readme, re.DOTALL)
    heading, _, cited = card.text.partition("#### CrossEncoderLoss\n```bibtex\n")
    assert heading
    assert paper in cited
    assert "note   = {strict\\_m\\_power: Noel et al. 2023" in cited
    assert "loss:CrossEncoderLoss" in card.data.tags


def test_cross_encoder_loss_cites_the_paper_only_for_what_is_from_it(cross_encoder):
    from hf_losses.integrations.cross_encoder import CrossEncoderLoss

    model = cross_encoder(1)
    assert "noel2023alternate" in CrossEncoderLoss(model, "smae").citation
    huber = CrossEncoderLoss(model, "huber", delta=2.0)
    assert "Huber 1964" in huber.citation
    assert "noel2023alternate" not in huber.citation
    assert huber.get_config_dict() == {"name": "huber", "delta": 2.0}


@pytest.mark.parametrize(
    ("outputs", "loss", "labels", "stock"),
    [
        (1, "cross_entropy", torch.tensor([1, 0]), F.binary_cross_entropy_with_logits),
        (1, "cross_entropy", torch.tensor([[0.9], [0.2]]), F.binary_cross_entropy_with_logits),
        (1, "mse", torch.tensor([0.9, -3.0]), F.mse_loss),
        (3, "mse", torch.tensor([[0.9, 0.0, 1.0], [0.2, 3.0, -1.0]]), F.mse_loss),
        (3, "cross_entropy", torch.tensor([[2], [0]]), F.cross_entropy),
        # As the collator hands over columns of lists.
        (3, "cross_entropy", [*torch.tensor([[0.5, 0.5, 0.0], [0, 0, 1]])], F.cross_entropy),
    ],
    ids=["yes_no", "probability", "number", "numbers", "classes_in_a_column", "soft"],
)
def test_cross_encoder_loss_takes_the_labels_that_there_are(
    outputs, loss, labels, stock, cross_encoder
):
    from hf_losses.integrations.cross_encoder import CrossEncoderLoss

    model, data = cross_encoder(outputs), pairs([0, 0])
    value = CrossEncoderLoss(model, loss)([list(data["one"]), list(data["other"])], labels)
    logits = pair_logits(model, data)
    target = torch.stack(labels) if isinstance(labels, list) else labels
    if stock is not F.cross_entropy:
        target = target.reshape(logits.shape).float()
    elif target.shape == (2, 1):
        target = target[:, 0]
    torch.testing.assert_close(value, stock(logits, target))


def test_cross_encoder_loss_passes_several_yes_or_no(cross_encoder):
    from hf_losses.integrations.cross_encoder import CrossEncoderLoss

    model, data = cross_encoder(3), pairs([0, 0])
    loss = CrossEncoderLoss(model, "strict_l", problem_type="multi_label_classification")
    labels = torch.tensor([[1, 0, 1], [0, 0, 1]])
    value = loss([list(data["one"]), list(data["other"])], labels)
    torch.testing.assert_close(value, by_hand("strict_l", pair_logits(model, data), labels))


def test_cross_encoder_loss_refuses_what_does_not_fit(cross_encoder, monkeypatch):
    from hf_losses.integrations.cross_encoder import CrossEncoderLoss

    model = cross_encoder(1)
    for message, call in {
        "needs a CrossEncoder, got a Linear": partial(CrossEncoderLoss, torch.nn.Linear(1, 1)),
        "unknown loss 'liberal_ex'": partial(CrossEncoderLoss, model, "liberal_ex"),
        "takes a mean": partial(CrossEncoderLoss, model, reduction="sum"),
        "num_labels=1: leave problem_type out": partial(
            CrossEncoderLoss, model, problem_type="single_label_classification"
        ),
        "weight has 2 entries, one per class, but the model has num_labels=1": partial(
            CrossEncoderLoss, model, weight=[1, 5]
        ),
        "number per class, .* got 'balanced'": partial(CrossEncoderLoss, model, weight="balanced"),
        "labels from 0 to 5 are no yes/no labels": partial(
            CrossEncoderLoss(model), [["w5", "w6"], ["w7", "w8"]], torch.tensor([0.0, 5.0])
        ),
        "two columns .* has 3": partial(CrossEncoderLoss(model), [["a"]] * 3, torch.ones(1)),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
    monkeypatch.setitem(sys.modules, "sentence_transformers.cross_encoder", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-losses\[integrations\]'"):
        CrossEncoderLoss(model)


# ---- SetFit --------------------------------------------------------------------------------------


@both
def test_setfit(changed, steps, tmp_path):
    setfit = need("setfit")
    from sentence_transformers import SentenceTransformer

    body = tmp_path / "body"
    tiny.bert(BertModel).save_pretrained(body)
    tokenizer().save_pretrained(body)
    labels = [0, 1, 2, 0, 1, 2]
    texts = [words(5 + i, *range(20, 21 + i)) for i in range(len(labels))]
    args = setfit.TrainingArguments(
        str(tmp_path / "out"),
        batch_size=(4, 6),
        num_epochs=1,
        max_steps=2,
        body_learning_rate=0.01,
        head_learning_rate=0.1,
        report_to="none",
        save_strategy="steps",
        save_steps=1,
        show_progress_bar=False,
    )
    model = run(
        sides("SetFit")[changed],
        body=str(body),
        args=args,
        data=Dataset.from_dict({"text": texts, "label": labels}),
    )["model"]
    # Checkpoints are of the first phase, the body's; SetFit cannot resume from them.
    of_body = SentenceTransformer(str(tmp_path / "out" / "checkpoint-2"), device="cpu")
    embeddings, expected = (
        m.encode(texts, convert_to_tensor=True) for m in (of_body, model.model_body)
    )
    torch.testing.assert_close(embeddings, expected)

    if changed:
        for loss in (type(get_loss("liberal_exp")), torch.nn.CrossEntropyLoss):
            model.save_pretrained(str(tmp_path / "saved"))
            again = setfit.SetFitModel.from_pretrained(str(tmp_path / "saved"))
            torch.testing.assert_close(again.predict_proba(texts), model.predict_proba(texts))
            assert type(again.model_head.get_loss_fn()) is loss
            model.model_head.__dict__.pop("get_loss_fn", None)
    else:
        model.save_pretrained(str(tmp_path / "saved"))
        again = setfit.SetFitModel.from_pretrained(str(tmp_path / "saved"))
        torch.testing.assert_close(again.predict_proba(texts), model.predict_proba(texts))

    head = set(model.model_head.parameters())
    of_head = [step for step in steps if head <= step.keys()]
    assert 0 < len(of_head) < len(steps)  # The first phase trains the body alone, on pairs.
    of_head[0].back()
    logits = model.model_head(model.model_body.encode(texts, convert_to_tensor=True).clone())[0]
    check(of_head[0], logits, torch.tensor(labels), changed, "liberal_exp")


# ---- Plain loops ---------------------------------------------------------------------------------


def loop(code, rows, batch_size, labels, tmp_path):
    """Two epochs, and the second one again from what was saved after the first.

    Returns the logits as a function of the parameters as they are then.
    """
    torch.manual_seed(1)
    inputs, (before, at, epoch) = torch.randn(rows, 6), code.partition("for inputs, labels")
    loader = DataLoader(TensorDataset(inputs, labels), batch_size)

    def begin(seed):
        torch.manual_seed(seed)
        model = torch.nn.Linear(6, tiny.CLASSES)
        optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9)
        return run(before, model=model, optimizer=optimizer, loader=loader)

    def state(names):
        return {name: names[name].state_dict() for name in ("model", "optimizer")}

    whole, again = begin(0), begin(1)
    exec(at + epoch, whole)
    if "accelerator" in whole:
        whole["accelerator"].save_state(tmp_path)
    else:
        torch.save(state(whole), tmp_path / "state.pt")
    exec(at + epoch, whole)
    if "accelerator" in again:
        again["accelerator"].load_state(tmp_path)
    else:
        saved = torch.load(tmp_path / "state.pt")
        for name, values in saved.items():
            again[name].load_state_dict(values)
    exec(at + epoch, again)
    same(again["model"], whole["model"])
    return lambda: whole["model"](inputs)


LABELS = torch.tensor([2, 0, 1, 1, 0, 2, 2, 0])


@both
def test_pytorch(changed, steps, tmp_path):
    logits = loop(sides("PyTorch")[changed], 8, 4, LABELS, tmp_path)
    assert len(steps) == 3 * 2
    steps[0].back()
    check(steps[0], logits()[:4], LABELS[:4], changed, "strict_m_power", alpha=0.3)


@both
def test_accelerate(changed, steps, tmp_path):
    logits = loop(sides("Accelerate")[changed], 8, 4, LABELS, tmp_path)
    assert len(steps) == 3
    steps[0].back()
    check(steps[0], logits(), LABELS, changed, "liberal_exp")


def test_accelerate_with_unequal_micro_batches(steps, tmp_path):
    labels = LABELS.clone()
    labels[[1, 2, 3]] = -100
    labels = torch.cat([labels, LABELS[:3]])
    _, code = SECTIONS["Accelerate"][1]
    logits = loop(code, 11, 4, labels, tmp_path)
    assert len(steps) == 3 * 2
    steps[1].back()
    check(steps[1], logits()[8:], labels[8:], True, "liberal_exp")  # One micro-batch, of 3 rows.
    steps[0].back()
    check(steps[0], logits()[:8], labels[:8], True, "liberal_exp")
    # The mean of the means of the first two is another gradient.
    means = (by_hand("liberal_exp", logits()[at : at + 4], labels[at : at + 4]) for at in (0, 4))
    assert difference(steps[0], sum(means) / 2) > 0.05


@pytest.mark.slow
def test_accelerate_with_unequal_micro_batches_on_two_processes(tmp_path):
    torch.manual_seed(0)
    inputs, labels = torch.randn(16, 6), torch.cat([LABELS, LABELS])
    labels[[0, 1, 2, 13]] = -100
    weight = torch.nn.Parameter(torch.randn(tiny.CLASSES, 6))
    _, code = SECTIONS["Accelerate"][1]
    torch.save([code, inputs, labels, weight], tmp_path / "given.pt")
    script = """
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

accelerator = Accelerator(cpu=True)
code, inputs, labels, weight = torch.load("given.pt", weights_only=False)
model = torch.nn.Linear(*weight.shape[::-1], bias=False)
model.weight = weight
optimizer = torch.optim.SGD(model.parameters(), 0.0)
steps = []
optimizer.register_step_pre_hook(lambda *_: steps.append(weight.grad.clone()))
loader = DataLoader(TensorDataset(inputs, labels), 4)
names = {"model": model, "optimizer": optimizer, "loader": loader}
exec(code, names)
names["accelerator"].save_state("state")
accelerator.wait_for_everyone()
kept = weight.detach().clone()
weight.data.zero_()
names["accelerator"].load_state("state")
assert torch.equal(weight, kept)
torch.save([steps, accelerator.num_processes], f"{accelerator.process_index}.pt")
accelerator.end_training()
"""
    (tmp_path / "loop.py").write_text(script, encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run([*launch, "loop.py"], cwd=tmp_path, check=True)
    for rank in range(2):
        (gradient,), processes = torch.load(tmp_path / f"{rank}.pt")
        assert processes == 2
        check({weight: gradient}, inputs @ weight.T, labels, True, "liberal_exp")
